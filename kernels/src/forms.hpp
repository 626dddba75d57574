// How matrices and activations lie in memory.
//
// A matrix is cut into tiles of 16 rows, a tile into groups of 32 columns; the scales of 8 groups come
// before their values, so that a product reads memory from one end to the other. Sixteen rows fill one
// vector of float32: every row's sum has a lane of its own and is added up in the order of its columns,
// whatever else is computed beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace smollm3 {

constexpr int ROWS = 16;   // of a tile
constexpr int GROUP = 32;  // columns that share a scale
constexpr int SUPER = 8;   // groups whose scales lie together, and share a unit in the K forms
constexpr int SHARED = 4;  // groups of an activation that share its scale
constexpr int BLOCK = 32;  // tokens in a block of the cache

// How a group's values q become weights.
//   F16   d * (q - zero), zero 8 or 128; d float16
//   F16M  d * q + m; d, m float16                          (Q4_1, Q5_1)
//   K     (d * s) * q - (dmin * m); s, m bytes, d and dmin float16 for 8 groups  (Q4_K, Q5_K)
//   K16   (d * s) * (q - 32); s signed bytes, two for a group, d float16 for 8 groups     (Q6_K)
enum class Scales { F16, F16M, K, K16 };

enum Form : int { F32, BF16, Q4, Q4M, Q4K, Q6, Q8, Q8M, Q8K, FORMS };

enum class Activation : int { F32, BF16, I8 };

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

constexpr bool quantised(Form form) { return form >= Q4; }
constexpr int bits(Form form) {
    return form == F32 ? 32 : form == BF16 ? 16 : form <= Q4K ? 4 : form == Q6 ? 6 : 8;
}
constexpr Scales scales(Form form) {
    return form == Q4M || form == Q8M   ? Scales::F16M
           : form == Q4K || form == Q8K ? Scales::K
           : form == Q6                 ? Scales::K16
                                        : Scales::F16;
}
constexpr Activation activation(Form form) {
    return quantised(form) ? Activation::I8 : form == BF16 ? Activation::BF16 : Activation::F32;
}

constexpr size_t group_values_bytes(Form form) { return size_t(ROWS) * GROUP * bits(form) / 8; }

// Bytes before the values of the next `groups` groups, at most SUPER: whole cache lines.
constexpr size_t scales_bytes(Form form, int groups) {
    if (!quantised(form)) return 0;
    const int n = groups < SUPER ? groups : SUPER;
    const int row = scales(form) == Scales::K      ? 4 + 2 * SUPER
                    : scales(form) == Scales::K16  ? 2 + 2 * SUPER
                    : scales(form) == Scales::F16M ? 4 * n
                                                   : 2 * n;
    return (size_t(ROWS) * row + 63) / 64 * 64;
}

// Where group `g` of `groups` has the scales of its eight, and its values.
constexpr size_t scales_start(Form form, int g) {
    const size_t eight = scales_bytes(form, SUPER) + SUPER * group_values_bytes(form);
    return g / SUPER * eight;
}
constexpr size_t values_start(Form form, int groups, int g) {
    return scales_start(form, g) + scales_bytes(form, groups - g / SUPER * SUPER) +
           g % SUPER * group_values_bytes(form);
}

constexpr size_t tile_bytes(Form form, int groups) {
    return values_start(form, groups, groups - 1) + group_values_bytes(form);
}

// Bytes of one column's group in a panel of activations. I8: 32 values, then as 4 bytes each the
// float32 scale, -8 * sum of values, float32 their sum, and -32 * sum of either half's values.
constexpr int column_group_bytes(Activation kind) {
    return kind == Activation::I8 ? 52 : kind == Activation::BF16 ? 64 : 128;
}

// A matrix in a form; `data` is not owned.
struct Matrix {
    Form form = F32;
    int rows = 0;     // as in the model; tiles are filled up with zeros
    int columns = 0;  // likewise
    const uint8_t* data = nullptr;
    bool paired = false;  // two tiles of this, two of another of its shape, and so on

    int groups() const { return round_up(columns, GROUP) / GROUP; }
    int tiles() const { return round_up(rows, ROWS) / ROWS; }
    size_t bytes() const { return tiles() * tile_bytes(form, groups()); }
    size_t tile_start(int t) const { return (paired ? t / 2 * 4 + t % 2 : t) * tile_bytes(form, groups()); }
    const uint8_t* tile(int t) const { return data + tile_start(t); }
};

// Columns (tokens) are computed in blocks of at most `width`; the last block is as narrow as a kernel
// allows. A panel holds block after block, in it group after group, in it the columns side by side.
struct Panel {
    Activation kind = Activation::F32;
    int columns = 0, groups = 0, width = 1;
    uint8_t* data = nullptr;

    int blocks() const { return (columns + width - 1) / width; }
    int block_columns(int b) const {
        int left = columns - b * width;
        return left < width ? left : width;
    }
    // Narrowest width of a kernel that holds n columns.
    static int kernel_width(int n, int most) {
        for (int w : {1, 2, 4, 6, 8})
            if (w >= n && w <= most) return w;
        return most;
    }
    int block_width(int b) const { return kernel_width(block_columns(b), width); }
    uint8_t* block(int b) const { return data + size_t(b) * width * groups * column_group_bytes(kind); }
    size_t bytes() const { return size_t(blocks()) * width * groups * column_group_bytes(kind); }
};

// A page: keys and values of one kv head for the 32 tokens of a block. Keys are two tiles whose rows
// are tokens; values are tiles whose rows are dimensions and whose columns are the tokens, so scores
// and sums are the same products as a matrix's. I8 values have one scale for each token.
struct PageLayout {
    Form k_form = BF16, v_form = BF16;
    int k_groups = 0, v_columns = 0;  // head size in groups of 32; rounded up to 16
    size_t k_tile_bytes = 0, v_start = 0, v_scales_start = 0, bytes = 0;

    PageLayout() = default;
    PageLayout(Form form, int head_dim)
        : k_form(form), v_form(form), k_groups(round_up(head_dim, GROUP) / GROUP), v_columns(round_up(head_dim, ROWS)) {
        k_tile_bytes = tile_bytes(form, k_groups);
        v_start = BLOCK / ROWS * k_tile_bytes;
        v_scales_start = v_start + v_columns / ROWS * group_values_bytes(form);
        bytes = v_scales_start + (quantised(form) ? BLOCK * sizeof(float) : 0);
    }
};

// Columns (query tokens by heads that share a kv head) over blocks begin..end-1 of one sequence.
struct Attention {
    const PageLayout* page;
    const uint8_t* pages;  // of this layer and kv head; block i is at pages + stride * table[i]
    size_t stride;
    const int32_t* table;
    int begin, end;
    const uint8_t* q;  // packed, `width` columns
    int columns, width;
    const int* positions;  // of each column
    float *most, *total, *o;  // [columns], [columns], [columns][v_columns]: written
};

// The arithmetic, once for each instruction set. Vectors have 16 lanes whatever the machine's width.
struct Isa {
    const char* name;
    int width;  // widest block of columns
    // out[n][16] = tile . column n, n < width
    void (*multiply)(Form, const uint8_t* tile, const uint8_t* columns, int groups, int width, float* out);
    // Write `values` [32 * groups] as column `n` of a block of `width`.
    void (*pack_column)(Activation, const float* values, int groups, int width, int n, uint8_t* block);
    // out = x / rms(x) * weight over n values, a multiple of 16 with zeros beyond `size`
    void (*norm)(const float* x, const float* weight, float* out, int n, int size, float eps);
    void (*rotate)(float* head, const float* cos, const float* sin, int size);  // pairs (i, i + size/2)
    void (*swiglu)(const float* gate, const float* up, float* out, int n);
    void (*add)(float* x, const float* y, int n);
    void (*attend)(const Attention&);
    void (*merge)(float* most, float* total, float* o, float more_most, float more_total, const float* more_o, int n);
    void (*scale)(const float* x, float factor, float* out, int n);
};

const Isa* isa_portable();
const Isa* isa_avx2();
const Isa* isa_avxvnni();
const Isa* isa_neon();
const Isa* isa_neon_i8mm();
const Isa* isa_avx512();
const Isa* isa_avx512bf16();

uint16_t to_bf16(float x);
float from_f16(uint16_t h);
uint16_t to_f16(float x);

}  // namespace smollm3

// Products of every form on one instruction set (-DTABLE=isa_...): the columns of a block of any width
// must have the bits of a column alone; the values go to standard output, for another set's to be held
// against. tests/unit/test_native_emulated.py builds it.
#include <cstdio>
#include <cstring>
#include <vector>

#if EMULATE_DPBUSD
#include <immintrin.h>
// What AVX-VNNI's vpdpbusd does, on AVX2.
static inline __m256i emulated(__m256i sum, __m256i u, __m256i s) {
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8), odd = _mm256_srai_epi16(s, 8);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)), even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(u, 8), odd));
}
#define _mm256_dpbusd_avx_epi32 emulated
#define AVX_VNNI 1
#include "vec_avx2.hpp"
// (after the vectors it is written over)
#include "isa.inl"
ISA_TABLE(isa_avxvnni, "emulated")
#else
#include "forms.hpp"
using namespace smollm3;
#endif

static uint32_t state = 1;
static uint32_t draw() { return (state = state * 1664525u + 1013904223u) >> 8; }

static void half(uint8_t* p, float x) {
    const uint16_t h = to_f16(x);
    memcpy(p, &h, 2);
}

static void fill(Form form, int groups, std::vector<uint8_t>& tile) {
    for (uint8_t& b : tile) b = uint8_t(draw());
    if (!quantised(form)) {
        for (size_t i = 0; i < tile.size(); i += form == F32 ? 4 : 2) {
            const float x = float(int(draw() % 2001) - 1000) / 1000;
            const uint16_t b = to_bf16(x);
            if (form == F32) memcpy(&tile[i], &x, 4);
            else memcpy(&tile[i], &b, 2);
        }
        return;
    }
    for (int g = 0; g < groups; g++) {
        if (form == Q8M || form == Q8K)  // five bits
            for (size_t i = 0; i < group_values_bytes(form); i++) tile[values_start(form, groups, g) + i] &= 31;
        if (g % SUPER) continue;
        uint8_t* p = &tile[scales_start(form, g)];
        const size_t bytes = scales_bytes(form, groups - g);
        const size_t halves = scales(form) == Scales::K ? 64 : scales(form) == Scales::K16 ? 32 : bytes;
        for (size_t i = 0; i < halves; i += 2) half(p + i, float(draw() % 1000) / 50000 + 0.01f);
    }
}

int main() {
    const Isa* isa = TABLE();
    const int groups = 21;  // not whole eights, nor whole fours
    for (int f = 0; f < FORMS; f++) {
        const Form form = Form(f);
        std::vector<uint8_t> tile(tile_bytes(form, groups) + 8192);
        fill(form, groups, tile);
        std::vector<std::vector<float>> values(8, std::vector<float>(groups * GROUP));
        for (auto& column : values)
            for (float& x : column) x = float(int(draw() % 2001) - 1000) / 700;
        for (float& x : values[0]) x = 1.0f;  // the largest sums: every activation 127
        if (f != F32 && f != BF16 && form != Q8M && form != Q8K)
            for (int g = 0; g < groups / 2; g++)
                memset(&tile[values_start(form, groups, g)], 255, group_values_bytes(form));
        std::vector<float> alone(8 * ROWS);
        std::vector<uint8_t> block(8 * groups * 128);
        for (int width : {1, 2, 4, 6, 8}) {
            if (width > isa->width) break;
            float out[8 * ROWS];
            for (int first = 0; first < 8; first += width) {
                const int count = first + width > 8 ? 8 - first : width;
                for (int n = 0; n < count; n++)
                    isa->pack_column(activation(form), values[first + n].data(), groups, width, n, block.data());
                isa->multiply(form, tile.data(), block.data(), groups, width, out);
                if (width == 1) memcpy(&alone[first * ROWS], out, ROWS * 4);
                if (memcmp(&alone[first * ROWS], out, count * ROWS * 4)) {
                    fprintf(stderr, "%s: form %d: %d columns are not one column eight times\n", isa->name, f, width);
                    return 1;
                }
            }
        }
        for (float x : alone) printf("%.9g\n", double(x));
    }
}

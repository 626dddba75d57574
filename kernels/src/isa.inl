// The kernels, written once over sixteen lanes and compiled for each instruction set: the including
// file picks a vec_*.hpp first. Everything is added up in a fixed order, and products that are added
// are fused or not by what is written here (-ffp-contract=off).
#include "multiply.inl"

namespace {

// e^x: x = n ln 2 + r, a polynomial of degree 6 in r (Cephes). Below -87 as at -87, so never denormal.
inline F exponential(F x) {
    x = minimum(maximum(x, set1(-87.0f)), set1(88.0f));
    I n = to_int(mul(x, set1(1.44269504f)));
    F k = to_float(n);
    F r = fma(k, set1(-0.693359375f), x);
    r = fma(k, set1(2.12194440e-4f), r);
    F p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    return scale2(add(fma(mul(r, r), p, r), set1(1.0f)), n);
}

float exponential_one(float x) {
    alignas(64) float lanes[ROWS];
    store(lanes, exponential(set1(x)));
    return lanes[0];
}

void norm(const float* x, const float* weight, float* out, int n, int size, float eps) {
    F squares = zero();
    for (int i = 0; i < n; i += 16) squares = fma(load(x + i), load(x + i), squares);
    float scale = 1.0f / __builtin_sqrtf(sum(squares) / float(size) + eps);
    for (int i = 0; i < n; i += 16) store(out + i, mul(mul(load(x + i), set1(scale)), load(weight + i)));
}

void rotate(float* head, const float* cos, const float* sin, int size) {
    int half = size / 2, i = 0;
    for (; i + 16 <= half; i += 16) {
        F a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
        store(head + i, sub(mul(a, c), mul(b, s)));
        store(head + half + i, add(mul(b, c), mul(a, s)));
    }
    for (; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cos[i] - b * sin[i];
        head[half + i] = b * cos[i] + a * sin[i];
    }
}

void swiglu(const float* gate, const float* up, float* out, int n) {
    for (int i = 0; i < n; i += 16) {
        F g = load(gate + i);
        F sigmoid = div(set1(1.0f), add(set1(1.0f), exponential(negative(g))));
        store(out + i, mul(mul(g, sigmoid), load(up + i)));
    }
}

void add_to(float* x, const float* y, int n) {
    for (int i = 0; i < n; i += 16) store(x + i, add(load(x + i), load(y + i)));
}

// Softmax over one block of the cache, continued: scores are in two tiles [16 tokens][columns] lane by
// lane; `weights` [columns][32] gets e^(score - most), `factor` what earlier sums must be scaled by.
void softmax(const float* early, const float* late, const int* visible, int columns, float* most, float* total,
             float* factor, float* weights) {
    const F minus = set1(-__builtin_inff());
    for (int n = 0; n < columns; n++, early += ROWS, late += ROWS, weights += BLOCK) {
        if (visible[n] <= 0) {
            store(weights, zero());
            store(weights + 16, zero());
            factor[n] = 1.0f;
            continue;
        }
        int more = visible[n] > 16 ? visible[n] - 16 : 0;
        F a = first(visible[n], load(early), minus), b = first(more, load(late), minus);
        float top = largest(maximum(a, b));
        if (top > most[n]) {
            factor[n] = most[n] == -__builtin_inff() ? 0.0f : exponential_one(most[n] - top);
            most[n] = top;
        } else {
            factor[n] = 1.0f;
        }
        a = first(visible[n], exponential(sub(a, set1(most[n]))), zero());
        b = first(more, exponential(sub(b, set1(most[n]))), zero());
        total[n] = total[n] * factor[n] + sum(add(a, b));
        store(weights, a);
        store(weights + 16, b);
    }
}

// Weights times the values' own scales, as 14 bits: a column of the upper 7 and one of the lower 7.
void pack_split(const float* weights, const float* value_scales, int width, int n, uint8_t* upper, uint8_t* lower) {
    F a = mul(load(weights), load(value_scales)), b = mul(load(weights + 16), load(value_scales + 16));
    float most = largest(maximum(a, b));
    float inverse = most > 0 ? 16256.0f / most : 0.0f;  // 127 * 128
    alignas(64) int32_t q[BLOCK];
    I qa = to_int(mul(a, set1(inverse))), qb = to_int(mul(b, set1(inverse)));
    memcpy(q, &qa, 64);
    memcpy(q + 16, &qb, 64);
    for (int i = 0; i < BLOCK; i++) {
        upper[32 * n + i] = uint8_t(q[i] >> 7);
        lower[32 * n + i] = uint8_t(q[i] & 127);
    }
    float unit = most / 16256.0f, scales_of[2] = {unit * 128.0f, unit};
    uint8_t* blocks[2] = {upper, lower};
    for (int part = 0; part < 2; part++) {
        uint8_t* p = blocks[part] + 4 * n;
        memcpy(p + 32 * width, &scales_of[part], 4);
        store_sums((const int8_t*)blocks[part] + 32 * n, p + 36 * width, p + 40 * width, p + 44 * width,
                   p + 48 * width);
    }
}

void attend(const Attention& a) {
    alignas(64) float scores[2][WIDTH * ROWS], product[WIDTH * ROWS], weights[WIDTH * BLOCK], factor[WIDTH];
    alignas(64) uint8_t packed[2][WIDTH * 128] = {};
    alignas(64) static const struct Ones {
        uint16_t one[ROWS];
        Ones() { for (auto& o : one) o = 0x3c00; }
    } ones;
    int visible[WIDTH];
    const PageLayout& page = *a.page;
    const bool split = page.v_form == Q8;
    const Activation kind = activation(page.v_form);
    for (int n = 0; n < a.columns; n++) {
        a.most[n] = -__builtin_inff();
        a.total[n] = 0;
    }
    memset(a.o, 0, sizeof(float) * a.columns * page.v_columns);
    for (int block = a.begin; block < a.end; block++) {
        const uint8_t* k = a.pages + a.stride * a.table[block];
        const uint8_t* v = k + page.v_start;
        for (int half = 0; half < 2; half++) {
            const uint8_t* tile = k + half * page.k_tile_bytes;
            multiply(page.k_form, tile, a.q, page.k_groups, a.width, scores[half]);
        }
        for (int n = 0; n < a.columns; n++) {
            int seen = a.positions[n] + 1 - block * BLOCK;
            visible[n] = seen < 0 ? 0 : seen > BLOCK ? BLOCK : seen;
        }
        softmax(scores[0], scores[1], visible, a.columns, a.most, a.total, factor, weights);
        for (int n = 0; n < a.columns; n++) {
            const float* column = weights + BLOCK * n;
            if (split) pack_split(column, (const float*)(k + page.v_scales_start), a.width, n, packed[0], packed[1]);
            else pack_column(kind, column, 1, a.width, n, packed[0]);
        }
        for (int t = 0; t < page.v_columns / ROWS; t++, v += group_values_bytes(page.v_form)) {
            for (int part = 0; part <= split; part++) {
                multiply_by(page.v_form, v, (const uint8_t*)&ones, packed[part], 1, a.width, product);
                for (int n = 0; n < a.columns; n++) {
                    float* o = a.o + n * page.v_columns + ROWS * t;
                    F old = part ? load(o) : mul(load(o), set1(factor[n]));
                    store(o, add(old, load(product + ROWS * n)));
                }
            }
        }
    }
}

// Fold one stretch of the cache into what was before it.
void merge(float* most, float* total, float* o, float more_most, float more_total, const float* more_o, int n) {
    float top = *most > more_most ? *most : more_most;
    float old_factor = *most == -__builtin_inff() ? 0.0f : exponential_one(*most - top);
    float factor = more_most == -__builtin_inff() ? 0.0f : exponential_one(more_most - top);
    *most = top;
    *total = *total * old_factor + more_total * factor;
    for (int i = 0; i < n; i += 16)
        store(o + i, add(mul(load(o + i), set1(old_factor)), mul(load(more_o + i), set1(factor))));
}

void scale(const float* x, float factor, float* out, int n) {
    for (int i = 0; i < n; i += 16) store(out + i, mul(load(x + i), set1(factor)));
}

}  // namespace

#define ISA_TABLE(function, label)                                                                             \
    const smollm3::Isa* smollm3::function() {                                                                  \
        static const Isa isa{label,  WIDTH,  multiply, pack_column, norm, rotate,                              \
                             swiglu, add_to, attend,   merge,       scale};                                    \
        return &isa;                                                                                           \
    }

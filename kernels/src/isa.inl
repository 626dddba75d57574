// The kernels, written once over sixteen lanes and compiled for each instruction set: the including
// file picks a vec_*.hpp first. Everything is added up in a fixed order, and products that are added
// are fused or not by what is written here (-ffp-contract=off).
#include <cstring>

#include "forms.hpp"

namespace {

using namespace smollm3;

template <typename T>
inline T at(const uint8_t* p, int i) {
    T x;
    memcpy(&x, p + i * sizeof(T), sizeof(T));
    return x;
}

// Scales of one group, row by row: weights are scale * q + shift.
template <Scales KIND>
struct GroupScales {
    const uint8_t* next = nullptr;
    F unit{}, shift_unit{}, scale{}, shift{};

    inline void begin_eight(const uint8_t* p) {
        next = p;
        if constexpr (KIND == Scales::K) {
            unit = load_f16(next);
            shift_unit = negative(load_f16(next + 2 * ROWS));
            next += 4 * ROWS;
        }
    }
    inline void read() {
        if constexpr (KIND == Scales::K) {
            scale = mul(unit, load_u8(next));
            shift = mul(shift_unit, load_u8(next + ROWS));
            next += 2 * ROWS;
        } else {
            scale = load_f16(next);
            next += 2 * ROWS;
            if constexpr (KIND == Scales::F16M) {
                shift = load_f16(next);
                next += 2 * ROWS;
            }
        }
    }
};

// With few columns memory decides, and one core's own prefetch does not reach far enough.
constexpr int AHEAD = 3072;
template <int N>
inline void prefetch(const uint8_t* w) {
    if constexpr (N <= 4) __builtin_prefetch(w + AHEAD);
}

// Sums of a group of bytes; those of the forms with a shift are five bits, taken as q - 16. In 16 bits
// 32 products of 8 bits by 8 do not fit: there the upper and the lower nibbles are summed apart,
// (16 h + l - 128) x = 16 (h - 8) x + l x.
template <Scales KIND, int N>
inline void dot_bytes(const uint8_t* w, const uint8_t* x, const uint8_t* x_less8, I* dot) {
    constexpr bool NIBBLES = IN_PAIRS && KIND == Scales::F16;
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
        const I less8 = start(x_less8 + 4 * n);
        dot[n] = KIND != Scales::F16 ? twice(less8) : NIBBLES ? less8 : start_of_bytes(less8);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        W values = load_w(w + 64 * j);
        prefetch<N>(w + 64 * j);
        if constexpr (NIBBLES) values = high(values);
        else if constexpr (KIND == Scales::F16) values = as_bytes(values);
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) dot[n] = dot4(dot[n], values, x + 4 * j + 32 * n);
    }
    if constexpr (NIBBLES) {
        I upper[N];
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) upper[n] = times16(whole(dot[n])), dot[n] = izero();
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const W values = low(load_w(w + 64 * j));
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) dot[n] = dot4(dot[n], values, x + 4 * j + 32 * n);
        }
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) dot[n] = iadd(upper[n], whole(dot[n]));
    } else {
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) dot[n] = whole(dot[n]);
    }
}

// `shared`: where not null the scales of every eight groups, and the tile holds none.
template <Form FORM, int N>
void multiply_quantised(const uint8_t* w, const uint8_t* shared, const uint8_t* x, int groups, float* out) {
    constexpr Scales KIND = scales(FORM);
    constexpr bool FOUR = bits(FORM) == 4;
    GroupScales<KIND> s;
    F total[N], part[N] = {};
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) total[n] = zero();
    for (int g = 0; g < groups; g++) {
        if (g % SUPER == 0) {
            s.begin_eight(shared ? shared : w);
            if (!shared) {
                const size_t bytes = scales_bytes(FORM, groups - g);
                for (size_t i = 0; i < bytes; i += 64) prefetch<N>(w + i);
                w += bytes;
            }
        }
        const uint8_t *x_scale = x + 32 * N, *x_less8 = x + 36 * N, *x_sum = x + 40 * N;
        I dot[N];
        if constexpr (FOUR) {
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) dot[n] = KIND == Scales::F16 ? start(x_less8 + 4 * n) : izero();
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const W values = load_w(w + 64 * j);
                prefetch<N>(w + 64 * j);
                const W lo = low(values);
#pragma GCC unroll 16
                for (int n = 0; n < N; n++) dot[n] = dot4(dot[n], lo, x + 4 * j + 32 * n);
                const W hi = high(values);
#pragma GCC unroll 16
                for (int n = 0; n < N; n++) dot[n] = dot4(dot[n], hi, x + 4 * j + 32 * n + 16);
            }
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) dot[n] = whole(dot[n]);
        } else {
            dot_bytes<KIND, N>(w, x, x_less8, dot);
        }
        s.read();
        if constexpr (!FOUR && KIND != Scales::F16) s.shift = fma(set1(16.0f), s.scale, s.shift);
        if (g % SHARED == 0) {
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) part[n] = mul(to_float(dot[n]), s.scale);
        } else {
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) part[n] = fma(to_float(dot[n]), s.scale, part[n]);
        }
        if constexpr (KIND != Scales::F16) {
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) part[n] = fma(set1(at<float>(x_sum, n)), s.shift, part[n]);
        }
        if (g % SHARED == SHARED - 1 || g == groups - 1) {
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) total[n] = fma(part[n], set1(at<float>(x_scale, n)), total[n]);
        }
        w += group_values_bytes(FORM);
        x += column_group_bytes(Activation::I8) * N;
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) store(out + ROWS * n, total[n]);
}

// Six bits: nibbles as in the 4-bit forms, then their upper pairs of bits, those of either half in 64
// bytes. Each half of a group has a scale.
template <int N>
void multiply_q6(const uint8_t* w, const uint8_t* x, int groups, float* out) {
    F total[N], part[N] = {}, unit{};
    const uint8_t* scale_bytes = nullptr;
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) total[n] = zero();
    for (int g = 0; g < groups; g++) {
        if (g % SUPER == 0) {
            unit = load_f16(w);
            scale_bytes = w + 2 * ROWS;
            const size_t bytes = scales_bytes(Q6, groups - g);
            for (size_t i = 0; i < bytes; i += 64) prefetch<N>(w + i);
            w += bytes;
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const uint8_t* x_less32 = x + (44 + 4 * half) * N;
            const W pairs = load_w(w + 256 + 64 * half);
            prefetch<N>(w + 256 + 64 * half);
            I dot[N];
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) dot[n] = start(x_less32 + 4 * n);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const W nibbles = load_w(w + 64 * j);
                if (!half) prefetch<N>(w + 64 * j);
                const W values = with_pair(half ? high(nibbles) : low(nibbles), pairs, j);
#pragma GCC unroll 16
                for (int n = 0; n < N; n++) dot[n] = dot4(dot[n], values, x + 32 * n + 16 * half + 4 * j);
            }
            const F scale = mul(unit, load_i8(scale_bytes));
            scale_bytes += ROWS;
            if (g % SHARED == 0 && half == 0) {
#pragma GCC unroll 16
                for (int n = 0; n < N; n++) part[n] = mul(to_float(whole(dot[n])), scale);
            } else {
#pragma GCC unroll 16
                for (int n = 0; n < N; n++) part[n] = fma(to_float(whole(dot[n])), scale, part[n]);
            }
        }
        if (g % SHARED == SHARED - 1 || g == groups - 1) {
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) total[n] = fma(part[n], set1(at<float>(x + 32 * N, n)), total[n]);
        }
        w += group_values_bytes(Q6);
        x += column_group_bytes(Activation::I8) * N;
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) store(out + ROWS * n, total[n]);
}

#if DOT2_BY_FMA
inline F dot2(F acc, W w, const uint8_t* p) {
    uint32_t two;
    memcpy(&two, p, 4);
    uint32_t even = two << 16, odd = two & 0xffff0000u;
    float x0, x1;
    memcpy(&x0, &even, 4);
    memcpy(&x1, &odd, 4);
    return fma(bf16_odd(w), set1(x1), fma(bf16_even(w), set1(x0), acc));
}
#endif

template <int N>
void multiply_bf16(const uint8_t* w, const uint8_t* x, int groups, float* out) {
    F total[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) total[n] = zero();
    for (int g = 0; g < groups; g++) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) {
            W values = load_w(w + 64 * j);
            prefetch<N>(w + 64 * j);
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) total[n] = dot2(total[n], values, x + 64 * n + 4 * j);
        }
        w += group_values_bytes(BF16);
        x += 64 * N;
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) store(out + ROWS * n, total[n]);
}

template <int N>
void multiply_f32(const uint8_t* w, const uint8_t* x, int groups, float* out) {
    F total[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) total[n] = zero();
    for (int g = 0; g < groups; g++) {
        for (int j = 0; j < GROUP; j++) {
            F values = load((const float*)(w + 64 * j));
            prefetch<N>(w + 64 * j);
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) total[n] = fma(values, set1(at<float>(x + 128 * n, j)), total[n]);
        }
        w += group_values_bytes(F32);
        x += 128 * N;
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) store(out + ROWS * n, total[n]);
}

template <int N>
void multiply_n(Form form, const uint8_t* w, const uint8_t* shared, const uint8_t* x, int groups, float* out) {
    switch (form) {
        case F32: return multiply_f32<N>(w, x, groups, out);
        case BF16: return multiply_bf16<N>(w, x, groups, out);
        case Q4: return multiply_quantised<Q4, N>(w, shared, x, groups, out);
        case Q4M: return multiply_quantised<Q4M, N>(w, shared, x, groups, out);
        case Q4K: return multiply_quantised<Q4K, N>(w, shared, x, groups, out);
        case Q6: return multiply_q6<N>(w, x, groups, out);
        case Q8: return multiply_quantised<Q8, N>(w, shared, x, groups, out);
        case Q8M: return multiply_quantised<Q8M, N>(w, shared, x, groups, out);
        case Q8K: return multiply_quantised<Q8K, N>(w, shared, x, groups, out);
        case FORMS: break;
    }
}

void multiply_by(Form form, const uint8_t* w, const uint8_t* shared, const uint8_t* x, int groups, int width,
                 float* out) {
    switch (width) {
        case 1: return multiply_n<1>(form, w, shared, x, groups, out);
        case 2: return multiply_n<2>(form, w, shared, x, groups, out);
        case 4:
            if constexpr (WIDTH >= 4) return multiply_n<4>(form, w, shared, x, groups, out);
            break;
        case 6:
            if constexpr (WIDTH >= 6) return multiply_n<6>(form, w, shared, x, groups, out);
            break;
        case 8:
            if constexpr (WIDTH >= 8) return multiply_n<8>(form, w, shared, x, groups, out);
            break;
    }
}

void multiply(Form form, const uint8_t* tile, const uint8_t* x, int groups, int width, float* out) {
    multiply_by(form, tile, nullptr, x, groups, width, out);
}

void pack_i8(const float* v, int groups, int width, int n, uint8_t* block) {
    F most = zero();
    for (int i = 0; i < groups * GROUP; i += 16) most = maximum(most, absolute(load(v + i)));
    const float peak = largest(most), scale = peak / 127.0f, inverse = peak > 0 ? 127.0f / peak : 0.0f;
    for (int g = 0; g < groups; g++, v += GROUP, block += column_group_bytes(Activation::I8) * width) {
        I a = to_int(mul(load(v), set1(inverse))), b = to_int(mul(load(v + 16), set1(inverse)));
        int8_t* q = (int8_t*)block + 32 * n;
        store_i8(q, a);
        store_i8(q + 16, b);
        memcpy(block + 32 * width + 4 * n, &scale, 4);
        store_sums(q, block + 36 * width + 4 * n, block + 40 * width + 4 * n, block + 44 * width + 4 * n,
                   block + 48 * width + 4 * n);
    }
}

void pack_column(Activation kind, const float* v, int groups, int width, int n, uint8_t* block) {
    const int step = width * column_group_bytes(kind);
    if (kind == Activation::I8) {
        for (int g = 0; g < groups; g += SHARED)
            pack_i8(v + g * GROUP, groups - g < SHARED ? groups - g : SHARED, width, n, block + g * step);
        return;
    }
    for (int g = 0; g < groups; g++, v += GROUP, block += step) {
        if (kind == Activation::F32) {
            memcpy(block + 128 * n, v, 128);
        } else {
            store_bf16(block + 64 * n, load(v));
            store_bf16(block + 64 * n + 32, load(v + 16));
        }
    }
}

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

// Products of packed weights and packed columns, one for each form; a part of isa.inl.
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

#ifndef SQUARES
#define SQUARES 0
#endif
// Where an instruction multiplies two rows by two tokens: add what J loads of four columns come to, whose
// values `of` makes from a load and its number.
template <int N, int J, typename Of>
inline void dot_squares([[maybe_unused]] I* dot, [[maybe_unused]] const uint8_t* x, [[maybe_unused]] const uint8_t* w,
                        [[maybe_unused]] Of of) {
#if SQUARES
    Squares sums[N / 2];
#pragma GCC unroll 16
    for (int n = 0; n < N / 2; n++) sums[n] = no_squares();
#pragma GCC unroll 8
    for (int j = 0; j < J; j += 2) {
        const Eights eight = eights(of(load_w(w + 64 * j), j), of(load_w(w + 64 * j + 64), j + 1));
        prefetch<N>(w + 64 * j);
        prefetch<N>(w + 64 * j + 64);
#pragma GCC unroll 16
        for (int n = 0; n < N / 2; n++) sums[n] = dot8(sums[n], eight, x + 4 * j + 64 * n, x + 4 * j + 64 * n + 32);
    }
#pragma GCC unroll 16
    for (int n = 0; n < N / 2; n++) {
        dot[2 * n] = iadd(dot[2 * n], of_x(sums[n]));
        dot[2 * n + 1] = iadd(dot[2 * n + 1], of_y(sums[n]));
    }
#endif
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
    if constexpr (SQUARES && N > 1) {
        dot_squares<N, 8>(dot, x, w, [](W bytes, int) { return KIND == Scales::F16 ? as_bytes(bytes) : bytes; });
        return;
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
            if constexpr (SQUARES && N > 1) {
                dot_squares<N, 4>(dot, x, w, [](W nibbles, int) { return low(nibbles); });
                dot_squares<N, 4>(dot, x + 16, w, [](W nibbles, int) { return high(nibbles); });
            } else {
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
            if constexpr (SQUARES && N > 1) {
                dot_squares<N, 4>(dot, x + 16 * half, w, [&](W nibbles, int j) {
                    return with_pair(half ? high(nibbles) : low(nibbles), pairs, j);
                });
            } else {
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    const W nibbles = load_w(w + 64 * j);
                    if (!half) prefetch<N>(w + 64 * j);
                    const W values = with_pair(half ? high(nibbles) : low(nibbles), pairs, j);
#pragma GCC unroll 16
                    for (int n = 0; n < N; n++) dot[n] = dot4(dot[n], values, x + 32 * n + 16 * half + 4 * j);
                }
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

}  // namespace

// Sixteen lanes in four registers of 64-bit ARM, whose `sdot` adds up four products of signed bytes, and
// with the extension i8mm `smmla` eight for each of two rows and two columns.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace {

struct F {
    float32x4_t v[4];
};
struct I {
    int32x4_t v[4];
};
struct W {
    uint8x16_t v[4];
};

constexpr int WIDTH = 4;  // 16 sums, 4 of a shared scale at a time, 4 of weights: 32 registers

template <typename T, typename Each>
inline T lanes(Each each) {
    return {each(0), each(1), each(2), each(3)};
}
inline F zero() {
    return lanes<F>([](int) { return vdupq_n_f32(0); });
}
inline F set1(float x) {
    return lanes<F>([&](int) { return vdupq_n_f32(x); });
}
inline F load(const float* p) {
    return lanes<F>([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float* p, F x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
inline F load_f16(const uint8_t* p) {
    return lanes<F>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * i))); });
}
inline F load_u8(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t half[2] = {vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)};
    return lanes<F>([&](int i) {
        return vcvtq_f32_u32(i % 2 ? vmovl_high_u16(half[i / 2]) : vmovl_u16(vget_low_u16(half[i / 2])));
    });
}
inline F load_i8(const uint8_t* p) {
    const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(p));
    const int16x8_t half[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)};
    return lanes<F>([&](int i) {
        return vcvtq_f32_s32(i % 2 ? vmovl_high_s16(half[i / 2]) : vmovl_s16(vget_low_s16(half[i / 2])));
    });
}
inline F add(F a, F b) {
    return lanes<F>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline F sub(F a, F b) {
    return lanes<F>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline F mul(F a, F b) {
    return lanes<F>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline F div(F a, F b) {
    return lanes<F>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline F fma(F a, F b, F c) {
    return lanes<F>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline F maximum(F a, F b) {
    return lanes<F>([&](int i) { return vmaxq_f32(a.v[i], b.v[i]); });
}
inline F minimum(F a, F b) {
    return lanes<F>([&](int i) { return vminq_f32(a.v[i], b.v[i]); });
}
inline F absolute(F x) {
    return lanes<F>([&](int i) { return vabsq_f32(x.v[i]); });
}
inline F negative(F x) { return sub(zero(), x); }
inline float sum(F x) { return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[1]), vaddq_f32(x.v[2], x.v[3]))); }
inline float largest(F x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3]))); }
// Lanes before `count` from a, the others from b.
inline F first(int count, F a, F b) {
    static const int32_t numbers[4] = {0, 1, 2, 3};
    const int32x4_t number = vld1q_s32(numbers);
    return lanes<F>([&](int i) {
        return vbslq_f32(vcltq_s32(number, vdupq_n_s32(count - 4 * i)), a.v[i], b.v[i]);
    });
}

inline I izero() {
    return lanes<I>([](int) { return vdupq_n_s32(0); });
}
inline I iset1(int x) {
    return lanes<I>([&](int) { return vdupq_n_s32(x); });
}
inline I times16(I x) {
    return lanes<I>([&](int i) { return vshlq_n_s32(x.v[i], 4); });
}
inline F to_float(I x) {
    return lanes<F>([&](int i) { return vcvtq_f32_s32(x.v[i]); });
}
inline I to_int(F x) {  // to nearest, ties to even
    return lanes<I>([&](int i) { return vcvtnq_s32_f32(x.v[i]); });
}
inline I iadd(I x, I y) {
    return lanes<I>([&](int i) { return vaddq_s32(x.v[i], y.v[i]); });
}
inline void store_i8(int8_t* p, I x) {
    for (int i = 0; i < 4; i += 2) {
        const int16x8_t both = vcombine_s16(vqmovn_s32(x.v[i]), vqmovn_s32(x.v[i + 1]));
        vst1_s8(p + 4 * i, vqmovn_s16(both));
    }
}
// x * 2^n for n in the range of normal numbers
inline F scale2(F x, I n) {
    return lanes<F>([&](int i) {
        return vmulq_f32(x.v[i], vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23)));
    });
}

inline W load_w(const uint8_t* p) {
    return lanes<W>([&](int i) { return vld1q_u8(p + 16 * i); });
}
inline W low(W w) {
    return lanes<W>([&](int i) { return vandq_u8(w.v[i], vdupq_n_u8(15)); });
}
inline W high(W w) {
    return lanes<W>([&](int i) { return vshrq_n_u8(w.v[i], 4); });
}
// Nibbles with the j-th pair of each byte's bits above them.
inline W with_pair(W nibbles, W pairs, int j) {
    const int8x16_t shift = vdupq_n_s8(int8_t(4 - 2 * j));
    return lanes<W>([&](int i) {
        return vorrq_u8(nibbles.v[i], vandq_u8(vshlq_u8(pairs.v[i], shift), vdupq_n_u8(0x30)));
    });
}
// Sums of products of bytes are whole in every lane from the start. `sdot` wants signed bytes: all but
// those of 8 bits are small, and of those q - 128 is one.
constexpr bool IN_PAIRS = false;
inline I start(const uint8_t* less) {
    int32_t x;
    __builtin_memcpy(&x, less, 4);
    return iset1(x);
}
inline I whole(I x) { return x; }
inline I twice(I x) { return iadd(x, x); }
inline I start_of_bytes(I) { return izero(); }
inline W as_bytes(W w) {
    return lanes<W>([&](int i) { return veorq_u8(w.v[i], vdupq_n_u8(0x80)); });
}
inline I dot4(I acc, W w, const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    return lanes<I>([&](int i) { return vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), x); });
}
#ifdef __ARM_FEATURE_MATMUL_INT8
#define SQUARES 1
// Eight columns of weights: of rows 0 and 1, of 2 and 3, ...
struct Eights {
    int8x16_t v[8];
};
// Sums of two tokens, x and y: row 0 by x, row 0 by y, row 1 by x, row 1 by y; rows 2 and 3; ...
struct Squares {
    int32x4_t v[8];
};
inline Squares no_squares() {
    Squares s;
    for (int32x4_t& v : s.v) v = vdupq_n_s32(0);
    return s;
}
inline Eights eights(W a, W b) {
    Eights e;
    for (int i = 0; i < 4; i++) {
        const int32x4_t first = vreinterpretq_s32_u8(a.v[i]), second = vreinterpretq_s32_u8(b.v[i]);
        e.v[2 * i] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        e.v[2 * i + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    }
    return e;
}
inline Squares dot8(Squares acc, const Eights& w, const uint8_t* x, const uint8_t* y) {
    const int8x16_t both = vreinterpretq_s8_u8(vcombine_u8(vld1_u8(x), vld1_u8(y)));
    for (int i = 0; i < 8; i++) acc.v[i] = vmmlaq_s32(acc.v[i], w.v[i], both);
    return acc;
}
inline I of_x(const Squares& s) {
    return lanes<I>([&](int i) { return vuzp1q_s32(s.v[2 * i], s.v[2 * i + 1]); });
}
inline I of_y(const Squares& s) {
    return lanes<I>([&](int i) { return vuzp2q_s32(s.v[2 * i], s.v[2 * i + 1]); });
}
#endif
// Of 32 values: what sums of q - 8 start with, their sum as float32, and what those of q - 32 start
// with in either half.
inline void store_sums(const int8_t* q, uint8_t* less8, uint8_t* sum, uint8_t* less32, uint8_t* second_less32) {
    const int first = vaddlvq_s8(vld1q_s8(q)), second = vaddlvq_s8(vld1q_s8(q + 16));
    const int eight = -8 * (first + second), half = -32 * first, other = -32 * second;
    const float total = float(first + second);
    __builtin_memcpy(less8, &eight, 4);
    __builtin_memcpy(sum, &total, 4);
    __builtin_memcpy(less32, &half, 4);
    __builtin_memcpy(second_less32, &other, 4);
}

inline F bf16_even(W w) {
    return lanes<F>([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(w.v[i]), 16)); });
}
inline F bf16_odd(W w) {
    return lanes<F>([&](int i) {
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(w.v[i]), vdupq_n_u32(0xffff0000u)));
    });
}
#define DOT2_BY_FMA 1
inline void store_bf16(uint8_t* p, F x) {  // finite x; to nearest, ties to even
    for (int i = 0; i < 4; i++) {
        const uint32x4_t b = vreinterpretq_u32_f32(x.v[i]);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(b, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(b, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        vst1_u8(p + 8 * i, vreinterpret_u8_u16(vshrn_n_u32(rounded, 16)));
    }
}

}  // namespace

// Sixteen lanes by the compiler's vector extension: what any machine can do.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "forms.hpp"

namespace {

using F = float __attribute__((vector_size(64)));
using I = int32_t __attribute__((vector_size(64)));
using W = I;

constexpr int WIDTH = 4;

template <typename T>
inline T read(const void* p) {
    T x;
    memcpy(&x, p, sizeof x);
    return x;
}
inline F zero() { return F{}; }
inline F set1(float x) { return F{} + x; }
inline F load(const float* p) { return read<F>(p); }
inline void store(float* p, F x) { memcpy(p, &x, sizeof x); }
inline F load_f16(const uint8_t* p) {
    F x;
    for (int i = 0; i < 16; i++) x[i] = smollm3::from_f16(read<uint16_t>(p + 2 * i));
    return x;
}
inline F load_u8(const uint8_t* p) {
    F x;
    for (int i = 0; i < 16; i++) x[i] = p[i];
    return x;
}
inline F load_i8(const uint8_t* p) {
    F x;
    for (int i = 0; i < 16; i++) x[i] = int8_t(p[i]);
    return x;
}
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F maximum(F a, F b) { return a > b ? a : b; }
inline F minimum(F a, F b) { return a < b ? a : b; }
inline F absolute(F a) { return a < 0 ? -a : a; }
inline F negative(F a) { return F{} - a; }
inline float sum(F a) {
    float s = 0;
    for (int i = 0; i < 16; i++) s += a[i];
    return s;
}
inline float largest(F a) {
    float m = a[0];
    for (int i = 1; i < 16; i++) m = a[i] > m ? a[i] : m;
    return m;
}
inline I lanes() { return I{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
inline F first(int count, F a, F b) { return lanes() < count ? a : b; }

inline I izero() { return I{}; }
inline I iset1(int x) { return I{} + x; }
inline I times16(I a) { return a * 16; }
inline F to_float(I a) { return __builtin_convertvector(a, F); }
inline I to_int(F a) {
    I x;
    for (int i = 0; i < 16; i++) x[i] = int32_t(nearbyintf(a[i]));
    return x;
}
inline I iadd(I a, I b) { return a + b; }
inline void store_i8(int8_t* p, I a) {
    for (int i = 0; i < 16; i++) p[i] = int8_t(a[i] > 127 ? 127 : a[i] < -128 ? -128 : a[i]);
}
inline F scale2(F a, I n) {
    I power = (n + 127) << 23;
    return a * read<F>(&power);
}

inline W load_w(const uint8_t* p) { return read<W>(p); }
inline W low(W v) { return v & 0x0f0f0f0f; }
inline W high(W v) { return (v >> 4) & 0x0f0f0f0f; }
// Nibbles with the j-th pair of each byte's bits above them.
inline W with_pair(W nibbles, W pairs, int j) { return nibbles | (((pairs >> (2 * j)) & 0x03030303) << 4); }
// Sums of products of bytes are whole in every lane from the start.
constexpr bool IN_PAIRS = false;
inline I start(const uint8_t* less) {
    int32_t x;
    __builtin_memcpy(&x, less, 4);
    return iset1(x);
}
inline I whole(I x) { return x; }
inline I twice(I x) { return iadd(x, x); }
// Bytes are what they are: 8 bits around 128.
inline I start_of_bytes(I less8) { return times16(less8); }
inline W as_bytes(W w) { return w; }
inline I dot4(I acc, W w, const uint8_t* p) {
    for (int i = 0; i < 4; i++) acc += ((w >> (8 * i)) & 255) * int32_t(int8_t(p[i]));
    return acc;
}
// Of 32 values: what sums of q - 8 start with, their sum as float32, and what those of q - 32 start
// with in either half.
inline void store_sums(const int8_t* q, uint8_t* less8, uint8_t* sum, uint8_t* less32, uint8_t* second_less32) {
    int first = 0, second = 0;
    for (int i = 0; i < 16; i++) {
        first += q[i];
        second += q[16 + i];
    }
    const int eight = -8 * (first + second), half = -32 * first, other = -32 * second;
    const float total = float(first + second);
    memcpy(less8, &eight, 4);
    memcpy(sum, &total, 4);
    memcpy(less32, &half, 4);
    memcpy(second_less32, &other, 4);
}
inline F bits_as_float(I b) { return read<F>(&b); }
inline F bf16_even(W w) { return bits_as_float(w << 16); }
inline F bf16_odd(W w) { return bits_as_float(w & int32_t(0xffff0000)); }
#define DOT2_BY_FMA 1
inline void store_bf16(uint8_t* p, F x) {
    for (int i = 0; i < 16; i++) {
        uint16_t b = smollm3::to_bf16(x[i]);
        memcpy(p + 2 * i, &b, 2);
    }
}

}  // namespace

// Sixteen lanes in two registers. With AVX_VNNI=1 four products of bytes are one instruction.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

struct F {
    __m256 a, b;
};
struct I {
    __m256i a, b;
};
using W = I;

constexpr int WIDTH = 6;  // 12 integer sums, a column, its product, two of weights: 16 registers

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline F load_f16(const uint8_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 16)))};
}
inline F load_u8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
inline F load_i8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
inline F add(F a, F b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
inline F sub(F a, F b) { return {_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)}; }
inline F mul(F a, F b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
inline F div(F a, F b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)}; }
inline F maximum(F a, F b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
inline F minimum(F a, F b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
inline F absolute(F x) {
    __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
inline F negative(F x) { return sub(zero(), x); }
inline float sum(F x) {
    __m256 h = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float largest(F x) {
    __m256 h = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline __m256 lanes_before(int count) {
    return _mm256_castsi256_ps(
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
}
inline F first(int count, F a, F b) {
    return {_mm256_blendv_ps(b.a, a.a, lanes_before(count)), _mm256_blendv_ps(b.b, a.b, lanes_before(count - 8))};
}

inline I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I iset1(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I times16(I x) { return {_mm256_slli_epi32(x.a, 4), _mm256_slli_epi32(x.b, 4)}; }
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline I iadd(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline void store_i8(int8_t* p, I x) {
    __m256i s = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
}
inline F scale2(F x, I n) {
    __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_mul_ps(x.a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23))),
            _mm256_mul_ps(x.b, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23)))};
}

inline W load_w(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline W low(W v) {
    __m256i m = _mm256_set1_epi8(15);
    return {_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)};
}
inline W high(W v) { return low({_mm256_srli_epi16(v.a, 4), _mm256_srli_epi16(v.b, 4)}); }
inline __m256i with_pair(__m256i nibbles, __m256i pairs, int j) {
    __m256i at4 = j == 3   ? _mm256_srli_epi16(pairs, 2)
                  : j == 2 ? pairs
                  : j == 1 ? _mm256_slli_epi16(pairs, 2)
                           : _mm256_slli_epi16(pairs, 4);
    return _mm256_or_si256(nibbles, _mm256_and_si256(at4, _mm256_set1_epi8(0x30)));
}
// Nibbles with the j-th pair of each byte's bits above them.
inline W with_pair(W nibbles, W pairs, int j) {
    return {with_pair(nibbles.a, pairs.a, j), with_pair(nibbles.b, pairs.b, j)};
}
inline I start(const uint8_t* less) {
    int32_t x;
    __builtin_memcpy(&x, less, 4);
    return iset1(x);
}
#if AVX_VNNI
// Sums of products of bytes are whole in every lane from the start.
constexpr bool IN_PAIRS = false;
inline I whole(I x) { return x; }
inline I twice(I x) { return iadd(x, x); }
// Bytes are what they are: 8 bits around 128.
inline I start_of_bytes(I less8) { return times16(less8); }
inline W as_bytes(W w) { return w; }
inline I dot4(I acc, W w, const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const __m256i x = _mm256_set1_epi32(four);
    return {_mm256_dpbusd_avx_epi32(acc.a, w.a, x), _mm256_dpbusd_avx_epi32(acc.b, w.b, x)};
}
// Of 32 values: what sums of q - 8 start with, their sum as float32, and what those of q - 32 start
// with in either half.
inline void store_sums(const int8_t* q, uint8_t* less8, uint8_t* sum, uint8_t* less32, uint8_t* second_less32) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i*)q));
    __m256i lanes = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    lanes = _mm256_add_epi32(lanes, _mm256_shuffle_epi32(lanes, 0x4e));
    lanes = _mm256_add_epi32(lanes, _mm256_shuffle_epi32(lanes, 0xb1));
    const int first = _mm_cvtsi128_si32(_mm256_castsi256_si128(lanes));
    const int second = _mm_cvtsi128_si32(_mm256_extracti128_si256(lanes, 1));
    const int eight = -8 * (first + second), half = -32 * first, other = -32 * second;
    const float total = float(first + second);
    __builtin_memcpy(less8, &eight, 4);
    __builtin_memcpy(sum, &total, 4);
    __builtin_memcpy(less32, &half, 4);
    __builtin_memcpy(second_less32, &other, 4);
}
#else
// Products of bytes are added up in 16 bits, a lane's first and second pair of columns apart. With x
// in -127..127 what is summed over a group stays within them: 16 products of values up to 15, or of
// q - 8 or q - 16, and 8 of q - 32. What a sum starts with (-8 times the sum of x, for q - 8) may be
// beyond what is left of it: 16 bits wrap there and back. Two products of a nibble or of six bits, up
// to 2 * 63 * 127, do not saturate.
constexpr bool IN_PAIRS = true;
inline I twice(I x) { return {_mm256_add_epi16(x.a, x.a), _mm256_add_epi16(x.b, x.b)}; }
// Bytes are what they are: 8 bits around 128.
inline I start_of_bytes(I less8) { return times16(less8); }
inline W as_bytes(W w) { return w; }
// The compiler would add the products up as a tree, of which nothing fits in registers: here the order
// is as written.
inline void in_order(__m256i& x) { asm("" : "+x"(x)); }
inline I dot4(I acc, W w, const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const __m256i x = _mm256_set1_epi32(four);
    acc.a = _mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, x));
    acc.b = _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, x));
    in_order(acc.a);
    in_order(acc.b);
    return acc;
}
inline I whole(I acc) {
    const __m256i one = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(acc.a, one), _mm256_madd_epi16(acc.b, one)};
}
// Of 32 values: what sums of q - 8 start with, their sum as float32, and what those of q - 32 start
// with in either half.
inline void store_sums(const int8_t* q, uint8_t* less8, uint8_t* sum, uint8_t* less32, uint8_t* second_less32) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i*)q));
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
    const __m128i first = _mm256_castsi256_si128(pairs), second = _mm256_extracti128_si256(pairs, 1);
    const __m128i both = _mm_add_epi16(first, second);
    const int32_t eight = _mm_cvtsi128_si32(_mm_mullo_epi16(both, _mm_set1_epi16(-8)));
    const int32_t half = _mm_cvtsi128_si32(_mm_mullo_epi16(first, _mm_set1_epi16(-32)));
    const int32_t other = _mm_cvtsi128_si32(_mm_mullo_epi16(second, _mm_set1_epi16(-32)));
    const float total = float(_mm_cvtsi128_si32(_mm_madd_epi16(both, _mm_set1_epi16(1))));
    __builtin_memcpy(less8, &eight, 4);
    __builtin_memcpy(sum, &total, 4);
    __builtin_memcpy(less32, &half, 4);
    __builtin_memcpy(second_less32, &other, 4);
}
#endif

inline F bf16_even(W w) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(w.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w.b, 16))};
}
inline F bf16_odd(W w) {
    __m256i m = _mm256_set1_epi32(int(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(w.a, m)), _mm256_castsi256_ps(_mm256_and_si256(w.b, m))};
}
inline F dot2(F acc, W w, const uint8_t* p) {
    int32_t two;
    __builtin_memcpy(&two, p, 4);
    const W x = iset1(two);
    return fma(bf16_odd(w), bf16_odd(x), fma(bf16_even(w), bf16_even(x), acc));
}
inline __m256i round_bf16(__m256 x) {
    __m256i b = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}
inline void store_bf16(uint8_t* p, F x) {
    __m256i both = _mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b));
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(both, 0xd8));
}

}  // namespace

// Sixteen lanes in one register. With BF16=1 products of bfloat16 pairs are one instruction.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

using F = __m512;
using I = __m512i;
using W = __m512i;

constexpr int WIDTH = 8;  // 8 sums, 8 of a shared scale, 8 integer sums, two halves, mask, scale: 29 of 32

inline F zero() { return _mm512_setzero_ps(); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F load_f16(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline F load_u8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
inline F load_i8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F maximum(F a, F b) { return _mm512_max_ps(a, b); }
inline F minimum(F a, F b) { return _mm512_min_ps(a, b); }
inline F absolute(F a) { return _mm512_abs_ps(a); }
inline F negative(F a) { return _mm512_sub_ps(_mm512_setzero_ps(), a); }
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float largest(F a) { return _mm512_reduce_max_ps(a); }
// Lanes before `count` from a, the others from b.
inline F first(int count, F a, F b) {
    return _mm512_mask_blend_ps(__mmask16(count >= 16 ? 0xffff : (1 << count) - 1), b, a);
}

inline I izero() { return _mm512_setzero_si512(); }
inline I iset1(int x) { return _mm512_set1_epi32(x); }
inline I times16(I a) { return _mm512_slli_epi32(a, 4); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline I to_int(F a) { return _mm512_cvtps_epi32(a); }  // to nearest, ties to even
inline I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
inline void store_i8(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a)); }
// a * 2^n for n in the range of normal numbers
inline F scale2(F a, I n) {
    return _mm512_mul_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)));
}

inline W load_w(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline W low(W v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline W high(W v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
// Nibbles with the j-th pair of each byte's bits above them.
inline W with_pair(W nibbles, W pairs, int j) {
    W at4 = j == 3   ? _mm512_srli_epi16(pairs, 2)
            : j == 2 ? pairs
            : j == 1 ? _mm512_slli_epi16(pairs, 2)
                     : _mm512_slli_epi16(pairs, 4);
    return _mm512_or_si512(nibbles, _mm512_and_si512(at4, _mm512_set1_epi8(0x30)));
}
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
// Four unsigned bytes of a lane times the four signed bytes at p, added to the lane.
inline I dot4(I acc, W w, const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four));
}

// Of 32 values: what sums of q - 8 start with, their sum as float32, and what those of q - 32 start
// with in either half.
inline void store_sums(const int8_t* q, uint8_t* less8, uint8_t* sum, uint8_t* less32, uint8_t* second_less32) {
    const __m256i lanes = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i*)q));
    const __m512i both = _mm512_inserti64x4(_mm512_setzero_si512(), lanes, 0);
    const int first = _mm512_mask_reduce_add_epi32(0x0f, both), second = _mm512_mask_reduce_add_epi32(0xf0, both);
    const int eight = -8 * (first + second), half = -32 * first, other = -32 * second;
    const float total = float(first + second);
    __builtin_memcpy(less8, &eight, 4);
    __builtin_memcpy(sum, &total, 4);
    __builtin_memcpy(less32, &half, 4);
    __builtin_memcpy(second_less32, &other, 4);
}

inline F bf16_even(W w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
inline F bf16_odd(W w) { return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int(0xffff0000)))); }
#if BF16_DOT
inline F dot2(F acc, W w, const uint8_t* p) {
    int32_t two;
    __builtin_memcpy(&two, p, 4);
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(two));
}
#else
#define DOT2_BY_FMA 1
#endif
inline void store_bf16(uint8_t* p, F x) {  // finite x; to nearest, ties to even
    I b = _mm512_castps_si512(x);
    I odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    b = _mm512_srli_epi32(_mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(b));
}

}  // namespace

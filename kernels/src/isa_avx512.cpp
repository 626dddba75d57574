#define BF16_DOT 0
#include "vec_avx512.hpp"
// (after the vectors it is written over)
#include "isa.inl"
ISA_TABLE(isa_avx512, "avx512-vnni")

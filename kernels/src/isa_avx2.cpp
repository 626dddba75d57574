#define AVX_VNNI 0
#include "vec_avx2.hpp"
// (after the vectors it is written over)
#include "isa.inl"
ISA_TABLE(isa_avx2, "avx2")

#include "vec_neon.hpp"
// (after the vectors it is written over)
#include "isa.inl"
ISA_TABLE(isa_neon_i8mm, "neon-i8mm")

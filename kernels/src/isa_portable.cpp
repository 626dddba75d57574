#include "vec_portable.hpp"
// (after the vectors it is written over)
#include "isa.inl"
ISA_TABLE(isa_portable, "portable")

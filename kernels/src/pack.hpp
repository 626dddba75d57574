// From the blocks of a GGUF file, or plain numbers, to a matrix in one of our forms and back.
#pragma once

#include <string>
#include <vector>

#include "forms.hpp"

namespace smollm3 {

// The form that holds a GGUF type (F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K); FORMS if none.
// All are kept exactly but F16, which becomes BF16.
Form form_of(const std::string& type);

std::vector<std::string> types();  // that have a form

// Bytes of a row of `columns` values of a type; 0 where they are not whole blocks.
size_t row_bytes(const std::string& type, int columns);

// Pack tiles begin..end-1 of `matrix`, which lie at `out` as its data would, from the rows of `type`
// at `source`. Where `pairs` is not 0 it is the head size of a rotated matrix: GGUF turns rows 2i and
// 2i+1 of a head, we i and i + D/2. Its form: form_of(type), or F32 or BF16 for a type of plain numbers.
void pack(const std::string& type, const uint8_t* source, const Matrix& matrix, int pairs, int begin, int end,
          uint8_t* out);

// One row's values; `out` has room for whole groups.
void unpack_row(const Matrix& matrix, int row, float* out);

}  // namespace smollm3

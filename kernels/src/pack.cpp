#include "pack.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace smollm3 {

namespace {

template <typename T>
T read(const void* p) {
    T x;
    memcpy(&x, p, sizeof x);
    return x;
}

float as_float(uint32_t b) { return read<float>(&b); }
uint32_t as_bits(float x) { return read<uint32_t>(&x); }

}  // namespace

float from_f16(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return as_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    return as_float(sign | as_bits(float(mantissa) * 0x1p-24f));
}

uint16_t to_f16(float x) {  // to nearest, ties to even
    uint32_t b = as_bits(x), sign = b >> 16 & 0x8000, magnitude = b & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (magnitude < 0x38800000)  // denormal: let the adder round
        return uint16_t(sign | (as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f)));
    return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

uint16_t to_bf16(float x) {
    uint32_t b = as_bits(x);
    return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

namespace {

enum class Kind { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };

struct Type {
    Kind kind;
    const char* name;
    int block, bytes;
    Form form;
};

constexpr Type TYPES[] = {
    {Kind::F32, "F32", 1, 4, F32},        {Kind::F16, "F16", 1, 2, BF16},       {Kind::BF16, "BF16", 1, 2, BF16},
    {Kind::Q8_0, "Q8_0", 32, 34, Q8},     {Kind::Q4_0, "Q4_0", 32, 18, Q4},     {Kind::Q4_1, "Q4_1", 32, 20, Q4M},
    {Kind::Q5_0, "Q5_0", 32, 22, Q8},     {Kind::Q5_1, "Q5_1", 32, 24, Q8M},    {Kind::Q4_K, "Q4_K", 256, 144, Q4K},
    {Kind::Q5_K, "Q5_K", 256, 176, Q8K},  {Kind::Q6_K, "Q6_K", 256, 210, Q6},
};

const Type* find(const std::string& name) {
    for (const Type& t : TYPES)
        if (name == t.name) return &t;
    return nullptr;
}

// One row's group of 32: bytes as the forms hold them, with their scales. The bytes belong to the K
// forms; in K16 they are the scales of the two halves.
struct Group {
    uint8_t q[GROUP];
    uint16_t scale = 0, shift = 0;
    uint8_t scale_byte = 0, shift_byte = 0;
};

void nibbles(const uint8_t* p, uint8_t* q) {
    for (int i = 0; i < 16; i++) {
        q[i] = p[i] & 15;
        q[16 + i] = p[i] >> 4;
    }
}

void fifth_bits(uint32_t high, uint8_t* q) {
    for (int i = 0; i < 32; i++) q[i] |= (high >> i & 1) << 4;
}

// 12 bytes hold 8 scales and 8 mins of 6 bits (ggml-common.h).
void six_bits(const uint8_t* p, int j, Group& g) {
    if (j < 4) {
        g.scale_byte = p[j] & 63;
        g.shift_byte = p[j + 4] & 63;
    } else {
        g.scale_byte = (p[j + 4] & 15) | (p[j - 4] >> 6 << 4);
        g.shift_byte = (p[j + 4] >> 4) | (p[j] >> 6 << 4);
    }
}

// 256 values: low nibbles [2][64], upper bits [2][32], scales for 16 values each, d.
void q6_k(const uint8_t* p, int j, Group& g) {
    const uint8_t *low = p + 64 * (j / 4), *high = p + 128 + 32 * (j / 4);
    const int quarter = j % 4;
    for (int i = 0; i < GROUP; i++) {
        const uint8_t nibble = low[32 * (quarter % 2) + i];
        g.q[i] = (quarter < 2 ? nibble & 15 : nibble >> 4) | (high[i] >> (2 * quarter) & 3) << 4;
    }
    g.scale_byte = p[192 + 2 * j];
    g.shift_byte = p[192 + 2 * j + 1];
    g.scale = read<uint16_t>(p + 208);
}

void read_group(const Type& type, const uint8_t* row, int index, Group& g) {
    const uint8_t* p = row + size_t(index) * GROUP / type.block * type.bytes;
    int j = index % (type.block / GROUP);
    if (type.kind != Kind::Q6_K) g.scale = read<uint16_t>(p);
    switch (type.kind) {
        case Kind::Q8_0:
            for (int i = 0; i < GROUP; i++) g.q[i] = p[2 + i] + 128;
            break;
        case Kind::Q4_0: nibbles(p + 2, g.q); break;
        case Kind::Q4_1:
            g.shift = read<uint16_t>(p + 2);
            nibbles(p + 4, g.q);
            break;
        case Kind::Q5_0:
            nibbles(p + 6, g.q);
            fifth_bits(read<uint32_t>(p + 2), g.q);
            for (uint8_t& q : g.q) q += 128 - 16;
            break;
        case Kind::Q5_1:
            g.shift = read<uint16_t>(p + 2);
            nibbles(p + 8, g.q);
            fifth_bits(read<uint32_t>(p + 4), g.q);
            break;
        case Kind::Q4_K:
        case Kind::Q5_K: {  // d, dmin, scales, [32 bytes of upper bits,] nibbles of two groups in 32 bytes
            g.shift = read<uint16_t>(p + 2);
            six_bits(p + 4, j, g);
            bool five = type.kind == Kind::Q5_K;
            const uint8_t* q = p + (five ? 48 : 16) + 32 * (j / 2);
            for (int i = 0; i < GROUP; i++) {
                g.q[i] = j % 2 ? q[i] >> 4 : q[i] & 15;
                if (five) g.q[i] |= (p[16 + i] >> j & 1) << 4;
            }
            break;
        }
        case Kind::Q6_K: q6_k(p, j, g); break;
        default: break;  // plain numbers
    }
}

float read_number(const Type& type, const uint8_t* row, int column) {
    if (type.form == F32) return read<float>(row + 4 * size_t(column));
    uint16_t h = read<uint16_t>(row + 2 * size_t(column));
    return type.kind == Kind::F16 ? from_f16(h) : as_float(uint32_t(h) << 16);
}

// Where the byte of (lane, column in group) lies in a group of 4-bit (its low half) or 8-bit values.
int place(int lane, int column) { return 64 * (column / 4) + 4 * lane + column % 4; }

// The upper two of six bits, behind the nibbles: 64 bytes for each half of the group.
int pair_place(int lane, int column) { return 256 + 64 * (column / 16) + 4 * lane + column % 4; }
int pair_shift(int column) { return column % 16 / 4 * 2; }

void write_group(Form form, const Group& g, int groups, int index, int lane, uint8_t* tile) {
    uint8_t* values = tile + values_start(form, groups, index);
    for (int i = 0; i < GROUP; i++) {
        if (bits(form) == 8) {
            values[place(lane, i)] = g.q[i];
            continue;
        }
        values[place(lane, i % 16)] |= (g.q[i] & 15) << (i / 16 * 4);
        if (form == Q6) values[pair_place(lane, i)] |= g.q[i] >> 4 << pair_shift(i);
    }
    uint8_t* p = tile + scales_start(form, index);
    index %= SUPER;
    switch (scales(form)) {
        case Scales::F16: memcpy(p + 2 * ROWS * index + 2 * lane, &g.scale, 2); break;
        case Scales::F16M:
            p += 4 * ROWS * index + 2 * lane;
            memcpy(p, &g.scale, 2);
            memcpy(p + 2 * ROWS, &g.shift, 2);
            break;
        case Scales::K:
            memcpy(p + 2 * lane, &g.scale, 2);
            memcpy(p + 2 * ROWS + 2 * lane, &g.shift, 2);
            p += 4 * ROWS + index * 2 * ROWS;
            p[lane] = g.scale_byte;
            p[ROWS + lane] = g.shift_byte;
            break;
        case Scales::K16:
            memcpy(p + 2 * lane, &g.scale, 2);
            p += 2 * ROWS + index * 2 * ROWS;
            p[lane] = g.scale_byte;
            p[ROWS + lane] = g.shift_byte;
            break;
    }
}

int source_row(int row, int pairs) {
    if (!pairs) return row;
    int head = row / pairs, within = row % pairs, half = pairs / 2;
    return head * pairs + 2 * (within % half) + within / half;
}

}  // namespace

Form form_of(const std::string& type) {
    const Type* t = find(type);
    return t ? t->form : FORMS;
}

std::vector<std::string> types() {
    std::vector<std::string> names;
    for (const Type& t : TYPES) names.push_back(t.name);
    return names;
}

size_t row_bytes(const std::string& type, int columns) {
    const Type* t = find(type);
    return t && columns % t->block == 0 ? size_t(columns) / t->block * t->bytes : 0;
}

void pack(const std::string& name, const uint8_t* source, const Matrix& m, int pairs, int begin, int end,
          uint8_t* out) {
    const Type& type = *find(name);
    const Form form = m.form;
    const int rows = m.rows, columns = m.columns;
    const size_t stride = row_bytes(name, columns);
    for (int t = begin; t < end; t++) {
        uint8_t* tile = out + m.tile_start(t);
        memset(tile, 0, tile_bytes(form, m.groups()));
        for (int lane = 0; lane < ROWS && t * ROWS + lane < rows; lane++) {
            const uint8_t* row = source + stride * source_row(t * ROWS + lane, pairs);
            if (!quantised(form)) {
                for (int c = 0; c < columns; c++) {
                    float x = read_number(type, row, c);
                    if (form == F32) {
                        memcpy(tile + 4 * (size_t(c) * ROWS + lane), &x, 4);
                    } else {
                        uint16_t b = to_bf16(x);
                        memcpy(tile + 2 * (size_t(c / 2) * 2 * ROWS + 2 * lane + c % 2), &b, 2);
                    }
                }
                continue;
            }
            for (int g = 0; g < columns / GROUP; g++) {
                Group group;
                read_group(type, row, g, group);
                write_group(form, group, m.groups(), g, lane, tile);
            }
        }
    }
}

void unpack_row(const Matrix& m, int row, float* out) {
    const Form form = m.form;
    const uint8_t* tile = m.tile(row / ROWS);
    const int lane = row % ROWS;
    for (int g = 0; g < m.groups(); g++) {
        const uint8_t *values = tile + values_start(form, m.groups(), g), *p = tile + scales_start(form, g);
        const int index = g % SUPER;
        float scale = 0, shift = 0, second_scale = 0;
        if (quantised(form)) {
            switch (scales(form)) {
                case Scales::F16:
                    scale = from_f16(read<uint16_t>(p + 2 * ROWS * index + 2 * lane));
                    shift = -scale * float(bits(form) == 4 ? 8 : 128);
                    break;
                case Scales::F16M:
                    p += 4 * ROWS * index + 2 * lane;
                    scale = from_f16(read<uint16_t>(p));
                    shift = from_f16(read<uint16_t>(p + 2 * ROWS));
                    break;
                case Scales::K:
                    scale = from_f16(read<uint16_t>(p + 2 * lane));
                    shift = -from_f16(read<uint16_t>(p + 2 * ROWS + 2 * lane));
                    p += 4 * ROWS + index * 2 * ROWS;
                    scale *= p[lane];
                    shift *= p[ROWS + lane];
                    break;
                case Scales::K16:
                    scale = second_scale = from_f16(read<uint16_t>(p + 2 * lane));
                    p += 2 * ROWS + index * 2 * ROWS;
                    scale *= int8_t(p[lane]);
                    second_scale *= int8_t(p[ROWS + lane]);
                    break;
            }
        }
        for (int i = 0; i < GROUP; i++, out++) {
            const int nibble = values[place(lane, i % 16)] >> (i / 16 * 4) & 15;
            switch (bits(form)) {
                case 32: *out = read<float>(values + 4 * (i * ROWS + lane)); break;
                case 16: {
                    const size_t at = 2 * size_t(i / 2 * 2 * ROWS + 2 * lane + i % 2);
                    *out = as_float(uint32_t(read<uint16_t>(values + at)) << 16);
                    break;
                }
                case 8: *out = scale * values[place(lane, i)] + shift; break;
                case 6: {
                    const int q = nibble | (values[pair_place(lane, i)] >> pair_shift(i) & 3) << 4;
                    *out = (i < 16 ? scale : second_scale) * float(q - 32);
                    break;
                }
                default: *out = scale * nibble + shift;
            }
        }
    }
}

}  // namespace smollm3

// Keys and values on their way into the cache, and attention over it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.hpp"
#include "pack.hpp"

namespace smollm3 {

namespace {

constexpr int STRETCH = 64;  // blocks of the cache whose sums are merged: 2048 tokens

// A key is a row of a tile; `packed` holds it as a single column.
void write_key(const PageLayout& page, const uint8_t* packed, int place, uint8_t* at) {
    uint8_t* tile = at + place / ROWS * page.k_tile_bytes;
    const int lane = place % ROWS;
    for (int g = 0; g < page.k_groups; g++) {
        uint8_t* values = tile + values_start(page.k_form, page.k_groups, g);
        const uint8_t* from = packed + g * column_group_bytes(activation(page.k_form));
        for (int j = 0; j < GROUP * bits(page.k_form) / 32; j++) {  // 4 bytes of a lane at a time
            uint32_t four;
            memcpy(&four, from + 4 * j, 4);
            if (page.k_form == Q8) four ^= 0x80808080;  // q + 128
            memcpy(values + 64 * j + 4 * lane, &four, 4);
        }
        if (page.k_form == Q8) {
            float scale;
            memcpy(&scale, from + GROUP, 4);
            uint16_t half = to_f16(scale);
            memcpy(tile + scales_start(Q8, g) + 2 * ROWS * (g % SUPER) + 2 * lane, &half, 2);
        }
    }
}

// A value is a column of tiles whose rows are its dimensions.
void write_value(const PageLayout& page, const float* v, int size, int place, uint8_t* at) {
    uint8_t* values = at + page.v_start;
    float most = 0, inverse = 0;
    if (page.v_form == Q8) {
        for (int d = 0; d < size; d++) most = std::max(most, std::fabs(v[d]));
        inverse = most > 0 ? 127.0f / most : 0.0f;
        most /= 127.0f;
        memcpy(at + page.v_scales_start + 4 * place, &most, 4);
    }
    for (int d = 0; d < size; d++) {
        uint8_t* tile = values + d / ROWS * group_values_bytes(page.v_form);
        const int lane = d % ROWS;
        if (page.v_form == F32) {
            memcpy(tile + 4 * (ROWS * place + lane), v + d, 4);
        } else if (page.v_form == BF16) {
            uint16_t b = to_bf16(v[d]);
            memcpy(tile + 2 * (place / 2 * 2 * ROWS + 2 * lane + place % 2), &b, 2);
        } else {
            tile[64 * (place / 4) + 4 * lane + place % 4] = uint8_t(128 + std::lrint(v[d] * inverse));
        }
    }
}

}  // namespace

// Columns of one kv head are (token, head) pairs; a unit takes as many as a kernel computes at once.
void Model::plan_attention(const Step& step) {
    units_.clear();
    const int group = shape_.heads / shape_.kv_heads;
    int longest = 0;
    partials_ = 0;
    for (int s = 0; s < step.sequences; s++) {
        int first = step.starts[s], columns = (step.starts[s + 1] - first) * group;
        for (int c = 0; c < columns; c += isa_->width) {
            int count = std::min(isa_->width, columns - c);
            int blocks = step.positions[first + (c + count - 1) / group] / BLOCK + 1;
            longest = std::max(longest, blocks);
            for (int g = 0; g < shape_.kv_heads; g++) {
                units_.push_back({s, g, first, c, count, blocks, partials_});
                partials_ += (blocks + STRETCH - 1) / STRETCH;
            }
        }
    }
    split_ = longest > STRETCH && int(units_.size()) < 4 * threads_.count();
    if (split_) {
        partial_numbers_.floats(size_t(partials_) * isa_->width * 2);
        partial_o_.floats(size_t(partials_) * isa_->width * page_.v_columns);
    }
}

// Rotate, scale the queries, write keys and values to the cache.
void Model::store_token(const Step& step, int layer, int token, Scratch& scratch) {
    const int D = shape_.head_dim, place = step.positions[token] % BLOCK;
    const float *cos = step.cos + size_t(token) * (D / 2), *sin = step.sin + size_t(token) * (D / 2);
    float* q = qkv_.floats(0) + size_t(token) * qkv_stride_;
    float *k = q + shape_.heads * D, *v = k + shape_.kv_heads * D;
    if (shape_.uses_rope[layer])
        for (float* head = q; head < v; head += D) isa_->rotate(head, cos, sin, D);
    const int block = block_of(step, token);
    uint8_t* packed = scratch.columns.bytes(size_t(page_.k_groups) * 128);
    float* row = scratch.row.floats(size_t(page_.k_groups) * GROUP + ROWS);
    for (int g = 0; g < shape_.kv_heads; g++) {
        uint8_t* at = page(layer, block, g);
        fill_row(k + g * D, row);
        isa_->pack_column(activation(page_.k_form), row, page_.k_groups, 1, 0, packed);
        write_key(page_, packed, place, at);
        fill_row(v + g * D, row);
        write_value(page_, row, D, place, at);
    }
}

void Model::fill_row(const float* head, float* row) const {
    memcpy(row, head, shape_.head_dim * sizeof(float));
    memset(row + shape_.head_dim, 0, (page_.k_groups * GROUP - shape_.head_dim) * sizeof(float));
}

// Blocks begin..end-1 of the cache for the columns of a unit.
void Model::attend(const Step& step, int layer, const Unit& u, int begin, int end, float* most, float* total, float* o,
                   Scratch& scratch) {
    const int D = shape_.head_dim, group = shape_.heads / shape_.kv_heads;
    const int width = Panel::kernel_width(u.columns, isa_->width);
    const Activation kind = activation(page_.k_form);
    uint8_t* columns = scratch.columns.bytes(size_t(width) * page_.k_groups * 128);
    float* row = scratch.row.floats(size_t(page_.k_groups) * GROUP + ROWS);
    int positions[16];
    for (int n = 0; n < u.columns; n++) {
        const int token = u.first_token + (u.first_column + n) / group;
        const int head = u.kv_head * group + (u.first_column + n) % group;
        fill_row(qkv_.floats(0) + size_t(token) * qkv_stride_ + head * D, row);
        isa_->scale(row, 1.0f / std::sqrt(float(D)), row, page_.k_groups * GROUP);
        isa_->pack_column(kind, row, page_.k_groups, width, n, columns);
        positions[n] = step.positions[token];
    }
    isa_->attend({&page_, page(layer, 0, u.kv_head), layer_block_bytes_, step.tables + size_t(u.sequence) * step.table_width,
                  begin, end, columns, u.columns, width, positions, most, total, o});
}

void Model::attend_unit(const Step& step, int layer, const Unit& u, Scratch& scratch) {
    const int size = isa_->width * page_.v_columns;
    float most[16], total[16], more_most[16], more_total[16];
    float *o = scratch.o.floats(2 * size_t(size)), *more = o + size;
    attend(step, layer, u, 0, std::min(STRETCH, u.blocks), most, total, o, scratch);
    for (int b = STRETCH; b < u.blocks; b += STRETCH) {
        attend(step, layer, u, b, std::min(b + STRETCH, u.blocks), more_most, more_total, more, scratch);
        for (int n = 0; n < u.columns; n++) {
            const int at = n * page_.v_columns;
            isa_->merge(most + n, total + n, o + at, more_most[n], more_total[n], more + at, page_.v_columns);
        }
    }
    finish(u, total, o);
}

void Model::attend_partial(const Step& step, int layer, int partial, Scratch& scratch) {
    const Unit& u = *(std::upper_bound(units_.begin(), units_.end(), partial,
                                       [](int p, const Unit& unit) { return p < unit.partial; }) - 1);
    const int first = (partial - u.partial) * STRETCH;
    float* most = partial_numbers_.floats(0) + size_t(partial) * isa_->width * 2;
    attend(step, layer, u, first, std::min(first + STRETCH, u.blocks), most, most + isa_->width, partial_o(partial), scratch);
}

// The same sums in the same order as attend_unit's.
void Model::merge_partials(const Unit& u) {
    float* most = partial_numbers_.floats(0) + size_t(u.partial) * isa_->width * 2;
    for (int p = u.partial + 1; p < u.partial + (u.blocks + STRETCH - 1) / STRETCH; p++) {
        const float* more = partial_numbers_.floats(0) + size_t(p) * isa_->width * 2;
        for (int n = 0; n < u.columns; n++) {
            const int at = n * page_.v_columns;
            isa_->merge(most + n, most + isa_->width + n, partial_o(u.partial) + at, more[n], more[isa_->width + n],
                        partial_o(p) + at, page_.v_columns);
        }
    }
    finish(u, most + isa_->width, partial_o(u.partial));
}

void Model::finish(const Unit& u, const float* total, float* o) {
    const int D = shape_.head_dim, group = shape_.heads / shape_.kv_heads;
    for (int n = 0; n < u.columns; n++) {
        const int token = u.first_token + (u.first_column + n) / group;
        const int head = u.kv_head * group + (u.first_column + n) % group;
        float* row = o + n * page_.v_columns;
        isa_->scale(row, 1.0f / total[n], row, page_.v_columns);
        memcpy(attended_.floats(0) + size_t(token) * heads_size_ + head * D, row, D * sizeof(float));
    }
}

}  // namespace smollm3

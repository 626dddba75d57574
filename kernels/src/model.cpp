#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "pack.hpp"

namespace smollm3 {

namespace {

constexpr int PHASES = 10;             // of a layer that hand out work
constexpr int FEW = 4;                 // tokens that every thread prepares for itself: cheaper than to wait
constexpr int STRETCH = 64;            // blocks of the cache whose sums are merged: 2048 tokens
constexpr size_t CHUNK_BYTES = 1 << 16;  // of weights that meet all columns before the next: they stay in L2

Panel panel(Buffer& memory, Activation kind, int columns, int groups, int width) {
    Panel p{kind, columns, groups, width, nullptr};
    p.data = memory.bytes(p.bytes());
    return p;
}

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

uint8_t* Buffer::bytes(size_t size) {
    if (size > size_) {
        size_t room = (size + 63) / 64 * 64;
        memory_.reset((uint8_t*)std::aligned_alloc(64, room));
        if (!memory_) throw std::bad_alloc();
        memset(memory_.get(), 0, room);
        size_ = room;
    }
    return memory_.get();
}

Model::Model(const Shape& shape, const Weights& weights, Form cache, int blocks, int threads, const Isa* isa)
    : shape_(shape),
      weights_(weights),
      isa_(isa),
      threads_(threads),
      blocks_(blocks),
      page_(cache, shape.head_dim),
      layer_block_bytes_(shape.kv_heads * page_.bytes),
      hidden_(round_up(shape.hidden, GROUP)),
      ffn_groups_(round_up(shape.ffn, GROUP) / GROUP),
      heads_size_(round_up(shape.heads * shape.head_dim, GROUP)),
      scratch_(threads_.count()),
      counters_(PHASES * shape.layers + 3) {
    // calloc: pages that were never written cost nothing.
    size_t size = block_bytes() * blocks_ + 64;
    cache_memory_.reset((uint8_t*)std::calloc(size, 1));
    if (!cache_memory_) throw std::bad_alloc();
    cache_ = cache_memory_.get() + (64 - uintptr_t(cache_memory_.get()) % 64) % 64;

    auto fill_up = [&](const float*& norm) {
        norms_.emplace_back(hidden_, 0.0f);
        std::copy(norm, norm + shape_.hidden, norms_.back().begin());
        norm = norms_.back().data();
    };
    norms_.reserve(2 * shape_.layers + 1);
    for (Layer& l : weights_.layers) {
        fill_up(l.attention_norm);
        fill_up(l.ffn_norm);
    }
    fill_up(weights_.norm);
    const Layer& l = weights_.layers[0];
    qkv_stride_ = l.q.rows + l.k.rows + l.v.rows + ROWS;
}

void Model::read_block(int block, uint8_t* out) const {
    for (int l = 0; l < shape_.layers; l++) memcpy(out + l * layer_block_bytes_, page(l, block, 0), layer_block_bytes_);
}

void Model::write_block(int block, const uint8_t* in) {
    for (int l = 0; l < shape_.layers; l++) memcpy(page(l, block, 0), in + l * layer_block_bytes_, layer_block_bytes_);
}

void Model::step(const Step& step) {
    const Layer& l = weights_.layers[0];
    x_.floats(size_t(step.tokens) * hidden_);
    qkv_.floats(size_t(step.tokens) * qkv_stride_);
    attended_.floats(size_t(step.tokens) * heads_size_);
    in_ = panel(in_memory_, activation(l.q.form), step.tokens, hidden_ / GROUP, isa_->width);
    heads_panel_ = panel(heads_memory_, activation(l.o.form), step.tokens, heads_size_ / GROUP, isa_->width);
    ffn_panel_ = panel(ffn_memory_, activation(l.down.form), step.tokens, ffn_groups_, isa_->width);
    out_ = panel(out_memory_, activation(weights_.unembed.form), step.wanted, hidden_ / GROUP, isa_->width);
    tokens_ = step.tokens;
    plan_attention(step);
    for (Counter& c : counters_) c.reset();
    const std::function<void(int)> task = [&](int thread) { work(step, thread); };
    threads_.run(task);
}

// Columns of one kv head are (token, head) pairs; a unit takes as many as a kernel computes at once.
void Model::read_states(float* out) {
    const float* x = x_.floats(size_t(tokens_) * hidden_);
    for (int t = 0; t < tokens_; t++)
        memcpy(out + size_t(t) * shape_.hidden, x + size_t(t) * hidden_, shape_.hidden * sizeof(float));
}

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

void Model::work(const Step& step, int thread) {
    Counter* counter = counters_.data();
    each(counter++, step.tokens, [&](int t) {
        unpack_row(weights_.embed, step.ids[t], x_.floats(0) + size_t(t) * hidden_);
        clear_new_pages(step, t);
    });
    for (int i = 0; i < shape_.layers; i++, counter += PHASES) layer(step, i, scratch_[thread], counter);
    head(step, scratch_[thread], counter);
}

template <typename Work>
void Model::each(Counter* counter, int total, Work work) {
    counter->each(total, 1, threads_.count(), [&](int begin, int end) {
        for (int i = begin; i < end; i++) work(i);
    });
    threads_.barrier();
}

// `shared` after fill(panel, column) of all its columns, or this thread's own of the same shape.
template <typename Fill>
Panel Model::filled(const Panel& shared, Scratch& scratch, Counter* counter, Fill fill) {
    if (shared.columns > FEW) {
        each(counter, shared.columns, [&](int n) { fill(shared, n); });
        return shared;
    }
    Panel own = panel(scratch.panel, shared.kind, shared.columns, shared.groups, shared.width);
    for (int n = 0; n < own.columns; n++) fill(own, n);
    return own;
}

void Model::layer(const Step& step, int index, Scratch& scratch, Counter* phase) {
    const Layer& l = weights_.layers[index];
    float *x = x_.floats(0), *attended = attended_.floats(0);
    auto normed = [&](const float* weight, Counter* counter) {
        return filled(in_, scratch, counter, [&](const Panel& p, int t) {
            norm_into(x + size_t(t) * hidden_, weight, p, t, scratch);
        });
    };

    Panel in = normed(l.attention_norm, phase++);
    multiply({&l.q, &l.k, &l.v}, in, qkv_.floats(0), qkv_stride_, false, scratch, phase++);
    each(phase++, step.tokens, [&](int t) { store_token(step, index, t, scratch); });
    if (split_) {
        each(phase++, partials_, [&](int p) { attend_partial(step, index, p, scratch); });
        each(phase++, int(units_.size()), [&](int u) { merge_partials(units_[u]); });
    } else {
        each(phase++, int(units_.size()), [&](int u) { attend_unit(step, index, units_[u], scratch); });
        phase++;
    }
    in = filled(heads_panel_, scratch, phase++, [&](const Panel& p, int t) {
        pack_into(attended + size_t(t) * heads_size_, p, t);
    });
    multiply({&l.o}, in, x, hidden_, true, scratch, phase++);
    in = normed(l.ffn_norm, phase++);
    feed_forward(l, in, scratch, phase++);
    multiply({&l.down}, ffn_panel_, x, hidden_, true, scratch, phase++);
}

void Model::head(const Step& step, Scratch& scratch, Counter* phase) {
    Panel in = filled(out_, scratch, phase++, [&](const Panel& p, int r) {
        norm_into(x_.floats(0) + size_t(step.rows[r]) * hidden_, weights_.norm, p, r, scratch);
    });
    multiply({&weights_.unembed}, in, step.logits, shape_.vocab, false, scratch, phase);
}

void Model::pack_into(const float* values, const Panel& panel, int column) {
    int b = column / panel.width;
    isa_->pack_column(panel.kind, values, panel.groups, panel.block_width(b), column % panel.width, panel.block(b));
}

void Model::norm_into(const float* x, const float* weight, const Panel& panel, int column, Scratch& scratch) {
    float* normed = scratch.row.floats(hidden_);
    isa_->norm(x, weight, normed, hidden_, shape_.hidden, shape_.eps);
    pack_into(normed, panel, column);
}

// Rows of the matrices one after another: out[column * stride + row], overwritten or added to.
void Model::multiply(std::initializer_list<const Matrix*> matrices, const Panel& panel, float* out, int stride,
                     bool add, Scratch& scratch, Counter* counter) {
    int tiles = 0;
    for (const Matrix* m : matrices) tiles += m->tiles();
    const int chunk = std::max(1, int(CHUNK_BYTES / tile_bytes((*matrices.begin())->form, panel.groups)));
    float* product = scratch.tiles.floats(size_t(panel.width) * ROWS);
    auto some_tiles = [&](int begin, int end, int b) {
        const int columns = panel.block_columns(b), width = panel.block_width(b);
        int first = 0, row = 0;
        for (const Matrix* m : matrices) {
            for (int t = std::max(begin, first); t < std::min(end, first + m->tiles()); t++) {
                isa_->multiply(m->form, m->tile(t - first), panel.block(b), panel.groups, width, product);
                const int r = (t - first) * ROWS, rows = std::min(ROWS, m->rows - r);
                for (int n = 0; n < columns; n++) {
                    float* to = out + size_t(b * panel.width + n) * stride + row + r;
                    if (add) isa_->add(to, product + n * ROWS, ROWS);  // rows beyond the last add 0
                    else memcpy(to, product + n * ROWS, rows * sizeof(float));
                }
            }
            first += m->tiles();
            row += m->rows;
        }
    };
    counter->each(tiles, std::min(chunk, std::max(1, tiles / (4 * threads_.count()))), threads_.count(), [&](int begin, int end) {
        for (int t = begin; t < end; t += chunk)
            for (int b = 0; b < panel.blocks(); b++) some_tiles(t, std::min(t + chunk, end), b);
    });
    threads_.barrier();
}

// silu(gate x) * (up x), packed for `down` as many groups at a time as share a scale: nothing of 4 bytes
// a value goes to memory.
void Model::feed_forward(const Layer& l, const Panel& in, Scratch& scratch, Counter* counter) {
    constexpr int ROWS_AT_ONCE = SHARED * GROUP;
    const int width = in.width, tiles = l.gate.tiles();
    float* product = scratch.tiles.floats(size_t(width) * ROWS);
    float* rows = scratch.row.floats(size_t(width) * 2 * ROWS_AT_ONCE);  // [columns][gate, up][rows]
    each(counter, (ffn_groups_ + SHARED - 1) / SHARED, [&](int unit) {
        const int first = unit * SHARED, groups = std::min(SHARED, ffn_groups_ - first);
        for (int b = 0; b < in.blocks(); b++) {
            const int columns = in.block_columns(b), narrow = in.block_width(b);
            for (int i = 0; i < 4 * groups; i++) {  // gate, gate, up, up: as they lie in memory
                const Matrix& m = i % 4 < 2 ? l.gate : l.up;
                const int within = i / 4 * 2 + i % 2, t = 2 * first + within;
                if (t < tiles) isa_->multiply(m.form, m.tile(t), in.block(b), in.groups, narrow, product);
                else memset(product, 0, width * ROWS * sizeof(float));
                for (int n = 0; n < columns; n++)
                    memcpy(rows + (2 * n + i % 4 / 2) * ROWS_AT_ONCE + within * ROWS, product + n * ROWS,
                           ROWS * sizeof(float));
            }
            uint8_t* packed = ffn_panel_.block(b) + size_t(first) * column_group_bytes(ffn_panel_.kind) * narrow;
            for (int n = 0; n < columns; n++) {
                float* gate = rows + 2 * n * ROWS_AT_ONCE;
                isa_->swiglu(gate, gate + ROWS_AT_ONCE, gate, groups * GROUP);
                isa_->pack_column(ffn_panel_.kind, gate, groups, narrow, n, packed);
            }
        }
    });
}

// A page's first token finds what a freed sequence left: whatever it was, NaN too, times a weight of 0
// must be 0.
void Model::clear_new_pages(const Step& step, int token) {
    if (step.positions[token] % BLOCK) return;
    const int block = block_of(step, token);
    for (int l = 0; l < shape_.layers; l++) memset(page(l, block, 0), 0, layer_block_bytes_);
}

int Model::block_of(const Step& step, int token) const {
    int s = int(std::upper_bound(step.starts, step.starts + step.sequences, token) - step.starts) - 1;
    return step.tables[size_t(s) * step.table_width + step.positions[token] / BLOCK];
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

#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "pack.hpp"

namespace smollm3 {

namespace {

constexpr int PHASES = 14;             // of a layer that hand out work
constexpr int FEW = 4;                 // tokens that every thread prepares for itself: cheaper than to wait
constexpr size_t CHUNK_BYTES = 1 << 16;  // of weights that meet all columns before the next: they stay in L2

Panel panel(Buffer& memory, Activation kind, int columns, int groups, int width) {
    Panel p{kind, columns, groups, width, nullptr};
    p.data = memory.bytes(p.bytes());
    return p;
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
    plan_adapters(step);
    for (Counter& c : counters_) c.reset();
    const std::function<void(int)> task = [&](int thread) { work(step, thread); };
    threads_.run(task);
}

void Model::read_states(float* out) {
    const float* x = x_.floats(size_t(tokens_) * hidden_);
    for (int t = 0; t < tokens_; t++)
        memcpy(out + size_t(t) * shape_.hidden, x + size_t(t) * hidden_, shape_.hidden * sizeof(float));
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

    auto packed_norm = [&](const float* weight) {
        return [&, weight](const Run& run) {
            uint8_t* out = scratch.panel.bytes(size_t(run.width) * (hidden_ / GROUP) * RUN_BYTES);
            float* row = scratch.normed.floats(hidden_);
            for (int n = 0; n < run.columns; n++) {
                const float* from = x + size_t(run.first_token + n) * hidden_;
                isa_->norm(from, weight, row, hidden_, shape_.hidden, shape_.eps);
                isa_->pack_column(activation(run.adapter->form), row, hidden_ / GROUP, run.width, n, out);
            }
            return out;
        };
    };

    shrink(index, {Q, K, V}, hidden_ / GROUP, scratch, phase++, packed_norm(l.attention_norm));
    Panel in = normed(l.attention_norm, phase++);
    multiply(index, {{&l.q, Q}, {&l.k, K}, {&l.v, V}}, in, qkv_.floats(0), qkv_stride_, false, scratch, phase++);
    each(phase++, step.tokens, [&](int t) { store_token(step, index, t, scratch); });
    if (split_) {
        each(phase++, partials_, [&](int p) { attend_partial(step, index, p, scratch); });
        each(phase++, int(units_.size()), [&](int u) { merge_partials(units_[u]); });
    } else {
        each(phase++, int(units_.size()), [&](int u) { attend_unit(step, index, units_[u], scratch); });
        phase++;
    }
    shrink(index, {O}, heads_size_ / GROUP, scratch, phase++, [&](const Run& run) {
        uint8_t* out = scratch.panel.bytes(size_t(run.width) * (heads_size_ / GROUP) * RUN_BYTES);
        for (int n = 0; n < run.columns; n++)
            isa_->pack_column(activation(run.adapter->form), attended + size_t(run.first_token + n) * heads_size_,
                              heads_size_ / GROUP, run.width, n, out);
        return out;
    });
    in = filled(heads_panel_, scratch, phase++, [&](const Panel& p, int t) {
        pack_into(attended + size_t(t) * heads_size_, p, t);
    });
    multiply(index, {{&l.o, O}}, in, x, hidden_, true, scratch, phase++);
    shrink(index, {GATE, UP}, hidden_ / GROUP, scratch, phase++, packed_norm(l.ffn_norm));
    in = normed(l.ffn_norm, phase++);
    feed_forward(index, in, scratch, phase++);
    shrink(index, {DOWN}, ffn_groups_, scratch, phase++, [&](const Run& run) { return adapted_ffn(run); });
    multiply(index, {{&l.down, DOWN}}, ffn_panel_, x, hidden_, true, scratch, phase++);
}

void Model::head(const Step& step, Scratch& scratch, Counter* phase) {
    Panel in = filled(out_, scratch, phase++, [&](const Panel& p, int r) {
        norm_into(x_.floats(0) + size_t(step.rows[r]) * hidden_, weights_.norm, p, r, scratch);
    });
    multiply(0, {{&weights_.unembed, PARTS}}, in, step.logits, shape_.vocab, false, scratch, phase);
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
void Model::multiply(int layer, std::initializer_list<Factor> factors, const Panel& panel, float* out, int stride,
                     bool add, Scratch& scratch, Counter* counter) {
    int tiles = 0;
    for (const Factor& f : factors) tiles += f.matrix->tiles();
    const int chunk = std::max(1, int(CHUNK_BYTES / tile_bytes(factors.begin()->matrix->form, panel.groups)));
    float* product = scratch.tiles.floats(size_t(panel.width) * ROWS);
    auto some_tiles = [&](int begin, int end, int b) {
        const int columns = panel.block_columns(b), width = panel.block_width(b);
        int first = 0, row = 0;
        for (const auto& [m, part] : factors) {
            for (int t = std::max(begin, first); t < std::min(end, first + m->tiles()); t++) {
                isa_->multiply(m->form, m->tile(t - first), panel.block(b), panel.groups, width, product);
                if (part < PARTS) adapt(layer, part, t - first, b, product, scratch);
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
void Model::feed_forward(int layer, const Panel& in, Scratch& scratch, Counter* counter) {
    const Layer& l = weights_.layers[layer];
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
                if (t < tiles) {
                    isa_->multiply(m.form, m.tile(t), in.block(b), in.groups, narrow, product);
                    adapt(layer, i % 4 < 2 ? GATE : UP, t, b, product, scratch);
                } else memset(product, 0, width * ROWS * sizeof(float));
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
            for (int r = block_runs_[b]; r < block_runs_[b + 1]; r++) {
                const Run& run = runs_[r];
                const Activation kind = activation(run.adapter->form);
                uint8_t* adapted = adapted_ffn(run) + size_t(first) * column_group_bytes(kind) * run.width;
                for (int n = 0; n < run.columns; n++)
                    isa_->pack_column(kind, rows + 2 * (run.first + n) * ROWS_AT_ONCE, groups, run.width, n, adapted);
            }
        }
    });
}

int Model::add_adapter(Adapter adapter) {
    auto free = std::find(adapters_.begin(), adapters_.end(), nullptr);
    if (free == adapters_.end()) free = adapters_.emplace(free);
    *free = std::make_unique<Adapter>(std::move(adapter));
    return int(free - adapters_.begin());
}

// A run never crosses a block: its sums are added to columns of one product.
void Model::plan_adapters(const Step& step) {
    runs_.clear();
    block_runs_.clear();
    int s = 0, rank_groups = 0;
    for (int t = 0; t < step.tokens; t++) {
        while (t >= step.starts[s + 1]) s++;
        const int place = t % isa_->width, number = step.adapters[s];
        if (place == 0) block_runs_.push_back(int(runs_.size()));
        if (number < 0) continue;
        const Adapter* adapter = adapters_[number].get();
        Run* last = int(runs_.size()) > block_runs_.back() ? &runs_.back() : nullptr;
        if (last && last->adapter == adapter && last->first_token + last->columns == t) last->columns++;
        else runs_.push_back({adapter, t, place, 1, 0});
        rank_groups = std::max(rank_groups, adapter->rank_groups);
    }
    block_runs_.push_back(int(runs_.size()));
    for (Run& run : runs_) run.width = Panel::kernel_width(run.columns, isa_->width);
    shrunk_bytes_ = size_t(isa_->width) * rank_groups * RUN_BYTES;
    shrunk_.bytes(runs_.size() * PARTS * shrunk_bytes_);
    adapted_ffn_.bytes(runs_.size() * isa_->width * ffn_groups_ * RUN_BYTES);
}

// A x of each run for the matrices that read x, packed for B. input(run): its columns of x, packed.
template <typename Input>
void Model::shrink(int layer, std::initializer_list<int> parts, int groups, Scratch& scratch, Counter* counter,
                   Input input) {
    if (runs_.empty()) return;
    each(counter, int(runs_.size()), [&](int r) {
        const Run& run = runs_[r];
        const uint8_t* x = input(run);
        for (int part : parts) {
            const Addition& addition = run.adapter->at(layer, part);
            if (!addition.a.rows) continue;
            const int stride = addition.b.groups() * GROUP;
            float* product = scratch.tiles.floats(size_t(isa_->width) * ROWS);
            float* rows = scratch.row.floats(size_t(isa_->width) * stride);  // [columns][rank, rounded up]
            memset(rows, 0, size_t(run.columns) * stride * sizeof(float));
            for (int t = 0; t < addition.a.tiles(); t++) {
                isa_->multiply(addition.a.form, addition.a.tile(t), x, groups, run.width, product);
                for (int n = 0; n < run.columns; n++)
                    memcpy(rows + n * stride + t * ROWS, product + n * ROWS, ROWS * sizeof(float));
            }
            for (int n = 0; n < run.columns; n++)
                isa_->pack_column(activation(addition.b.form), rows + n * stride, addition.b.groups(), run.width, n,
                                  shrunk(run, part));
        }
    });
}

// Add B (A x) to the product of one tile with a block of columns, each by its own adapter.
void Model::adapt(int layer, int part, int tile, int block, float* product, Scratch& scratch) {
    for (int r = block_runs_[block]; r < block_runs_[block + 1]; r++) {
        const Run& run = runs_[r];
        const Addition& addition = run.adapter->at(layer, part);
        if (!addition.b.rows) continue;
        float* added = scratch.o.floats(size_t(isa_->width) * ROWS);
        isa_->multiply(addition.b.form, addition.b.tile(tile), shrunk(run, part), addition.b.groups(), run.width, added);
        for (int n = 0; n < run.columns; n++) {
            float* to = product + (run.first + n) * ROWS;
            isa_->add(to, added + n * ROWS, ROWS);
            if (addition.lengths)
                for (int i = 0; i < ROWS; i++) to[i] *= addition.lengths[tile * ROWS + i];
        }
    }
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

}  // namespace smollm3

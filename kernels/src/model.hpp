// One forward step of a whole model over a paged cache.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "forms.hpp"
#include "threads.hpp"

namespace smollm3 {

struct Shape {
    int layers, hidden, heads, kv_heads, head_dim, ffn, vocab;
    float eps;
    std::vector<uint8_t> uses_rope;  // of each layer
};

struct Layer {
    Matrix q, k, v, o, gate, up, down;
    const float *attention_norm, *ffn_norm;  // `hidden` values
};

// The matrices of a layer, as an adapter tells them apart.
enum Part : int { Q, K, V, O, GATE, UP, DOWN, PARTS };

// What an adapter makes of the product of one matrix: (W x + B (A x)) * lengths, lengths only of DoRA.
// A is [rank][in], B [out][rank] with its factor; both of the adapter's form. No rows: nothing.
struct Addition {
    Matrix a, b;
    const float* lengths = nullptr;  // [out, rounded up to a tile]
};

struct Adapter {
    Form form = F32;      // F32 or BF16
    int rank_groups = 0;  // of its largest rank
    std::vector<Addition> additions;  // [layers][PARTS]

    const Addition& at(int layer, int part) const { return additions[size_t(layer) * PARTS + part]; }
};

struct Weights {
    Matrix embed, unembed;
    const float* norm;
    std::vector<Layer> layers;
};

// N tokens of S sequences in a row: see Batch in smollm3/infer/backends.
struct Step {
    int tokens, sequences, table_width, wanted;
    const int32_t *ids, *positions;  // [N]
    const int32_t* starts;           // [S + 1]
    const int32_t* tables;           // [S][table_width]
    const int32_t* rows;             // [wanted]
    const int32_t* adapters;         // [S]: what `add_adapter` gave, or -1
    const float *cos, *sin;          // [N][head_dim / 2]
    float* logits;                   // [wanted][vocab]
};

// Memory that starts at a cache line and grows, never shrinks.
class Buffer {
  public:
    uint8_t* bytes(size_t size);
    float* floats(size_t count) { return (float*)bytes(count * sizeof(float)); }

  private:
    std::unique_ptr<uint8_t, decltype(&std::free)> memory_{nullptr, &std::free};
    size_t size_ = 0;
};

class Model {
  public:
    // cache: F32, BF16 or Q8 (int8). Throws std::bad_alloc where `blocks` do not fit in memory.
    Model(const Shape& shape, const Weights& weights, Form cache, int blocks, int threads, const Isa* isa);
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    // A number for `Step::adapters`, that of a removed one where there is one.
    int add_adapter(Adapter adapter);
    void remove_adapter(int number) { adapters_[number].reset(); }
    bool has_adapter(int number) const { return size_t(number) < adapters_.size() && adapters_[number]; }

    void step(const Step& step);
    int tokens() const { return tokens_; }  // of the last step
    // Their states before the last norm, [tokens][shape().hidden].
    void read_states(float* out);
    size_t block_bytes() const { return shape_.layers * layer_block_bytes_; }
    void read_block(int block, uint8_t* out) const;
    void write_block(int block, const uint8_t* in);
    int blocks() const { return blocks_; }
    const Shape& shape() const { return shape_; }
    const Layer& layer(int index) const { return weights_.layers[index]; }

  private:
    struct Unit {  // of attention: query columns of one sequence and kv head
        int sequence, kv_head, first_token, first_column, columns, blocks, partial;
    };
    struct Run {  // columns of one block of a panel of tokens whose sequences have the same adapter
        const Adapter* adapter;
        int first_token, first, columns, width;
    };
    struct Scratch {  // of one thread
        Buffer row, tiles, columns, o, panel, normed;
    };
    struct Factor {
        const Matrix* matrix;
        int part;  // PARTS for one that no adapter changes
    };

    uint8_t* page(int layer, int block, int kv_head) const {
        return cache_ + (size_t(layer) * blocks_ + block) * layer_block_bytes_ + kv_head * page_.bytes;
    }
    float* partial_o(int partial) { return partial_o_.floats(0) + size_t(partial) * isa_->width * page_.v_columns; }
    int block_of(const Step& step, int token) const;
    void plan_attention(const Step& step);
    void plan_adapters(const Step& step);
    void work(const Step& step, int thread);
    void layer(const Step& step, int index, Scratch& scratch, Counter* phase);
    void head(const Step& step, Scratch& scratch, Counter* phase);
    template <typename Work>
    void each(Counter* counter, int total, Work work);
    template <typename Fill>
    Panel filled(const Panel& shared, Scratch& scratch, Counter* counter, Fill fill);
    void pack_into(const float* values, const Panel& panel, int column);
    void norm_into(const float* x, const float* weight, const Panel& panel, int column, Scratch& scratch);
    void multiply(int layer, std::initializer_list<Factor> factors, const Panel& panel, float* out, int stride,
                  bool add, Scratch& scratch, Counter* counter);
    void feed_forward(int layer, const Panel& in, Scratch& scratch, Counter* counter);
    template <typename Input>
    void shrink(int layer, std::initializer_list<int> parts, int groups, Scratch& scratch, Counter* counter,
                Input input);
    void adapt(int layer, int part, int tile, int block, float* product, Scratch& scratch);
    uint8_t* shrunk(const Run& run, int part) {
        return shrunk_.bytes(0) + (size_t(&run - runs_.data()) * PARTS + part) * shrunk_bytes_;
    }
    uint8_t* adapted_ffn(const Run& run) {
        return adapted_ffn_.bytes(0) + size_t(&run - runs_.data()) * isa_->width * ffn_groups_ * RUN_BYTES;
    }
    void clear_new_pages(const Step& step, int token);
    void fill_row(const float* head, float* row) const;
    void store_token(const Step& step, int layer, int token, Scratch& scratch);
    void attend(const Step& step, int layer, const Unit& unit, int begin, int end, float* most, float* total, float* o,
                Scratch& scratch);
    void attend_unit(const Step& step, int layer, const Unit& unit, Scratch& scratch);
    void attend_partial(const Step& step, int layer, int partial, Scratch& scratch);
    void merge_partials(const Unit& unit);
    void finish(const Unit& unit, const float* total, float* o);

    Shape shape_;
    Weights weights_;
    const Isa* isa_;
    Threads threads_;
    int blocks_;
    PageLayout page_;
    size_t layer_block_bytes_;
    std::unique_ptr<uint8_t, decltype(&std::free)> cache_memory_{nullptr, &std::free};
    uint8_t* cache_;

    int tokens_ = 0;                                  // of the last step
    int hidden_, qkv_stride_, ffn_groups_, heads_size_;  // rounded up to whole groups
    std::vector<std::vector<float>> norms_;              // filled up with zeros
    std::vector<Scratch> scratch_;
    std::vector<Counter> counters_;
    std::vector<Unit> units_;
    std::vector<std::unique_ptr<Adapter>> adapters_;
    std::vector<Run> runs_;        // of the step, those of a block one after another
    std::vector<int> block_runs_;  // first run of each block, and of one more
    static constexpr size_t RUN_BYTES = 128;  // of a column's group, at most
    size_t shrunk_bytes_ = 0;                 // of a run's columns for one matrix
    Buffer shrunk_, adapted_ffn_;
    bool split_ = false;  // attention units go out in stretches of the cache
    int partials_ = 0;
    Buffer x_, qkv_, attended_, partial_numbers_, partial_o_;
    Buffer in_memory_, heads_memory_, ffn_memory_, out_memory_;
    Panel in_, heads_panel_, ffn_panel_, out_;
};

}  // namespace smollm3

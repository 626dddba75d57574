// The Python face: checks what it is given, then calls; the interpreter runs on meanwhile.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <stdexcept>
#if SMOLLM3_ARM64 && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif SMOLLM3_ARM64 && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "model.hpp"
#include "pack.hpp"

namespace nb = nanobind;
using namespace smollm3;

template <typename T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Table = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }
void expect(bool holds, const std::string& what) {
    if (!holds) fail(what);
}

constexpr const char* PART_NAMES[PARTS] = {"attention.q", "attention.k", "attention.v", "attention.o",
                                           "ffn.gate",    "ffn.up",      "ffn.down"};
constexpr const char* FORM_NAMES[FORMS] = {"f32", "bf16", "q4", "q4m", "q4k", "q6", "q8", "q8m", "q8k"};

Form form_named(const std::string& name) {
    for (int f = 0; f < FORMS; f++)
        if (name == FORM_NAMES[f]) return Form(f);
    fail("unknown form " + name);
}

#if SMOLLM3_ARM64
bool has_dotprod() {
#ifdef __linux__
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every Mac with an ARM processor
#endif
}

bool has_i8mm() {
#if defined(__linux__)
    return getauxval(AT_HWCAP2) & HWCAP2_I8MM;
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return !sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) && has;
#else
    return false;
#endif
}
#endif

// Fastest first.
std::vector<const Isa*> isas() {
    std::vector<const Isa*> found;
#if SMOLLM3_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        if (__builtin_cpu_supports("avx512bf16")) found.push_back(isa_avx512bf16());
        found.push_back(isa_avx512());
    }
    if (__builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        found.push_back(isa_avxvnni());
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        found.push_back(isa_avx2());
#elif SMOLLM3_ARM64
    if (has_dotprod() && has_i8mm()) found.push_back(isa_neon_i8mm());
    if (has_dotprod()) found.push_back(isa_neon());
#endif
    found.push_back(isa_portable());
    return found;
}

const Isa* isa_named(const std::string& name) {
    for (const Isa* isa : isas())
        if (name.empty() || name == isa->name) return isa;
    fail("this machine has no " + name);
}

// Bytes of a matrix, or of the pair that it is one of.
size_t room(const Matrix& m) {
    return m.paired ? size_t(round_up(m.tiles(), 2)) * 2 * tile_bytes(m.form, m.groups()) : m.bytes();
}

// A matrix whose bytes live in an array that Python keeps: (form, bytes), or (form, bytes, 1 or 2) for
// the first or second of a pair.
Matrix matrix(const nb::tuple& parts, int rows, int columns, const char* name) {
    expect(parts.size() == 2 || parts.size() == 3, std::string(name) + ": wants (form, bytes)");
    auto data = nb::cast<Vector<const uint8_t>>(parts[1]);
    const int which = parts.size() == 3 ? nb::cast<int>(parts[2]) : 0;
    Matrix m{form_named(nb::cast<std::string>(parts[0])), rows, columns, data.data(), which > 0};
    const size_t wanted = room(m);
    expect(data.size() == wanted,
           std::string(name) + ": wants " + std::to_string(wanted) + " bytes, not " + std::to_string(data.size()));
    if (which == 2) m.data += 2 * tile_bytes(m.form, m.groups());
    return m;
}

const float* norm(const nb::handle& array, int size, const char* name) {
    auto data = nb::cast<Vector<const float>>(array);
    expect(int(data.size()) == size, std::string(name) + ": wants " + std::to_string(size) + " values");
    return data.data();
}

class Engine {
  public:
    Engine(const nb::dict& shape, const nb::dict& weights, const std::string& cache, int blocks, int threads,
           const std::string& isa)
        : keep_(nb::cast<nb::dict>(weights.attr("copy")())) {
        auto number = [&](const char* key) {
            int n = nb::cast<int>(shape[key]);
            expect(n > 0, std::string(key) + ": must be above 0");
            return n;
        };
        Shape s{number("layers"), number("hidden"), number("heads"), number("kv_heads"), number("head_dim"),
                number("ffn"), number("vocab"), nb::cast<float>(shape["eps"]),
                nb::cast<std::vector<uint8_t>>(shape["uses_rope"])};
        expect(int(s.uses_rope.size()) == s.layers, "uses_rope: one for each layer");
        expect(s.heads % s.kv_heads == 0 && s.head_dim % 2 == 0, "heads: not a multiple of kv_heads, or head_dim odd");
        expect(blocks > 0 && threads > 0, "blocks, threads: must be above 0");
        const int q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
        Weights w;
        auto named = [&](const std::string& name, int rows, int columns) {
            return matrix(nb::cast<nb::tuple>(weights[name.c_str()]), rows, columns, name.c_str());
        };
        w.embed = named("embed", s.vocab, s.hidden);
        w.unembed = named("unembed", s.vocab, s.hidden);
        w.norm = norm(weights["norm"], s.hidden, "norm");
        for (int i = 0; i < s.layers; i++) {
            const std::string prefix = "blocks." + std::to_string(i) + ".";
            auto part = [&](const char* name, int rows, int columns) { return named(prefix + name, rows, columns); };
            auto scale = [&](const char* name) {
                return norm(weights[(prefix + name).c_str()], s.hidden, name);
            };
            Layer l{part("attention.q", q, s.hidden), part("attention.k", kv, s.hidden),
                    part("attention.v", kv, s.hidden), part("attention.o", s.hidden, q),
                    part("ffn.gate", s.ffn, s.hidden), part("ffn.up", s.ffn, s.hidden),
                    part("ffn.down", s.hidden, s.ffn), scale("attention_norm"), scale("ffn_norm")};
            const Matrix* same_input[][2] = {{&l.q, &l.k}, {&l.q, &l.v}, {&l.q, &l.gate}, {&l.q, &l.up}};
            for (auto& [a, b] : same_input)
                expect(activation(a->form) == activation(b->form), prefix + ": q, k, v, gate and up must be alike");
            if (i) {
                const Layer& first = w.layers[0];
                expect(activation(l.q.form) == activation(first.q.form) &&
                           activation(l.o.form) == activation(first.o.form) &&
                           activation(l.down.form) == activation(first.down.form),
                       prefix + ": must be as layer 0");
            }
            w.layers.push_back(l);
        }
        Form form = form_named(cache);
        expect(form == F32 || form == BF16 || form == Q8, "cache: must be f32, bf16 or q8");
        model_ = std::make_unique<Model>(s, w, form, blocks, threads, isa_named(isa));
    }

    void step(const Vector<const int32_t>& ids, const Vector<const int32_t>& positions,
              const Vector<const int32_t>& starts, const Table<const int32_t>& tables,
              const Vector<const int32_t>& rows, const Vector<const int32_t>& adapters, const Table<const float>& cos,
              const Table<const float>& sin, const Table<float>& logits) {
        const Shape& s = model_->shape();
        const int N = int(ids.size()), S = int(starts.size()) - 1, R = int(rows.size()), half = s.head_dim / 2;
        auto table = [](const auto& t, int r, int c) { return int(t.shape(0)) == r && int(t.shape(1)) == c; };
        expect(N > 0 && S > 0 && int(positions.size()) == N && int(tables.shape(0)) == S, "step: sizes differ");
        expect(table(cos, N, half) && table(sin, N, half) && table(logits, R, s.vocab), "step: sizes differ");
        expect(int(adapters.size()) == S, "adapters: one for each sequence");
        expect(starts.data()[0] == 0 && starts.data()[S] == N, "starts: must go from 0 to the number of tokens");
        for (int i = 0; i < S; i++) {
            expect(starts.data()[i] < starts.data()[i + 1], "starts: every sequence needs a token");
            expect(adapters.data()[i] == -1 || model_->has_adapter(adapters.data()[i]), "adapters: not there");
            for (int t = starts.data()[i]; t < starts.data()[i + 1]; t++) {
                const int position = positions.data()[t], first = positions.data()[starts.data()[i]];
                expect(first >= 0 && position == first + t - starts.data()[i], "positions: must follow one another");
                expect(position / BLOCK < int(tables.shape(1)), "tables: too short for the positions");
                expect(ids.data()[t] >= 0 && ids.data()[t] < s.vocab, "ids: outside the vocabulary");
            }
        }
        for (size_t i = 0; i < tables.size(); i++) check_block(tables.data()[i]);
        for (int i = 0; i < R; i++) expect(rows.data()[i] >= 0 && rows.data()[i] < N, "rows: outside the step");
        Step call{N, S, int(tables.shape(1)), R, ids.data(), positions.data(), starts.data(), tables.data(),
                  rows.data(), adapters.data(), cos.data(), sin.data(), logits.data()};
        alone([&] { model_->step(call); });
    }

    // By the names of matrices: (form, rank, bytes of A, bytes of B, lengths or None).
    int add_adapter(const nb::dict& parts) {
        const Layer& l = model_->layer(0);
        const Matrix* matrices[PARTS] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
        const int layers = model_->shape().layers;
        Adapter adapter;
        adapter.additions.resize(size_t(layers) * PARTS);
        int found = 0;
        for (int i = 0; i < layers * PARTS; i++) {
            const std::string name = "blocks." + std::to_string(i / PARTS) + "." + PART_NAMES[i % PARTS];
            if (!parts.contains(name.c_str())) continue;
            auto part = nb::cast<nb::tuple>(parts[name.c_str()]);
            expect(part.size() == 5, name + ": wants (form, rank, a, b, lengths)");
            const Matrix& m = *matrices[i % PARTS];
            const int rank = nb::cast<int>(part[1]);
            expect(rank > 0, name + ": rank: must be above 0");
            auto side = [&](int at, int rows, int columns) {
                return matrix(nb::make_tuple(part[0], part[at]), rows, columns, name.c_str());
            };
            Addition& a = adapter.additions[i];
            a = {side(2, rank, m.columns), side(3, m.rows, rank)};
            expect(a.a.form == F32 || a.a.form == BF16, name + ": form: must be f32 or bf16");
            expect(!found || a.a.form == adapter.form, name + ": form: all must be alike");
            adapter.form = a.a.form;
            if (!part[4].is_none()) a.lengths = norm(part[4], a.b.tiles() * ROWS, name.c_str());
            adapter.rank_groups = std::max(adapter.rank_groups, a.b.groups());
            found++;
        }
        expect(found == int(parts.size()) && found, "add_adapter: names that are no matrices, or none");
        int number = 0;
        alone([&] { number = model_->add_adapter(std::move(adapter)); });
        keep_[nb::int_(number)] = parts;
        return number;
    }

    void remove_adapter(int number) {
        expect(model_->has_adapter(number), "remove_adapter: not there");
        alone([&] { model_->remove_adapter(number); });
        nb::del(keep_[nb::int_(number)]);
    }

    void read_states(const Table<float>& out) {
        expect(int(out.shape(0)) == model_->tokens() && int(out.shape(1)) == model_->shape().hidden,
               "read_states: wants [tokens of the last step][hidden]");
        alone([&] { model_->read_states(out.data()); });
    }

    void read_blocks(const std::vector<int>& blocks, const Table<uint8_t>& out) {
        check_blocks(blocks, out.shape(0), out.shape(1));
        alone([&] {
            for (size_t i = 0; i < blocks.size(); i++)
                model_->read_block(blocks[i], out.data() + i * model_->block_bytes());
        });
    }

    void write_blocks(const std::vector<int>& blocks, const Table<const uint8_t>& in) {
        check_blocks(blocks, in.shape(0), in.shape(1));
        alone([&] {
            for (size_t i = 0; i < blocks.size(); i++)
                model_->write_block(blocks[i], in.data() + i * model_->block_bytes());
        });
    }

  private:
    void check_block(int block) const { expect(block >= 0 && block < model_->blocks(), "blocks: outside the cache"); }
    void check_blocks(const std::vector<int>& blocks, size_t rows, size_t bytes) const {
        for (int b : blocks) check_block(b);
        expect(rows == blocks.size() && bytes == model_->block_bytes(), "blocks: wants [blocks][block_bytes]");
    }

    // One caller at a time, without the interpreter's lock.
    template <typename Work>
    void alone(Work work) {
        if (busy_.exchange(true)) throw std::runtime_error("another thread is in this model");
        struct Release {
            std::atomic<bool>& busy;
            ~Release() { busy = false; }
        } release{busy_};
        nb::gil_scoped_release unlocked;
        work();
    }

    nb::dict keep_;  // the arrays that the matrices point into, an adapter's by its number
    std::unique_ptr<Model> model_;
    std::atomic<bool> busy_{false};
};

void pack_matrix(const std::string& type, const Vector<const uint8_t>& source, int rows, int columns, int pairs,
                 const std::string& form_name, int which, int threads, const Vector<uint8_t>& out) {
    const Form form = form_named(form_name);
    const size_t bytes = row_bytes(type, columns);
    expect(form_of(type) < FORMS, type + ": this type cannot be packed");
    expect(form == form_of(type) || (!quantised(form_of(type)) && !quantised(form)), type + ": not to " + form_name);
    expect(rows > 0 && columns > 0 && bytes > 0 && source.size() == bytes * rows, type + ": rows are not whole");
    expect(pairs >= 0 && (pairs == 0 || (pairs % 2 == 0 && rows % pairs == 0)), "pairs: not whole heads");
    const Matrix m{form, rows, columns, nullptr, which > 0};
    expect(out.size() == room(m), "out: wants " + std::to_string(room(m)) + " bytes");
    uint8_t* to = out.data() + (which == 2 ? 2 * tile_bytes(form, m.groups()) : 0);
    nb::gil_scoped_release unlocked;
    Threads pool(threads);
    Counter counter;
    pool.run([&](int) {
        counter.each(m.tiles(), 1, threads,
                     [&](int begin, int end) { pack(type, source.data(), m, pairs, begin, end, to); });
    });
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // an engine that lives until the process ends is no leak
    m.attr("VERSION") = SMOLLM3_KERNELS_FORMAT;
    m.attr("BLOCK") = BLOCK;
    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const Isa* isa : isas()) names.push_back(isa->name);
        return names;
    }, "Kernels that this machine can run, fastest first.");
    m.attr("TYPES") = nb::cast(types());
    m.def("form_of", [](const std::string& type) {
        Form form = form_of(type);
        expect(form < FORMS, type + ": this type cannot be packed");
        return std::string(FORM_NAMES[form]);
    }, nb::arg("type"), "The form that holds a GGUF type.");
    m.def("matrix_bytes", [](const std::string& form, int rows, int columns) {
        return Matrix{form_named(form), rows, columns, nullptr}.bytes();
    }, nb::arg("form"), nb::arg("rows"), nb::arg("columns"));
    m.def("block_bytes", [](const nb::dict& shape, const std::string& cache) {
        const PageLayout page(form_named(cache), nb::cast<int>(shape["head_dim"]));
        return page.bytes * nb::cast<int>(shape["layers"]) * nb::cast<int>(shape["kv_heads"]);
    }, nb::arg("shape"), nb::arg("cache"), "Of a block of the cache over all layers.");
    m.def("pair_bytes", [](const std::string& form, int rows, int columns) {
        return room(Matrix{form_named(form), rows, columns, nullptr, true});
    }, nb::arg("form"), nb::arg("rows"), nb::arg("columns"), "Of two matrices that are read together.");
    m.def("pack", &pack_matrix, nb::arg("type"), nb::arg("source"), nb::arg("rows"), nb::arg("columns"),
          nb::arg("pairs"), nb::arg("form"), nb::arg("which"), nb::arg("threads"), nb::arg("out"),
          "Rows of a GGUF type as a matrix of `form`. pairs: head size where rows are to be reordered, or 0.\n"
          "which: 1 or 2 for the first or second of a pair, 0 for a matrix alone.");
    m.def("unpack", [](const std::string& form, const Vector<const uint8_t>& data, int rows, int columns,
                       const Table<float>& out) {
        Matrix m{form_named(form), rows, columns, data.data()};
        expect(data.size() == m.bytes() && int(out.shape(0)) == rows && int(out.shape(1)) == m.groups() * GROUP,
               "unpack: wants [rows][columns rounded up to 32]");
        for (int r = 0; r < rows; r++) unpack_row(m, r, out.data() + size_t(r) * m.groups() * GROUP);
    }, nb::arg("form"), nb::arg("data"), nb::arg("rows"), nb::arg("columns"), nb::arg("out"));
    nb::class_<Engine>(m, "Model")
        .def(nb::init<const nb::dict&, const nb::dict&, const std::string&, int, int, const std::string&>(),
             nb::arg("shape"), nb::arg("weights"), nb::arg("cache"), nb::arg("blocks"), nb::arg("threads"),
             nb::arg("isa") = "")
        .def("step", &Engine::step, nb::arg("ids"), nb::arg("positions"), nb::arg("starts"), nb::arg("tables"),
             nb::arg("rows"), nb::arg("adapters"), nb::arg("cos"), nb::arg("sin"), nb::arg("logits"))
        .def("add_adapter", &Engine::add_adapter, nb::arg("parts"),
             "A number for step's `adapters`, where -1 is none. parts: by the names of the matrices\n"
             "(form, rank, A, B, lengths or None): (W x + B (A x)) * lengths.")
        .def("remove_adapter", &Engine::remove_adapter, nb::arg("number"))
        .def("read_states", &Engine::read_states, nb::arg("out"))
        .def("read_blocks", &Engine::read_blocks, nb::arg("blocks"), nb::arg("out"))
        .def("write_blocks", &Engine::write_blocks, nb::arg("blocks"), nb::arg("data"));
}

// How fast one thread multiplies, for each form and width of a block of columns, with weights in the
// second-level cache: the best of many short runs, so that a busy machine matters little.
//
//     cd kernels/src
//     g++ -O3 -std=c++20 -ffp-contract=off -mavx2 -mfma -mf16c -I. -DTABLE=isa_avx2 \
//         ../../benchmarks/products.cpp isa_avx2.cpp pack.cpp -o /tmp/products && /tmp/products
//
// 64 groups are the 2,048 columns of the 3B model; another number may be given.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "forms.hpp"

using namespace smollm3;

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int main(int count, char** arguments) {
    const char* names[FORMS] = {"F32", "BF16", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0", "Q5_1", "Q5_K"};
    const Isa* isa = TABLE();
    const int groups = count > 1 ? atoi(arguments[1]) : 64;
    printf("%s, %d columns\n| form | tokens | Gop/s | GB/s of weights |\n|---|---|---|---|\n", isa->name, groups * GROUP);
    for (int f = 0; f < FORMS; f++) {
        const Form form = Form(f);
        const size_t bytes = tile_bytes(form, groups), tiles = bytes < 65536 ? 65536 / bytes : 1;
        std::vector<uint8_t> room(bytes * tiles + 8192 + 64);
        uint8_t* weights = room.data() + (64 - uintptr_t(room.data()) % 64) % 64;
        for (size_t i = 0; quantised(form) && i < bytes * tiles; i++) weights[i] = uint8_t(rand() & 31);
        std::vector<float> values(groups * GROUP);
        for (float& x : values) x = float(rand() % 2001 - 1000) / 1000;
        for (int width : {1, 2, 4, 6, 8}) {
            if (width > isa->width) break;
            std::vector<uint8_t> block(size_t(groups) * 128 * width);
            for (int n = 0; n < width; n++)
                isa->pack_column(activation(form), values.data(), groups, width, n, block.data());
            float out[8 * ROWS];
            double best = 1e9;
            for (const double begin = now(); now() - begin < 0.3;) {
                const double from = now();
                for (size_t t = 0; t < tiles; t++)
                    isa->multiply(form, weights + t * bytes, block.data(), groups, width, out);
                const double took = now() - from;
                best = took < best ? took : best;
            }
            const double operations = 2.0 * ROWS * GROUP * groups * width * double(tiles);
            printf("| %s | %d | %.0f | %.1f |\n", names[f], width, operations / best / 1e9,
                   double(bytes * tiles) / best / 1e9);
        }
    }
}

// For ThreadSanitizer (tests/sanitize.py): the pool, the buffers and a convolution, used by several threads at once, with
// threads that come and go and tasks that throw. With the argument "race" one data race is planted.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/kernels.hpp"

using namespace minidl;

namespace {

int shared = 0; // written by all in the planted race

template <class F>
void tasks(int threads, Index count, const F& f) {
    run_tasks(threads, count, [](const void* context, Index i) { (*static_cast<const F*>(context))(i); }, &f);
}

void work(int seed, bool race) {
    const Level level = baseline_level();
    struct Block {
        char* data = nullptr;
        std::size_t size = 0;
    };
    std::vector<Block> blocks(10);
    for (int round = 0; round < 50; ++round) {
        std::vector<long> counts(97, 0);
        tasks(1 + (seed + round) % 5, 97, [&](Index i) { counts[i] += i; });
        for (Index i = 0; i < 97; ++i)
            if (counts[i] != i) std::abort();

        try {
            tasks(3, 40, [&](Index i) {
                if (i == 13) throw std::runtime_error("planned");
            });
            std::abort();
        } catch (const std::runtime_error&) {
        }

        const Conv s{1, 3, 12, 11, 5, 3, 3, 12, 11, 1, 1, 1, 1, 1, 1, 1};
        float* x = static_cast<float*>(acquire(3 * 132 * sizeof(float)));
        float* y = static_cast<float*>(acquire(5 * 132 * sizeof(float)));
        float w[5 * 27];
        for (float& v : w) v = 1;
        for (int i = 0; i < 3 * 132; ++i) x[i] = 1;
        level.f32->direct_conv2d(4, s, {x, 1, 3, 12, 11, 3}, w, nullptr, Activation::none, {y, 1, 5, 12, 11, 5});
        if (y[5 * (3 * 11 + 3)] != 27) std::abort();
        release(x);
        release(y);
        for (int k = 0; k < 6; ++k) { // blocks of many sizes that are kept for a while: nobody else writes into them
            Block& block = blocks[(round * 7 + k * k) % blocks.size()];
            for (std::size_t i = 0; i < block.size; i += 997)
                if (block.data[i] != char(seed + 1)) std::abort();
            release(block.data);
            block.size = std::size_t(1000) << (round + k + seed) % 13;
            block.data = static_cast<char*>(acquire(block.size));
            std::memset(block.data, seed + 1, block.size);
        }
        if (race) ++shared;
    }
    for (const Block& block : blocks) release(block.data);
}

} // namespace

int main(int count, char**) {
    std::vector<std::thread> threads;
    for (int seed = 0; seed < 4; ++seed) threads.emplace_back(work, seed, count > 1);
    for (std::thread& thread : threads) thread.join();
    empty_cache();
    if (buffer_account().used || buffer_account().kept) std::abort();
    std::puts("threads: no race found");
}

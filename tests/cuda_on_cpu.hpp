// CUDA's language in C++, so that csrc/cuda/*.cu run on any processor: the same text, compiled by g++ after this header.
//
// Every thread of a block is a fiber, a stack of its own. One runs until it waits, at a barrier or for its warp, then the
// next; in order, backwards or shuffled. Where a barrier is missing, one of these orders reads what was not written yet.
// Stricter than a GPU: shared memory starts as NaN in every block, an asynchronous copy arrives only when it is waited for,
// and a barrier that not all threads reach is an error, as is a shuffle without the whole warp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <ucontext.h>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define CUDA_ON_CPU
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("shared_memory")))

struct dim3 { unsigned x, y, z; };
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::exp, std::log, std::pow, std::sqrt, std::tanh;

inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

extern "C" char __start_shared_memory[] __attribute__((weak));
extern "C" char __stop_shared_memory[] __attribute__((weak));

namespace bench {

struct Copy { void* to; unsigned size; char bytes[16]; };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(128 << 10);
    dim3 index;
    enum { RUNS, AT_BARRIER, IN_WARP, DONE } state;
    int line;                  // where it waits
    double slot[4];            // what it shows to its warp
    std::vector<Copy> copies;  // under way
};

struct Launch { unsigned grid[3], block[3]; int order; unsigned seed; }; // order: 0 forward, 1 backward, 2 shuffled

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current, threads;
inline const std::function<void()>* body;
inline char failure[200];

#if defined(__SANITIZE_ADDRESS__)
inline const void* main_stack;
inline size_t main_size;
#endif

inline void leave(bool for_good = false) { // from the running fiber to the scheduler
#if defined(__SANITIZE_ADDRESS__)
    void* mine = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &mine, main_stack, main_size);
    swapcontext(&fibers[current].context, &scheduler);
    __sanitizer_finish_switch_fiber(mine, &main_stack, &main_size);
#else
    (void)for_good;
    swapcontext(&fibers[current].context, &scheduler);
#endif
}

inline void enter(unsigned fiber) { // from the scheduler
    current = fiber, threadIdx = fibers[fiber].index;
#if defined(__SANITIZE_ADDRESS__)
    void* mine;
    __sanitizer_start_switch_fiber(&mine, fibers[fiber].stack.data(), fibers[fiber].stack.size());
    swapcontext(&scheduler, &fibers[fiber].context);
    __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#else
    swapcontext(&scheduler, &fibers[fiber].context);
#endif
}

inline void begin() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_size);
#endif
    (*body)();
    fibers[current].state = Fiber::DONE;
    leave(true);
}

inline void wait(decltype(Fiber::state) where, int line) {
    fibers[current].state = where, fibers[current].line = line;
    leave();
}

// Let go those who wait and may go on; false if there are none, or if they wait at different places.
inline bool release() {
    bool any = false;
    for (unsigned first = 0; first < threads; first += 32) {
        const unsigned end = std::min(first + 32, threads);
        bool whole = true;
        for (unsigned i = first; i < end; ++i)
            whole = whole && fibers[i].state == Fiber::IN_WARP && fibers[i].line == fibers[first].line;
        for (unsigned i = first; whole && i < end; ++i) fibers[i].state = Fiber::RUNS;
        any = any || whole;
    }
    if (any) return true;
    for (unsigned i = 0; i < threads; ++i)
        if (fibers[i].state != Fiber::AT_BARRIER || fibers[i].line != fibers[0].line) return false;
    for (unsigned i = 0; i < threads; ++i) fibers[i].state = Fiber::RUNS;
    return true;
}

inline bool run_block(const std::vector<unsigned>& order) {
    std::memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.state = Fiber::RUNS, fiber.copies.clear();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, begin, 0);
    }
    while (true) {
        unsigned done = 0;
        for (const unsigned i : order) {
            if (fibers[i].state == Fiber::RUNS) enter(i);
            done += fibers[i].state == Fiber::DONE;
        }
        if (done == threads) return true;
        if (!release()) {
            for (unsigned i = 0; i < threads; ++i)
                if (fibers[i].state != Fiber::DONE) {
                    std::snprintf(failure, sizeof failure, "block (%u, %u, %u): thread %u waits at line %d, not all others do",
                                  blockIdx.x, blockIdx.y, blockIdx.z, i, fibers[i].line);
                    return false;
                }
        }
    }
}

// Run a kernel on every block; null, or what went wrong.
inline const char* run(const Launch& how, const std::function<void()>& kernel) {
    gridDim = {how.grid[0], how.grid[1], how.grid[2]}, blockDim = {how.block[0], how.block[1], how.block[2]};
    threads = blockDim.x * blockDim.y * blockDim.z, body = &kernel;
    if (fibers.size() < threads) fibers.resize(threads);
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    std::vector<unsigned> order(threads), sequence(blocks);
    for (unsigned i = 0; i < threads; ++i) {
        order[i] = how.order == 1 ? threads - 1 - i : i;
        fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    for (unsigned i = 0; i < blocks; ++i) sequence[i] = how.order == 1 ? blocks - 1 - i : i;
    std::mt19937 random(how.seed);
    if (how.order == 2) std::shuffle(order.begin(), order.end(), random), std::shuffle(sequence.begin(), sequence.end(), random);
    for (const unsigned block : sequence) {
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        if (!run_block(order)) return failure;
    }
    return nullptr;
}

// The value that lane `from` of this warp shows.
template <class T>
T exchange(T value, unsigned from, int line) {
    const unsigned first = current / 32 * 32;
    std::memcpy(fibers[current].slot, &value, sizeof value);
    wait(Fiber::IN_WARP, line);
    T other = value;
    if (from < 32 && first + from < threads) std::memcpy(&other, fibers[first + from].slot, sizeof other);
    wait(Fiber::IN_WARP, -line); // until all have read
    return other;
}

inline void whole(unsigned mask) {
    if (mask != 0xffffffffu || threads % 32) std::fprintf(stderr, "a shuffle without the whole warp\n"), std::abort();
}

} // namespace bench

#define __syncthreads() bench::wait(bench::Fiber::AT_BARRIER, __LINE__)

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int line = __builtin_LINE()) {
    bench::whole(mask);
    return bench::exchange(value, bench::current % 32 ^ lanes, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, int lanes, int line = __builtin_LINE()) {
    bench::whole(mask);
    return bench::exchange(value, bench::current % 32 + lanes, line);
}

// The primitives of prelude.cu.

template <int N, class T>
void copy_async(T* to, const T* from, bool inside) {
    constexpr unsigned size = N * sizeof(T);
    if (reinterpret_cast<std::uintptr_t>(to) % size || (inside && reinterpret_cast<std::uintptr_t>(from) % size))
        std::fprintf(stderr, "a copy of %u bytes that is not aligned\n", size), std::abort();
    bench::Copy copy{to, size, {}};
    if (inside) std::memcpy(copy.bytes, from, size);
    bench::fibers[bench::current].copies.push_back(copy);
}

inline void copies_arrived() {
    for (const bench::Copy& copy : bench::fibers[bench::current].copies)
        std::memcpy(copy.to, copy.bytes, copy.size);
    bench::fibers[bench::current].copies.clear();
}

inline unsigned to_tf32(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return std::isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits; // to the nearest, ties away from 0
}

inline void multiply_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    struct Parts { float a[4], b[2]; } mine;
    std::memcpy(mine.a, a, sizeof mine.a), std::memcpy(mine.b, b, sizeof mine.b);
    static_assert(sizeof mine <= sizeof bench::fibers[0].slot, "the slot holds what a lane shows");
    const unsigned first = bench::current / 32 * 32, lane = bench::current % 32;
    std::memcpy(bench::fibers[bench::current].slot, &mine, sizeof mine);
    bench::wait(bench::Fiber::IN_WARP, line);
    const auto shown = [&](unsigned from) {
        Parts parts;
        std::memcpy(&parts, bench::fibers[first + from].slot, sizeof parts);
        return parts;
    };
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 8; ++k) // a (row, k) lies in lane row % 8 · 4 + k % 4, b (k, column) in column · 4 + k % 4
            d[i] += shown(row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2] * shown(column * 4 + k % 4).b[k / 4];
    }
    bench::wait(bench::Fiber::IN_WARP, -line);
}

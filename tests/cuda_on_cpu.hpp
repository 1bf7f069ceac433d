// CUDA's language in C++, so that csrc/cuda/*.cu run on any processor: the same text, compiled by g++ after this header.
//
// Every thread of a block is a fiber, a stack of its own. One runs until it waits, at a barrier or for its warp, then the
// next; in order, backwards or shuffled. Where a barrier is missing, one of these orders reads what was not written yet.
// Stricter than a GPU: shared memory starts as NaN in every block, an asynchronous copy arrives only when it is waited for,
// and a barrier that not all threads reach is an error, as is a shuffle without the whole warp.
#pragma once

// Few headers: this one is compiled anew for every file.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
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

inline double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

extern "C" char __start_shared_memory[] __attribute__((weak));
extern "C" char __stop_shared_memory[] __attribute__((weak));

namespace bench {

constexpr unsigned MOST_THREADS = 1024, MOST_COPIES = 64, STACK = 128 << 10;

struct Copy { void* to; unsigned size; char bytes[16]; };

// Fibers are made by makecontext, and begun by swapcontext; after that _setjmp and _longjmp switch between them, which asks
// the system for nothing. AddressSanitizer wants to be told of switches, and has them all by swapcontext.
struct Fiber {
    ucontext_t context;
    jmp_buf at;
    bool begun;
    char* stack;
    dim3 index;
    enum { RUNS, AT_BARRIER, IN_WARP, DONE } state;
    int line;                  // where it waits
    double slot[4];            // what it shows to its warp
    Copy copies[MOST_COPIES];  // under way
    int under_way;
};

struct Launch { unsigned grid[3], block[3]; int order; unsigned seed; }; // order: 0 forward, 1 backward, 2 shuffled

inline Fiber fibers[MOST_THREADS];
inline ucontext_t scheduler;
inline jmp_buf scheduler_at;
inline unsigned current, threads;
inline void (*body)(void**); // the kernel, and its arguments
inline void** arguments;
inline char failure[200];
inline bool failed;

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
    if (for_good || !_setjmp(fibers[current].at)) _longjmp(scheduler_at, 1);
#endif
}

inline void enter(unsigned fiber) { // from the scheduler
    current = fiber, threadIdx = fibers[fiber].index;
#if defined(__SANITIZE_ADDRESS__)
    void* mine;
    __sanitizer_start_switch_fiber(&mine, fibers[fiber].stack, STACK);
    swapcontext(&scheduler, &fibers[fiber].context);
    __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#else
    if (_setjmp(scheduler_at)) return;
    if (fibers[fiber].begun) _longjmp(fibers[fiber].at, 1);
    fibers[fiber].begun = true;
    setcontext(&fibers[fiber].context);
#endif
}

inline void begin() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_size);
#endif
    body(arguments);
    fibers[current].state = Fiber::DONE;
    leave(true);
}

inline void wait(decltype(Fiber::state) where, int line) {
    fibers[current].state = where, fibers[current].line = line;
    leave();
}

// Stop the launch: something that a GPU would not forgive, or would not tell.
inline void fail(const char* what) {
    if (!failed) snprintf(failure, sizeof failure, "block (%u, %u, %u), thread %u: %s", blockIdx.x, blockIdx.y, blockIdx.z, current, what);
    failed = true, fibers[current].state = Fiber::DONE;
    leave(true);
}

// Let go those who wait and may go on; false if there are none, or if they wait at different places.
inline bool release() {
    bool any = false;
    for (unsigned first = 0; first < threads; first += 32) {
        const unsigned end = first + 32 < threads ? first + 32 : threads;
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

inline bool run_block(const unsigned* order) {
    if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.state = Fiber::RUNS, fiber.begun = false, fiber.under_way = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack, fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, begin, 0);
    }
    while (true) {
        unsigned done = 0;
        for (unsigned i = 0; i < threads; ++i) {
            if (fibers[order[i]].state == Fiber::RUNS) enter(order[i]);
            if (failed) return false;
            done += fibers[order[i]].state == Fiber::DONE;
        }
        if (done == threads) return true;
        if (!release()) {
            for (current = 0; fibers[current].state == Fiber::DONE; ++current) {}
            snprintf(failure, sizeof failure, "block (%u, %u, %u), thread %u waits at line %d, not all others do", blockIdx.x,
                     blockIdx.y, blockIdx.z, current, fibers[current].line);
            return false;
        }
    }
}

// The k-th of n in an order: forward, backward, or shuffled by a seed.
inline void arrange(unsigned* order, unsigned n, const Launch& how) {
    for (unsigned i = 0; i < n; ++i) order[i] = how.order == 1 ? n - 1 - i : i;
    uint64_t state = how.seed;
    for (unsigned i = n; how.order == 2 && i > 1; --i) {
        state = state * 6364136223846793005u + 1442695040888963407u; // Knuth's generator
        const unsigned j = (state >> 33) % i, kept = order[i - 1];
        order[i - 1] = order[j], order[j] = kept;
    }
}

// Run a kernel on every block; null, or what went wrong.
inline const char* run(const Launch& how, void (*kernel)(void**), void** values) {
    gridDim = {how.grid[0], how.grid[1], how.grid[2]}, blockDim = {how.block[0], how.block[1], how.block[2]};
    threads = blockDim.x * blockDim.y * blockDim.z, body = kernel, arguments = values;
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    static unsigned order[MOST_THREADS];
    unsigned* sequence = static_cast<unsigned*>(malloc(blocks * sizeof(unsigned)));
    arrange(order, threads, how), arrange(sequence, blocks, how);
    for (unsigned i = 0; i < threads; ++i) {
        if (!fibers[i].stack) fibers[i].stack = static_cast<char*>(malloc(STACK));
        fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    failed = false;
    bool good = true;
    for (unsigned i = 0; good && i < blocks; ++i) {
        blockIdx = {sequence[i] % gridDim.x, sequence[i] / gridDim.x % gridDim.y, sequence[i] / gridDim.x / gridDim.y};
        good = run_block(order);
    }
    free(sequence);
    return good ? nullptr : failure;
}

// The value that lane `from` of this warp shows.
template <class T>
T exchange(T value, unsigned from, int line) {
    const unsigned first = current / 32 * 32;
    memcpy(fibers[current].slot, &value, sizeof value);
    wait(Fiber::IN_WARP, line);
    T other = value;
    if (from < 32 && first + from < threads) memcpy(&other, fibers[first + from].slot, sizeof other);
    wait(Fiber::IN_WARP, -line); // until all have read
    return other;
}

inline void whole(unsigned mask) {
    if (mask != 0xffffffffu || threads % 32) fail("a shuffle without the whole warp");
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
    if (reinterpret_cast<uintptr_t>(to) % size || (inside && reinterpret_cast<uintptr_t>(from) % size))
        bench::fail("a copy that is not aligned");
    bench::Fiber& fiber = bench::fibers[bench::current];
    if (fiber.under_way == (int)bench::MOST_COPIES) bench::fail("copies are never waited for");
    bench::Copy& copy = fiber.copies[fiber.under_way++];
    copy = {to, size, {}};
    if (inside) memcpy(copy.bytes, from, size);
}

inline void copies_arrived() {
    bench::Fiber& fiber = bench::fibers[bench::current];
    for (int i = 0; i < fiber.under_way; ++i) memcpy(fiber.copies[i].to, fiber.copies[i].bytes, fiber.copies[i].size);
    fiber.under_way = 0;
}

inline unsigned to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits; // to the nearest, ties away from 0
}

inline void multiply_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    struct Parts { float a[4], b[2]; } mine;
    memcpy(mine.a, a, sizeof mine.a), memcpy(mine.b, b, sizeof mine.b);
    static_assert(sizeof mine <= sizeof bench::fibers[0].slot, "the slot holds what a lane shows");
    const unsigned first = bench::current / 32 * 32, lane = bench::current % 32;
    memcpy(bench::fibers[bench::current].slot, &mine, sizeof mine);
    bench::wait(bench::Fiber::IN_WARP, line);
    const auto shown = [&](unsigned from) {
        Parts parts;
        memcpy(&parts, bench::fibers[first + from].slot, sizeof parts);
        return parts;
    };
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 8; ++k) // a (row, k) lies in lane row % 8 · 4 + k % 4, b (k, column) in column · 4 + k % 4
            d[i] += shown(row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2] * shown(column * 4 + k % 4).b[k / 4];
    }
    bench::wait(bench::Fiber::IN_WARP, -line);
}

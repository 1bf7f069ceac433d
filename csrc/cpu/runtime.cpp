#include "runtime.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#include <sys/mman.h>
#else
#include <malloc.h>
#endif

namespace minidl {
namespace {

// --- threads ------------------------------------------------------------------------------------------------------

using Task = void (*)(const void*, Index);

class Pool {
public:
    void run(int threads, Index tasks, Task task, const void* context) {
        std::unique_lock<std::mutex> one_job(busy, std::try_to_lock);
        if (threads <= 1 || tasks <= 1 || !one_job.owns_lock()) { // another Python thread has the pool: work alone
            for (Index i = 0; i < tasks; ++i) task(context, i);
            return;
        }
        Job mine{task, context, tasks};
        {
            std::lock_guard<std::mutex> lock(state);
            wanted = static_cast<int>(std::min<Index>(threads, tasks)) - 1;
            try {
                while (static_cast<int>(workers.size()) < wanted) {
                    const int number = static_cast<int>(workers.size());
                    workers.emplace_back([this, number] { serve(number); });
                }
            } catch (const std::system_error&) { // no more threads to be had: fewer do it too
            }
            make_way();
            job = &mine;
            next = 0;
            failure = nullptr;
            generation.fetch_add(1);
        }
        wake.notify_all();
        work(mine);
        std::unique_lock<std::mutex> lock(state);
        job = nullptr; // workers that come too late find nothing and are not waited for
        if (running) {
            lock.unlock();
            for (int spin = 0; spin < spins && running.load(std::memory_order_relaxed); ++spin) pause();
            lock.lock();
        }
        done.wait(lock, [this] { return running == 0; });
        if (failure) std::rethrow_exception(failure);
    }

private:
    struct Job {
        Task task;
        const void* context;
        Index total;
    };

    // Send workers that last ran on the caller's processor to the others. Linux wakes a thread where it fell asleep and may
    // take milliseconds to notice that another processor is idle: until then caller and worker would share one.
    void make_way() {
#ifdef __linux__
        const int here = sched_getcpu();
        for (size_t k = 0; k < workers.size(); ++k) {
            if (here < 0 || place[k].load(std::memory_order_relaxed) != here) continue;
            cpu_set_t others = allowed;
            CPU_CLR(here, &others);
            if (CPU_COUNT(&others)) pthread_setaffinity_np(workers[k].native_handle(), sizeof others, &others);
            place[k] = -1;
        }
#endif
    }

    void work(const Job& mine) {
        try {
            for (Index i; (i = next.fetch_add(1)) < mine.total;) mine.task(mine.context, i);
        } catch (...) {
            next = mine.total;
            std::lock_guard<std::mutex> lock(state);
            failure = std::current_exception();
        }
    }

    void serve(int number) {
        std::uint64_t seen = 0;
        for (;;) {
            for (int spin = 0; spin < spins && generation.load(std::memory_order_relaxed) == seen; ++spin) pause();
            std::unique_lock<std::mutex> lock(state);
            wake.wait(lock, [&] { return generation.load() != seen; });
            seen = generation.load();
            if (!job || number >= wanted) continue;
#ifdef __linux__
            place[number] = sched_getcpu();
#endif
            const Job& mine = *job; // on the stack of run(), which waits for us
            ++running;
            lock.unlock();
            work(mine);
            lock.lock();
            if (--running == 0) done.notify_one();
        }
    }

    // Before a thread sleeps it looks so many times, some 30 µs, whether there is something to do: the next kernel often
    // follows at once, the other threads' last tasks soon end, and waking from sleep takes as long.
    static constexpr int spins = 2000;

    static void pause() {
#if defined(__x86_64__) && defined(__GNUC__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }

#ifdef __linux__
    std::atomic<int> place[256]{}; // of each worker: the processor it last ran on
    const cpu_set_t allowed = [] {
        cpu_set_t set;
        CPU_ZERO(&set);
        sched_getaffinity(0, sizeof set, &set);
        return set;
    }();
#endif
    std::mutex busy, state;
    std::condition_variable wake, done;
    std::vector<std::thread> workers;
    const Job* job = nullptr;
    std::atomic<Index> next{0};
    std::atomic<std::uint64_t> generation{0};
    std::atomic<int> running{0};
    int wanted = 0;
    std::exception_ptr failure;
};

// --- buffers ------------------------------------------------------------------------------------------------------

struct alignas(64) Header { // stands before every buffer
    std::size_t size;       // of header and buffer
};

#if defined(__SANITIZE_ADDRESS__)
constexpr bool sanitized = true; // no reuse and no rounding up, which would hide errors; new memory is full of NaN
#else
constexpr bool sanitized = false;
#endif
constexpr std::size_t small = sanitized ? SIZE_MAX : 16 << 10; // below, malloc itself is fast and keeps pages
constexpr std::size_t huge = 2 << 20;                          // a large page of x86-64 and arm64

void* fresh(std::size_t size) {
#ifdef _WIN32
    void* block = _aligned_malloc(size, 64);
    if (!block) throw std::bad_alloc();
#else
    void* block = nullptr;
    if (posix_memalign(&block, size >= 2 * huge ? huge : 64, size)) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (size >= 2 * huge) madvise(block, size, MADV_HUGEPAGE); // 512 times fewer page faults; only a wish
#endif
#endif
    if (sanitized) std::memset(block, 0xff, size);
    return block;
}

void give_back(void* block) noexcept {
#ifdef _WIN32
    _aligned_free(block);
#else
    std::free(block);
#endif
}

class Buffers {
public:
    void* acquire(std::size_t bytes) {
        std::size_t size = bytes + sizeof(Header);
        if (size < small) return start(fresh(size), size);
        size = (size + 4095) / 4096 * 4096;
        std::vector<std::pair<std::size_t, void*>> dropped;
        void* block = nullptr;
        {
            std::lock_guard<std::mutex> lock(state);
            const auto found = free.lower_bound(size);
            if (found != free.end() && found->first <= size + size / 8) { // a little too large will do
                size = found->first;
                block = found->second;
                free.erase(found);
                kept -= size;
            }
            used += size;
            peak = std::max(peak, used);
            // What is kept must not raise the most memory ever needed by more than an eighth.
            while (!block && !free.empty() && used + kept > peak + peak / 8) {
                const auto largest = std::prev(free.end());
                dropped.push_back(*largest);
                kept -= largest->first;
                free.erase(largest);
            }
        }
        for (const auto& [length, address] : dropped) give_back(address);
        if (!block) {
            try {
                block = fresh(size);
            } catch (...) {
                std::lock_guard<std::mutex> lock(state);
                used -= size;
                throw;
            }
        }
        return start(block, size);
    }

    void release(void* data) noexcept {
        if (!data) return;
        Header* block = static_cast<Header*>(data) - 1;
        const std::size_t size = block->size;
        if (size >= small) {
            try {
                std::lock_guard<std::mutex> lock(state);
                used -= std::min(used, size);
                free.emplace(size, block);
                kept += size;
                return;
            } catch (...) { // no memory to remember it by
            }
        }
        give_back(block);
    }

    Account account() {
        std::lock_guard<std::mutex> lock(state);
        return {used, peak, kept};
    }

    void empty() {
        std::multimap<std::size_t, void*> all;
        {
            std::lock_guard<std::mutex> lock(state);
            all.swap(free);
            kept = 0;
            peak = used;
        }
        for (const auto& [size, block] : all) give_back(block);
    }

private:
    static void* start(void* block, std::size_t size) { return new (block) Header{size} + 1; }

    std::mutex state;
    std::multimap<std::size_t, void*> free; // by size
    std::size_t used = 0, peak = 0, kept = 0;
};

// Both live until the process ends and are never destroyed: the pool's threads may sleep through the interpreter's exit.
// A forked child has none of its parent's threads, and locks that nobody will open: it starts with new ones.
struct Runtime {
    Pool pool;
    Buffers buffers;
};

std::atomic<Runtime*>& slot() {
    static std::atomic<Runtime*> current{[] {
#ifndef _WIN32
        pthread_atfork(nullptr, nullptr, [] { slot() = new Runtime; });
#endif
        return new Runtime;
    }()};
    return current;
}

} // namespace

void run_tasks(int threads, Index tasks, Task task, const void* context) {
    slot().load()->pool.run(threads, tasks, task, context);
}

void* scratch(int number, std::size_t bytes) {
    struct Slot {
        void* data = nullptr;
        std::size_t size = 0;
        ~Slot() { give_back(data); }
    };
    thread_local Slot slots[8];
    Slot& mine = slots[number];
    if (mine.size < bytes || sanitized) {
        give_back(mine.data);
        mine.data = nullptr;
        mine.size = 0;
        const std::size_t size = sanitized ? bytes : bytes + bytes / 4;
        mine.data = fresh(size);
        mine.size = size;
    }
    return mine.data;
}

void* acquire(std::size_t bytes) { return slot().load()->buffers.acquire(bytes); }
void release(void* data) noexcept { slot().load()->buffers.release(data); }
Account buffer_account() { return slot().load()->buffers.account(); }
void empty_cache() { slot().load()->buffers.empty(); }

} // namespace minidl

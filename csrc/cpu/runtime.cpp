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
#include <set>
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

// Memory comes from the system in segments. What is asked for is cut from the smallest free piece that holds it; what is
// returned grows together with the free pieces beside it. So the same memory serves two small images now and a large one
// later, and a training that repeats itself soon asks the system for nothing: fresh pages cost more than most kernels.
class Arena {
public:
    // Null where nothing free is large enough. `size` becomes what was taken: a rest too small to be of use goes along.
    char* take(std::size_t& size, std::size_t rest) {
        const auto found = by_size.lower_bound({size, nullptr});
        if (found == by_size.end()) return nullptr;
        const auto [length, block] = *found;
        by_size.erase(found);
        free.erase(block);
        if (length - size >= rest) put(block + size, length - size);
        else size = length;
        return block;
    }

    void add(char* segment, std::size_t size) { segments[segment] = size; }

    void put(char* block, std::size_t size) {
        const auto next = free.lower_bound(block);
        if (next != free.end() && block + size == next->first && !segments.count(next->first)) {
            size += next->second;
            by_size.erase({next->second, next->first});
            free.erase(next);
        }
        const auto after = free.lower_bound(block);
        if (after != free.begin() && !segments.count(block)) {
            const auto before = std::prev(after);
            if (before->first + before->second == block) {
                by_size.erase({before->second, before->first});
                before->second += size;
                by_size.emplace(before->second, before->first);
                return;
            }
        }
        by_size.emplace(size, block);
        free.emplace(block, size);
    }

    // The largest segment that is free as a whole, no longer among these: its address and size, null if there is none.
    std::pair<char*, std::size_t> drop() {
        for (auto piece = by_size.rbegin(); piece != by_size.rend(); ++piece) {
            const auto [size, block] = *piece;
            const auto segment = segments.find(block);
            if (segment == segments.end() || segment->second != size) continue;
            by_size.erase({size, block});
            free.erase(block);
            segments.erase(segment);
            return {block, size};
        }
        return {nullptr, 0};
    }

private:
    std::map<char*, std::size_t> segments, free; // by address
    std::set<std::pair<std::size_t, char*>> by_size;
};

struct alignas(64) Header { // stands before every buffer
    std::size_t size;       // of header and buffer
    Arena* home;            // null: straight from the system
};

class Buffers {
public:
    void* acquire(std::size_t bytes) {
        std::size_t size = bytes + sizeof(Header);
        if (size < small) return start(fresh(size), size, nullptr);
        size = (size + page - 1) / page * page;
        Arena& home = size < medium ? little : large;
        std::lock_guard<std::mutex> lock(state);
        char* block = home.take(size, &home == &large ? medium : small);
        if (!block) {
            std::size_t segment = std::max(size, medium);
            // What is kept must not raise the most memory ever needed by more than a quarter.
            while (held + segment > std::max(peak, used + size) / 4 * 5 && drop()) {}
            block = static_cast<char*>(fresh(segment));
            home.add(block, segment);
            held += segment;
            home.put(block, segment);
            block = home.take(size, &home == &large ? medium : small);
        }
        used += size;
        peak = std::max(peak, used);
        return start(block, size, &home);
    }

    void release(void* data) noexcept {
        if (!data) return;
        Header* block = static_cast<Header*>(data) - 1;
        const auto [size, home] = *block;
        if (!home) return give_back(block);
        std::lock_guard<std::mutex> lock(state);
        used -= size;
        home->put(reinterpret_cast<char*>(block), size);
    }

    Account account() {
        std::lock_guard<std::mutex> lock(state);
        return {used, peak, held - used};
    }

    void empty() {
        std::lock_guard<std::mutex> lock(state);
        while (drop()) {}
        peak = used;
    }

private:
    static void* start(void* block, std::size_t size, Arena* home) { return new (block) Header{size, home} + 1; }

    bool drop() { // give a segment back to the system
        for (Arena* arena : {&large, &little})
            if (const auto [segment, size] = arena->drop(); segment) {
                held -= size;
                give_back(segment);
                return true;
            }
        return false;
    }

    static constexpr std::size_t page = 4096, medium = 1 << 20; // little pieces would keep large ones from growing together
    std::mutex state;
    Arena little, large;
    std::size_t used = 0, peak = 0, held = 0; // held: in all segments
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

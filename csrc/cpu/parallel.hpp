// Threads: a pool that shares out numbered tasks.
//
// Every kernel cuts its work into tasks whose results do not depend on one another, and whose inner order of summation
// is fixed by the shapes alone. So it does not matter which thread takes which task: the bits are the same for any
// number of threads. No OpenMP: a process that forks after an OpenMP region hangs in the child; this pool is made anew
// there.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace minidl {

using Index = std::int64_t;

class Pool {
public:
    // Run task(0) ... task(tasks - 1) on at most `threads` threads, the calling one included.
    void run(int threads, Index tasks, const std::function<void(Index)>& task) {
        std::unique_lock<std::mutex> one_job(busy, std::try_to_lock);
        if (threads <= 1 || tasks <= 1 || !one_job.owns_lock()) { // another Python thread has the pool: work alone
            for (Index i = 0; i < tasks; ++i) task(i);
            return;
        }
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
            job = &task;
            total = tasks;
            next = 0;
            failure = nullptr;
            ++generation;
        }
        wake.notify_all();
        work(task);
        std::unique_lock<std::mutex> lock(state);
        job = nullptr; // workers that come too late find nothing and are not waited for
        done.wait(lock, [this] { return running == 0; });
        if (failure) std::rethrow_exception(failure);
    }

private:
    void work(const std::function<void(Index)>& task) {
        try {
            for (Index i; (i = next.fetch_add(1)) < total;) task(i);
        } catch (...) {
            next = total;
            std::lock_guard<std::mutex> lock(state);
            failure = std::current_exception();
        }
    }

    void serve(int number) {
        std::uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(state);
        for (;;) {
            wake.wait(lock, [&] { return generation != seen; });
            seen = generation;
            if (!job || number >= wanted) continue;
            const std::function<void(Index)>& mine = *job; // run() may clear `job` while we still work
            ++running;
            lock.unlock();
            work(mine);
            lock.lock();
            if (--running == 0) done.notify_one();
        }
    }

    std::mutex busy, state;
    std::condition_variable wake, done;
    std::vector<std::thread> workers;
    const std::function<void(Index)>* job = nullptr;
    std::atomic<Index> next{0};
    Index total = 0;
    int wanted = 0, running = 0;
    std::uint64_t generation = 0;
    std::exception_ptr failure;
};

// The pool lives until the process ends and is never destroyed: its threads may sleep through the interpreter's exit.
// A forked child has none of its parent's threads, so it starts with a new pool.
inline std::atomic<Pool*>& pool_slot() {
    static std::atomic<Pool*> slot{[] {
#ifndef _WIN32
        pthread_atfork(nullptr, nullptr, [] { pool_slot() = new Pool; });
#endif
        return new Pool;
    }()};
    return slot;
}

inline void parallel(int threads, Index tasks, const std::function<void(Index)>& task) {
    pool_slot().load()->run(threads, tasks, task);
}

// Working memory that a thread keeps between calls: fresh pages from the system cost more than many a kernel.
template <class T, int slot>
T* scratch(Index count) {
    thread_local std::vector<T> buffer;
    constexpr Index line = 64 / sizeof(T);
    if (static_cast<Index>(buffer.size()) < count + line) buffer.resize(count + line);
    const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
    return buffer.data() + (64 - address % 64) % 64 / sizeof(T);
}

} // namespace minidl

// What all kernels share at run time, compiled once and for any processor: threads, working memory, buffers.
//
// Every kernel cuts its work into tasks whose results do not depend on one another, and whose inner order of summation
// is fixed by the shapes alone. So it does not matter which thread takes which task: the bits are the same for any
// number of threads. No OpenMP: a process that forks after an OpenMP region hangs in the child; this pool is made anew
// there.
#pragma once

#include <cstddef>

namespace minidl {

using Index = long long;

// Call task(context, 0) ... task(context, tasks - 1) on at most `threads` threads, the calling one included. What a task
// throws is thrown here. A call from within a task, or while another Python thread has the pool, works alone.
void run_tasks(int threads, Index tasks, void (*task)(const void* context, Index number), const void* context);

// Working memory of the calling thread, aligned to 64 bytes and kept between calls; its content is lost when the same
// slot (0 to 7) is asked for again.
void* scratch(int slot, std::size_t bytes);

// Memory for results and large temporaries, aligned to 64 bytes. What is released is kept for those who ask next, cut and
// put together again as they need it: fresh pages from the system come at 3 GB/s, slower than many a kernel. Throws
// std::bad_alloc.
void* acquire(std::size_t bytes);
void release(void* data) noexcept;

// The buffers' account in bytes: in use now, most ever in use, kept for reuse.
struct Account {
    std::size_t used, peak, kept;
};
Account buffer_account();
void empty_cache(); // give everything kept for reuse back to the system, and count the peak anew

} // namespace minidl

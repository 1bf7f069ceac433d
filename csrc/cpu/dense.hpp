// Dense layers: y = act(x wᵀ + b) and its gradients dx = g w, dw = gᵀ x, for x (N, I), w (O, I), g and y (N, O).
//
// The ladder, float32, 2 N I O operations, on one core that can do 250 GFLOP/s; N = 256, I = 1900, O = 512:
//   naive            a dot product for each output: 2 loads for 2 operations, one sum that waits for itself        2
//   BLAS             (NumPy's) blocks in registers, everything copied into blocks first                          120
//   register block   the product of microkernel.hpp, 12 rows x 2 vectors. Both gradients read all matrices as   240
//                    they lie: g is broadcast, rows of w or x are the vectors. Forward would need columns of w,
//                    so x, which is smaller or used more often, is transposed, 32 rows at a time; w is broadcast 205
//   turned where it is used: a block of x goes from its transposition into the product through the L1 cache    220
// A panel of B, 256 rows of 2 vectors, stays in the L1 cache (32 KB) while the rows of A pass by. A small batch, N = 32,
// reads w from the L3 cache or memory: 4 I O bytes for 64 I O operations, still 185 to 240. One row alone is a product of
// matrix and vector, bound by memory: forward leaves it to BLAS, which need not turn anything (cpp_backend.py). Dot
// products of 4 rows of x by 4 of w, lanes along I, need no transposition but two loads for four operations, most of them
// across two cache lines: 150.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

constexpr Index task_work = 1 << 18;   // products of a task, at least: some 2 µs
constexpr Index shared_work = 1 << 20; // products of a call whose tasks are shared out: to wake a thread costs some µs
constexpr Index product_depth = 256;   // rows of a panel of 2 vectors: 32 KB

// How many of `count` units of `work` products each go into one task, `least` to `most`; tasks are of nearly equal size.
struct Cut {
    Index tasks, count;
    Cut(Index count, Index work, Index most, Index least = 1)
        : tasks(ceil_div(count, min(most, max(least, task_work / max<Index>(1, work))))), count(count) {}
    Index start(Index task) const { return count * task / tasks; }
};

// Vectors lie along the images, so x is transposed, 32 KB at a time, which then meet up to 256 rows of w as they lie. Each
// thread gets as many tasks as any other.
template <class T>
void linear(int threads, const Dense& s, const T* x, const T* w, const T* bias, Activation activation, T* y) {
    constexpr Index L = lanes<T>, panel = 2 * L, most = 256, start = 0;
    if (s.n * s.i * s.o < shared_work) threads = 1;
    const Index panels = ceil_div(s.n, panel), all = max<Index>(1, s.o * panels);
    const Cut os(s.o, s.i * panel, most, ceil_div(all, threads * ceil_div(all, threads * most)));
    parallel(threads, panels * os.tasks, [&](Index task) {
        const Index n = task / os.tasks * panel, images = min(panel, s.n - n);
        const Index o = os.start(task % os.tasks), rows = os.start(task % os.tasks + 1) - o;
        const int vectors = images > L ? 2 : 1;
        T *turned = scratch<T>(1, product_depth * panel), *sums = scratch<T>(0, most * panel); // (k, image), (output, image)
        if (!s.i) memset(sums, 0, static_cast<size_t>(rows * panel) * sizeof(T));
        for (Index k = 0; k < s.i; k += product_depth) {
            const Index length = min(s.i - k, product_depth);
            transpose<T>(x + n * s.i + k, s.i, images, length, turned, panel, vectors * L);
            const Product<T> p{w + o * s.i + k, s.i, 1, 1, length, &start, turned, panel, sums, panel};
            k ? product<T, true>(rows, vectors, p) : product<T, false>(rows, vectors, p);
        }
        V<T> block[L];
        for (Index j = 0; j < rows; j += L)
            for (Index i = 0; i < images; i += L) {
                const Index columns = min(L, rows - j);
                for (Index r = 0; r < columns; ++r)
                    block[r] = activate<T>(load(sums + (j + r) * panel + i) + (bias ? bias[o + j + r] : T(0)), activation);
                for (Index r = columns; r < L; ++r) block[r] = V<T>{};
                transpose<T>(block);
                for (Index r = 0; r < min(L, images - i); ++r) store_part(y + (n + i + r) * s.o + o + j, block[r], columns);
            }
    });
}

// C (rows, columns) = A B for columns first ... last - 1, in panels of 2 vectors. A(r, k) = a[r * ar + k * ak], B (depth, ld)
// and C (rows, ld) are matrices of contiguous rows. A last column that is no whole vector is copied out of B.
template <class T>
void columns_product(Index rows, Index depth, const T* a, Index ar, Index ak, const T* b, T* c, Index ld, Index first,
                     Index last) {
    constexpr Index start = 0;
    const Index tail = last % lanes<T>, end = last - tail; // only the end of a row is no whole vector: tasks begin at panels
    if (!depth)
        for (Index r = 0; r < rows; ++r) memset(c + r * ld + first, 0, static_cast<size_t>(last - first) * sizeof(T));
    for (Index k = 0; k < depth; k += product_depth) {
        const Index length = min(depth - k, product_depth);
        Product<T> p{a + k * ak, ar, ak, 1, length, &start, nullptr, ld, nullptr, ld};
        for (Index j = first; j < end; j += 2 * lanes<T>) {
            p.b = b + k * ld + j, p.c = c + j;
            const int vectors = end - j > lanes<T> ? 2 : 1;
            k ? product<T, true>(rows, vectors, p) : product<T, false>(rows, vectors, p);
        }
        if (tail) {
            T* part = scratch<T>(1, length * lanes<T>);
            for (Index r = 0; r < length; ++r) store(part + r * lanes<T>, load_part(b + (k + r) * ld + end, tail));
            p.b = part, p.ldb = lanes<T>, p.c = c + end, p.tail = tail;
            k ? product<T, true>(rows, 1, p) : product<T, false>(rows, 1, p);
        }
    }
}

template <class T>
void linear_grad_x(int threads, const Dense& s, const T* g, const T* w, T* dx) {
    constexpr Index panel = 2 * lanes<T>;
    const Cut ns(s.n, 0, 96), is(ceil_div(s.i, panel), min<Index>(s.n, 96) * s.o * panel, 16);
    parallel(s.n * s.i * s.o < shared_work ? 1 : threads, ns.tasks * is.tasks, [&](Index task) {
        const Index n = ns.start(task / is.tasks), rows = ns.start(task / is.tasks + 1) - n;
        const Index first = is.start(task % is.tasks) * panel, last = min(s.i, is.start(task % is.tasks + 1) * panel);
        columns_product(rows, s.o, g + n * s.o, s.o, 1, w, dx + n * s.i, s.i, first, last);
    });
}

template <class T>
void linear_grad_w(int threads, const Dense& s, const T* g, const T* x, T* dw, T* db) {
    constexpr Index panel = 2 * lanes<T>;
    const Cut os(s.o, 0, 96), is(ceil_div(s.i, panel), min<Index>(s.o, 96) * s.n * panel, 16);
    parallel(s.n * s.i * s.o < shared_work ? 1 : threads, os.tasks * is.tasks, [&](Index task) {
        const Index o = os.start(task / is.tasks), rows = os.start(task / is.tasks + 1) - o;
        const Index first = is.start(task % is.tasks) * panel, last = min(s.i, is.start(task % is.tasks + 1) * panel);
        columns_product(rows, s.n, g + o, 1, s.o, x, dw + o * s.i, s.i, first, last);
        if (first == 0) {
            for (Index j = o; j < o + rows; ++j) db[j] = 0;
            for (Index n = 0; n < s.n; ++n)
                for (Index j = o; j < o + rows; ++j) db[j] += g[n * s.o + j];
        }
    });
}

// sum (x - t)^2: a sum for each block, those in order.
template <class T>
T squared_error(int threads, Index count, const T* x, const T* t) {
    constexpr Index block = 1 << 12;
    const Index blocks = ceil_div(count, block);
    T* sums = scratch<T>(0, blocks);
    parallel(blocks > 2 ? threads : 1, blocks, [&](Index task) {
        V<T> sum{};
        const Index to = min(count, (task + 1) * block);
        Index k = task * block;
        for (; k + lanes<T> <= to; k += lanes<T>) {
            const V<T> d = load(x + k) - load(t + k);
            sum += d * d;
        }
        const V<T> d = load_part(x + k, to - k) - load_part(t + k, to - k);
        sum += d * d;
        T total = 0;
        for (int j = 0; j < lanes<T>; ++j) total += sum[j];
        sums[task] = total;
    });
    T total = 0;
    for (Index k = 0; k < blocks; ++k) total += sums[k];
    return total;
}

// dx = factor (x - t)
template <class T>
void squared_error_grad(int threads, Index count, T factor, const T* x, const T* t, T* dx) {
    constexpr Index block = 1 << 14;
    parallel(count > 2 * block ? threads : 1, ceil_div(count, block), [&](Index task) {
        for (Index k = task * block; k < min(count, (task + 1) * block); ++k) dx[k] = factor * (x[k] - t[k]);
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

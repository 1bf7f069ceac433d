// What is done to each element alone, sums over channels, and channels side by side.
//
// The ladder, in bytes a float32 element:
//   naive           a NumPy expression an operation: g * (y > 0) reads 8 and writes 1, reads 5 and writes 4
//   one pass        all operations while the element is in a register: reads 8, writes 4
//   past the caches results too large to be found there again are not read before they are written: 12 bytes instead
//                   of 16, the least there is. The arithmetic costs nothing: a core has some 15 cycles a vector.
//   asked ahead     memory is asked for 4 KB more than the processor asks for by itself: the second pass of batch norm's
//                   gradient 7.3 -> 5.4 ms on one core (16 channels of 4 x 512²)
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

template <class T>
void relu(int threads, Image<const T> x, Image<T> y) {
    const Rows rows = rows_of_elements<T>(pixels(x), x.c, dense(x) && dense(y));
    const bool past = goes_past(rows, y);
    each_row(threads, rows, false, [=](Index row) {
        const T* from = x.data + row * rows.step(x.pitch);
        T* to = y.data + row * rows.step(y.pitch);
        each<T>(rows.length(row), past, [=](Index j, auto how) { how.result(to + j, relu<T>(how.read(from + j))); });
    });
}

// Behind relu g where y > 0, else 0 (not a product: 0 times infinity is NaN); behind tanh g (1 - y²).
template <class T>
void activation_grad(int threads, Activation activation, Image<const T> g, Image<const T> y, Image<T> dx) {
    const Rows rows = rows_of_elements<T>(pixels(g), g.c, dense(g) && dense(y) && dense(dx));
    const bool past = goes_past(rows, dx), is_relu = activation == Activation::relu;
    each_row(threads, rows, false, [=](Index row) {
        const T *from = g.data + row * rows.step(g.pitch), *at = y.data + row * rows.step(y.pitch);
        T* to = dx.data + row * rows.step(dx.pitch);
        const Index width = rows.length(row);
        if (is_relu)
            each<T>(width, past, [=](Index j, auto how) {
                how.result(to + j, where_greater<T>(how.read(at + j), V<T>{}, how.read(from + j), V<T>{}));
            });
        else
            each<T>(width, past, [=](Index j, auto how) {
                const V<T> v = how.read(at + j);
                how.result(to + j, how.read(from + j) * (broadcast<T>(1) - v * v));
            });
    });
}

template <class T>
void add(int threads, Image<const T> x, Image<const T> y, Image<T> z) {
    const Rows rows = rows_of_elements<T>(pixels(x), x.c, dense(x) && dense(y) && dense(z));
    const bool past = goes_past(rows, z);
    each_row(threads, rows, false, [=](Index row) {
        const T *a = x.data + row * rows.step(x.pitch), *b = y.data + row * rows.step(y.pitch);
        T* to = z.data + row * rows.step(z.pitch);
        each<T>(rows.length(row), past, [=](Index j, auto how) { how.result(to + j, how.read(a + j) + how.read(b + j)); });
    });
}

// y = scale · x where kept is 1, 0 · x where it is 0: what is NaN stays NaN. 4 bytes and one read, 4 written.
template <class T>
void dropout(int threads, Image<const T> x, const unsigned char* kept, T scale, Image<T> y) {
    const Rows rows = rows_of_elements<T>(pixels(x), x.c, dense(x) && dense(y));
    const bool past = goes_past(rows, y);
    each_row(threads, rows, false, [=](Index row) {
        const T* from = x.data + row * rows.step(x.pitch);
        const unsigned char* mask = kept + row * rows.step(y.pitch);
        T* to = y.data + row * rows.step(y.pitch);
        each<T>(rows.length(row), past,
                [=](Index j, auto how) { how.result(to + j, how.read(from + j) * (how.widened(mask + j) * scale)); });
    });
}

template <class T>
void channel_sum(int threads, Image<const T> g, T* sums) {
    const Rows rows = rows_of<T>(pixels(g), g.c, dense(g));
    Buffer<double> total(max<Index>(1, g.c));
    const Index step = rows.step(g.pitch);
    sum_channels<T, 1>(threads, rows, g.c, total.data, [=](Index row, Index j, auto how, V<T>* sum) {
        const T* from = g.data + row * step + j;
        sum[0] += how.read(from);
    });
    for (Index c = 0; c < g.c; ++c) sums[c] = static_cast<T>(total.data[c]);
}

// The channels of x[0], x[1], ... side by side: y has them all, the images agree in all else.
template <class T>
void concatenate(int threads, Index count, const Image<const T>* xs, Image<T> y) {
    const Index total = pixels(y), group = max<Index>(1, (1 << 15) / max<Index>(1, y.c)), tasks = ceil_div(total, group);
    const bool large = total * y.c * static_cast<Index>(sizeof(T)) > cache_bytes && y.pitch % lanes<T> == 0
        && reinterpret_cast<size_t>(y.data) % MINIDL_BYTES == 0;
    parallel(tasks < 3 ? 1 : threads, tasks, [&](Index task) {
        const Index first = task * group, end = min(first + group, total);
        for (Index start = first; start < end; start += 256) { // so many pixels of y stay in the cache
            T* to = y.data + start * y.pitch;
            for (Index k = 0; k < count; to += xs[k].c, ++k) {
                const Image<const T>& x = xs[k];
                const T* from = x.data + start * x.pitch;
                const Index rows = min<Index>(256, end - start);
                const bool past = large && x.c % lanes<T> == 0 && (to - y.data) % lanes<T> == 0;
                if (x.c < lanes<T>)
                    for (Index i = 0; i < rows; ++i)
                        for (Index c = 0; c < x.c; ++c) to[i * y.pitch + c] = from[i * x.pitch + c];
                else
                    for (Index i = 0; i < rows; ++i)
                        each<T>(x.c, past, [&](Index j, auto how) {
                            how.result(to + i * y.pitch + j, how.read(from + i * x.pitch + j));
                        });
            }
        }
        fence();
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

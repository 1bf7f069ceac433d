// What the kernels bound by memory share: rows of vectors, sums over channels, comparisons lane by lane.
//
// Images with the channels innermost are a table of pixels times channels. With 3 channels a row would be shorter than a
// vector; but where the rows lie without gaps, some of them together make one whose length is a multiple of a vector, and
// what belongs to a channel (a mean, a sum) is repeated as often. So every kernel is written once, for long rows.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace minidl {
namespace MINIDL_LEVEL {

// --- comparisons ---------------------------------------------------------------------------------------------------

// Lane by lane: x where a > b (a == b), else y, as where either is NaN.
template <class T>
MINIDL_INLINE V<T> where_greater(V<T> a, V<T> b, V<T> x, V<T> y) {
#if defined(__GNUC__)
    return a > b ? x : y;
#else
    for (int i = 0; i < lanes<T>; ++i) y[i] = a[i] > b[i] ? x[i] : y[i];
    return y;
#endif
}

template <class T>
MINIDL_INLINE V<T> where_equal(V<T> a, V<T> b, V<T> x, V<T> y) {
#if defined(__GNUC__)
    return a == b ? x : y;
#else
    for (int i = 0; i < lanes<T>; ++i) y[i] = a[i] == b[i] ? x[i] : y[i];
    return y;
#endif
}

// Numbers as they are kept in a byte or an int, and back. gcc 12 takes a vector of bytes apart one by one to convert it.
template <class T, class I>
MINIDL_INLINE V<T> widen(const I* p) {
#if defined(__GNUC__) && (defined(__AVX512F__) || defined(__AVX2__))
    if constexpr (sizeof(I) == 1 && sizeof(T) == 4) {
        typedef int Middle __attribute__((vector_size(MINIDL_BYTES)));
#if defined(__AVX512F__)
        const auto ints = _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
        const auto ints = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#endif
        return __builtin_convertvector((Middle)ints, V<T>);
    }
#endif
    T whole[lanes<T>];
    for (int i = 0; i < lanes<T>; ++i) whole[i] = static_cast<T>(p[i]);
    return load(whole);
}

template <class T, class I>
MINIDL_INLINE void narrow(I* p, V<T> v) {
#if defined(__GNUC__)
    typedef I Small __attribute__((vector_size(sizeof(I) * lanes<T>)));
    typedef int Middle __attribute__((vector_size(sizeof(int) * lanes<T>)));
    const Small small = __builtin_convertvector(__builtin_convertvector(v, Middle), Small);
    memcpy(p, &small, sizeof small);
#else
    for (int i = 0; i < lanes<T>; ++i) p[i] = static_cast<I>(v[i]);
#endif
}

// Store past the caches: a line that is not read into them first saves a third of a copy's traffic. For results too
// large to be found there again. The address must be aligned; finish with fence().
template <class T>
MINIDL_INLINE void store_past(T* p, V<T> v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(reinterpret_cast<float*>(p), reinterpret_cast<__m512>(v));
#elif defined(__AVX__)
    _mm256_stream_ps(reinterpret_cast<float*>(p), reinterpret_cast<__m256>(v));
#elif defined(__SSE2__) && defined(__GNUC__)
    _mm_stream_ps(reinterpret_cast<float*>(p), reinterpret_cast<__m128>(v));
#else
    store(p, v);
#endif
}

MINIDL_INLINE void fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

constexpr Index cache_bytes = 32 << 20; // results larger than this go past the caches
constexpr Index ahead = 1024;            // elements: memory is asked for so much more than the processor does by itself

// --- rows ----------------------------------------------------------------------------------------------------------

// How a piece of a row is read and written: a whole vector, one whose result goes past the caches, the rest of a row.
template <class T>
struct Whole {
    V<T> load(const T* p) const { return MINIDL_LEVEL::load(p); }
    V<T> read(const T* p) const { // load from an image, and ask memory for what comes later
        prefetch(p + ahead);
        return MINIDL_LEVEL::load(p);
    }
    void store(T* p, V<T> v) const { MINIDL_LEVEL::store<T>(p, v); }
    void result(T* p, V<T> v) const { MINIDL_LEVEL::store<T>(p, v); }
    template <class I>
    V<T> widened(const I* p) const { return widen<T>(p); }
    template <class I>
    void narrowed(I* p, V<T> v) const { narrow<T>(p, v); }
};

template <class T>
struct Past : Whole<T> {
    void result(T* p, V<T> v) const { store_past<T>(p, v); }
};

template <class T>
struct Part {
    Index count;
    V<T> load(const T* p) const { return load_part(p, count); }
    V<T> read(const T* p) const { return load_part(p, count); }
    void store(T* p, V<T> v) const { store_part<T>(p, v, count); }
    void result(T* p, V<T> v) const { store_part<T>(p, v, count); }
    template <class I>
    V<T> widened(const I* p) const {
        I whole[lanes<T>] = {};
        memcpy(whole, p, static_cast<size_t>(count) * sizeof(I));
        return widen<T>(whole);
    }
    template <class I>
    void narrowed(I* p, V<T> v) const {
        I whole[lanes<T>];
        narrow<T>(whole, v);
        memcpy(p, whole, static_cast<size_t>(count) * sizeof(I));
    }
};

// f(j, how) for each piece of a row of `width` elements: how.read(x + j), how.load(scale + j), how.result(y + j, v) ...
template <class T, class F>
MINIDL_INLINE void each(Index width, const F& f) {
    Index j = 0;
    for (; j + lanes<T> <= width; j += lanes<T>) f(j, Whole<T>{});
    if (j < width) f(j, Part<T>{width - j});
}

template <class T, class F>
MINIDL_INLINE void each(Index width, bool past, const F& f) {
    if (!past) return each<T>(width, f);
    for (Index j = 0; j < width; j += lanes<T>) f(j, Past<T>{});
}

struct Rows {
    Index count, width, last; // the last row may be shorter than width
    bool whole;               // rows without gaps; else each is a pixel, at the array's pitch
    Index step(Index pitch) const { return whole ? width : pitch; }
    Index length(Index row) const { return row + 1 < count ? width : last; }
};

template <class T>
MINIDL_INLINE bool dense(const Image<T>& a) {
    return a.pitch == a.c;
}

template <class T>
MINIDL_INLINE Index pixels(const Image<T>& a) {
    return a.n * a.h * a.w;
}

// The rows of arrays of that many pixels and channels, all of them `whole`; width is a multiple of `channels`.
template <class T>
Rows rows_of(Index pixels, Index channels, bool whole) {
    const Index total = pixels * channels;
    if (total == 0) return {0, 1, 0, whole};
    Index width = channels;
    if (whole && channels < 8 * lanes<T>) {
        while (width % lanes<T>) width *= 2; // lanes is a power of 2
        while (width < 8 * lanes<T>) width *= 2;
    }
    const Index count = ceil_div(total, width);
    return {count, width, total - (count - 1) * width, whole};
}

// The same where no channel matters.
template <class T>
Rows rows_of_elements(Index pixels, Index channels, bool whole) {
    if (!whole) return rows_of<T>(pixels, channels, false);
    const Index total = pixels * channels, width = 2048;
    const Index count = ceil_div(total, width);
    return {count, width, total - (count - 1) * width, true};
}

// May the result y go past the caches?
template <class T>
bool goes_past(const Rows& rows, const Image<T>& y) {
    return pixels(y) * y.c * static_cast<Index>(sizeof(T)) > cache_bytes && rows.width % lanes<T> == 0
        && rows.last % lanes<T> == 0 && rows.step(y.pitch) % lanes<T> == 0
        && reinterpret_cast<size_t>(y.data) % MINIDL_BYTES == 0;
}

// f(row) for every row, some 32 thousand elements a task; from the end to the start with `back`: where one pass over the
// memory ended, the next one finds it in the cache.
template <class F>
void each_row(int threads, const Rows& rows, bool back, const F& f) {
    const Index group = max<Index>(1, (1 << 15) / rows.width), tasks = ceil_div(rows.count, group);
    if (tasks < 3) threads = 1;
    parallel(threads, tasks, [&](Index task) {
        const F mine = f; // a copy on this stack: what f holds need not be read again after every store
        const Index first = (back ? tasks - 1 - task : task) * group, end = min(first + group, rows.count);
        for (Index row = first; row < end; ++row) mine(row);
        fence();
    });
}

template <class T>
void repeat(T* to, const T* from, Index channels, Index width) { // a value a channel, as long as a row
    for (Index j = 0; j < width; j += channels) memcpy(to + j, from, static_cast<size_t>(channels) * sizeof(T));
}

// --- sums ----------------------------------------------------------------------------------------------------------

// Tasks of a sum over all rows: at most 64 pieces of whole blocks of rows, by shape alone.
struct Blocks {
    Index rows, tasks, per_task; // rows a block
    explicit Blocks(const Rows& all) {
        rows = max<Index>(16, (1 << 14) / all.width);
        const Index blocks = ceil_div(all.count, rows);
        per_task = max<Index>(1, ceil_div(blocks, 64));
        tasks = ceil_div(blocks, per_task);
    }
    // f(first row, last row + 1) for each block of a task
    template <class F>
    void each(const Rows& all, Index task, const F& f) const {
        const Index end = min(all.count, (task + 1) * per_task * rows);
        for (Index first = task * per_task * rows; first < end; first += rows) f(first, min(first + rows, end));
    }
};

// A block's rows from `first` to `end`, G vectors from element j on: their sums stay in registers meanwhile.
template <class T, int K, int G, class How, class F>
MINIDL_INLINE void sum_vectors(const How& how, Index j, Index first, Index end, T* sums, Index width, const F& add) {
    V<T> sum[G][K] = {};
    for (Index row = first; row < end; ++row)
        MINIDL_UNROLL
        for (int v = 0; v < G; ++v) add(row, j + v * lanes<T>, how, sum[v]);
    MINIDL_UNROLL
    for (int v = 0; v < G; ++v)
        MINIDL_UNROLL
        for (int k = 0; k < K; ++k) how.store(sums + k * width + j + v * lanes<T>, sum[v][k]);
}

// channel[k * channels + c] = the sum over a block of what add(row, j, how, sum[K]) adds for each vector of a row;
// `sums` is room for K rows.
template <class T, int K, class F>
MINIDL_INLINE void sum_block(const Rows& rows, Index channels, Index first, Index end, T* sums, double* channel, const F& add) {
    constexpr int G = (MINIDL_BYTES == 64 ? 16 : 8) / K < 8 ? (MINIDL_BYTES == 64 ? 16 : 8) / K : 8;
    const bool short_one = end == rows.count && rows.last < rows.width; // the last row, which then comes by itself
    const auto sweep = [&](Index from, Index to, Index width) {
        Index j = 0;
        for (; j + G * lanes<T> <= width; j += G * lanes<T>) sum_vectors<T, K, G>(Whole<T>{}, j, from, to, sums, rows.width, add);
        for (; j + lanes<T> <= width; j += lanes<T>) sum_vectors<T, K, 1>(Whole<T>{}, j, from, to, sums, rows.width, add);
        if (j < width) sum_vectors<T, K, 1>(Part<T>{width - j}, j, from, to, sums, rows.width, add);
        for (int k = 0; k < K; ++k)
            for (Index i = 0; i < width; i += channels)
                for (Index c = 0; c < channels; ++c) channel[k * channels + c] += sums[k * rows.width + i + c];
    };
    for (Index i = 0; i < K * channels; ++i) channel[i] = 0;
    sweep(first, end - short_one, rows.width);
    if (short_one) sweep(end - 1, end, rows.last);
}

// sums[k * channels + c] = the sum over all rows of what `add` adds, see sum_block: a block is summed in T, blocks in double.
template <class T, int K, class F>
void sum_channels(int threads, const Rows& rows, Index channels, double* sums, const F& add) {
    const Blocks blocks(rows);
    const Index size = K * channels;
    Buffer<double> parts(max<Index>(1, blocks.tasks * size));
    parallel(blocks.tasks < 3 ? 1 : threads, blocks.tasks, [&](Index task) {
        const F mine = add; // a copy on this stack: what it holds need not be read again after every store
        double *part = parts.data + task * size, *block = scratch<double>(1, size);
        for (Index i = 0; i < size; ++i) part[i] = 0;
        T* room = scratch<T>(0, K * rows.width);
        blocks.each(rows, task, [&](Index first, Index end) {
            sum_block<T, K>(rows, channels, first, end, room, block, mine);
            for (Index i = 0; i < size; ++i) part[i] += block[i];
        });
    });
    for (Index i = 0; i < size; ++i) sums[i] = 0;
    for (Index task = 0; task < blocks.tasks; ++task)
        for (Index i = 0; i < size; ++i) sums[i] += parts.data[task * size + i];
}

} // namespace MINIDL_LEVEL
} // namespace minidl

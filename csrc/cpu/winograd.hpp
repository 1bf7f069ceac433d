// Winograd's convolution: 3 x 3 and 5 x 5 kernels of stride 1 with a quarter of the multiplications or fewer.
//
// Two polynomials can be multiplied by evaluating both at N points, multiplying the N pairs of values, and interpolating.
// Turned round (transposed), the same three steps compute a correlation of N inputs d with K weights g, M = N - K + 1
// outputs, in N multiplications instead of M K (Toom & Cook; Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308):
//
//   F(M, K):      y = Aᵀ [(G g) ⊙ (Bᵀ d)]              in one dimension
//   F(M x M, K x K):  Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ D B)] A   in two: a tile of M x M outputs from N x N inputs
//
// The matrices follow from the points p_0 = 0, ±3/4, ±3/2 (N = 6) or ±1, ±2, ±1/2 (N = 8), and infinity, which comes last:
//   A  (N x M)   row i: p_i^0 ... p_i^(M-1), the values of a polynomial at the points; at infinity its last coefficient
//   Bᵀ (N x N)   row i: the coefficients of the product of all (x - p_j), j not i; the last row: of all (x - p_j)
//   G  (N x K)   row i: p_i^0 ... p_i^(K-1), divided by the product of all (p_i - p_j), j not i; infinity as in A
// As the points come in pairs ±p, even and odd powers are summed once for both. Any points are right in exact arithmetic;
// these, found by search, lose the fewest digits: for N = 6 a quarter of the error of the usual 0, ±1, ±2.
//
// The channels turn ⊙ into N * N matrix products, one for each position in the tile: M[pos] (tiles x O) = V[pos] (tiles
// x C) U[pos] (C x O). The gradient in w is the same identity read in another order: dw = Gᵀ [sum over tiles (Bᵀ D B) ⊙
// (A dY Aᵀ)] G; that in x is a convolution of dY with the kernel turned round.
//
// The ladder: multiplications for each output and pair of channels, largest error relative to the largest output
//   direct          9 (3 x 3), 25 (5 x 5)   3e-7                 the definition
//   F(4x4, 3x3)     2.25        N = 6       1e-6 to 3e-6         for maps of few pixels
//   F(6x6, 3x3)     1.78        N = 8       8e-6 to 1.2e-5
//   F(4x4, 5x5)     4           N = 8       5e-6 to 8e-6         (gradients in w: 5e-6 and less)
// and then, 16 -> 16 channels of 4 x 512² on two Zen 5 cores, float32, forward, ms:
//   blocks of tiles: V and M of a block stay in the L2 cache; memory sees each image once                        15
//   a microkernel without tables, as 16 terms are few                                                            10.5
//   the next block's pixels fetched during the products; the memory waits no longer for the transforms            8.9
//   outputs too large for the caches written past them: they need not be read to be overwritten                   6.3
// which is 30 % of what the processor multiplies, and 22 GB/s. 128 -> 128 channels of 4 x 128²: 12 ms, where the products
// alone, at the processor's peak, take 9. Bias and ReLU come with the output transform and cost nothing.
//
// The transforms cost some 24 operations for each 8 numbers and direction: 650 vector operations a tile and vector of
// channels, against 64 C for the products: half for 16 channels, a tenth for 128.
//
// A NaN or infinity in x reaches all outputs that see it, as it must, and also the others of its tile. Numbers beyond 1e36
// (float32) may overflow where the direct kernel's would not.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {
namespace winograd {

// --- the transforms of one dimension ------------------------------------------------------------------------------

template <class T>
constexpr T power(T p, int k) {
    return k > 0 ? p * power(p, k - 1) : T(1);
}

// The pairs of points ±p, p = pair_point(0), pair_point(1) ...; N points are 0, (N - 2) / 2 pairs, and infinity.
template <int N>
constexpr double pair_point(int i) {
    return N == 6 ? (i == 0 ? 0.75 : 1.5) : i == 0 ? 1 : i == 1 ? 2 : 0.5;
}

// The product of (x² - p²) over all pairs but `skip` (-1: none) is x^2n + sum of pair_term(k) x^2k.
template <int N>
constexpr double pair_term(int k, int skip) {
    double term[4] = {1, 0, 0, 0}; // coefficients of x^0, x^2 ...
    for (int i = 0; i < (N - 2) / 2; ++i) {
        if (i == skip) continue;
        const double square = pair_point<N>(i) * pair_point<N>(i);
        for (int j = 3; j > 0; --j) term[j] = term[j - 1] - square * term[j];
        term[0] *= -square;
    }
    return term[k];
}

// v = Bᵀ d
template <class T, int N>
struct Interpolate {
    static constexpr int in = N, out = N;
    MINIDL_INLINE void operator()(const V<T>* d, V<T>* v) const {
        if constexpr (N == 8) {
            constexpr T a = T(pair_term<N>(0, -1)), b = T(pair_term<N>(1, -1)); // x^6 + c x^4 + b x^2 + a, c = -b, a = -1
            static_assert(pair_term<N>(2, -1) == -b && a == -1, "");
            v[0] = (d[6] - d[0]) + b * (d[2] - d[4]);
            v[7] = (d[7] - d[1]) + b * (d[3] - d[5]);
            both<0>(d, v), both<1>(d, v), both<2>(d, v);
        } else {
            constexpr T a = T(pair_term<N>(0, -1)), b = T(pair_term<N>(1, -1));
            v[0] = d[4] + b * d[2] + a * d[0];
            v[5] = d[5] + b * d[3] + a * d[1];
            both<0>(d, v), both<1>(d, v);
        }
    }
    // The points ±p: x (x ± p) times the product over the other pairs, even and odd powers apart.
    template <int I>
    static MINIDL_INLINE void both(const V<T>* d, V<T>* v) {
        constexpr T p = T(pair_point<N>(I)), a = T(pair_term<N>(0, I)), b = T(pair_term<N>(1, I));
        const V<T> even = N == 8 ? d[N - 2] + b * d[4] + a * d[2] : d[N - 2] + a * d[2];
        const V<T> odd = N == 8 ? d[N - 3] + b * d[3] + a * d[1] : d[N - 3] + a * d[1];
        v[2 * I + 1] = even + p * odd;
        v[2 * I + 2] = even - p * odd;
    }
};

// The values at the N points of the polynomial with L coefficients y: A y, and G g but for its factors.
template <class T, int L, int N>
struct Evaluate {
    static constexpr int in = L, out = N;
    MINIDL_INLINE void operator()(const V<T>* y, V<T>* v) const {
        v[0] = y[0];
        v[N - 1] = y[L - 1];
        both<0>(y, v), both<1>(y, v);
        if constexpr (N == 8) both<2>(y, v);
    }
    template <int I>
    static MINIDL_INLINE void both(const V<T>* y, V<T>* v) {
        constexpr T p = T(pair_point<N>(I));
        V<T> even = y[0], odd = y[1];
        even += power(p, 2) * y[2];
        if constexpr (L > 3) odd += power(p, 2) * y[3];
        if constexpr (L > 4) even += power(p, 4) * y[4];
        if constexpr (L > 5) odd += power(p, 4) * y[5];
        v[2 * I + 1] = even + p * odd;
        v[2 * I + 2] = even - p * odd;
    }
};

// The transpose: Aᵀ m, and Gᵀ m but for its factors.
template <class T, int N, int L>
struct Collect {
    static constexpr int in = N, out = L;
    MINIDL_INLINE void operator()(const V<T>* m, V<T>* y) const {
        constexpr T p = T(pair_point<N>(0)), q = T(pair_point<N>(1)), r = T(pair_point<N>(2));
        const V<T> s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
        y[0] = m[0] + s1 + s2;
        y[1] = p * d1 + q * d2;
        y[2] = power(p, 2) * s1 + power(q, 2) * s2;
        if constexpr (L > 3) y[3] = power(p, 3) * d1 + power(q, 3) * d2;
        if constexpr (L > 4) y[4] = power(p, 4) * s1 + power(q, 4) * s2;
        if constexpr (L > 5) y[5] = power(p, 5) * d1 + power(q, 5) * d2;
        if constexpr (N == 8) {
            const V<T> s3 = m[5] + m[6], d3 = m[5] - m[6];
            y[0] += s3;
            y[1] += r * d3;
            y[2] += power(r, 2) * s3;
            if constexpr (L > 3) y[3] += power(r, 3) * d3;
            if constexpr (L > 4) y[4] += power(r, 4) * s3;
            if constexpr (L > 5) y[5] += power(r, 5) * d3;
        }
        y[L - 1] += m[N - 1];
    }
};

// The factor of row i of G: one over the product of all p_i - p_j.
template <int N>
constexpr double factor(int i) {
    if (i == 0) return 1 / pair_term<N>(0, -1);
    if (i == N - 1) return 1;
    const int pair = (i - 1) / 2;
    const double p = pair_point<N>(pair), square = p * p;
    double product = 2 * square; // p_i - 0 and p_i - (-p_i)
    for (int j = 0; j < (N - 2) / 2; ++j)
        if (j != pair) product *= square - pair_point<N>(j) * pair_point<N>(j);
    return 1 / product;
}

template <class T, int N>
struct FactorTable {
    T of[N];
    constexpr FactorTable() : of{} {
        for (int i = 0; i < N; ++i) of[i] = T(factor<N>(i));
    }
};

// A transform of both dimensions, out = F in Fᵀ: the columns, then the rows. get(i, j) reads, put(i, j, v) writes.
template <class T, class F, class Get, class Put>
MINIDL_INLINE void both_ways(const F& f, const Get& get, const Put& put) {
    V<T> half[F::out][F::in];
    for (int j = 0; j < F::in; ++j) {
        V<T> from[F::in], to[F::out];
        for (int i = 0; i < F::in; ++i) from[i] = get(i, j);
        f(from, to);
        for (int i = 0; i < F::out; ++i) half[i][j] = to[i];
    }
    for (int i = 0; i < F::out; ++i) {
        V<T> to[F::out];
        f(half[i], to);
        for (int j = 0; j < F::out; ++j) put(i, j, to[j]);
    }
}

// --- tiles --------------------------------------------------------------------------------------------------------

// A correlation of stride 1: output (i, j) of an image sees inputs (i - top + k, j - left + l). The gradient in x is one
// too, from the gradient in y.
struct Correlation {
    Index groups, inputs, outputs; // channels of one group
    Index top, left;
};

// Tiles of all images, counted through: number -> image, row and column of the first output.
struct Tiles {
    Index size, rows, columns, count;
    Tiles(Index size, Index n, Index h, Index w)
        : size(size), rows(ceil_div(h, size)), columns(ceil_div(w, size)), count(n * rows * columns) {}
    Index image(Index tile) const { return tile / columns / rows; }
    Index row(Index tile) const { return tile / columns % rows * size; }
    Index column(Index tile) const { return tile % columns * size; }
};

// A square of SIZE x SIZE pixels: where its first number is, and the strides between its rows and columns.
template <class T>
struct Square {
    const T* at;
    Index down, right;
};

// The square at (row, column) of image n, `channels` channels from `channel` on, readable in whole vectors: in place where
// it lies inside the image, else a copy with zeros around. The copy takes patch_size<SIZE> numbers.
template <int SIZE, class T>
Index patch_size(Index channels) {
    return SIZE * (SIZE * round_up(channels, lanes<T>) + lanes<T>);
}

template <int SIZE, class T>
Square<T> square(const Image<const T>& x, Index channel, Index channels, Index n, Index row, Index column, T* patch) {
    const Index wide = round_up(channels, lanes<T>), down = x.w * x.pitch;
    const Index first = ((n * x.h + row) * x.w + column) * x.pitch + channel;
    const Index last = first + (SIZE - 1) * (down + x.pitch) + wide, end = (x.n * x.h * x.w - 1) * x.pitch + x.c;
    if (row >= 0 && column >= 0 && row + SIZE <= x.h && column + SIZE <= x.w && last <= end)
        return {x.data + first, down, x.pitch};
    const Index step = SIZE * wide + lanes<T>; // no power of two
    for (Index i = 0; i < SIZE; ++i)
        for (Index j = 0; j < SIZE; ++j) {
            T* to = patch + i * step + j * wide;
            const bool inside = row + i >= 0 && row + i < x.h && column + j >= 0 && column + j < x.w;
            const Index count = inside ? channels : 0;
            if (inside) memcpy(to, x.data + first + i * down + j * x.pitch, static_cast<size_t>(count) * sizeof(T));
            memset(to + count, 0, static_cast<size_t>(wide - count) * sizeof(T));
        }
    return {patch, step, wide};
}

// f(image, its first channel, how many, how far they are from `channel`) for the one or two images that hold `channels`
// channels from `channel` on.
template <class T, class F>
MINIDL_INLINE void each_image(const Joined<T>& x, Index channel, Index channels, const F& f) {
    const Index rest = x.first.c - channel; // of the first
    if (rest > 0) f(x.first, channel, min(channels, rest), Index(0));
    if (rest < channels) f(x.second, max(-rest, Index(0)), min(channels - rest, channels), max(rest, Index(0)));
}

// to[pos * plane + c] = the transform F of a square, for each channel c.
template <class T, class F>
void transform_square(const F& f, const Square<T>& s, Index channels, T* to, Index plane) {
    for (Index c = 0; c < channels; c += lanes<T>)
        both_ways<T>(
            f, [&](int i, int j) { return load(s.at + i * s.down + j * s.right + c); },
            [&](int i, int j, V<T> v) { store(to + (i * F::out + j) * plane + c, v); });
}

using MINIDL_LEVEL::prefetch;

// Ask memory for `rows` x `columns` pixels from (row, column) of image n on, as far as they exist: the processor has products
// to compute until they are needed. Inlined, or the compiler drops calls that compute nothing.
template <class T>
MINIDL_INLINE void prefetch(const Image<const T>& x, Index channel, Index channels, Index n, Index row, Index column,
                            Index rows, Index columns) {
    constexpr Index line = 64 / sizeof(T);
    const Index j0 = max(column, Index(0)), j1 = min(column + columns, x.w);
    for (Index i = max(row, Index(0)); i < min(row + rows, x.h); ++i) {
        const T *at = x.data + ((n * x.h + i) * x.w + j0) * x.pitch + channel, *end = at + (j1 - j0) * x.pitch;
        for (; at < end; at += x.pitch)
            for (Index c = 0; c < channels; c += line) prefetch(at + c);
    }
}

// Channels in panels of whole vectors, as the microkernel wants them, of nearly equal width.
template <class T>
struct Panels {
    Index vectors, count;
    explicit Panels(Index channels) : vectors(ceil_div(channels, lanes<T>)), count(ceil_div(vectors, max_vectors)) {}
    Index first(Index panel) const { return vectors * panel / count * lanes<T>; }
    Index width(Index panel) const { return first(panel + 1) - first(panel); }
    Index widest() const { return ceil_div(vectors, count) * lanes<T>; }
};

// Tiles in blocks of nearly equal length: as many as there are channels, from 32 (what is transformed stays in the L2
// cache) to 64 (a panel of U is read anew for each block). A task takes a share of the blocks; all this depends on shapes
// alone, and so do the bits of the result.
struct Blocks {
    Index length, count;
    Blocks(Index tiles, Index channels) {
        count = ceil_div(tiles, min(max(channels, Index(32)), Index(64)));
        if (count > 1) count = round_up(count, 4); // as much for each of a few threads
        length = ceil_div(tiles, count);
        count = ceil_div(tiles, length);
    }
};

// The least odd number of cache lines that holds so many numbers: what starts that far apart does not fall into the same
// set of the cache, as the N * N vectors of one tile would, or one column of a matrix.
template <class T>
Index odd_lines(Index numbers) {
    constexpr Index line = 64 / sizeof(T);
    return (ceil_div(numbers, line) | 1) * line;
}

// --- the products -------------------------------------------------------------------------------------------------

// C[r][j] (+)= sum over k of A[r * ar + k * ak] * B[k * ldb + j], as the microkernel, for the 16 to some hundred terms that
// are summed here: without its tables, what surrounds the loop counts.
// ADD to what C holds or overwrite it. Long sums are made of shorter ones: of the rounding errors, those of the partial sums
// weigh most, and one sum of 128 has twice those of two of 64.
template <int N>
constexpr Index terms = N == 8 ? 64 : 128;

template <class T>
struct Factors {
    const T* a;
    Index ar, ak;
    const T* b;
    Index ldb, depth;
    T* c;
    Index ldc;
};

// ADJACENT: ar is 1, and the compiler may know.
template <class T, int ROWS, int VECS, bool ADD, bool ADJACENT>
void multiply_block(const Factors<T>& f, Index first) {
    const Index ldc = f.ldc, ar = ADJACENT ? 1 : f.ar, ak = f.ak, ldb = f.ldb;
    T* c = f.c + first * ldc;
    V<T> sum[ROWS][VECS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECS; ++v) sum[r][v] = V<T>{};
    const T *a = f.a + first * ar, *b = f.b;
    Index k = f.depth;
    do {
        V<T> row[VECS];
        for (int v = 0; v < VECS; ++v) row[v] = load(b + v * lanes<T>);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) sum[r][v] += a[r * ar] * row[v];
        a += ak, b += ldb;
    } while (--k);
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECS; ++v) {
            T* to = c + r * ldc + v * lanes<T>;
            store(to, ADD ? load(to) + sum[r][v] : sum[r][v]);
        }
}

template <class T, int ROWS, int VECS, bool ADD, bool ADJACENT>
void multiply_rows(Index rows, const Factors<T>& f, Index first) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) multiply_block<T, ROWS, VECS, ADD, ADJACENT>(f, first);
        else multiply_rows<T, ROWS - 1, VECS, ADD, ADJACENT>(rows, f, first);
    }
}

template <class T, int VECS, bool ADD, bool ADJACENT>
void multiply_panel(Index rows, const Factors<T>& f) {
    constexpr int most = ADJACENT && VECS == 1 && max_vectors == 4 ? 16 : max_rows[VECS];
    const Index blocks = ceil_div(rows, most); // of nearly equal height
    for (Index i = 0, first = 0; i < blocks; ++i) {
        const Index next = rows * (i + 1) / blocks;
        multiply_rows<T, most, VECS, ADD, ADJACENT>(next - first, f, first);
        first = next;
    }
}

template <class T, bool ADD, bool ADJACENT>
void multiply(Index rows, Index width, const Factors<T>& f) {
    const Index vectors = width / lanes<T>;
    if (vectors == 1) multiply_panel<T, 1, ADD, ADJACENT>(rows, f);
    else if (vectors == 2) multiply_panel<T, 2, ADD, ADJACENT>(rows, f);
    else if constexpr (max_vectors > 2) {
        if (vectors == 3) multiply_panel<T, 3, ADD, ADJACENT>(rows, f);
        else multiply_panel<T, 4, ADD, ADJACENT>(rows, f);
    }
}

// --- forward and the gradient in x --------------------------------------------------------------------------------

// U = G g Gᵀ for every pair of channels: u[group][panel][pos][input][output of the panel]. Weight (o, c, k, l) of a group
// is w[group * per_group + o * along_o + c * along_c + k * K + l], turned round for the gradient in x.
template <class T>
struct Weights {
    const T* data;
    Index per_group, along_o, along_c;
    bool turned;
};

template <int N, int K, class T>
void transform_weights(int threads, const Correlation& s, const Panels<T>& panels, const Weights<T>& w, T* u, Index plane) {
    constexpr Index chunk = 16; // of input channels
    const Index chunks = ceil_div(s.inputs, chunk);
    parallel(threads, s.groups * panels.vectors * chunks, [&](Index task) {
        const Index group = task / chunks / panels.vectors, o0 = task / chunks % panels.vectors * lanes<T>;
        const Index c0 = task % chunks * chunk, c1 = min(c0 + chunk, s.inputs);
        Index panel = 0;
        while (panels.first(panel + 1) <= o0) ++panel;
        const Index first = panels.first(panel), width = panels.width(panel), count = min(s.outputs - o0, Index(lanes<T>));
        T* base = u + (group * panels.count + panel) * N * N * plane + (o0 - first);
        constexpr FactorTable<T, N> factors;
        const Index step = plane;
        alignas(64) T taps[chunk][K * K][lanes<T>] = {}; // all first: a vector cannot be loaded from numbers just stored
        const auto kernel = [&](Index r, Index c) {
            return w.data + group * w.per_group + (o0 + r) * w.along_o + c * w.along_c;
        };
        for (Index r = 0; r < count; ++r) // too many short rows for the processor to see them coming
            for (Index c = c0; c < c1; ++c) prefetch(kernel(r, c));
        for (Index r = 0; r < count; ++r)
            for (Index c = c0; c < c1; ++c) {
                const T* from = kernel(r, c);
                for (int k = 0; k < K * K; ++k) taps[c - c0][k][r] = from[w.turned ? K * K - 1 - k : k];
            }
        for (Index c = c0; c < c1; ++c)
            both_ways<T>(
                Evaluate<T, K, N>(), [&](int i, int j) { return load(taps[c - c0][i * K + j]); },
                [&](int i, int j, V<T> v) {
                    store(base + (i * N + j) * step + c * width, factors.of[i] * factors.of[j] * v);
                });
    });
}

// Whether to write an output past the caches: one so large that it would not be found there again.
template <class T>
bool streams(const Joined<T>& y, Index outputs) {
    const auto fits = [](const Image<T>& image) { return aligned(image.data) && (image.pitch | image.c) % lanes<T> == 0; };
    const Index numbers = y.first.n * y.first.h * y.first.w * (y.first.pitch + y.second.pitch);
    return outputs % lanes<T> == 0 && fits(y.first) && fits(y.second) && numbers * static_cast<Index>(sizeof(T)) >= (8 << 20);
}

// Aᵀ M A of one tile, `count` channels, plus bias, to the part of the tile that lies inside the image.
template <class F, class T>
void transform_outputs(const F& f, const T* m, Index plane, Index count, const T* bias, bool positive, bool past,
                       const Image<T>& y, T* to, Index rows, Index columns) {
    for (Index o = 0; o < count; o += lanes<T>) {
        const Index part = count - o;
        const V<T> shift = !bias ? V<T>{} : part < lanes<T> ? load_part(bias + o, part) : load(bias + o);
        both_ways<T>(
            f, [&](int i, int j) { return load(m + (i * F::in + j) * plane + o); },
            [&](int i, int j, V<T> v) {
                if (i >= rows || j >= columns) return;
                v += shift;
                if (positive) v = relu<T>(v);
                T* at = to + (i * y.w + j) * y.pitch + o;
                if (part < lanes<T>) store_part(at, v, part);
                else if (past) stream(at, v);
                else store(at, v);
            });
    }
}

template <int M, int K, class T>
void correlate(int threads, const Correlation& s, const Joined<const T>& x, const Weights<T>& w, const T* bias,
               Activation activation, const Joined<T>& y) {
    constexpr int N = M + K - 1;
    const Index height = y.first.h, across = y.first.w;
    const Tiles tiles(M, y.first.n, height, across);
    const Panels<T> panels(s.outputs);
    const Index ldv = round_up(s.inputs, lanes<T>), widest = panels.widest();
    const Blocks blocks(tiles.count, ldv);
    const Index most = blocks.length, shares = min(blocks.count, Index(64));
    const Index plane_u = odd_lines<T>(s.inputs * widest), plane_v = odd_lines<T>(most * ldv);
    const Index plane_m = odd_lines<T>(most * widest);
    const bool past = streams(y, s.outputs);

    const Buffer<T> u(s.groups * panels.count * N * N * plane_u);
    transform_weights<N, K>(threads, s, panels, w, u.data, plane_u);

    parallel(threads, s.groups * shares, [&](Index task) {
        const Index group = task / shares, share = task % shares, last = blocks.count * (share + 1) / shares;
        T* v = scratch<T>(0, N * N * plane_v);
        T* m = scratch<T>(1, N * N * plane_m);
        T* patch = scratch<T>(2, patch_size<N, T>(s.inputs));
        for (Index block = blocks.count * share / shares; block < last; ++block) {
            const Index first = block * most, count = min(most, tiles.count - first);
            for (Index t = 0; t < count; ++t) {
                const Index tile = first + t;
                const Index n = tiles.image(tile), row = tiles.row(tile) - s.top, column = tiles.column(tile) - s.left;
                each_image(x, group * s.inputs, s.inputs, [&](const auto& image, Index channel, Index channels, Index c) {
                    transform_square(Interpolate<T, N>(), square<N>(image, channel, channels, n, row, column, patch), channels,
                                     v + t * ldv + c, plane_v);
                });
            }
            for (Index panel = 0; panel < panels.count; ++panel) {
                const Index o = panels.first(panel), width = panels.width(panel), channel = group * s.outputs + o;
                const T* from = u.data + (group * panels.count + panel) * N * N * plane_u;
                for (int pos = 0; pos < N * N; ++pos) {
                    if (panel == 0 && block + 1 < last)
                        for (Index t = most * pos / (N * N); t < most * (pos + 1) / (N * N); ++t) {
                            const Index tile = min(first + most + t, tiles.count - 1);
                            const Index n = tiles.image(tile), row = tiles.row(tile) - s.top;
                            const Index column = tiles.column(tile) - s.left + N - M; // its neighbour asks for the others
                            each_image(x, group * s.inputs, s.inputs, [&](const auto& image, Index channel, Index channels, Index) {
                                prefetch(image, channel, channels, n, row, column, N, M);
                            });
                        }
                    for (Index c = 0; c < s.inputs; c += terms<N>) {
                        const Factors<T> f{v + pos * plane_v + c, ldv, 1, from + pos * plane_u + c * width, width,
                                           min(terms<N>, s.inputs - c), m + pos * plane_m, width};
                        if (c == 0) multiply<T, false, false>(count, width, f);
                        else multiply<T, true, false>(count, width, f);
                    }
                }
                for (Index t = 0; t < count; ++t) {
                    const Index tile = first + t, row = tiles.row(tile), column = tiles.column(tile);
                    const Index pixel = (tiles.image(tile) * height + row) * across + column;
                    each_image(y, channel, min(width, s.outputs - o), [&](const auto& image, Index at, Index channels, Index c) {
                        transform_outputs(Collect<T, N, M>(), m + t * width + c, plane_m, channels,
                                          bias ? bias + channel + c : nullptr, activation == Activation::relu, past, image,
                                          image.data + pixel * image.pitch + at, height - row, across - column);
                    });
                }
            }
        }
        if (past) end_stream();
    });
}

// --- the gradient in w --------------------------------------------------------------------------------------------

// A task owns a panel of outputs and a share of the tiles, adds up its products S[pos][c][o] block by block, and leaves
// Gᵀ S G, a seventh of it; the shares, whose number depends on shapes alone, are added in order at the end.
template <int M, int K, class T>
void correlate_grad(int threads, const Conv& s, const Image<const T>& g, const Joined<const T>& x, T* dw) {
    constexpr int N = M + K - 1;
    const Tiles tiles(M, g.n, g.h, g.w);
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups;
    const Panels<T> panels(outputs);
    const Index wide = round_up(inputs, lanes<T>), ldv = odd_lines<T>(wide), widest = panels.widest();
    const Blocks blocks(tiles.count, wide);
    const Index most = blocks.length, columns = panels.vectors * lanes<T>;
    const Index step = s.groups * K * K * inputs * columns; // of a partial sum: [share][group][tap][input][output]
    Index shares = min(blocks.count, min(64 / (s.groups * panels.count), (8 << 20) / (step * Index(sizeof(T)))));
    if (shares < 1) shares = 1;
    while (blocks.count < 4 * shares && blocks.count % shares) --shares; // as much for each
    const Index plane_v = odd_lines<T>(most * ldv), plane_w = odd_lines<T>(most * widest);
    const Index plane_s = odd_lines<T>(inputs * widest);
    const Buffer<T> partial(shares * step);

    parallel(threads, s.groups * panels.count * shares, [&](Index task) {
        const Index share = task % shares, panel = task / shares % panels.count, group = task / shares / panels.count;
        const Index o = panels.first(panel), width = panels.width(panel), real = min(width, outputs - o);
        T* v = scratch<T>(0, N * N * plane_v);
        T* dy = scratch<T>(1, N * N * plane_w);
        T* patch = scratch<T>(2, patch_size<N, T>(max(inputs, widest)));
        T* sum = scratch<T>(3, N * N * plane_s);
        const Index from = blocks.count * share / shares, to = blocks.count * (share + 1) / shares;
        for (Index block = from; block < to; ++block) {
            const Index first = block * most, count = min(most, tiles.count - first);
            for (Index t = 0; t < count; ++t) {
                const Index tile = first + t, n = tiles.image(tile), row = tiles.row(tile), column = tiles.column(tile);
                each_image(x, group * inputs, inputs, [&](const auto& image, Index channel, Index channels, Index c) {
                    transform_square(Interpolate<T, N>(),
                                     square<N>(image, channel, channels, n, row - s.ph, column - s.pw, patch), channels,
                                     v + t * ldv + c, plane_v);
                });
                transform_square(Evaluate<T, M, N>(), square<M>(g, group * outputs + o, real, n, row, column, patch), real,
                                 dy + t * width, plane_w);
            }
            for (int pos = 0; pos < N * N; ++pos) {
                if (block + 1 < to)
                    for (Index t = most * pos / (N * N); t < most * (pos + 1) / (N * N); ++t) {
                        const Index tile = min(first + most + t, tiles.count - 1);
                        const Index n = tiles.image(tile), row = tiles.row(tile), column = tiles.column(tile);
                        each_image(x, group * inputs, inputs, [&](const auto& image, Index channel, Index channels, Index) {
                            prefetch(image, channel, channels, n, row - s.ph, column - s.pw + N - M, N, M);
                        });
                        prefetch(g, group * outputs + o, real, n, row, column, M, M);
                    }
                const Factors<T> f{v + pos * plane_v, 1, ldv, dy + pos * plane_w, width, count, sum + pos * plane_s, width};
                if (block == from) multiply<T, false, true>(inputs, width, f);
                else multiply<T, true, true>(inputs, width, f);
            }
        }
        constexpr FactorTable<T, N> factors;
        T* result = partial.data + (share * s.groups + group) * K * K * inputs * columns + o;
        for (Index c = 0; c < inputs; ++c)
            for (Index j = 0; j < width; j += lanes<T>)
                both_ways<T>(
                    Collect<T, N, K>(),
                    [&](int i, int k) {
                        return factors.of[i] * factors.of[k] * load(sum + (i * N + k) * plane_s + c * width + j);
                    },
                    [&](int i, int k, V<T> v) { store(result + ((i * K + k) * inputs + c) * columns + j, v); });
    });

    constexpr Index chunk = 16; // inputs
    const Index chunks = ceil_div(inputs, chunk);
    parallel(threads, s.groups * panels.vectors * chunks, [&](Index task) {
        const Index group = task / chunks / panels.vectors, o = task / chunks % panels.vectors * lanes<T>;
        const Index c0 = task % chunks * chunk, c1 = min(c0 + chunk, inputs), real = min(outputs - o, Index(lanes<T>));
        alignas(64) T sums[chunk * K * K][lanes<T>];
        for (Index tap = 0; tap < K * K; ++tap)
            for (Index c = c0; c < c1; ++c) {
                const T* from = partial.data + ((group * K * K + tap) * inputs + c) * columns + o;
                V<T> sum = load(from);
                for (Index share = 1; share < shares; ++share) sum += load(from + share * step);
                store(sums[(c - c0) * K * K + tap], sum);
            }
        for (Index r = 0; r < real; ++r) {
            T* to = dw + ((group * outputs + o + r) * inputs + c0) * K * K;
            for (Index i = 0; i < (c1 - c0) * K * K; ++i) to[i] = sums[i][r];
        }
    });
}

// Bᵀ (N x N), A (N x M), G (N x K) as the transforms above apply them, for the tests.
template <int M, int K, class T>
void matrices(T* bt, T* a, T* g) {
    constexpr int N = M + K - 1;
    for (int j = 0; j < N; ++j) {
        V<T> unit[N] = {}, out[N];
        unit[j] = broadcast(T(1));
        Interpolate<T, N>()(unit, out);
        for (int i = 0; i < N; ++i) bt[i * N + j] = out[i][0];
        if (j < M) {
            Evaluate<T, M, N>()(unit, out);
            for (int i = 0; i < N; ++i) a[i * M + j] = out[i][0];
        }
        if (j < K) {
            Evaluate<T, K, N>()(unit, out);
            for (int i = 0; i < N; ++i) g[i * K + j] = T(factor<N>(i)) * out[i][0];
        }
    }
}

} // namespace winograd

// --- the kernels --------------------------------------------------------------------------------------------------

// y = x * w + bias; a tile of 4 or 6 outputs a side, 3 x 3 or 5 x 5 kernels (these with tiles of 4). x may be two images
// side by side, and so may dx, if the first has whole vectors of channels (a multiple of 16).
template <class T>
void winograd_conv2d(int threads, int tile, const Conv& s, Joined<const T> x, const T* w, const T* bias,
                     Activation activation, Image<T> y) {
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups, taps = s.kh * s.kw;
    const winograd::Correlation c{s.groups, inputs, outputs, s.ph, s.pw};
    const winograd::Weights<T> weights{w, outputs * inputs * taps, inputs * taps, taps, false};
    const Joined<T> out{y, {}};
    if (s.kh == 5) winograd::correlate<4, 5>(threads, c, x, weights, bias, activation, out);
    else if (tile == 4) winograd::correlate<4, 3>(threads, c, x, weights, bias, activation, out);
    else winograd::correlate<6, 3>(threads, c, x, weights, bias, activation, out);
}

// dx = g * w turned round, with the channels' roles exchanged
template <class T>
void winograd_grad_x(int threads, int tile, const Conv& s, Image<const T> g, const T* w, const T* bias, Activation activation,
                     Joined<T> dx) {
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups, taps = s.kh * s.kw;
    const winograd::Correlation c{s.groups, outputs, inputs, s.kh - 1 - s.ph, s.kw - 1 - s.pw};
    const winograd::Weights<T> weights{w, outputs * inputs * taps, taps, inputs * taps, true};
    const Joined<const T> in{g, {}};
    if (s.kh == 5) winograd::correlate<4, 5>(threads, c, in, weights, bias, activation, dx);
    else if (tile == 4) winograd::correlate<4, 3>(threads, c, in, weights, bias, activation, dx);
    else winograd::correlate<6, 3>(threads, c, in, weights, bias, activation, dx);
}

// dw = the correlation of x with g
template <class T>
void winograd_grad_w(int threads, int tile, const Conv& s, Image<const T> g, Joined<const T> x, T* dw) {
    if (s.kh == 5) winograd::correlate_grad<4, 5>(threads, s, g, x, dw);
    else if (tile == 4) winograd::correlate_grad<4, 3>(threads, s, g, x, dw);
    else winograd::correlate_grad<6, 3>(threads, s, g, x, dw);
}

template <class T>
void winograd_matrices(int tile, int kernel, T* bt, T* a, T* g) {
    if (kernel == 5) winograd::matrices<4, 5>(bt, a, g);
    else if (kernel == 4) winograd::matrices<5, 4>(bt, a, g);
    else if (tile == 4) winograd::matrices<4, 3>(bt, a, g);
    else winograd::matrices<6, 3>(bt, a, g);
}

} // namespace MINIDL_LEVEL
} // namespace minidl

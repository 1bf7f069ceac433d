// The innermost loops of convolutions, of Winograd's products and of dense layers: one register-blocked product.
//
//   C[r][j] (+)= sum over runs t and positions k of  A[r * ar + offset[t] + k * ak] * B[(t * length + k) * ldb + j]
//
// A is read one number at a time, at any strides (a window of an image, a transposed matrix), and broadcast; the rows of
// B and C are contiguous, lanes along j. For a convolution r counts pixels, k channels and taps, j output channels; for
// its gradient in w, r counts channels, k pixels.
//
// The ladder, float32 in cache on one core (see benchmarks/README.md for the machine):
//   naive           scalar loops over c += a * b                 2 loads and 1 store an operation
//   vectorised      lanes along j                                the same for 16 operations at a time
//   register block  ROWS x VECS sums stay in registers while     (ROWS + VECS) loads for ROWS * VECS vector
//                   the loop runs over the depth                 operations: 10 for 24, nothing stored
// 24 sums fill the 32 registers of AVX-512 and of NEON, 12 the 16 of AVX2 and SSE2: one step of the loop then holds enough
// independent operations to hide their latency (4 cycles x 2 units = 8).
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

#if MINIDL_BYTES == 64 || defined(__aarch64__)
constexpr int max_vectors = 4; // of a panel of B
constexpr int max_rows[] = {0, 12, 12, 8, 6}; // of a block whose panel has 1, 2, 3, 4 vectors
#else
constexpr int max_vectors = 2;
constexpr int max_rows[] = {0, 8, 6, 0, 0};
#endif

template <class T>
struct Product {
    const T* a;
    Index ar, ak; // strides of A along the rows and along the depth
    Index runs, length;
    const Index* offset; // of each run in A
    const T* b;
    Index ldb;
    T* c;
    Index ldc;
};

template <class T, int ROWS, int VECS, bool ADD>
void product_block(const Product<T>& p, const T* a, T* c) {
    V<T> sum[ROWS][VECS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECS; ++v) sum[r][v] = ADD ? load(c + r * p.ldc + v * lanes<T>) : V<T>{};
    const T* b = p.b;
    const Index ar = p.ar, ak = p.ak, ldb = p.ldb, length = p.length;
    for (Index t = 0; t < p.runs; ++t) {
        const T* from = a + p.offset[t];
        for (Index k = 0; k < length; ++k, from += ak, b += ldb) {
            V<T> row[VECS];
            for (int v = 0; v < VECS; ++v) row[v] = load(b + v * lanes<T>);
            for (int r = 0; r < ROWS; ++r)
                for (int v = 0; v < VECS; ++v) sum[r][v] += from[r * ar] * row[v];
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECS; ++v) store(c + r * p.ldc + v * lanes<T>, sum[r][v]);
}

// The block of exactly `rows` rows, found by counting down from the largest.
template <class T, int ROWS, int VECS, bool ADD>
void product_rows(Index rows, const Product<T>& p, const T* a, T* c) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) product_block<T, ROWS, VECS, ADD>(p, a, c);
        else product_rows<T, ROWS - 1, VECS, ADD>(rows, p, a, c);
    }
}

template <class T, int VECS, bool ADD>
void product_panel(Index rows, const Product<T>& p) {
    constexpr int most = max_rows[VECS];
    const Index blocks = ceil_div(rows, most); // of nearly equal height: 13 rows are 5 + 4 + 4, not 6 + 6 + 1
    for (Index i = 0, r = 0; i < blocks; ++i) {
        const Index next = rows * (i + 1) / blocks;
        product_rows<T, most, VECS, ADD>(next - r, p, p.a + r * p.ar, p.c + r * p.ldc);
        r = next;
    }
}

// One panel of B, `vectors` (1 to max_vectors) vectors wide; ADD to what C holds, or overwrite it.
template <class T, bool ADD>
void product(Index rows, int vectors, const Product<T>& p) {
    if (vectors == 1) product_panel<T, 1, ADD>(rows, p);
    else if (vectors == 2) product_panel<T, 2, ADD>(rows, p);
    else if constexpr (max_vectors > 2) {
        if (vectors == 3) product_panel<T, 3, ADD>(rows, p);
        else product_panel<T, 4, ADD>(rows, p);
    }
}

} // namespace MINIDL_LEVEL
} // namespace minidl

// The two innermost loops of all convolutions, written once with vectors of MINIDL_BYTES and compiled once for every
// instruction set (simd_*.cpp). Nothing of the standard library is used here: a template instantiated with AVX-512
// could otherwise replace the same template in the rest of the program and crash an older processor.
//
// The ladder, measured on (64, 128) x (128, 240) in cache, float32, one Zen 5 core with AVX-512, in GFLOP/s:
//   naive          scalar loops over c += a * b                  2 loads and 1 store an operation            3.3
//   vectorised     lanes along the pixels                        the same for 16 operations at a time       70
//   register block ROWS x VECS sums stay in registers while the  (ROWS + VECS) loads for ROWS * VECS vector 240
//                  loop runs over the depth                      operations: 11 for 24, nothing stored
// 24 sums fill the 32 registers of AVX-512, 12 the 16 of AVX2: one step of the loop then holds enough independent
// operations to hide their latency (4 cycles x 2 units = 8).
#include <cstddef>
#include <cstring>

namespace minidl {
namespace MINIDL_LEVEL {

using Index = long long;

#if defined(__GNUC__)
template <class T, int BYTES>
struct Vector { // the compiler's own vectors: +, * work lane by lane, a scalar is broadcast
    typedef T type __attribute__((vector_size(BYTES)));
};
#else
template <class T, int BYTES>
struct Vector { // the same in plain loops
    struct type {
        T lane[BYTES / sizeof(T)];
        T& operator[](int i) { return lane[i]; }
        type& operator+=(const type& o) {
            for (size_t i = 0; i < BYTES / sizeof(T); ++i) lane[i] += o.lane[i];
            return *this;
        }
        friend type operator*(T s, type v) {
            for (size_t i = 0; i < BYTES / sizeof(T); ++i) v.lane[i] *= s;
            return v;
        }
        friend type operator*(const type& u, type v) {
            for (size_t i = 0; i < BYTES / sizeof(T); ++i) v.lane[i] *= u.lane[i];
            return v;
        }
    };
};
#endif

template <class T>
using V = typename Vector<T, MINIDL_BYTES>::type;

template <class T>
inline V<T> load(const T* p) {
    V<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
inline void store(T* p, V<T> v) {
    std::memcpy(p, &v, sizeof v);
}

template <class T>
constexpr int lanes = MINIDL_BYTES / sizeof(T);
constexpr int block_rows = MINIDL_BYTES == 64 ? 8 : 4;
constexpr int block_vectors = 3;

// c[r][p] += sum over k of a[k][r] * b[k][p], for ROWS rows and VECS vectors of pixels.
template <class T, int ROWS, int VECS>
void product_block(Index depth, const T* a, const T* b, Index ldb, T* c, Index ldc) {
    V<T> sum[ROWS][VECS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECS; ++v) sum[r][v] = load(c + r * ldc + v * lanes<T>);
    for (Index k = 0; k < depth; ++k, a += block_rows, b += ldb) {
        V<T> pixels[VECS];
        for (int v = 0; v < VECS; ++v) pixels[v] = load(b + v * lanes<T>);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECS; ++v) sum[r][v] += a[r] * pixels[v];
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECS; ++v) store(c + r * ldc + v * lanes<T>, sum[r][v]);
}

template <class T, int VECS>
void product_rows(Index rows, Index depth, const T* a, Index panel, const T* b, Index ldb, T* c, Index ldc) {
    for (Index i = 0; i < rows;) {
        const T* from = a + i / block_rows * panel + i % block_rows;
        T* to = c + i * ldc;
        const Index left = rows - i;
        if (left >= block_rows) product_block<T, block_rows, VECS>(depth, from, b, ldb, to, ldc), i += block_rows;
        else if (left >= 4) product_block<T, 4, VECS>(depth, from, b, ldb, to, ldc), i += 4;
        else if (left >= 2) product_block<T, 2, VECS>(depth, from, b, ldb, to, ldc), i += 2;
        else product_block<T, 1, VECS>(depth, from, b, ldb, to, ldc), i += 1;
    }
}

// C (rows, width) += A (rows, depth) B (depth, width). A lies in panels of block_rows rows, each (depth, block_rows),
// `panel` numbers apart. Widths are rounded up to whole vectors: b and c need room for that.
template <class T>
void product(Index rows, Index width, Index depth, const T* a, Index panel, const T* b, Index ldb, T* c, Index ldc) {
    for (Index j = 0; j < width; j += block_vectors * lanes<T>) {
        const Index left = width - j;
        if (left > 2 * lanes<T>) product_rows<T, 3>(rows, depth, a, panel, b + j, ldb, c + j, ldc);
        else if (left > lanes<T>) product_rows<T, 2>(rows, depth, a, panel, b + j, ldb, c + j, ldc);
        else product_rows<T, 1>(rows, depth, a, panel, b + j, ldb, c + j, ldc);
    }
}

template <class T, int BYTES>
inline T add_lanes(typename Vector<T, BYTES>::type v) { // always in the same order: halves onto halves
    if constexpr (BYTES == sizeof(T)) {
        return v[0];
    } else {
        typename Vector<T, BYTES / 2>::type low, high;
        std::memcpy(&low, &v, sizeof low);
        std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
        low += high;
        return add_lanes<T, BYTES / 2>(low);
    }
}

// c[r][k] += sum over p of g[r][p] * x[k][p], for ROWS rows of g and COLS rows of x; the vectors run along p.
template <class T, int ROWS, int COLS>
void correlate_block(Index width, const T* g, Index ldg, const T* x, Index ldx, T* c, Index ldc) {
    V<T> sum[ROWS][COLS] = {};
    for (Index p = 0; p < width; p += lanes<T>) {
        V<T> pixels[COLS];
        for (int k = 0; k < COLS; ++k) pixels[k] = load(x + k * ldx + p);
        for (int r = 0; r < ROWS; ++r) {
            const V<T> gradient = load(g + r * ldg + p);
            for (int k = 0; k < COLS; ++k) sum[r][k] += gradient * pixels[k];
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int k = 0; k < COLS; ++k) c[r * ldc + k] += add_lanes<T, MINIDL_BYTES>(sum[r][k]);
}

template <class T, int COLS>
void correlate_rows(Index rows, Index width, const T* g, Index ldg, const T* x, Index ldx, T* c, Index ldc) {
    for (Index i = 0; i < rows;) {
        const T* from = g + i * ldg;
        T* to = c + i * ldc;
        const Index left = rows - i;
        if (left >= block_rows) correlate_block<T, block_rows, COLS>(width, from, ldg, x, ldx, to, ldc), i += block_rows;
        else if (left >= 4) correlate_block<T, 4, COLS>(width, from, ldg, x, ldx, to, ldc), i += 4;
        else if (left >= 2) correlate_block<T, 2, COLS>(width, from, ldg, x, ldx, to, ldc), i += 2;
        else correlate_block<T, 1, COLS>(width, from, ldg, x, ldx, to, ldc), i += 1;
    }
}

// C (rows, cols) += G (rows, width) Xᵀ, X (cols, width); width is a whole number of vectors.
template <class T>
void correlate(Index rows, Index cols, Index width, const T* g, Index ldg, const T* x, Index ldx, T* c, Index ldc) {
    for (Index j = 0; j < cols; j += 3) {
        const T* from = x + j * ldx;
        if (cols - j >= 3) correlate_rows<T, 3>(rows, width, g, ldg, from, ldx, c + j, ldc);
        else if (cols - j == 2) correlate_rows<T, 2>(rows, width, g, ldg, from, ldx, c + j, ldc);
        else correlate_rows<T, 1>(rows, width, g, ldg, from, ldx, c + j, ldc);
    }
}

} // namespace MINIDL_LEVEL

namespace {
template <class T>
constexpr Microkernels<T> table = {MINIDL_LEVEL::block_rows, MINIDL_LEVEL::lanes<T>, MINIDL_LEVEL::product<T>,
                                   MINIDL_LEVEL::correlate<T>};
}
} // namespace minidl

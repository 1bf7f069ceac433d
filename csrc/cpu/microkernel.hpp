// The innermost loops of convolutions, of Winograd's products and of dense layers: one register-blocked product.
//
//   C[r][j] (+)= sum over runs t and positions k of  A[r * ar + offset[t] + k * ak] * B[(t * length + k) * ldb + j]
//
// A is read one number at a time, at any strides (a window of an image, a transposed matrix), and broadcast; the rows of
// B and C are contiguous, lanes along j. For a convolution r counts pixels, k channels and taps, j output channels; for
// its gradient in w, r counts channels, k pixels. Where the rows of A or C do not lie at equal distances (pixels of
// several lines of an image), a table says where they start: no block is cut short at the end of a line.
//
// The ladder, float32 in cache on one core (see benchmarks/README.md for the machine):
//   naive           scalar loops over c += a * b                 2 loads and 1 store an operation
//   vectorised      lanes along j                                the same for 16 operations at a time
//   register block  ROWS x VECS sums stay in registers while     (ROWS + VECS) loads for ROWS * VECS vector
//                   the loop runs over the depth                 operations: 10 for 24, nothing stored
//   loops that run at least once                                 nothing is kept in memory between the vectors: 1 -> 16
//                                                                channels, 3 x 3: 9 terms an output, half the time
//   rows at equal distances share   all in registers             a pointer for 3 rows: no address is loaded in the loop
//   dot products    1 to 4 columns, lanes along the depth: of 16 lanes along 2 columns 14 would hold nothing. 16 -> 2
//                   channels, 1 x 1, 4 images of 512²: 5.9 -> 2.5 ms; 16 -> 1, 3 x 3: 26 -> 6 ms (Winograd's: 13)
//   what comes next asked for, some lines with each run    4 images of 512², 2 x 2, stride 2, gradient in w: 13.4 -> 7.0 ms
//                                                           16 -> 32, forward: 10.6 -> 5.4 ms
// AlexNet's first layer (96 outputs, 363 terms) runs at 245 GFLOP/s a core of Zen 5, whose peak is some 256. 24 sums fill the
// 32 registers of AVX-512 and of NEON, 12 the 16 of AVX2 and SSE2: one step of the loop then holds enough independent
// operations to hide their latency (4 cycles x 2 units = 8).
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

#if MINIDL_BYTES == 64 || defined(__aarch64__)
constexpr int max_vectors = 4; // of a panel of B
constexpr int max_rows[] = {0, 16, 12, 8, 6}; // of a block whose panel has 1, 2, 3, 4 vectors
#else
constexpr int max_vectors = 2;
constexpr int max_rows[] = {0, 8, 6, 0, 0};
#endif

// Memory that will be needed soon: two stretches. Each run of a product asks for a little of it, which comes while there is
// other work: some 20 cache lines can be on their way, whoever asks for more at a time waits for them.
template <class T>
struct Soon {
    const T *at[2] = {}, *end[2] = {};
    Index lines = 0; // at a time

    // All of it shall come in so many times.
    void spread(Index times) { lines = ceil_div((end[0] - at[0] + end[1] - at[1]) * Index(sizeof(T)), 64 * times); }
    MINIDL_INLINE void ask() {
        for (Index i = 0, line = 0; i < 2; ++i)
            for (; line < lines && at[i] < end[i]; ++line, at[i] += 64 / sizeof(T)) prefetch(at[i]);
    }
};

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
    const Index* a_row = nullptr; // where row r of A starts, instead of r * ar
    const Index* c_row = nullptr; // where row r of C starts, instead of r * ldc
    const T* start = nullptr;     // what the sums of a row start from (a bias), where C is not added to; else 0
    Index tail = 0;               // lanes of C's last vector that exist; 0: all
    bool relu = false;            // C = max(C, 0) at the end
    Soon<T>* soon = nullptr;      // for later products; may be null
    bool stream = false;          // C is written past the caches; its vectors are aligned
};

// A block of ROWS rows. EVEN: the rows of A lie at equal distances `ar`; three of them then share a pointer (the addresses p,
// p + ar, p + 2 ar cost nothing), or twelve rows would want more registers than there are. The loops run at least once, and
// are written so: else the compiler keeps the zeroed sums in memory for the case that they do not.
template <class T, int ROWS, int VECS, bool EVEN>
void product_block(const Product<T>& p, bool add, Index first, Index ar) {
    constexpr int pointers = EVEN ? (ROWS + 2) / 3 : ROWS, each = EVEN ? 3 : 1;
    const T* base[pointers];
    for (int i = 0; i < pointers; ++i) base[i] = p.a + (p.a_row ? p.a_row[first + i * each] : (first + i * each) * p.ar);
    V<T> sum[ROWS][VECS];
    MINIDL_UNROLL
    for (int v = 0; v < VECS; ++v) {
        const V<T> from = p.start && !add ? load(p.start + v * lanes<T>) : V<T>{};
        MINIDL_UNROLL
        for (int r = 0; r < ROWS; ++r) sum[r][v] = from;
    }
    const T* b = p.b;
    const Index ak = p.ak, ldb = p.ldb;
    Index t = 0;
    do {
        const T* a[pointers];
        for (int i = 0; i < pointers; ++i) a[i] = base[i] + p.offset[t];
        if (p.soon) p.soon->ask();
        Index k = p.length;
        do {
            V<T> row[VECS];
            for (int v = 0; v < VECS; ++v) row[v] = load(b + v * lanes<T>);
            for (int r = 0; r < ROWS; ++r)
                for (int v = 0; v < VECS; ++v) sum[r][v] += (EVEN ? a[r / 3][r % 3 * ar] : a[r][0]) * row[v];
            for (int i = 0; i < pointers; ++i) a[i] += ak;
            b += ldb;
        } while (--k);
    } while (++t < p.runs);
    T* c[ROWS];
    MINIDL_UNROLL
    for (int r = 0; r < ROWS; ++r) c[r] = p.c + (p.c_row ? p.c_row[first + r] : (first + r) * p.ldc);
    constexpr int last = VECS - 1;
    const Index tail = p.tail ? p.tail : lanes<T>;
    if (add)
        MINIDL_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            MINIDL_UNROLL
            for (int v = 0; v < last; ++v) sum[r][v] += load(c[r] + v * lanes<T>);
            sum[r][last] += load_part(c[r] + last * lanes<T>, tail);
        }
    if (p.relu)
        MINIDL_UNROLL
        for (int r = 0; r < ROWS; ++r)
            MINIDL_UNROLL
            for (int v = 0; v < VECS; ++v) sum[r][v] = relu<T>(sum[r][v]);
    if (p.stream) {
        MINIDL_UNROLL
        for (int r = 0; r < ROWS; ++r)
            MINIDL_UNROLL
            for (int v = 0; v < VECS; ++v) stream(c[r] + v * lanes<T>, sum[r][v]);
        return;
    }
    MINIDL_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        MINIDL_UNROLL
        for (int v = 0; v < last; ++v) store(c[r] + v * lanes<T>, sum[r][v]);
        store_part(c[r] + last * lanes<T>, sum[r][last], tail);
    }
}

// The block of exactly `rows` rows, found by counting down from the largest.
template <class T, int ROWS, int VECS>
void product_rows(Index rows, const Product<T>& p, bool add, Index first) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) {
            bool even = true;
            const Index ar = !p.a_row ? p.ar : ROWS > 1 ? p.a_row[first + (ROWS > 1)] - p.a_row[first] : 0;
            if (p.a_row)
                for (int r = 2; r < ROWS; ++r) even &= p.a_row[first + r] - p.a_row[first] == r * ar;
            if (even) product_block<T, ROWS, VECS, true>(p, add, first, ar);
            else product_block<T, ROWS, VECS, false>(p, add, first, ar);
        }
        else product_rows<T, ROWS - 1, VECS>(rows, p, add, first);
    }
}

template <class T, int VECS>
void product_panel(Index rows, const Product<T>& p, bool add) {
    constexpr int most = max_rows[VECS];
    const Index blocks = ceil_div(rows, most); // of nearly equal height: 13 rows are 5 + 4 + 4, not 6 + 6 + 1
    for (Index i = 0, r = 0; i < blocks; ++i) {
        const Index next = rows * (i + 1) / blocks;
        product_rows<T, most, VECS>(next - r, p, add, r);
        r = next;
    }
}

// One panel of B, `vectors` (1 to max_vectors) vectors wide; ADD to what C holds, or overwrite it.
template <class T, bool ADD>
void product(Index rows, int vectors, const Product<T>& p) {
    if (p.runs < 1 || p.length < 1) { // an empty sum; the loops above run at least once
        for (Index r = 0; r < rows && !ADD; ++r)
            for (int v = 0; v < vectors; ++v) store(p.c + r * p.ldc + v * lanes<T>, V<T>{});
        return;
    }
    if (vectors == 1) product_panel<T, 1>(rows, p, ADD);
    else if (vectors == 2) product_panel<T, 2>(rows, p, ADD);
    else if constexpr (max_vectors > 2) {
        if (vectors == 3) product_panel<T, 3>(rows, p, ADD);
        else product_panel<T, 4>(rows, p, ADD);
    }
}

// The sum over the lanes of each vector of a block: lane j of block[0] gets that of block[j].
template <class T, int H = lanes<T> / 2>
MINIDL_INLINE void add_lanes(V<T> (&block)[lanes<T>]) {
    if constexpr (H > 0) {
        MINIDL_UNROLL
        for (int r = 0; r < H; ++r) {
            exchange<T, H>(block[r], block[r + H]);
            block[r] += block[r + H];
        }
        add_lanes<T, H / 2>(block);
    }
}

// So few columns would leave most lanes of B's vectors empty.
template <class T>
constexpr int few_columns = lanes<T> < 8 ? lanes<T> / 2 : 4;

// A product of 1 to few_columns columns, lanes along the depth: each number of C is a dot product, and a vector of them,
// neighbours in C, is added up at once. A's positions are neighbours (ak = 1). B holds, of each run in turn, the vectors of
// all columns side by side: b[((t * vectors + v) * COLUMNS + j) * lanes + lane], zeros where a run ends within a vector;
// `start` is what a vector of sums starts from.
template <class T, int COLUMNS = few_columns<T>>
void dots(Index columns, Index count, const Product<T>& p) {
    if constexpr (COLUMNS > 1)
        if (columns < COLUMNS) return dots<T, COLUMNS - 1>(columns, count, p);
    constexpr int ROWS = lanes<T> / COLUMNS;
    for (Index first = 0; first < count; first += ROWS) {
        const Index rows = min(count - first, Index(ROWS)); // the last is repeated up to ROWS
        const T* a[ROWS];
        for (Index r = 0; r < ROWS; ++r) a[r] = p.a + p.a_row[first + min(r, rows - 1)];
        V<T> sum[lanes<T>] = {};
        const T* b = p.b;
        for (Index t = 0; t < p.runs; ++t) {
            const Index from = p.offset[t], end = from + p.length;
            if (p.soon) p.soon->ask();
            const auto multiply = [&](const auto& load_row) {
                V<T> column[COLUMNS];
                MINIDL_UNROLL
                for (int j = 0; j < COLUMNS; ++j) column[j] = load(b + j * lanes<T>);
                MINIDL_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    const V<T> row = load_row(a[r]);
                    MINIDL_UNROLL
                    for (int j = 0; j < COLUMNS; ++j) sum[r * COLUMNS + j] += row * column[j];
                }
                b += COLUMNS * lanes<T>;
            };
            Index k = from;
            for (; k + lanes<T> <= end; k += lanes<T>) multiply([=](const T* row) { return load(row + k); });
            if (k < end) multiply([=](const T* row) { return load_part(row + k, end - k); });
        }
        add_lanes<T>(sum);
        const V<T> total = load(p.start) + sum[0], result = p.relu ? relu<T>(total) : total;
        if (!p.c_row && p.ldc == COLUMNS) store_part(p.c + first * COLUMNS, result, rows * COLUMNS);
        else
            for (Index r = 0; r < rows; ++r) {
                T* c = p.c + (p.c_row ? p.c_row[first + r] : (first + r) * p.ldc);
                for (int j = 0; j < COLUMNS; ++j) c[j] = result[static_cast<int>(r) * COLUMNS + j];
            }
    }
}

} // namespace MINIDL_LEVEL
} // namespace minidl

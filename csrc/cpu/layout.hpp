// Transpose blocks of memory, and so bring images of any layout into the channels-last one that all kernels work on, or back.
//
// The ladder, for 64 images of 32 channels and 475 pixels, bytes an element 8:
//   naive      an element at a time: every read or every write jumps
//   blocks     of 16 x 16: reads and writes both stay within 16 cache lines until each is used up            14 GB/s
//   registers  a block of lanes x lanes is read and written by whole vectors and turned in registers, by as many
//              exchanges of halves as a number of a row has bits (log2 lanes passes)
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

template <int BYTES>
struct Integer {
    using type = int;
};
template <>
struct Integer<8> {
    using type = long long;
};

// Exchange, between rows a and b of a block, the lanes that stand on the wrong side of its diagonal: those of a whose number
// has the bit H with those of b that have it not.
template <class T, int H>
MINIDL_INLINE void exchange(V<T>& a, V<T>& b) {
#if defined(__GNUC__) && !defined(__clang__)
    typename Vector<typename Integer<sizeof(T)>::type, MINIDL_BYTES>::type first, second;
    for (int j = 0; j < lanes<T>; ++j) first[j] = j & H ? lanes<T> + j - H : j, second[j] = j & H ? lanes<T> + j : j + H;
    const V<T> upper = __builtin_shuffle(a, b, first);
    b = __builtin_shuffle(a, b, second);
    a = upper;
#else
    const V<T> above = a, below = b;
    for (int j = 0; j < lanes<T>; ++j) a[j] = j & H ? below[j - H] : above[j], b[j] = j & H ? below[j] : above[j + H];
#endif
}

// Transpose a block of lanes x lanes numbers: for each bit of row and column, one pass of exchanges.
template <class T, int H = lanes<T> / 2>
MINIDL_INLINE void transpose(V<T> (&rows)[lanes<T>]) {
    if constexpr (H > 0) {
        for (int r = 0; r < lanes<T>; ++r)
            if (!(r & H)) exchange<T, H>(rows[r], rows[r + H]);
        transpose<T, H / 2>(rows);
    }
}

// to (columns, rows) = from (rows, columns) transposed, its rows `from_step` and `to_step` elements apart. With `width` each row
// of `to` gets so many numbers, at most lanes more than there are, the missing ones zeros.
template <class T>
void transpose(const T* from, Index from_step, Index rows, Index columns, T* to, Index to_step, Index width = 0) {
    constexpr Index L = lanes<T>;
    if (width < rows) width = rows;
    if (4 * width <= L) { // few rows: most of a block would be empty
        for (Index j = 0; j < columns; ++j)
            for (Index i = 0; i < width; ++i) to[j * to_step + i] = i < rows ? from[i * from_step + j] : T(0);
        return;
    }
    V<T> block[L];
    for (Index i = 0; i < width; i += L)
        for (Index j = 0; j < columns; j += L) {
            for (Index r = 0; r < L; ++r) {
                const T* row = from + (i + r) * from_step + j;
                block[r] = i + r >= rows ? V<T>{} : columns - j >= L ? load(row) : load_part(row, columns - j);
            }
            transpose<T>(block);
            for (Index c = 0; c < min(L, columns - j); ++c) store_part(to + (j + c) * to_step + i, block[c], width - i);
        }
}

template <class T>
void to_channels_last(int threads, const T* x, const Index strides[4], Image<T> y) {
    if (y.n * y.c * y.h * y.w < 50000) threads = 1;
    parallel(threads, y.n * y.h, [&](Index task) {
        const T* from = x + task / y.h * strides[0] + task % y.h * strides[2];
        T* to = y.data + task * y.w * y.pitch;
        if (strides[3] == 1 && y.c > 1) return transpose<T>(from, strides[1], y.c, y.w, to, y.pitch);
        for (Index i = 0; i < y.w; ++i)
            for (Index c = 0; c < y.c; ++c) to[i * y.pitch + c] = from[i * strides[3] + c * strides[1]];
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

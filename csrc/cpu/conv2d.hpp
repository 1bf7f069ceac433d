// Convolution forward and both gradients, as matrix products over unfolded windows that are never stored whole.
//
// The ladder, for C input and O output channels, K = C * KH * KW products an output:
//   naive     seven nested loops                     2 K operations an output, 8 K bytes read from cache for them
//   im2col    unfold all windows, one big product    the unfolded matrix is KH * KW times the image: written and read
//             (the NumPy backend)                    from memory, 8 K / O bytes an output on top of the product
//   tiled     unfold DEPTH x WIDTH of it at a time   the same product, but the piece (120 KB) stays in the L2 cache and
//             into a buffer, multiply, forget        memory sees each image about once: 4 C / O + 4 bytes an output
//   blocked   the product keeps a block of sums in   11 loads for 24 vector operations instead of 2 for 1
//             registers (microkernel.hpp)
//
// All pixels of all images form one axis, q = (n * OH + i) * OW + j, cut into pieces of WIDTH: small maps fill a piece
// with several images, large ones give many pieces, and nothing is a special case. Summation runs over k in order
// (forward, grad_x) or over pieces in order (grad_w): the number of threads changes no bit.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel.hpp"
#include "simd.hpp"

namespace minidl {

constexpr Index WIDTH = 240;  // pixels of a piece: whole blocks of 3 vectors for 4, 8 and 16 lanes, and no power of
                              // two, so that rows do not fall into the same sets of the cache
constexpr Index DEPTH = 128;  // rows of the unfolded matrix held at a time
constexpr Index ROWS = 384;   // output channels summed at a time
constexpr Index LENGTH = 960; // pixels of a piece of grad_w, where they are what is summed over
constexpr Index COLUMNS = 96; // and weights an output channel held at a time

struct Conv {
    Index n, c, h, w, o, kh, kw, oh, ow, sh, sw, ph, pw, dh, dw, groups;

    // A 1 x 1 convolution of stride 1 does not care where rows end: one long row is copied faster than many short ones.
    Conv flat() const {
        Conv f = *this;
        if (kh == 1 && kw == 1 && sh == 1 && sw == 1 && ph == 0 && pw == 0) {
            f.w = f.ow = h * w;
            f.h = f.oh = 1;
        }
        return f;
    }
};

inline Index ceil_div(Index a, Index b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

// One kernel element of an unfolding: pixel (i, j) of the grid sees image pixel (i * sy + dy, j * sx + dx); the columns
// first <= j < last are those inside the image.
struct Tap {
    Index dy, dx, first, last;
};

// The matrix B of a convolution: row k = (channel, tap), column q = (image, i, j) on a grid of rows x columns.
template <class T>
struct Unfolding {
    const T* image;
    Index channels, h, w;      // of the image array
    Index rows, columns;       // of the grid
    Index sy, sx;
    std::vector<Tap> taps;

    void add(Index dy, Index dx) {
        const Index first = std::max<Index>(0, ceil_div(-dx, sx));
        taps.push_back({dy, dx, first, std::max(first, ceil_div(w - dx, sx))});
    }
};

// A run of pixels in one row of one image, at position `at` of the piece.
struct Segment {
    Index image, row, column, length, at;
};

inline void cut(Index q, Index width, Index rows, Index columns, std::vector<Segment>& segments) {
    segments.clear();
    for (Index at = 0; at < width;) {
        const Index column = (q + at) % columns, line = (q + at) / columns;
        const Index length = std::min(width - at, columns - column);
        segments.push_back({line / rows, line % rows, column, length, at});
        at += length;
    }
}

// Copy rows k0 <= k < k1 of the unfolded matrix for one piece; what lies outside the image, and the tail, is zero.
template <class T>
void unfold(const Unfolding<T>& u, Index channel0, Index k0, Index k1, const std::vector<Segment>& segments, Index width,
            T* b, Index ldb) {
    const Index taps = static_cast<Index>(u.taps.size());
    for (Index k = k0; k < k1; ++k, b += ldb) {
        const Tap& tap = u.taps[k % taps];
        const T* plane = u.image + (channel0 + k / taps) * u.h * u.w;
        for (const Segment& s : segments) {
            T* to = b + s.at;
            const Index y = s.row * u.sy + tap.dy;
            Index low = std::clamp<Index>(tap.first - s.column, 0, s.length);
            Index high = std::clamp<Index>(tap.last - s.column, low, s.length);
            if (y < 0 || y >= u.h) low = high = s.length;
            std::fill(to, to + low, T(0));
            if (low < high) {
                const T* from = plane + (s.image * u.channels * u.h + y) * u.w + (s.column + low) * u.sx + tap.dx;
                if (u.sx == 1) std::memcpy(to + low, from, (high - low) * sizeof(T));
                else
                    for (Index j = low; j < high; ++j, from += u.sx) to[j] = *from;
            }
            std::fill(to + high, to + s.length, T(0));
        }
        const Index end = segments.back().at + segments.back().length;
        std::fill(b + end, b + width, T(0));
    }
}

// Where a convolution's result goes: grid pixel (i, j) to pixel (y0 + i * sy, x0 + j * sx).
template <class T>
struct Target {
    T* image;
    Index channels, h, w, y0, x0, sy, sx;
};

// target[n, o, pixel] = bias[o] + sum over k = (c, tap) of weight(o, c, tap) * unfolded[k][pixel], group by group.
// `outputs` and `inputs` are the channels of one group.
template <class T, class Weight>
void convolve(const Level& level, int threads, Index images, Index groups, Index outputs, Index inputs,
              const Unfolding<T>& u, const Weight& weight, const T* bias, const Target<T>& target) {
    const Microkernels<T>& micro = level.of(T());
    const Index taps = static_cast<Index>(u.taps.size()), depth = inputs * taps;
    const Index pixels = images * u.rows * u.columns, pieces = ceil_div(pixels, WIDTH);
    const Index panels = ceil_div(outputs, micro.rows), panel = depth * micro.rows;
    if (static_cast<double>(pixels) * outputs * groups * depth < 1e5) threads = 1; // waking one costs more

    std::vector<T> packed(groups * panels * panel); // weights in panels of micro.rows output channels, zero where none
    parallel(threads, groups * panels, [&](Index p) {
        T* a = packed.data() + p * panel;
        for (Index k = 0; k < depth; ++k)
            for (Index r = 0; r < micro.rows; ++r, ++a) {
                const Index o = p % panels * micro.rows + r;
                if (o < outputs) *a = weight(p / panels * outputs + o, k / taps, k % taps);
            }
    });

    Index height = std::min(outputs, ROWS); // output channels of a task; fewer where there would be too few tasks
    while (height > 4 * micro.rows && pieces * groups * ceil_div(outputs, height) < 4 * threads)
        height = ceil_div(height / 2, micro.rows) * micro.rows;
    const Index bands = ceil_div(outputs, height);

    parallel(threads, pieces * groups * bands, [&](Index task) {
        const Index band = task % bands * height, group = task / bands % groups, q = task / bands / groups * WIDTH;
        const Index count = std::min(height, outputs - band), width = std::min(WIDTH, pixels - q);
        const Index padded = ceil_div(width, micro.lanes) * micro.lanes;
        T* b = scratch<T, 0>(DEPTH * WIDTH);
        T* c = scratch<T, 1>(ROWS * WIDTH);
        thread_local std::vector<Segment> segments;
        cut(q, width, u.rows, u.columns, segments);
        for (Index r = 0; r < count; ++r)
            std::fill(c + r * WIDTH, c + r * WIDTH + padded, bias ? bias[group * outputs + band + r] : T(0));
        const T* a = packed.data() + (group * panels + band / micro.rows) * panel;
        for (Index k = 0; k < depth; k += DEPTH) {
            const Index step = std::min(DEPTH, depth - k);
            unfold(u, group * inputs, k, k + step, segments, padded, b, WIDTH);
            micro.product(count, padded, step, a + k * micro.rows, panel, b, WIDTH, c, WIDTH);
        }
        for (Index r = 0; r < count; ++r) {
            const Index channel = group * outputs + band + r;
            for (const Segment& s : segments) {
                const T* from = c + r * WIDTH + s.at;
                const Index y = target.y0 + s.row * target.sy, x = target.x0 + s.column * target.sx;
                T* to = target.image + ((s.image * target.channels + channel) * target.h + y) * target.w + x;
                if (target.sx == 1) std::memcpy(to, from, s.length * sizeof(T));
                else
                    for (Index j = 0; j < s.length; ++j) to[j * target.sx] = from[j];
            }
        }
    });
}

// y[n, o, i, j] = b[o] + sum of w[o, c, k, l] * x[n, c, i * sh + k * dh - ph, j * sw + l * dw - pw]
template <class T>
void conv2d(const Level& level, int threads, const Conv& shape, const T* x, const T* w, const T* bias, T* y) {
    const Conv s = shape.flat();
    const Index inputs = s.c / s.groups, taps = s.kh * s.kw;
    Unfolding<T> u{x, s.c, s.h, s.w, s.oh, s.ow, s.sh, s.sw, {}};
    for (Index k = 0; k < s.kh; ++k)
        for (Index l = 0; l < s.kw; ++l) u.add(k * s.dh - s.ph, l * s.dw - s.pw);
    const auto weight = [&](Index o, Index c, Index tap) { return w[(o * inputs + c) * taps + tap]; };
    convolve(level, threads, s.n, s.groups, s.o / s.groups, inputs, u, weight, bias,
             Target<T>{y, s.o, s.oh, s.ow, 0, 0, 1, 1});
}

// The gradient in x is a convolution of g with the kernels turned round. Pixel i of x gets g[o, (i + ph - k * dh) / sh]
// for those k where the division leaves no rest: with stride sh the pixels r, r + sh, r + 2 sh ... share the same k,
// so each of the sh * sw remainders r is a convolution of stride 1 with a part of the kernel.
template <class T>
void conv2d_grad_x(const Level& level, int threads, const Conv& shape, const T* g, const T* w, T* dx) {
    const Conv s = shape.flat();
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups;
    for (Index r = 0; r < std::min(s.sh, s.h); ++r)
        for (Index t = 0; t < std::min(s.sw, s.w); ++t) {
            Unfolding<T> u{g, s.o, s.oh, s.ow, ceil_div(s.h - r, s.sh), ceil_div(s.w - t, s.sw), 1, 1, {}};
            std::vector<Index> which;
            for (Index k = 0; k < s.kh; ++k)
                for (Index l = 0; l < s.kw; ++l) {
                    const Index dy = r + s.ph - k * s.dh, dx_ = t + s.pw - l * s.dw;
                    if (dy % s.sh || dx_ % s.sw) continue;
                    u.add(dy / s.sh, dx_ / s.sw);
                    which.push_back(k * s.kw + l);
                }
            const auto weight = [&](Index c, Index o, Index tap) { // c counts through all groups, o within one
                return w[((c / inputs * outputs + o) * inputs + c % inputs) * s.kh * s.kw + which[tap]];
            };
            convolve<T>(level, threads, s.n, s.groups, inputs, outputs, u, weight, nullptr,
                        Target<T>{dx, s.c, s.h, s.w, r, t, s.sh, s.sw});
        }
}

// dw[o, c, k, l] = sum over images and pixels of g[n, o, i, j] * x[n, c, i * sh + k * dh - ph, j * sw + l * dw - pw]
// A task owns COLUMNS weights of every output channel of a group, over one share of the pixels; the shares, whose number
// depends on the shapes alone, are added in order at the end.
template <class T>
void conv2d_grad_w(const Level& level, int threads, const Conv& shape, const T* g, const T* x, T* dw) {
    const Microkernels<T>& micro = level.of(T());
    const Conv s = shape.flat();
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups, depth = inputs * s.kh * s.kw, plane = s.oh * s.ow;
    Unfolding<T> u{x, s.c, s.h, s.w, s.oh, s.ow, s.sh, s.sw, {}};
    for (Index k = 0; k < s.kh; ++k)
        for (Index l = 0; l < s.kw; ++l) u.add(k * s.dh - s.ph, l * s.dw - s.pw);

    const Index pixels = s.n * plane, pieces = ceil_div(pixels, LENGTH), strips = ceil_div(depth, COLUMNS);
    const Index shares = std::clamp<Index>(ceil_div(64, s.groups * strips), 1, std::max<Index>(1, pieces));
    const Index weights = s.o * depth;
    if (static_cast<double>(pixels) * weights < 1e5) threads = 1;
    std::vector<T> partial(shares > 1 ? shares * weights : 0);
    if (shares == 1) std::fill(dw, dw + weights, T(0));

    parallel(threads, shares * strips * s.groups, [&](Index task) {
        const Index group = task % s.groups, k0 = task / s.groups % strips * COLUMNS, share = task / s.groups / strips;
        const Index k1 = std::min(depth, k0 + COLUMNS);
        T* sums = (shares > 1 ? partial.data() + share * weights : dw) + group * outputs * depth + k0;
        T* b = scratch<T, 0>(COLUMNS * LENGTH);
        T* packed = scratch<T, 1>(micro.rows * LENGTH);
        thread_local std::vector<Segment> segments, runs; // runs: of pixels contiguous in g
        for (Index piece = pieces * share / shares; piece < pieces * (share + 1) / shares; ++piece) {
            const Index q = piece * LENGTH, width = std::min(LENGTH, pixels - q);
            const Index padded = ceil_div(width, micro.lanes) * micro.lanes;
            cut(q, width, s.oh, s.ow, segments);
            cut(q, width, 1, plane, runs);
            unfold(u, group * inputs, k0, k1, segments, padded, b, LENGTH);
            for (Index o = 0; o < outputs; o += micro.rows) {
                const Index count = std::min<Index>(micro.rows, outputs - o);
                for (Index r = 0; r < count; ++r) { // copied to where vectors are aligned and the tail is zero
                    T* to = packed + r * LENGTH;
                    for (const Segment& run : runs)
                        std::memcpy(to + run.at, g + (run.image * s.o + group * outputs + o + r) * plane + run.column,
                                    run.length * sizeof(T));
                    std::fill(to + width, to + padded, T(0));
                }
                micro.correlate(count, k1 - k0, padded, packed, LENGTH, b, LENGTH, sums + o * depth, depth);
            }
        }
    });
    if (shares > 1)
        for (Index i = 0; i < weights; ++i) {
            T sum = 0;
            for (Index share = 0; share < shares; ++share) sum += partial[share * weights + i];
            dw[i] = sum;
        }
}

} // namespace minidl

// Max and average pooling and their gradients.
//
// The ladder, for windows of KH x KW over pixels of C channels:
//   naive     every output of every channel walks its window     KH · KW comparisons an output, a jump each
//   vectors   the channels of a pixel lie side by side: one comparison serves a vector of them, without a jump
//   a byte    what max pooling remembers for its gradient is the number of the tap that won, not a position: a byte where
//             an index of torch's takes eight                    4 bytes in for a pixel, 5 out for an output
//   apart     windows that neither overlap nor leave gaps: each pixel asks its one
//   gather    in the gradient every pixel asks the windows that hold it, instead of every window adding to its pixels:
//             each pixel is written once, by one task, whatever overlaps
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

// The taps first ... last - 1 of a window of `kernel` that lie inside `size`, its first tap being at `start`.
struct Taps {
    Index first, last;
    Taps(Index start, Index kernel, Index dilation, Index size)
        : first(start < 0 ? ceil_div(-start, dilation) : 0),
          last(start + (kernel - 1) * dilation < size ? kernel : ceil_div(max<Index>(size - start, 0), dilation)) {}
};

// y = the largest value of each window and index = the number of its tap, k · KW + l. As torch: padding is -inf, of
// equal values the first wins, a NaN beats every number, of several the last wins.
template <class T, class I>
void max_pool2d(int threads, const Pool& s, Image<const T> x, Image<T> y, I* index) {
    const Index group = max<Index>(1, (1 << 14) / max<Index>(1, s.ow * s.c)), tasks = ceil_div(s.n * s.oh, group);
    const Index down_step = s.dh * s.w * x.pitch, along_step = s.dw * x.pitch;
    parallel(tasks < 3 ? 1 : threads, tasks, [=](Index task) {
        for (Index row = task * group; row < min((task + 1) * group, s.n * s.oh); ++row) {
            const Index top = row % s.oh * s.sh - s.ph;
            const Taps down(top, s.kh, s.dh, s.h);
            const T* image = x.data + row / s.oh * s.h * s.w * x.pitch;
            for (Index j = 0; j < s.ow; ++j) {
                const Index left = j * s.sw - s.pw;
                const Taps along(left, s.kw, s.dw, s.w);
                const T* corner = image + (top * s.w + left) * x.pitch;
                T* to = y.data + (row * s.ow + j) * y.pitch;
                I* at = index + (row * s.ow + j) * s.c;
                if (down.first >= down.last || along.first >= along.last) { // beside the image
                    for (Index c = 0; c < s.c; ++c) to[c] = -static_cast<T>(INFINITY), at[c] = 0;
                    continue;
                }
                const auto scan = [=](Index k0, Index k1, Index l0, Index l1) {
                    each<T>(s.c, [=](Index c, auto how) {
                        V<T> best = broadcast(-static_cast<T>(INFINITY)), where = broadcast(static_cast<T>(k0 * s.kw + l0));
                        for (Index k = k0; k < k1; ++k)
                            for (Index l = l0; l < l1; ++l) {
                                const V<T> v = how.read(corner + k * down_step + l * along_step + c);
                                const V<T> tap = broadcast(static_cast<T>(k * s.kw + l));
                                where = where_equal<T>(v, v, where_greater<T>(v, best, tap, where), tap);
                                best = where_equal<T>(v, v, where_greater<T>(v, best, v, best), v);
                            }
                        how.store(to + c, best);
                        how.narrowed(at + c, where);
                    });
                };
                const bool whole = down.last - down.first == s.kh && along.last - along.first == s.kw;
                if (whole && s.kh == 2 && s.kw == 2) scan(0, 2, 0, 2); // sizes that the compiler knows: twice as fast
                else if (whole && s.kh == 3 && s.kw == 3) scan(0, 3, 0, 3);
                else scan(down.first, down.last, along.first, along.last);
            }
        }
    });
}

// For each pixel along an axis the windows that hold it: entries start[i] ... start[i + 1] - 1 name window and tap.
struct Holders {
    Buffer<Index> start, window, tap;
    Holders(Index size, Index out, Index kernel, Index stride, Index padding, Index dilation)
        : start(size + 1), window(kernel * out + 1), tap(kernel * out + 1) {
        for (Index i = 0; i <= size; ++i) start.data[i] = 0;
        const auto visit = [&](auto f) { // windows in order, so that sums are taken in order
            for (Index o = 0; o < out; ++o)
                for (Index k = 0; k < kernel; ++k) {
                    const Index i = o * stride + k * dilation - padding;
                    if (i >= 0 && i < size) f(i, o, k);
                }
        };
        visit([&](Index i, Index, Index) { ++start.data[i + 1]; });
        for (Index i = 0; i < size; ++i) start.data[i + 1] += start.data[i];
        visit([&](Index i, Index o, Index k) {
            window.data[start.data[i]] = o;
            tap.data[start.data[i]++] = k;
        });
        for (Index i = size; i > 0; --i) start.data[i] = start.data[i - 1];
        start.data[0] = 0;
    }
};

// Call f(pixel of x, holder along h, its end, holder along w, its end, pixel 0 of g's image) for every pixel of x, rows shared out.
template <class T, class F>
void each_pixel(int threads, const Pool& s, const Holders& down, const Holders& along, const F& f) {
    const Index group = max<Index>(s.sh, (1 << 15) / max<Index>(1, s.w * s.c)), tasks = ceil_div(s.n * s.h, group);
    parallel(tasks < 3 ? 1 : threads, tasks, [&](Index task) {
        for (Index row = task * group; row < min((task + 1) * group, s.n * s.h); ++row) {
            const Index i = row % s.h, image = row / s.h * s.oh * s.ow;
            for (Index j = 0; j < s.w; ++j)
                f(row * s.w + j, image, down.start.data[i], down.start.data[i + 1], along.start.data[j], along.start.data[j + 1]);
        }
        fence();
    });
}

// dx = the sum of g over the windows whose index names this pixel, added to `before` if there is one: the other gradient
// of a pixel that is used twice need not be written and read again.
template <class T, class I>
void max_pool2d_grad(int threads, const Pool& s, Image<const T> g, const I* index, Image<const T> before, Image<T> dx) {
    const bool past = goes_past(rows_of<T>(pixels(dx), s.c, false), dx);
    if (s.kh == s.sh && s.kw == s.sw && s.oh * s.kh == s.h && s.ow * s.kw == s.w && s.ph + s.pw == 0 && s.dh * s.dw == 1) {
        const Index group = max<Index>(1, (1 << 14) / max<Index>(1, s.w * s.c)), tasks = ceil_div(s.n * s.oh, group);
        parallel(tasks < 3 ? 1 : threads, tasks, [=](Index task) { // each pixel lies in one window
            for (Index row = task * group; row < min((task + 1) * group, s.n * s.oh); ++row)
                for (Index k = 0; k < s.kh; ++k) {
                    T* to = dx.data + (row * s.kh + k) * s.w * dx.pitch;
                    const I* winners = index + row * s.ow * s.c;
                    const T *from = g.data + row * s.ow * g.pitch, *old = before.data + (row * s.kh + k) * s.w * before.pitch;
                    for (Index j = 0; j < s.ow; ++j, winners += s.c, from += g.pitch)
                        for (Index tap = k * s.kw; tap < (k + 1) * s.kw; ++tap, to += dx.pitch, old += before.pitch)
                            each<T>(s.c, past, [=](Index c, auto how) {
                                const V<T> won = how.widened(winners + c), mine = broadcast<T>(static_cast<T>(tap));
                                const V<T> share = where_equal<T>(won, mine, how.load(from + c), V<T>{});
                                how.result(to + c, before.data ? how.read(old + c) + share : share);
                            });
                }
            fence();
        });
        return;
    }
    const Holders down(s.h, s.oh, s.kh, s.sh, s.ph, s.dh), along(s.w, s.ow, s.kw, s.sw, s.pw, s.dw);
    each_pixel<T>(threads, s, down, along, [&](Index pixel, Index image, Index i0, Index i1, Index j0, Index j1) {
        T* to = dx.data + pixel * dx.pitch;
        each<T>(s.c, past, [&](Index c, auto how) {
            V<T> sum{};
            for (Index i = i0; i < i1; ++i)
                for (Index j = j0; j < j1; ++j) {
                    const Index from = image + down.window.data[i] * s.ow + along.window.data[j];
                    const V<T> tap = broadcast<T>(static_cast<T>(down.tap.data[i] * s.kw + along.tap.data[j]));
                    sum += where_equal<T>(how.widened(index + from * s.c + c), tap, how.load(g.data + from * g.pitch + c), V<T>{});
                }
            how.result(to + c, before.data ? how.load(before.data + pixel * before.pitch + c) + sum : sum);
        });
    });
}

// y = the sum of each window, divided by count (OH, OW).
template <class T>
void avg_pool2d(int threads, const Pool& s, Image<const T> x, const T* count, Image<T> y) {
    const Index group = max<Index>(1, (1 << 14) / max<Index>(1, s.ow * s.c)), tasks = ceil_div(s.n * s.oh, group);
    parallel(tasks < 3 ? 1 : threads, tasks, [&](Index task) {
        for (Index row = task * group; row < min((task + 1) * group, s.n * s.oh); ++row) {
            const Index top = row % s.oh * s.sh - s.ph;
            const Taps down(top, s.kh, s.dh, s.h);
            const T* image = x.data + row / s.oh * s.h * s.w * x.pitch;
            for (Index j = 0; j < s.ow; ++j) {
                const Index left = j * s.sw - s.pw;
                const Taps along(left, s.kw, s.dw, s.w);
                const T* corner = image + (top * s.w + left) * x.pitch;
                T* to = y.data + (row * s.ow + j) * y.pitch;
                const V<T> divisor = broadcast<T>(count[row % s.oh * s.ow + j]);
                each<T>(s.c, [&](Index c, auto how) {
                    V<T> sum{};
                    for (Index k = down.first; k < down.last; ++k)
                        for (Index l = along.first; l < along.last; ++l)
                            sum += how.load(corner + (k * s.dh * s.w + l * s.dw) * x.pitch + c);
                    how.store(to + c, sum / divisor);
                });
            }
        }
    });
}

// dx = the sum of g / count over the windows that hold this pixel.
template <class T>
void avg_pool2d_grad(int threads, const Pool& s, Image<const T> g, const T* count, Image<T> dx) {
    const Holders down(s.h, s.oh, s.kh, s.sh, s.ph, s.dh), along(s.w, s.ow, s.kw, s.sw, s.pw, s.dw);
    const bool past = goes_past(rows_of<T>(pixels(dx), s.c, false), dx);
    each_pixel<T>(threads, s, down, along, [&](Index pixel, Index image, Index i0, Index i1, Index j0, Index j1) {
        T* to = dx.data + pixel * dx.pitch;
        each<T>(s.c, past, [&](Index c, auto how) {
            V<T> sum{};
            for (Index i = i0; i < i1; ++i)
                for (Index j = j0; j < j1; ++j) {
                    const Index from = down.window.data[i] * s.ow + along.window.data[j];
                    sum += how.load(g.data + (image + from) * g.pitch + c) / broadcast<T>(count[from]);
                }
            how.result(to + c, sum);
        });
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

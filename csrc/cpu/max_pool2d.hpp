// Max pooling and its gradient, one image plane a task.
//
// The ladder, for windows of KH x KW:
//   naive   every output walks its window              KH * KW comparisons and 4 KH * KW bytes an output, a jump each
//   rows    for each kernel element, one output row    the same comparisons without jumps: the compiler turns them
//           is compared with one strided input row     into selections, and clamping is done once a row
// Bound by memory either way: 4 bytes in for each pixel, 12 out for each output (value and index).
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "runtime.hpp"

namespace minidl {

template <class F>
void parallel(int threads, Index tasks, const F& task) {
    run_tasks(threads, tasks, [](const void* f, Index number) { (*static_cast<const F*>(f))(number); }, &task);
}

struct Pool2d {
    Index planes, h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw; // planes = N * C
};

// y = the largest value of each window, index = its position h * W + w. As torch: padding is -inf, of equal values the
// first wins, a NaN beats every number, of several the last wins.
template <class T>
void max_pool2d(int threads, const Pool2d& s, const T* x, T* y, std::int64_t* index) {
    parallel(s.planes * s.oh * s.ow < 10000 ? 1 : threads, s.planes, [&](Index plane) {
        std::vector<std::int32_t> where(s.ow); // half the width of the result: twice as many in a vector
        for (Index i = 0; i < s.oh; ++i) {
            T* best = y + (plane * s.oh + i) * s.ow;
            std::fill(best, best + s.ow, -std::numeric_limits<T>::infinity());
            std::fill(where.begin(), where.end(), -1);
            for (Index k = 0; k < s.kh; ++k) {
                const Index row = i * s.sh + k * s.dh - s.ph;
                if (row < 0 || row >= s.h) continue;
                for (Index l = 0; l < s.kw; ++l) {
                    const Index shift = l * s.dw - s.pw; // output j looks at column j * sw + shift
                    const Index first = shift < 0 ? (-shift + s.sw - 1) / s.sw : 0;
                    const Index last = s.w > shift ? std::min(s.ow, (s.w - 1 - shift) / s.sw + 1) : 0;
                    const T* from = x + (plane * s.h + row) * s.w + shift;
                    const Index here = row * s.w + shift;
                    for (Index j = first; j < last; ++j) {
                        const T value = from[j * s.sw];
                        const bool better = (value > best[j]) | (value != value) | (where[j] < 0);
                        best[j] = better ? value : best[j];
                        where[j] = better ? static_cast<std::int32_t>(here + j * s.sw) : where[j];
                    }
                }
            }
            std::copy(where.begin(), where.end(), index + (plane * s.oh + i) * s.ow);
        }
    });
}

// dx[index] += g: windows that overlap add. Throws if an index lies outside the image.
template <class T>
void max_pool2d_grad(int threads, Index planes, Index pixels, Index outputs, const T* g, const std::int64_t* index,
                     T* dx) {
    parallel(planes * outputs < 10000 ? 1 : threads, planes, [&](Index plane) {
        T* to = dx + plane * pixels;
        std::fill(to, to + pixels, T(0));
        for (Index i = plane * outputs; i < (plane + 1) * outputs; ++i) {
            if (index[i] < 0 || index[i] >= pixels)
                throw std::invalid_argument("max_pool2d_grad: index holds positions outside the image");
            to[index[i]] += g[i];
        }
    });
}

} // namespace minidl

// Bring images of any layout into the channels-last one that all kernels work on.
//
// The ladder: naive, an element at a time: every read or every write jumps · blocks of 16 x 16: reads and writes both stay
// within 16 cache lines until each is used up. Bound by memory: 8 bytes an element.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

template <class T>
void to_channels_last(int threads, const T* x, const Index strides[4], Image<T> y) {
    constexpr Index block = 16;
    if (y.n * y.c * y.h * y.w < 50000) threads = 1;
    parallel(threads, y.n * y.h, [&](Index task) {
        const T* from = x + task / y.h * strides[0] + task % y.h * strides[2];
        T* to = y.data + task * y.w * y.pitch;
        for (Index x0 = 0; x0 < y.w; x0 += block)
            for (Index c0 = 0; c0 < y.c; c0 += block)
                for (Index i = x0; i < min(x0 + block, y.w); ++i)
                    for (Index c = c0; c < min(c0 + block, y.c); ++c)
                        to[i * y.pitch + c] = from[i * strides[3] + c * strides[1]];
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

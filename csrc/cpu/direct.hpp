// Direct convolution: the definition, for any stride, padding, dilation and groups.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

template <class T>
void direct_conv2d(int threads, const Conv& s, Image<const T> x, const T* w, const T* bias, Activation activation,
                   Image<T> y) {
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups;
    parallel(threads, s.n * s.oh, [&](Index task) {
        const Index n = task / s.oh, i = task % s.oh;
        for (Index j = 0; j < s.ow; ++j)
            for (Index o = 0; o < s.o; ++o) {
                T sum = bias ? bias[o] : T(0);
                for (Index k = 0; k < s.kh; ++k)
                    for (Index l = 0; l < s.kw; ++l) {
                        const Index row = i * s.sh + k * s.dh - s.ph, column = j * s.sw + l * s.dw - s.pw;
                        if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
                        const T* from = x.data + ((n * s.h + row) * s.w + column) * x.pitch + o / outputs * inputs;
                        for (Index c = 0; c < inputs; ++c) sum += from[c] * w[((o * inputs + c) * s.kh + k) * s.kw + l];
                    }
                y.data[((n * s.oh + i) * s.ow + j) * y.pitch + o] = activation == Activation::relu && sum < 0 ? T(0) : sum;
            }
    });
}

template <class T>
void direct_grad_x(int threads, const Conv& s, Image<const T> g, const T* w, const T* bias, Image<T> dx) {
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups;
    parallel(threads, s.n, [&](Index n) {
        for (Index i = 0; i < s.h * s.w; ++i)
            for (Index c = 0; c < s.c; ++c) dx.data[(n * s.h * s.w + i) * dx.pitch + c] = bias ? bias[c] : T(0);
        for (Index i = 0; i < s.oh; ++i)
            for (Index j = 0; j < s.ow; ++j)
                for (Index k = 0; k < s.kh; ++k)
                    for (Index l = 0; l < s.kw; ++l) {
                        const Index row = i * s.sh + k * s.dh - s.ph, column = j * s.sw + l * s.dw - s.pw;
                        if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
                        const T* from = g.data + ((n * s.oh + i) * s.ow + j) * g.pitch;
                        T* to = dx.data + ((n * s.h + row) * s.w + column) * dx.pitch;
                        for (Index o = 0; o < s.o; ++o)
                            for (Index c = 0; c < inputs; ++c)
                                to[o / outputs * inputs + c] += from[o] * w[((o * inputs + c) * s.kh + k) * s.kw + l];
                    }
    });
}

template <class T>
void direct_grad_w(int threads, const Conv& s, Image<const T> g, Image<const T> x, T* dw) {
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups;
    parallel(threads, s.o, [&](Index o) {
        for (Index c = 0; c < inputs; ++c)
            for (Index k = 0; k < s.kh; ++k)
                for (Index l = 0; l < s.kw; ++l) {
                    T sum = 0;
                    for (Index n = 0; n < s.n; ++n)
                        for (Index i = 0; i < s.oh; ++i)
                            for (Index j = 0; j < s.ow; ++j) {
                                const Index row = i * s.sh + k * s.dh - s.ph, column = j * s.sw + l * s.dw - s.pw;
                                if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
                                sum += g.data[((n * s.oh + i) * s.ow + j) * g.pitch + o]
                                    * x.data[((n * s.h + row) * s.w + column) * x.pitch + o / outputs * inputs + c];
                            }
                    dw[((o * inputs + c) * s.kh + k) * s.kw + l] = sum;
                }
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

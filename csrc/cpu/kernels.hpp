// The table of all kernels: what a kernel is given, and which compilation of it runs.
//
// Every kernel is a template in a header of its own that level.hpp compiles for each instruction set (simd_*.cpp); the
// function pointers below are the only way in. They are chosen once, when first needed, by what the processor can do.
// Kernels check nothing: bindings.cpp has done so.
#pragma once

#include "runtime.hpp"

namespace minidl {

// Images with the channels innermost: element (n, c, y, x) is data[((n * h + y) * w + x) * pitch + c]. The pitch is c, or
// more where the channels are a slice of an array with more of them.
template <class T>
struct Image {
    T* data;
    Index n, c, h, w, pitch;
};

// An image, or two side by side: the channels of `first`, then those of `second`, if there is one (its c is not 0).
template <class T>
struct Joined {
    Image<T> first, second;
};

// x (n, c, h, w), w (o, c / groups, kh, kw) -> y (n, o, oh, ow)
struct Conv {
    Index n, c, h, w, o, kh, kw, oh, ow, sh, sw, ph, pw, dh, dw, groups;
};

// x (n, i), w (o, i) -> y (n, o)
struct Dense {
    Index n, i, o;
};

// A parameter with its gradient, running mean (SGD: velocity, or null) and running square (Adam).
template <class T>
struct Update {
    T* p;
    const T* g;
    T *m, *s;
    Index size;
};

struct SgdStep {
    double lr, momentum, dampening, weight_decay;
    bool nesterov;
};

struct AdamStep {
    double lr, beta1, beta2, eps, weight_decay;
    bool decoupled;
    Index t; // this is step number t, from 1
};

// x (n, c, h, w) -> y (n, c, oh, ow)
struct Pool {
    Index n, c, h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw;
};

// Output i of an axis takes the inputs first[i] ... last[i] - 1 with weight[i * width], weight[i * width + 1], ...
template <class T>
struct AxisWindows {
    const Index *first, *last;
    const T* weight;
    Index width;
};

// The `size` channels around each, y = x / (k + alpha / size · Σ x²)^beta
struct ResponseNorm {
    Index size;
    double alpha, beta, k;
};

// The class of each position, and how classes count: targets equal to `ignored` do not.
struct Labels {
    const long long* target;
    Index ignored;
    double smoothing;
};

enum class Activation { none, relu, tanh };

template <class T>
struct Kernels {
    // convolution (direct.hpp, winograd.hpp): w and dw are (O, C/groups, KH, KW); bias (O) may be null; a tile of m x m
    // outputs for Winograd. grad_x takes a bias (C), and an activation, for the transposed convolution.
    void (*direct_conv2d)(int threads, const Conv&, Image<const T> x, const T* w, const T* bias, Activation, Image<T> y);
    void (*direct_grad_x)(int threads, const Conv&, Image<const T> g, const T* w, const T* bias, Image<T> dx);
    void (*direct_grad_w)(int threads, const Conv&, Image<const T> g, Image<const T> x, T* dw);
    void (*winograd_conv2d)(int threads, int tile, const Conv&, Joined<const T> x, const T* w, const T* bias, Activation, Image<T> y);
    void (*winograd_grad_x)(int threads, int tile, const Conv&, Image<const T> g, const T* w, const T* bias, Activation, Joined<T> dx);
    void (*winograd_grad_w)(int threads, int tile, const Conv&, Image<const T> g, Joined<const T> x, T* dw);
    void (*winograd1d_conv2d)(int threads, const Conv&, Image<const T> x, const T* w, const T* bias, Activation, Image<T> y);
    void (*winograd1d_grad_x)(int threads, const Conv&, Image<const T> g, const T* w, const T* bias, Activation, Image<T> dx);
    void (*winograd1d_grad_w)(int threads, const Conv&, Image<const T> g, Image<const T> x, T* dw);
    void (*winograd_matrices)(int tile, int kernel, T* bt, T* a, T* g); // for the tests

    // elementwise (elementwise.hpp)
    void (*relu)(int threads, Image<const T> x, Image<T> y);
    void (*activation_grad)(int threads, Activation, Image<const T> g, Image<const T> y, Image<T> dx);
    void (*add)(int threads, Image<const T> x, Image<const T> y, Image<T> z);
    void (*dropout)(int threads, Image<const T> x, const unsigned char* kept, T scale, Image<T> y); // kept lies as y does
    void (*channel_sum)(int threads, Image<const T> g, T* sums);
    void (*concatenate)(int threads, Index count, const Image<const T>* xs, Image<T> y);

    // normalisation (norm.hpp): weight and bias (C) may be null; mean and var (C) are written while training
    void (*batch_norm)(int threads, Image<const T> x, const T* weight, const T* bias, double eps, bool relu, bool training,
                       T* mean, T* var, Image<T> y);
    void (*batch_norm_grad)(int threads, Image<const T> g, Image<const T> x, const T* mean, const T* var, const T* weight,
                            const T* bias, double eps, bool relu, bool training, Image<T> dx, T* dweight, T* dbias);

    // local response normalisation (lrn.hpp): d is what x is divided by, before the power
    void (*local_response_norm)(int threads, const ResponseNorm&, Image<const T> x, Image<T> y, Image<T> d);
    void (*local_response_norm_grad)(int threads, const ResponseNorm&, Image<const T> g, Image<const T> x, Image<const T> d,
                                     Image<T> dx);

    // pooling (pool.hpp): index (n, oh, ow, c) without gaps, in bytes for windows of at most 256 taps; count (oh, ow);
    // before: a gradient to add to, its data may be null
    void (*max_pool2d)(int threads, const Pool&, Image<const T> x, Image<T> y, unsigned char* index);
    void (*max_pool2d_wide)(int threads, const Pool&, Image<const T> x, Image<T> y, int* index);
    void (*max_pool2d_grad)(int threads, const Pool&, Image<const T> g, const unsigned char* index,
                            Image<const T> before, Image<T> dx);
    void (*max_pool2d_grad_wide)(int threads, const Pool&, Image<const T> g, const int* index, Image<const T> before, Image<T> dx);
    void (*avg_pool2d)(int threads, const Pool&, Image<const T> x, const T* count, Image<T> y);
    void (*avg_pool2d_grad)(int threads, const Pool&, Image<const T> g, const T* count, Image<T> dx);

    // images at another size, and their gradient (resample.hpp)
    void (*resample)(int threads, AxisWindows<T> rows, AxisWindows<T> columns, Image<const T> x, Image<T> y);

    // losses (loss.hpp): a logit for each class (a channel) and position (a pixel); weight (C); g, loss and lse one a
    // position. False if a target is no class
    bool (*cross_entropy)(int threads, const Labels&, Image<const T> x, const T* weight, T* loss, T* lse);
    void (*cross_entropy_grad)(int threads, const Labels&, Image<const T> x, const T* weight, const T* g, const T* lse,
                               Image<T> dx);

    // layout (layout.hpp): any strides in (in elements, order N, C, H, W), channels innermost out
    void (*to_channels_last)(int threads, const T* x, const Index strides[4], Image<T> y);

    // dense layers (dense.hpp): all rows contiguous; bias may be null; db (O) is the gradient of the bias
    void (*linear)(int threads, const Dense&, const T* x, const T* w, const T* bias, Activation, T* y);
    void (*linear_grad_x)(int threads, const Dense&, const T* g, const T* w, T* dx);
    void (*linear_grad_w)(int threads, const Dense&, const T* g, const T* x, T* dw, T* db);
    T (*squared_error)(int threads, Index count, const T* x, const T* t);
    void (*squared_error_grad)(int threads, Index count, T factor, const T* x, const T* t, T* dx);

    // optimisers (optim.hpp): all parameters of a group
    void (*sgd)(int threads, const Update<T>*, Index count, const SgdStep&);
    void (*adam)(int threads, const Update<T>*, Index count, const AdamStep&);
};

struct Level {
    const char* name;
    const Kernels<float>* f32; // null where this build has no such level
    const Kernels<double>* f64;
    const Kernels<float>& of(float) const { return *f32; }
    const Kernels<double>& of(double) const { return *f64; }
};

Level baseline_level(); // SSE2 on x86-64, NEON on arm64
Level avx2_level();
Level avx512_level();

} // namespace minidl

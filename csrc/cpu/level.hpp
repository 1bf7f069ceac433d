// All kernels, compiled for one instruction set: simd_*.cpp define MINIDL_LEVEL (a namespace) and MINIDL_BYTES (of a
// vector) and include this file, each compiled with flags of its own (setup.py).
//
// Nothing of the C++ standard library is used in here: a template instantiated with AVX-512 could otherwise replace the
// same template in the rest of the program and crash an older processor. vector.hpp has the little that is needed.
#include <math.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "kernels.hpp"

#include "vector.hpp"

#include "layout.hpp"

#include "microkernel.hpp"

#include "strips.hpp"

#include "functions.hpp"

#include "dense.hpp"
#include "direct.hpp"
#include "optim.hpp"
#include "winograd.hpp"

#include "winograd1d.hpp"

#include "rows.hpp"

#include "elementwise.hpp"
#include "loss.hpp"
#include "lrn.hpp"
#include "norm.hpp"
#include "pool.hpp"
#include "resample.hpp"

namespace minidl {
namespace {

template <class T>
Kernels<T> make_table() {
    namespace level = MINIDL_LEVEL;
    Kernels<T> k{};
    k.direct_conv2d = level::direct_conv2d<T>;
    k.direct_grad_x = level::direct_grad_x<T>;
    k.direct_grad_w = level::direct_grad_w<T>;
    k.winograd_conv2d = level::winograd_conv2d<T>;
    k.winograd_grad_x = level::winograd_grad_x<T>;
    k.winograd_grad_w = level::winograd_grad_w<T>;
    k.winograd1d_conv2d = level::winograd1d_conv2d<T>;
    k.winograd1d_grad_x = level::winograd1d_grad_x<T>;
    k.winograd1d_grad_w = level::winograd1d_grad_w<T>;
    k.winograd_matrices = level::winograd_matrices<T>;
    k.relu = level::relu<T>;
    k.activation_grad = level::activation_grad<T>;
    k.add = level::add<T>;
    k.dropout = level::dropout<T>;
    k.channel_sum = level::channel_sum<T>;
    k.concatenate = level::concatenate<T>;
    k.batch_norm = level::batch_norm<T>;
    k.batch_norm_grad = level::batch_norm_grad<T>;
    k.local_response_norm = level::local_response_norm<T>;
    k.local_response_norm_grad = level::local_response_norm_grad<T>;
    k.max_pool2d = level::max_pool2d<T, unsigned char>;
    k.max_pool2d_wide = level::max_pool2d<T, int>;
    k.max_pool2d_grad = level::max_pool2d_grad<T, unsigned char>;
    k.max_pool2d_grad_wide = level::max_pool2d_grad<T, int>;
    k.avg_pool2d = level::avg_pool2d<T>;
    k.avg_pool2d_grad = level::avg_pool2d_grad<T>;
    k.resample = level::resample<T>;
    k.cross_entropy = level::cross_entropy<T>;
    k.cross_entropy_grad = level::cross_entropy_grad<T>;
    k.to_channels_last = level::to_channels_last<T>;
    k.linear = level::linear<T>;
    k.linear_grad_x = level::linear_grad_x<T>;
    k.linear_grad_w = level::linear_grad_w<T>;
    k.squared_error = level::squared_error<T>;
    k.squared_error_grad = level::squared_error_grad<T>;
    k.sgd = level::sgd<T>;
    k.adam = level::adam<T>;
    return k;
}

Level make_level(const char* name) {
    static const Kernels<float> f32 = make_table<float>();
    static const Kernels<double> f64 = make_table<double>();
    return {name, &f32, &f64};
}

} // namespace
} // namespace minidl

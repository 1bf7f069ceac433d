// Which algorithm computes a convolution: the one place where that is decided, and the reason in words.
#pragma once

#include <string>

#include "kernels.hpp"

namespace minidl {

enum class Pass { forward, grad_x, grad_w };
enum class Mode { automatic, direct, winograd, exact }; // what set_conv_algorithm asks for

struct Plan {
    int tile;        // m of Winograd's F(m x m, k x k), 0 for the direct kernel
    bool in_double;  // whether float32 is summed in float64
    std::string why;
};

inline Plan plan(const Conv& s, Pass, Mode mode) {
    (void)s;
    if (mode == Mode::exact) return {0, true, "asked for: sums in float64, rounded once"};
    return {0, false, "direct"};
}

} // namespace minidl

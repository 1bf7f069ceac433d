// Which algorithm computes a convolution: the one place where that is decided, and the reason in words.
#pragma once

#include <string>

#include "kernels.hpp"

namespace minidl {

enum class Pass { forward, grad_x, grad_w };
enum class Mode { automatic, direct, winograd, exact }; // what set_conv_algorithm asks for

struct Plan {
    int tile;        // m of Winograd's F(m x m, k x k), of F(m, k) for kernels of one row; 0 for the direct kernel
    bool in_double;  // whether float32 is summed in float64
    std::string why;
};

// What Winograd does for each pair of channels: a multiplication for every point of every tile, what hangs over the map
// included. To transform a kernel and read it takes as long as some 25 of them a point.
struct Tiling {
    Index tiles;
    double products, cost;
    Tiling(Index n, Index h, Index w, Index tile, Index kernel) : tiles(n * ((h + tile - 1) / tile) * ((w + tile - 1) / tile)) {
        const Index points = (tile + kernel - 1) * (tile + kernel - 1);
        products = static_cast<double>(points * tiles);
        cost = static_cast<double>(points * (tiles + 25));
    }
};

inline std::string with_tenths(double x) {
    const Index tenths = static_cast<Index>(x * 10 + 0.5);
    return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10);
}

// Kernels of one row: with its stride as channels, one of kw taps has ceil(kw / sw), and tiles of 8 points.
inline Plan plan_row(const Conv& s, Pass pass, Mode mode) {
    const Index taps = (s.kw + s.sw - 1) / s.sw;
    const int tile = static_cast<int>(9 - taps);
    if (taps < 3 || taps > 5) return {0, false, "direct: Winograd along a row is for kernels of 3 to 5 strides"};
    if (s.ph != 0 || s.oh != s.h) return {0, false, "direct: Winograd along a row is for kernels that meet every row"};
    if (s.dw != 1) return {0, false, "direct: Winograd is for kernels without dilation"};
    if (s.groups != 1) return {0, false, "direct: Winograd along a row is for one group"};

    // The row that is cut into tiles is y; for the gradient in x it is x, whose sw phases lie side by side.
    const bool back = pass == Pass::grad_x;
    const Index pixels = back ? (s.w + s.sw - 1) / s.sw : s.ow, inputs = back ? s.o : s.sw * s.c;
    const Index tiles = s.n * s.h * ((pixels + tile - 1) / tile);
    const double gain = static_cast<double>(s.n * s.h * s.ow * s.kw) / static_cast<double>(8 * tiles * s.sw);
    const std::string name = "Winograd F(" + std::to_string(tile) + ", " + std::to_string(taps) + ")"
        + (s.sw > 1 ? ", the phases of the stride as channels" : "");
    if (mode == Mode::winograd) return {tile, false, name + ": asked for"};

    // Measured on Zen 5 in float32, times the direct kernel's speed: 8 inputs .5 to .9, 16 inputs 1.1 to 1.3, 64 inputs 1.8;
    // 32 channels, 20 tiles .8 to .9, 100 tiles 1.2 to 1.8; 512 channels, 64 tiles .6, 96 tiles 1.2.
    if (inputs < 16) return {0, false, "direct: with fewer than 16 channels a pixel, Winograd's transforms cost more than they save"};
    if (gain * static_cast<double>(tiles) < 1.1 * static_cast<double>(tiles + 100))
        return {0, false, "direct: for so few tiles, transforming the kernels would take longer than Winograd saves"};
    return {tile, false, name + ": " + with_tenths(gain) + " times fewer multiplications"};
}

inline Plan plan(const Conv& s, Pass pass, Mode mode) {
    if (mode == Mode::exact) return {0, true, "direct, in float64 and rounded once: exact results are asked for"};
    if (mode == Mode::direct) return {0, false, "direct: asked for"};
    if (s.n == 0) return {0, false, "direct: there is no image"};
    if (s.kh == 1 && s.kw > 1) return plan_row(s, pass, mode);
    if (s.kh != s.kw || (s.kh != 3 && s.kh != 5)) return {0, false, "direct: Winograd is for 3x3 and 5x5 kernels"};
    if (s.sh != 1 || s.sw != 1) return {0, false, "direct: Winograd is for stride 1"};
    if (s.dh != 1 || s.dw != 1) return {0, false, "direct: Winograd is for kernels without dilation"};

    // The map that is cut into tiles is y; for the gradient in x it is x, and the channels change roles.
    const bool back = pass == Pass::grad_x;
    const Index h = back ? s.h : s.oh, w = back ? s.w : s.ow, inputs = (back ? s.o : s.c) / s.groups;
    const Index outputs = (back ? s.c : s.o) / s.groups;
    const Tiling four(s.n, h, w, 4, s.kh), six(s.n, h, w, 6, s.kh);
    const int tile = s.kh == 3 && six.cost < four.cost ? 6 : 4;
    const Tiling& best = tile == 6 ? six : four;
    const double gain = static_cast<double>(s.n * h * w * s.kh * s.kw) / best.products;
    const std::string m = std::to_string(tile), k = std::to_string(s.kh);
    const std::string name = "Winograd F(" + m + "x" + m + ", " + k + "x" + k + ")";
    if (mode == Mode::winograd) return {tile, false, name + ": asked for"};

    // Measured on Zen 5 in float32, times the direct kernel's speed: 3 channels .7, 4 channels .8, 8 channels 1.3; 16 tiles
    // 1.1, 4 tiles .4 to 1.1; 5 x 5 outputs (gain 1.6) 1.8, 2 x 2 outputs (gain 1) have nothing to win.
    if (inputs < 8) return {0, false, "direct: with fewer than 8 channels a group, Winograd's transforms cost more than they save"};
    if (pass != Pass::grad_w && outputs <= 4) // Winograd takes 1.2 (4 outputs) to 2.5 times as long
        return {0, false, "direct: so few outputs are dot products of windows and weights"};
    if (gain < 1.5) return {0, false, "direct: too much of Winograd's tiles would hang over the map"};
    if (pass != Pass::grad_w && best.tiles < 12)
        return {0, false, "direct: for fewer than 12 tiles, transforming the kernels would take longer than Winograd saves"};
    return {tile, false, name + ": " + with_tenths(gain) + " times fewer multiplications"};
}

} // namespace minidl

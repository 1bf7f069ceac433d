// Images at another size: nearest, bilinear, means over windows, and the gradients of all three.
//
// All of them are y[i, j] = Σ rows[i, k] · columns[j, l] · x[k, l] with few k and l for each i and j: windows with weights
// along each axis. Turned round, the windows of the outputs that use a pixel, they are the same kind of sum, so that one
// kernel is forward and backward.
//
// The ladder, for windows of K x L pixels:
//   naive      two matrix products, mostly with zeros                  2 · H + 2 · W operations an output
//   windows    only the pixels that count                              2 · K · L, for bilinear 8, its gradient at 2 x 32
//   separable  a row of the output first gathers its K rows of x, whole vectors whatever the number of channels, into a
//              row that stays in the first cache; then each pixel its L    2 · K · W/OW + 2 · L, bound by 4 bytes written
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

template <class T>
void resample(int threads, AxisWindows<T> rows, AxisWindows<T> columns, Image<const T> x, Image<T> y) {
    const Index group = max<Index>(1, (1 << 14) / max<Index>(1, y.w * y.c)), tasks = ceil_div(y.n * y.h, group);
    const bool whole = x.pitch == x.c;
    const Index pieces = whole ? 1 : x.w, length = whole ? x.w * x.c : x.c;
    parallel(tasks < 3 ? 1 : threads, tasks, [&](Index task) {
        T* gathered = scratch<T>(0, x.w * x.c); // a row of x, summed along its columns
        for (Index row = task * group; row < min((task + 1) * group, y.n * y.h); ++row) {
            const Index i = row % y.h, top = rows.first[i], taps = rows.last[i] - top;
            const T *weight = rows.weight + i * rows.width, *from = x.data + (row / y.h * x.h + top) * x.w * x.pitch;
            for (Index piece = 0; piece < pieces; ++piece)
                each<T>(length, [&](Index j, auto how) {
                    V<T> sum{};
                    for (Index k = 0; k < taps; ++k) sum += weight[k] * how.load(from + (k * x.w + piece) * x.pitch + j);
                    how.store(gathered + piece * length + j, sum);
                });
            T* to = y.data + row * y.w * y.pitch;
            for (Index j = 0; j < y.w; ++j, to += y.pitch) {
                const Index left = columns.first[j], along = columns.last[j] - left;
                const T *share = columns.weight + j * columns.width, *pixel = gathered + left * x.c;
                if (x.c == 1) { // a vector would be empty but for one lane
                    T sum = 0;
                    for (Index l = 0; l < along; ++l) sum += share[l] * pixel[l];
                    *to = sum;
                } else
                    each<T>(x.c, [&](Index c, auto how) {
                        V<T> sum{};
                        for (Index l = 0; l < along; ++l) sum += share[l] * how.load(pixel + l * x.c + c);
                        how.store(to + c, sum);
                    });
            }
        }
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

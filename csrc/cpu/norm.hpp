// Batch normalisation with a fused relu, and its gradient.
//
// The ladder of batch normalisation while training, in bytes a float32 element:
//   naive       array code: mean, centred, squared, mean, scaled, shifted, relu    forward some 60, backward some 100
//   two passes  moments, then (x - mean) · scale + bias and relu at once           forward read 4, read 4, write 4
//               backward asks x again whether y was > 0: y is not read at all      read 8, read 8, write 4
//   in blocks   a block of rows is summed around the mean of those before it, in one go; blocks are merged in double (Chan,
//               Golub & LeVeque 1983, eq. 2.1): no digit is lost to cancellation, however far from 0 the mean, as a block
//               far from the others adds the square of its distance
//   registers   the sums of eight vectors stay in registers over a whole block: 15 -> 45 GB/s on one core
//   back        the second pass runs from the end to the start: what the first read last is still in the cache
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

// Mean and (biased) variance of each channel.
template <class T>
void moments(int threads, Image<const T> x, const Rows& rows, T* mean, T* var) {
    const Blocks blocks(rows);
    const Index channels = x.c, width = rows.width, step = rows.step(x.pitch);
    Buffer<double> parts(max<Index>(1, blocks.tasks * 2 * channels)); // of each task the mean, and Σ (x - mean)²
    const auto merge = [channels](double* to, const double* from, double count, double more) {
        const double share = more / (count + more), weight = count * share;
        for (Index c = 0; c < channels; ++c) {
            const double delta = from[c] - to[c];
            to[c] += delta * share;
            to[channels + c] += from[channels + c] + delta * delta * weight;
        }
    };
    const auto pixels_before = [&](Index row) { return min(row * width, (rows.count - 1) * width + rows.last) / channels; };
    parallel(blocks.tasks < 3 ? 1 : threads, blocks.tasks, [&](Index task) {
        double* part = parts.data + task * 2 * channels;
        for (Index i = 0; i < 2 * channels; ++i) part[i] = 0;
        T *room = scratch<T>(0, 3 * width), *shift = room + 2 * width;
        double *block = scratch<double>(1, 2 * channels), seen = 0;
        const auto centre = [&](const double* on) {
            for (Index c = 0; c < channels; ++c) shift[c] = static_cast<T>(on[c]);
            for (Index j = channels; j < width; ++j) shift[j] = shift[j - channels];
        };
        centre(part);
        blocks.each(rows, task, [&](Index first, Index end) {
            const double count = static_cast<double>(pixels_before(end) - pixels_before(first));
            const auto sums = [&] { // of x - shift and its square; then the mean and Σ (x - mean)²
                sum_block<T, 2>(rows, channels, first, end, room, block, [=](Index row, Index j, auto how, V<T>* sum) {
                    const T* from = x.data + row * step + j;
                    const V<T> d = how.read(from) - how.load(shift + j);
                    sum[0] += d;
                    sum[1] += d * d;
                });
                for (Index c = 0; c < channels; ++c) {
                    const double mean = block[c] / count;
                    block[channels + c] -= mean * block[c];
                    block[c] = mean + static_cast<double>(shift[c]);
                }
            };
            sums();
            if (seen == 0) centre(block), sums();
            merge(part, block, seen, count);
            seen += count;
            centre(part);
        });
    });
    double seen = 0;
    Buffer<double> total(max<Index>(1, 2 * channels));
    for (Index i = 0; i < 2 * channels; ++i) total.data[i] = 0;
    for (Index task = 0; task < blocks.tasks; ++task) {
        const Index first = task * blocks.per_task * blocks.rows;
        const double more = static_cast<double>(pixels_before(min(rows.count, first + blocks.per_task * blocks.rows))
                                                - pixels_before(first));
        merge(total.data, parts.data + task * 2 * channels, seen, more);
        seen += more;
    }
    for (Index c = 0; c < channels; ++c) {
        mean[c] = static_cast<T>(seen > 0 ? total.data[c] : NAN);
        var[c] = static_cast<T>(seen > 0 ? total.data[channels + c] / seen : NAN);
    }
}

// y = (x - mean) · scale + bias with scale = weight / √(var + eps), then relu; weight and bias may be null. While
// training, mean and var are taken from x and written; else they are used.
template <class T>
void batch_norm(int threads, Image<const T> x, const T* weight, const T* bias, double eps, bool with_relu, bool training,
                T* mean, T* var, Image<T> y) {
    const Rows rows = rows_of<T>(pixels(x), x.c, dense(x) && dense(y));
    if (training) moments(threads, x, rows, mean, var);
    const Index width = rows.width, room = max(width, x.c);
    Buffer<T> parameters(3 * room);
    T *centre = parameters.data, *scale = centre + room, *shift = scale + room;
    for (Index c = 0; c < x.c; ++c) {
        scale[c] = static_cast<T>((weight ? weight[c] : T(1)) / sqrt(static_cast<double>(var[c]) + eps));
        shift[c] = bias ? bias[c] : T(0);
    }
    if (rows.count == 0) return;
    repeat(centre, static_cast<const T*>(mean), x.c, width);
    for (Index j = x.c; j < width; ++j) scale[j] = scale[j - x.c], shift[j] = shift[j - x.c];
    const bool past = goes_past(rows, y);
    each_row(threads, rows, training, [=](Index row) {
        const T* from = x.data + row * rows.step(x.pitch);
        T* to = y.data + row * rows.step(y.pitch);
        each<T>(rows.length(row), past, [=](Index j, auto how) {
            const V<T> v = (how.read(from + j) - how.load(centre + j)) * how.load(scale + j) + how.load(shift + j);
            how.result(to + j, with_relu ? relu<T>(v) : v);
        });
    });
}

// With x̂ = (x - mean) / √(var + eps) and ĝ = g, or g where y > 0:
// dweight = Σ ĝ x̂,  dbias = Σ ĝ,  dx = scale · (ĝ - mean ĝ - x̂ · mean(ĝ x̂)), outside training scale · ĝ.
template <class T, bool RELU>
void norm_grad(int threads, Image<const T> g, Image<const T> x, const T* mean, const T* var, const T* weight, const T* bias,
               double eps, bool training, Image<T> dx, T* dweight, T* dbias) {
    const Index channels = x.c;
    const Rows rows = rows_of<T>(pixels(x), channels, dense(x) && dense(g) && dense(dx));
    const Index width = rows.width, room = max(width, channels);
    Buffer<T> parameters(5 * room);
    Buffer<double> sums(max<Index>(1, 2 * channels));
    T *centre = parameters.data, *scale = centre + room, *shift = scale + room, *slope = shift + room, *level = slope + room;
    for (Index c = 0; c < channels; ++c) {
        centre[c] = mean[c];
        scale[c] = static_cast<T>((weight ? weight[c] : T(1)) / sqrt(static_cast<double>(var[c]) + eps));
        shift[c] = bias ? bias[c] : T(0);
    }
    const auto fill = [&](T* p) {
        for (Index j = channels; j < width; ++j) p[j] = p[j - channels];
    };
    if (channels) fill(centre), fill(scale), fill(shift);
    const auto passed = [=](V<T> v, V<T> centred, Index j, auto how) { // g where y > 0
        return RELU ? where_greater<T>(centred * how.load(scale + j) + how.load(shift + j), V<T>{}, v, V<T>{}) : v;
    };
    const Index g_step = rows.step(g.pitch), x_step = rows.step(x.pitch);
    sum_channels<T, 2>(threads, rows, channels, sums.data, [=](Index row, Index j, auto how, V<T>* sum) {
        const T *gs = g.data + row * g_step + j, *xs = x.data + row * x_step + j;
        const V<T> centred = how.read(xs) - how.load(centre + j), v = passed(how.read(gs), centred, j, how);
        sum[0] += v;
        sum[1] += v * centred;
    });
    const double count = static_cast<double>(pixels(x));
    for (Index c = 0; c < channels; ++c) {
        const double inverse = 1 / sqrt(static_cast<double>(var[c]) + eps), product = sums.data[channels + c] * inverse;
        dbias[c] = static_cast<T>(sums.data[c]);
        dweight[c] = static_cast<T>(product);
        level[c] = static_cast<T>(training ? scale[c] * (sums.data[c] / count) : 0);
        slope[c] = static_cast<T>(training ? scale[c] * (product / count) * inverse : 0);
    }
    if (rows.count == 0) return;
    fill(level), fill(slope);
    const bool past = goes_past(rows, dx);
    each_row(threads, rows, true, [=](Index row) {
        const T *gs = g.data + row * g_step, *xs = x.data + row * x_step;
        T* to = dx.data + row * rows.step(dx.pitch);
        each<T>(rows.length(row), past, [=](Index j, auto how) {
            const V<T> centred = how.read(xs + j) - how.load(centre + j), v = passed(how.read(gs + j), centred, j, how);
            const V<T> scaled = v * how.load(scale + j);
            how.result(to + j, training ? scaled - (centred * how.load(slope + j) + how.load(level + j)) : scaled);
        });
    });
}

template <class T>
void batch_norm_grad(int threads, Image<const T> g, Image<const T> x, const T* mean, const T* var, const T* weight,
                     const T* bias, double eps, bool with_relu, bool training, Image<T> dx, T* dweight, T* dbias) {
    const auto run = with_relu ? norm_grad<T, true> : norm_grad<T, false>;
    run(threads, g, x, mean, var, weight, bias, eps, training, dx, dweight, dbias);
}

} // namespace MINIDL_LEVEL
} // namespace minidl

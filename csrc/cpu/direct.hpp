// Direct convolution: the definition, for any stride, padding, dilation and groups.
//
// The ladder (float32, one core of Zen 5, ms; 4 images of 512² unless told):
//   strips of images in the L2 cache, the register-blocked product: what the multiplications are the bound of, runs at
//     nearly the processor's peak: AlexNet's first layer, 64 images of 128²: forward 19.2, gradient in w 21.9
//   the next strip of a large image is asked for while this one is computed, a few cache lines with each run: 18.4, 19.4;
//     16 -> 32, 2 x 2, stride 2: 10.6 -> 5.4
//   outputs of 8 MB and more are written past the caches: they are not read to be overwritten. 1 -> 16 channels, 3 x 3:
//     forward 2.9, of which writing 67 MB takes most
//   phases of a strided gradient in x as channels: AlexNet's first layer, 3 channels in 4 phases: 34, a quarter of the operations;
//     of 16 images of 227², where the last phases leave the image: 58 -> 19.5 (two cores)
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

constexpr Index panel_bytes = 96 << 10;  // of B at a time: stays in the cache while all rows of A go by
constexpr Index strip_bytes = 256 << 10; // of images at a time: stays in the L2 cache
constexpr Index sums_bytes = 256 << 10;  // of a gradient in w that stays in the L2 cache beside a strip
constexpr Index stream_bytes = 8 << 20;  // of outputs: more are written past the caches

// Weights of any order: weight (o, c, k, l) of a group lies at data[group * ... + o * output + ...]. Outputs may be pairs
// (o / inner, o % inner).
template <class T>
struct Weights {
    const T* data;
    Index group, outer, output, channel, k, l, inner, count; // count: of all
    Index origin = 0;                                        // of (0, 0, 0, 0)
    const T* of(Index g, Index o) const { return data + origin + g * group + o / inner * outer + o % inner * output; }
};

// Where outputs go: output o of group g at (image n, row i, column j) is data[g * group + n * image + i * row + j * column + o].
template <class T>
struct Target {
    T* data;
    Index group, image, row, column;
    const T* bias; // may be null
    Index bias_group, bias_inner;
    bool relu;
};

// Weights as the product wants them: panels of up to max_vectors vectors of outputs, zeros where there are none. Row 0 of
// a panel is the bias, row 1 + (k * kw + l) * channels + c holds window element (k, l, c).
template <class T>
struct Panels {
    Index depth, vectors, count;
    Buffer<T> data;

    Panels(int threads, Index groups, Index outputs, Index channels, const Windows& s, const Weights<T>& w, const Target<T>& target)
        : depth(channels * s.kh * s.kw), vectors(ceil_div(outputs, lanes<T>)), count(ceil_div(vectors, max_vectors)),
          data(groups * vectors * lanes<T> * (depth + 1)) {
        parallel(threads, groups * vectors, [&](Index task) {
            const Index g = task / vectors, v = task % vectors, n = min(outputs - v * lanes<T>, Index(lanes<T>));
            Index p = 0;
            while (first(p + 1) <= v) ++p;
            const Index ld = width(p) * lanes<T>;
            T* to = data.data + (g * vectors + first(p)) * lanes<T> * (depth + 1) + (v - first(p)) * lanes<T>;
            const T* from[lanes<T>];
            for (Index i = 0; i < n; ++i) from[i] = w.of(g, v * lanes<T> + i);
            for (Index i = 0; i < lanes<T>; ++i)
                to[i] = i < n && target.bias ? target.bias[g * target.bias_group + (v * lanes<T> + i) % target.bias_inner] : T(0);
            to += ld;
            for (Index c = 0; c < channels; ++c)
                for (Index k = 0; k < s.kh; ++k)
                    for (Index l = 0; l < s.kw; ++l) {
                        T* row = to + ((k * s.kw + l) * channels + c) * ld;
                        const Index at = c * w.channel + k * w.k + l * w.l;
                        for (Index i = 0; i < n; ++i) row[i] = from[i][at];
                        for (Index i = n; i < lanes<T>; ++i) row[i] = 0;
                    }
        });
    }
    Index first(Index p) const { return vectors * p / count; } // vector of panel p
    int width(Index p) const { return static_cast<int>(first(p + 1) - first(p)); }
    const T* of(Index g, Index p) const { return data.data + (g * vectors + first(p)) * lanes<T> * (depth + 1); }
};

// The same for so few outputs that they are dot products: of each group its biases as they go with a vector of outputs, then
// the weights as dots wants them, which are the rows of its only panel as columns.
template <class T>
struct Turned {
    Index size; // of a group
    Buffer<T> data;

    Turned(Index groups, Index outputs, Index runs, Index length, const Panels<T>& panels)
        : size((1 + runs * ceil_div(length, lanes<T>) * outputs) * lanes<T>), data(groups * size) {
        memset(data.data, 0, static_cast<size_t>(groups * size) * sizeof(T));
        for (Index g = 0; g < groups; ++g) {
            const T* from = panels.of(g, 0);
            T* to = data.data + g * size;
            for (Index i = 0; i < lanes<T>; ++i) to[i] = from[i % outputs];
            for (Index t = 0; t < runs; ++t)
                for (Index k = 0; k < length; k += lanes<T>)
                    for (Index o = 0; o < outputs; ++o) {
                        to += lanes<T>;
                        for (Index i = 0; i < min(length - k, Index(lanes<T>)); ++i)
                            to[i] = from[(1 + t * length + k + i) * lanes<T> + o];
                    }
        }
    }
};

template <class T>
bool all_finite(const T* x, Index n) {
    V<T> sum{}; // 0 * x is NaN for infinities and NaN, and stays so
    Index i = 0;
    for (; i + lanes<T> <= n; i += lanes<T>) sum += T(0) * load(x + i);
    sum += T(0) * load_part(x + i, n - i);
    bool finite = true;
    for (int v = 0; v < lanes<T>; ++v) finite &= sum[v] == T(0);
    return finite;
}

// The definition, for the outputs whose window leaves the image, or for all. Zeros around the image times a weight that
// is infinite or NaN would be NaN, where the definition has no term at all: in this rare case these outputs are summed
// once more, term by term.
template <class T>
void define_outputs(int threads, const Windows& s, Image<const T> x, Index groups, Index channels, Index outputs, Index x_group,
                    const Weights<T>& w, const Target<T>& target, bool all) {
    parallel(threads, x.n * s.rows, [&](Index task) {
        const Index n = task / s.rows, i = task % s.rows, y = s.y0 + i * s.sy;
        for (Index j = 0; j < s.columns; ++j) {
            const Index column = s.x0 + j * s.sx;
            const bool inside = y >= 0 && column >= 0 && y + (s.kh - 1) * s.dy < x.h && column + (s.kw - 1) * s.dx < x.w;
            if (inside && !all) continue;
            for (Index g = 0; g < groups; ++g)
                for (Index o = 0; o < outputs; ++o) {
                    T sum = target.bias ? target.bias[g * target.bias_group + o % target.bias_inner] : T(0);
                    for (Index k = 0; k < s.kh; ++k)
                        for (Index l = 0; l < s.kw; ++l) {
                            const Index row = y + k * s.dy, col = column + l * s.dx;
                            if (row < 0 || row >= x.h || col < 0 || col >= x.w) continue;
                            const T* from = x.data + ((n * x.h + row) * x.w + col) * x.pitch + g * x_group;
                            for (Index c = 0; c < channels; ++c) sum += from[c] * w.of(g, o)[c * w.channel + k * w.k + l * w.l];
                        }
                    target.data[g * target.group + n * target.image + i * target.row + j * target.column + o] =
                        target.relu && sum < 0 ? T(0) : sum;
                }
        }
    });
}

// target(n, i, j, o) = bias(o) + sum over the window of x(n, window element) * weight(o, window element), for each group
// of `channels` in and `outputs` out.
template <class T>
void slide(int threads, const Windows& s, Image<const T> x, Index groups, Index channels, Index outputs, Index x_group,
           const Weights<T>& w, const Target<T>& target) {
    if (x.n == 0) return;
    if (s.kh * s.kw == 0) return define_outputs(threads, s, x, groups, channels, outputs, x_group, w, target, true);
    const Strips<T> strips(s, x, channels, outputs, strip_bytes);
    const Panels<T> panels(threads, groups, outputs, channels, s, w, target);

    const bool dense = target.row == s.columns * target.column && target.image == s.rows * target.row;
    Buffer<Index> to(dense ? 0 : strips.pixels);
    if (!dense)
        for (Index p = 0; p < strips.pixels; ++p) {
            const Index m = p / s.columns / strips.rows, i = p / s.columns % strips.rows, j = p % s.columns;
            to.data[p] = m * target.image + i * target.row + j * target.column;
        }
    const bool few = outputs <= few_columns<T> && strips.length >= lanes<T>;
    const Turned<T> turned(few ? groups : 0, outputs, strips.runs, strips.length, panels);
    const Index together = x_group == 0 ? groups : 1; // groups of one task: they read the same
    const Index splits = min(max(ceil_div(16, strips.count * groups / together), Index(1)), panels.count);
    const bool large = x.n * x.h * x.w * x.pitch * Index(sizeof(T)) >= stream_bytes; // larger than the caches
    const bool streams = outputs % lanes<T> == 0 && x.n * s.rows * s.columns * groups * outputs * Index(sizeof(T)) >= stream_bytes
        && aligned(target.data) && (target.column | target.row | target.image | target.group) % lanes<T> == 0;

    parallel(threads, strips.count * (groups / together) * splits, [&](Index task) {
        const Index share = task / splits % (groups / together), split = task % splits;
        const Index number = task / splits / (groups / together), later = (task + threads) / splits / (groups / together);
        const auto part = strips.strip(number);
        Soon<T> soon; // the strip that this thread will probably take next
        if ((strips.copied || large) && later > number && later < strips.count)
            strips.seen(strips.strip(later), soon.at[0], soon.end[0]);
        const T* a = strips.fetch(part, share * x_group, 0);
        const Index first = panels.count * split / splits, each = panels.count * (split + 1) / splits - first;
        const Index rows = few ? lanes<T> / outputs : max_rows[panels.width(first)]; // of a block
        soon.spread(each * together * ceil_div(part.pixels, rows) * strips.runs);
        for (Index i = 0; i < each * together; ++i) {
            const Index g = share * together + i / each, p = first + i % each;
            T* c = target.data + g * target.group + part.image * target.image + part.row * target.row;
            const int vectors = panels.width(p);
            const Index ld = vectors * lanes<T>, j = panels.first(p) * lanes<T>;
            const Index most = panel_bytes / (vectors * MINIDL_BYTES);
            Product<T> product_{a, 0, 1, 0, 0, strips.offset, panels.of(g, p) + ld, ld, c + j, target.column};
            product_.a_row = strips.position;
            product_.c_row = dense ? nullptr : to.data;
            product_.start = panels.of(g, p);
            product_.soon = soon.lines ? &soon : nullptr;
            if (few) {
                product_.runs = strips.runs, product_.length = strips.length;
                product_.start = turned.data.data + g * turned.size, product_.b = product_.start + lanes<T>;
                product_.relu = target.relu;
                dots(outputs, part.pixels, product_);
                continue;
            }
            product_.tail = j + ld > outputs ? outputs - j - ld + lanes<T> : 0;
            const auto multiply = [&](Index t, Index runs, Index from, Index length) {
                product_.a = a + from;
                product_.offset = strips.offset + t;
                product_.runs = runs;
                product_.length = length;
                const bool last = t + runs == strips.runs && from + length == strips.length;
                product_.relu = target.relu && last;
                product_.stream = streams && last;
                if (t == 0 && from == 0) product<T, false>(part.pixels, vectors, product_);
                else product<T, true>(part.pixels, vectors, product_);
                product_.b += runs * length * ld;
            };
            if (strips.length <= most) {
                const Index some = most / strips.length;
                for (Index t = 0; t < strips.runs; t += some) multiply(t, min(some, strips.runs - t), 0, strips.length);
            } else {
                const Index pieces = ceil_div(strips.length, most);
                for (Index t = 0; t < strips.runs; ++t)
                    for (Index q = 0; q < pieces; ++q) {
                        const Index from = strips.length * q / pieces;
                        multiply(t, 1, from, strips.length * (q + 1) / pieces - from);
                    }
            }
        }
        if (streams) end_stream();
    });
    if (strips.padded && !all_finite(w.data, w.count))
        define_outputs(threads, s, x, groups, channels, outputs, x_group, w, target, false);
}

inline int worth(int threads, const Conv& s) { // waking a thread costs more than a small convolution
    return double(s.n) * s.oh * s.ow * s.o * (s.c / s.groups) * s.kh * s.kw < 1e5 ? 1 : threads;
}

// y[n, o, i, j] = b[o] + sum of w[o, c, k, l] * x[n, c, i * sh + k * dh - ph, j * sw + l * dw - pw]
template <class T>
void direct_conv2d(int threads, const Conv& s, Image<const T> x, const T* w, const T* bias, Activation activation,
                   Image<T> y) {
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups, taps = s.kh * s.kw;
    const Windows windows{s.oh, s.ow, s.kh, s.kw, s.sh, s.sw, s.dh, s.dw, -s.ph, -s.pw};
    const Weights<T> weights{w, outputs * inputs * taps, 0, inputs * taps, taps, s.kw, 1, outputs, s.o * inputs * taps};
    const Target<T> target{y.data, outputs, s.oh * s.ow * y.pitch, s.ow * y.pitch, y.pitch,
                           bias, outputs, outputs, activation == Activation::relu};
    slide(worth(threads, s), windows, x, s.groups, inputs, outputs, inputs, weights, target);
}

// Those elements of a kernel that meet pixels r, r + stride, r + 2 stride ... of the input, in the order in which they lie
// in the output: the last is `last`, then every `step`-th before it; output `origin` is the first one met by pixel r.
struct Phase {
    Index count, last, step, origin, dilation;
    Phase(Index r, Index kernel, Index stride, Index padding, Index dilation_) : count(0), last(0), step(1), origin(0), dilation(1) {
        Index first = -1;
        for (Index k = 0; k < kernel; ++k)
            if ((r + padding - k * dilation_) % stride == 0) {
                if (first < 0) first = k;
                else if (count == 1) step = k - first;
                last = k;
                ++count;
            }
        if (count == 0) return;
        origin = (r + padding - last * dilation_) / stride;
        dilation = step * dilation_ / stride;
        if (count == 1) dilation = 1;
    }
};

// The phases along a row of dx, together as sw * c channels: with the windows of all, and zeros where one has no weight. Few
// channels then fill a vector, and dx is written in one go. False where it is not worth it, or where a zero met an infinity.
template <class T>
bool joined_phases(int threads, const Conv& s, Image<const T> g, const T* w, const T* bias, Image<T> dx) {
    Index x0 = Index(1) << 40, end = -x0, work = 0; // of the windows; vectors of products without joining
    for (Index t = 0; t < s.sw; ++t) {
        const Phase along(t, s.kw, s.sw, s.pw, 1);
        work += along.count * ceil_div(s.c, lanes<T>);
        if (along.count) x0 = min(x0, along.origin), end = max(end, along.origin + along.count);
    }
    const Index width = end - x0, outputs = s.sw * s.c, channel = s.kh * width, output = s.o * channel;
    if (4 * width * ceil_div(outputs, lanes<T>) > 5 * work) return false;
    Buffer<T> joined(outputs * output);
    memset(joined.data, 0, static_cast<size_t>(outputs * output) * sizeof(T));
    for (Index t = 0; t < s.sw; ++t) {
        const Phase along(t, s.kw, s.sw, s.pw, 1);
        for (Index c = 0; c < s.c; ++c)
            for (Index o = 0; o < s.o; ++o)
                for (Index k = 0; k < s.kh; ++k)
                    for (Index l = 0; l < along.count; ++l)
                        joined.data[(t * s.c + c) * output + o * channel + k * width + along.origin - x0 + l] =
                            w[((o * s.c + c) * s.kh + k) * s.kw + along.last - l * along.step];
    }
    const Index columns = ceil_div(s.w, s.sw), row = s.w * s.c, wide = columns * outputs; // the last phases may leave the image
    Buffer<T> padded(wide == row ? 0 : s.n * s.h * wide);
    T* to = wide == row ? dx.data : padded.data;
    for (Index r = 0; r < min(s.sh, s.h); ++r) {
        const Phase down(r, s.kh, s.sh, s.ph, s.dh);
        const Windows windows{ceil_div(s.h - r, s.sh), columns, down.count, width, 1, 1, down.dilation, 1, down.origin, x0};
        const Weights<T> weights{joined.data, 0, 0, output, channel, -down.step * width, 1, outputs, outputs * output, down.last * width};
        const Target<T> target{to + r * wide, 0, s.h * wide, s.sh * wide, outputs, bias, 0, s.c, false};
        slide(threads, windows, g, 1, s.o, outputs, s.o, weights, target);
    }
    if (wide != row)
        parallel(threads, s.n * s.h, [&](Index i) { memcpy(dx.data + i * row, to + i * wide, static_cast<size_t>(row) * sizeof(T)); });
    if (width * s.sw == s.kw) return true;
    const Index image = s.h * s.w * s.c;
    Buffer<unsigned char> finite(s.n);
    parallel(threads, s.n, [&](Index n) { finite.data[n] = all_finite(dx.data + n * image, image); });
    return !memchr(finite.data, 0, static_cast<size_t>(s.n));
}

// dx[n, c, y, x] = b[c] + sum of w[o, c, k, l] * g[n, o, i, j] over i * sh + k * dh - ph = y, j * sw + l * dw - pw = x.
// With stride sh, rows r, r + sh, r + 2 sh ... of x meet the same k: for each of the sh * sw phases dx is a convolution of
// stride 1 of g with a part of the kernel turned round.
template <class T>
void direct_grad_x(int threads, const Conv& s, Image<const T> g, const T* w, const T* bias, Image<T> dx) {
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups, taps = s.kh * s.kw;
    threads = worth(threads, s);
    if (s.groups == 1 && s.kh == s.sh && s.kw == s.sw && s.dh == 1 && s.dw == 1 && s.ph == 0 && s.pw == 0
        && s.h == s.oh * s.sh && s.w == s.ow * s.sw) { // no two windows meet: (kh) groups of (l, c) outputs a pixel of g
        const Windows windows{s.oh, s.ow, 1, 1, 1, 1, 1, 1, 0, 0};
        const Weights<T> weights{w, s.kw, 1, taps, inputs * taps, 0, 0, inputs, s.o * inputs * taps};
        if (dx.pitch == s.c) {
            const Target<T> target{dx.data, s.w * dx.pitch, s.h * s.w * dx.pitch, s.sh * s.w * dx.pitch, s.sw * dx.pitch,
                                   bias, 0, s.c, false};
            return slide(threads, windows, g, s.kh, outputs, s.kw * s.c, 0, weights, target);
        }
    }
    if (s.groups == 1 && s.sw > 1 && s.dw == 1 && dx.pitch == s.c && joined_phases(threads, s, g, w, bias, dx))
        return;
    for (Index r = 0; r < min(s.sh, s.h); ++r) {
        const Phase down(r, s.kh, s.sh, s.ph, s.dh);
        for (Index t = 0; t < min(s.sw, s.w); ++t) {
            const Phase along(t, s.kw, s.sw, s.pw, s.dw);
            const Windows windows{ceil_div(s.h - r, s.sh), ceil_div(s.w - t, s.sw), along.count ? down.count : 0, along.count,
                                  1, 1, down.dilation, along.dilation, down.origin, along.origin};
            const Weights<T> weights{w, outputs * inputs * taps, 0, taps, inputs * taps, -down.step * s.kw, -along.step, inputs,
                                     s.o * inputs * taps, down.last * s.kw + along.last};
            const Target<T> target{dx.data + (r * s.w + t) * dx.pitch, inputs, s.h * s.w * dx.pitch, s.sh * s.w * dx.pitch,
                                   s.sw * dx.pitch, bias, inputs, inputs, false};
            slide(threads, windows, g, s.groups, outputs, inputs, outputs, weights, target);
        }
    }
}

template <class T>
void define_grad_w(int threads, const Conv& s, Image<const T> g, Image<const T> x, T* dw) {
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

// Is g finite at the outputs whose window leaves the image?
template <class T>
bool border_finite(const Conv& s, Image<const T> g) {
    for (Index p = 0; p < s.n * s.oh * s.ow; ++p) {
        const Index y = p / s.ow % s.oh * s.sh - s.ph, x = p % s.ow * s.sw - s.pw;
        if ((y < 0 || x < 0 || y + (s.kh - 1) * s.dh >= s.h || x + (s.kw - 1) * s.dw >= s.w) && !all_finite(g.data + p * g.pitch, s.o))
            return false;
    }
    return true;
}

template <class T>
V<T> add_pairwise(const T* x, Index stride, Index count) {
    if (count == 1) return load(x);
    const Index half = count / 2;
    return add_pairwise(x, stride, half) + add_pairwise(x + half * stride, stride, count - half);
}

// dw[o, c, k, l] = sum over images and outputs of g[n, o, i, j] * x[n, c, i * sh + k * dh - ph, j * sw + l * dw - pw]
template <class T>
void direct_grad_w(int threads, const Conv& s, Image<const T> g, Image<const T> x, T* dw) {
    const Index inputs = s.c / s.groups, outputs = s.o / s.groups, taps = s.kh * s.kw, depth = taps * inputs;
    if (s.n == 0) {
        memset(dw, 0, static_cast<size_t>(s.o * depth) * sizeof(T));
        return;
    }
    threads = worth(threads, s);
    const Windows windows{s.oh, s.ow, s.kh, s.kw, s.sh, s.sw, s.dh, s.dw, -s.ph, -s.pw};
    const Strips<T> strips(windows, x, inputs, outputs, strip_bytes);
    const Index vectors = ceil_div(outputs, lanes<T>), panels = ceil_div(vectors, max_vectors), ld = vectors * lanes<T>;
    const Index weights = depth * ld;
    const Index size = weights * Index(sizeof(T)), splits = size > sums_bytes ? panels : 1;
    const Index most_shares = splits > 1 ? max(Index(2), ceil_div(32, s.groups * splits)) : 4 * size > sums_bytes ? 16 : 32;
    const Index shares = min(strips.count, most_shares);

    const bool adjacent = strips.length >= 8; // long runs of a window: their rows of A lie one behind the other
    Index run = min(s.ow, Index(32)); // outputs of a run, which all are equally long
    while (s.ow % run) --run;
    if (run < 8) run = s.ow;
    Buffer<Index> tables(depth + strips.pixels / run);
    Index *element = tables.data, *row = tables.data + depth;
    for (Index t = 0; t < strips.runs; ++t)
        for (Index k = 0; k < strips.length; ++k) element[t * strips.length + k] = strips.offset[t] + k;
    for (Index i = 0; i < strips.pixels / run; ++i) row[i] = strips.position[i * run];
    Buffer<T> partial(shares * s.groups * weights);
    const T* g_end = g.data + (s.n * s.oh * s.ow - 1) * g.pitch + s.o;

    parallel(threads, shares * s.groups * splits, [&](Index task) {
        const Index split = task % splits, group = task / splits % s.groups, share = task / splits / s.groups;
        T* sums = partial.data + (share * s.groups + group) * weights;
        const Index p0 = panels * split / splits, p1 = panels * (split + 1) / splits;
        const Index j0 = vectors * p0 / panels * lanes<T>, j1 = vectors * p1 / panels * lanes<T>;
        for (Index r = 0; r < depth; ++r) memset(sums + r * ld + j0, 0, static_cast<size_t>(j1 - j0) * sizeof(T));
        const Index end = strips.count * (share + 1) / shares;
        for (Index number = strips.count * share / shares; number < end; ++number) {
            const auto part = strips.strip(number);
            Soon<T> soon; // the next strip
            if (number + 1 < end) {
                const auto next = strips.strip(number + 1);
                strips.seen(next, soon.at[0], soon.end[0]);
                soon.at[1] = g.data + (next.image * s.oh + next.row) * s.ow * g.pitch;
                soon.end[1] = soon.at[1] + next.pixels * g.pitch;
                soon.spread((p1 - p0) * ceil_div(depth, Index(max_rows[vectors / panels])) * (part.pixels / run));
            }
            const T* a = strips.fetch(part, group * inputs, 0);
            const T* b = g.data + (part.image * s.oh + part.row) * s.ow * g.pitch + group * outputs;
            Index pitch = g.pitch;
            if (b + (part.pixels - 1) * pitch + ld > g_end) { // full vectors would read past the end
                T* copy = scratch<T>(1, part.pixels * ld);
                for (Index p = 0; p < part.pixels; ++p) {
                    memcpy(copy + p * ld, b + p * pitch, static_cast<size_t>(outputs) * sizeof(T));
                    memset(copy + p * ld + outputs, 0, static_cast<size_t>(ld - outputs) * sizeof(T));
                }
                b = copy;
                pitch = ld;
            }
            for (Index p = p0; p < p1; ++p) {
                const Index v = vectors * p / panels, width = vectors * (p + 1) / panels - v;
                const Index most = max(panel_bytes / (width * MINIDL_BYTES), Index(1));
                Product<T> product_{a, 0, strips.step, 1, 0, row, b, pitch, sums + v * lanes<T>, ld};
                product_.soon = &soon;
                if (adjacent) product_.ar = 1;
                else product_.a_row = element;
                const Index runs = part.pixels / run, some = max(most / run, Index(1)), pieces = ceil_div(run, most);
                for (Index i = 0; i < runs; i += some)
                    for (Index q = 0; q < pieces; ++q) {
                        const Index j = run * q / pieces;
                        product_.offset = row + i;
                        product_.runs = min(some, runs - i);
                        product_.length = run * (q + 1) / pieces - j;
                        product_.b = b + (i * run + j) * pitch + v * lanes<T>;
                        for (Index t = 0; t < (adjacent ? strips.runs : 1); ++t) {
                            product_.a = a + j * strips.step + (adjacent ? strips.offset[t] : 0);
                            product_.c = sums + t * strips.length * ld + v * lanes<T>;
                            product<T, true>(adjacent ? strips.length : depth, static_cast<int>(width), product_);
                        }
                    }
            }
        }
    });
    parallel(threads, s.groups * vectors, [&](Index task) {
        const Index group = task / vectors, o = task % vectors * lanes<T>, n = min(outputs - o, Index(lanes<T>));
        for (Index c = 0; c < inputs; ++c)
            for (Index tap = 0; tap < taps; ++tap) {
                const V<T> sum = add_pairwise(partial.data + group * weights + (tap * inputs + c) * ld + o, s.groups * weights, shares);
                for (Index i = 0; i < n; ++i) dw[((group * outputs + o + i) * inputs + c) * taps + tap] = sum[static_cast<int>(i)];
            }
    });
    if (strips.padded && !all_finite(dw, s.o * depth) && !border_finite(s, g)) define_grad_w(threads, s, g, x, dw);
}

} // namespace MINIDL_LEVEL
} // namespace minidl

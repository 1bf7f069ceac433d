// Local response normalisation and its gradient.
//
// The ladder, for windows of 5 channels of a float32 element:
//   naive         array code: squares, 4 shifted sums, scaled, a power, a product   some 70 bytes forward, 150 backward
//   one pass      a few pixels at a time, squares in the first cache between zeros, so that no window asks where the
//                 channels end                                                      forward reads 4 and writes 8,
//                                                                                   backward reads 12 and writes 4
//   roots         d^-0.75 = 1 / (√d · √√d), a vector at a time instead of a power an element
// Windows are summed one by one: differences of running sums are cheaper, but lose the digits of what follows a bright channel.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

MINIDL_INLINE float power(float x, double y) { return powf(x, static_cast<float>(y)); }
MINIDL_INLINE double power(double x, double y) { return pow(x, y); }

// d^-beta
template <class T>
MINIDL_INLINE V<T> shrinkage(V<T> d, double beta) {
    if (beta == 0.75) {
        const V<T> r = roots<T>(d);
        return broadcast<T>(1) / (r * roots<T>(r));
    }
    for (int i = 0; i < lanes<T>; ++i) d[i] = power(d[i], -beta);
    return d;
}

// For every pixel fill(pixel, row of its channels), then use(pixel, window): window(j) gives Σ of the row from j - before
// to j + after for a vector of channels j. A block of pixels is filled before it is used: by then it lies in the cache.
template <class T, class F, class G>
void each_window(int threads, Index pixels, Index c, Index before, Index after, const F& fill, const G& use) {
    before = min(before, c), after = min(after, c);
    const Index pitch = round_up(before + c + after + lanes<T>, lanes<T>);
    const Index block = min<Index>(32, max<Index>(1, 4096 / pitch));
    const Index group = round_up(ceil_div(1 << 14, max<Index>(1, c)), block), tasks = c ? ceil_div(pixels, group) : 0;
    parallel(tasks < 3 ? 1 : threads, tasks, [&](Index task) {
        const F to = fill; // copies on this stack: what they hold need not be read again after every store
        const G from = use;
        T* rows = scratch<T>(0, block * pitch);
        memset(rows, 0, static_cast<size_t>(block * pitch) * sizeof(T));
        const Index end = min((task + 1) * group, pixels), taps = before + after;
        for (Index first = task * group; first < end; first += block) {
            const Index count = min(block, end - first);
            for (Index i = 0; i < count; ++i) to(first + i, rows + i * pitch + before);
            for (Index i = 0; i < count; ++i) {
                const T* row = rows + i * pitch;
                from(first + i, [=](Index j) {
                    V<T> sum = load(row + j);
                    for (Index s = 1; s <= taps; ++s) sum += load(row + j + s);
                    return sum;
                });
            }
        }
        fence();
    });
}

// y = x · d^-beta with d = k + alpha / size · Σ x² over the channels c - size / 2 ... c + (size - 1) / 2.
template <class T>
void local_response_norm(int threads, const ResponseNorm& s, Image<const T> x, Image<T> y, Image<T> d) {
    const Rows rows = rows_of<T>(pixels(x), x.c, false);
    const bool past = goes_past(rows, y) && goes_past(rows, d);
    const T share = static_cast<T>(s.alpha / static_cast<double>(s.size)), k = static_cast<T>(s.k);
    const double beta = s.beta;
    const auto squares = [=](Index pixel, T* row) {
        const T* from = x.data + pixel * x.pitch;
        each<T>(x.c, [&](Index j, auto how) {
            const V<T> v = how.load(from + j);
            how.store(row + j, v * v);
        });
    };
    each_window<T>(threads, pixels(x), x.c, s.size / 2, (s.size - 1) / 2, squares, [=](Index pixel, auto window) {
        const T* from = x.data + pixel * x.pitch;
        T *to = y.data + pixel * y.pitch, *at = d.data + pixel * d.pitch;
        each<T>(x.c, past, [&](Index j, auto how) {
            const V<T> v = window(j) * share + k;
            how.result(at + j, v);
            how.result(to + j, how.load(from + j) * shrinkage<T>(v, beta));
        });
    });
}

// dx = g · d^-beta - 2 alpha beta / size · x · Σ g x d^(-beta - 1) over the channels whose windows hold this one.
template <class T>
void local_response_norm_grad(int threads, const ResponseNorm& s, Image<const T> g, Image<const T> x, Image<const T> d,
                              Image<T> dx) {
    const T slope = static_cast<T>(2 * s.alpha * s.beta / static_cast<double>(s.size));
    const double beta = s.beta;
    const auto products = [=](Index pixel, T* row) {
        const T *gs = g.data + pixel * g.pitch, *xs = x.data + pixel * x.pitch, *ds = d.data + pixel * d.pitch;
        T* to = dx.data + pixel * dx.pitch;
        each<T>(x.c, [&](Index j, auto how) {
            const V<T> v = how.load(ds + j), shrunk = how.load(gs + j) * shrinkage<T>(v, beta);
            how.store(to + j, shrunk);
            how.store(row + j, shrunk * how.load(xs + j) / v);
        });
    };
    each_window<T>(threads, pixels(x), x.c, (s.size - 1) / 2, s.size / 2, products, [=](Index pixel, auto window) {
        const T* xs = x.data + pixel * x.pitch;
        T* to = dx.data + pixel * dx.pitch;
        each<T>(x.c, [&](Index j, auto how) { how.store(to + j, how.load(to + j) - slope * how.load(xs + j) * window(j)); });
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

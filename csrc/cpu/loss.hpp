// Cross entropy and its gradient.
//
// The ladder, in passes over logits of C classes for P positions:
//   naive       array code: softmax, its logarithm, a table of all targets' shares, their product, its sum    some 12
//   one pass    a block of positions at a time: largest, sum of exponentials, logarithm; the target's share is one number
//               a position, no table                                       forward reads 4 bytes a float32 logit,
//                                                                          backward reads 4 and writes 4
//   turned      the block is turned in the first cache so that positions lie side by side: vectors are full for 2 classes as
//               for 1000, and no sum runs across a vector
//   polynomials exp and log by vectors (Cephes' expf and logf)
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

MINIDL_INLINE double exponential(double x) { return exp(x); }
MINIDL_INLINE double logarithm(double x) { return log(x); }
MINIDL_INLINE float exponential(float x) { return expf(x); }
MINIDL_INLINE float logarithm(float x) { return logf(x); }

// exp(x) for x up to 1; below -87, where it is no longer a normal number, 0.
template <class T>
MINIDL_INLINE V<T> exponentials(V<T> x) {
#if defined(__GNUC__)
    if constexpr (sizeof(T) == 4) { // 2^n · exp(r) with |r| < 0.35; after adding 1.5 · 2^23 the last bits are n
        typedef int Bits __attribute__((vector_size(MINIDL_BYTES)));
        const V<float> shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
        const V<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
        V<float> y = r * 1.9875691500e-4f + 1.3981999507e-3f;
        y = y * r + 8.3334519073e-3f;
        y = y * r + 4.1665795894e-2f;
        y = y * r + 1.6666665459e-1f;
        y = y * r + 5.0000001201e-1f;
        y = y * (r * r) + r + 1.f;
        const V<float> scale = reinterpret_cast<V<float>>((reinterpret_cast<Bits>(shifted) + 127) << 23);
        return where_greater<float>(broadcast<float>(-87.3f), x, V<float>{}, y * scale);
    }
#endif
    for (int i = 0; i < lanes<T>; ++i) x[i] = exponential(x[i]);
    return x;
}

// log(x) for 1 <= x < ∞ and NaN.
template <class T>
MINIDL_INLINE V<T> logarithms(V<T> x) {
#if defined(__GNUC__)
    if constexpr (sizeof(T) == 4) { // x = 2^e · (1 + f) with √½ <= 1 + f < √2
        typedef int Bits __attribute__((vector_size(MINIDL_BYTES)));
        const Bits bits = reinterpret_cast<Bits>(x), e = (bits - 0x3f3504f3) >> 23;
        const V<float> f = reinterpret_cast<V<float>>(bits - (e << 23)) - 1.f, n = __builtin_convertvector(e, V<float>);
        V<float> y = f * 7.0376836292e-2f - 1.1514610310e-1f;
        y = y * f + 1.1676998740e-1f;
        y = y * f - 1.2420140846e-1f;
        y = y * f + 1.4249322787e-1f;
        y = y * f - 1.6668057665e-1f;
        y = y * f + 2.0000714765e-1f;
        y = y * f - 2.4999993993e-1f;
        y = y * f + 3.3333331174e-1f;
        y = y * f * (f * f) - n * 2.12194440e-4f - f * f * 0.5f;
        return f + y + n * 0.693359375f + (x - x); // NaN stays NaN
    }
#endif
    for (int i = 0; i < lanes<T>; ++i) x[i] = logarithm(x[i]);
    return x;
}

// f(first position, their number, z, room) for blocks of positions: the logit of class j at position first + i is
// z[j * room + i], 0 beyond their number. Room for `more` times as many positions lies behind z.
template <class T, class F>
void each_block_of_positions(int threads, Image<const T> x, int more, const F& f) {
    const Index total = pixels(x), room = round_up(min<Index>(512, max<Index>(1, 8192 / x.c)), lanes<T>);
    const Index tasks = ceil_div(total, room);
    parallel(total * x.c < (1 << 14) ? 1 : threads, tasks, [&](Index task) {
        T* z = scratch<T>(0, (x.c + more) * room);
        const Index first = task * room, count = min(room, total - first);
        for (Index i = 0; i < count; ++i)
            for (Index j = 0; j < x.c; ++j) z[j * room + i] = x.data[(first + i) * x.pitch + j];
        for (Index j = 0; j < x.c; ++j)
            for (Index i = count; i < room; ++i) z[j * room + i] = 0;
        f(first, count, z, room);
    });
}

// lse = log Σ exp(x - max x) and loss = -Σ q · (x - lse), where q is weight · ((1 - smoothing) · [target] + smoothing / C), or 0
// for targets that are ignored. Where q is 0, even an x of -∞ counts nothing.
template <class T>
void cross_entropy(int threads, const Labels& s, Image<const T> x, const T* weight, T* loss, T* lse) {
    const T even = static_cast<T>(s.smoothing / static_cast<double>(x.c)), own = static_cast<T>(1 - s.smoothing);
    each_block_of_positions<T>(threads, x, 3, [&](Index first, Index count, const T* z, Index room) {
        T *tops = const_cast<T*>(z) + x.c * room, *logs = tops + room, *spread = logs + room;
        for (Index i = 0; i < count; i += lanes<T>) {
            V<T> top = load(z + i), sum{};
            for (Index j = 1; j < x.c; ++j) {
                const V<T> v = load(z + j * room + i);
                top = where_greater<T>(v, top, v, top);
            }
            for (Index start = 0; start < x.c; start += 64) { // sums of sums: they lose fewer digits
                V<T> part{};
                for (Index j = start; j < min(start + 64, x.c); ++j) part += exponentials<T>(load(z + j * room + i) - top);
                sum += part;
            }
            const V<T> log = logarithms<T>(sum);
            V<T> others{};
            if (even != 0)
                for (Index j = 0; j < x.c; ++j)
                    if (weight[j] * even != 0) others += weight[j] * even * (load(z + j * room + i) - top - log);
            store<T>(tops + i, top), store<T>(logs + i, log), store<T>(spread + i, others);
            store_part<T>(lse + first + i, log, count - i);
        }
        for (Index i = 0; i < count; ++i) {
            const Index t = static_cast<Index>(s.target[first + i]);
            const bool counts = t != s.ignored;
            const T share = counts ? weight[t] * own : T(0);
            loss[first + i] = -((share != 0 ? share * (z[t * room + i] - tops[i] - logs[i]) : T(0)) + (counts ? spread[i] : T(0)));
        }
    });
}

// dx = g · (exp(x - max x - lse) · Σ q - q); max x is taken again: max x + lse would lose the digits of lse.
template <class T>
void cross_entropy_grad(int threads, const Labels& s, Image<const T> x, const T* weight, const T* g, const T* lse, Image<T> dx) {
    const T even = static_cast<T>(s.smoothing / static_cast<double>(x.c)), own = static_cast<T>(1 - s.smoothing);
    double total = 0;
    for (Index j = 0; j < x.c; ++j) total += weight[j];
    const T spread = static_cast<T>(total * s.smoothing / static_cast<double>(x.c));
    each_block_of_positions<T>(threads, x, 3, [&](Index first, Index count, T* z, Index room) {
        T *shift = z + x.c * room, *all = shift + room, *each = all + room;
        for (Index i = 0; i < room; ++i) shift[i] = all[i] = each[i] = 0;
        for (Index i = 0; i < count; ++i) {
            const Index t = static_cast<Index>(s.target[first + i]);
            const bool counts = t != s.ignored;
            shift[i] = lse[first + i];
            all[i] = g[first + i] * (counts ? weight[t] * own + spread : T(0));
            each[i] = g[first + i] * (counts ? even : T(0));
        }
        for (Index i = 0; i < count; i += lanes<T>) {
            V<T> top = load(z + i);
            for (Index j = 1; j < x.c; ++j) {
                const V<T> v = load(z + j * room + i);
                top = where_greater<T>(v, top, v, top);
            }
            for (Index j = 0; j < x.c; ++j) {
                const V<T> v = load(all + i) * exponentials<T>(load(z + j * room + i) - top - load(shift + i));
                store<T>(z + j * room + i, even != 0 ? v - weight[j] * load(each + i) : v);
            }
        }
        for (Index i = 0; i < count; ++i) {
            T* to = dx.data + (first + i) * dx.pitch;
            for (Index j = 0; j < x.c; ++j) to[j] = z[j * room + i];
            const Index t = static_cast<Index>(s.target[first + i]);
            if (t != s.ignored) to[t] -= g[first + i] * (weight[t] * own);
        }
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

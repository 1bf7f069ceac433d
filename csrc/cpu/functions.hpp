// exp, log and tanh by vectors: all lanes take the same steps, and what differs is chosen at the end.
//
// The ladder, ns an element of float32 (float64) in cache on one core, AVX-512:
//   libm         a call an element                                              exp 2.1 (2.9), tanh 9.2 (8.3)
//   polynomials  on an interval around 0, to which the argument is brought by
//                exp x = 2^n exp(x - n ln 2) and log(2^e m) = e ln 2 + log m    exp 0.14 (0.41), tanh 0.28 (0.80)
// Errors are at most 3 units in the last place. Coefficients: Cephes (Moshier 1992); exp in float64: Taylor's, 1 / k!.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

MINIDL_INLINE double exponential(double x) { return exp(x); }
MINIDL_INLINE double logarithm(double x) { return log(x); }
MINIDL_INLINE double tangent(double x) { return tanh(x); }
MINIDL_INLINE float exponential(float x) { return expf(x); }
MINIDL_INLINE float logarithm(float x) { return logf(x); }
MINIDL_INLINE float tangent(float x) { return tanhf(x); }

#if defined(__GNUC__)
template <class T>
using Bits = typename Vector<typename Integer<sizeof(T)>::type, MINIDL_BYTES>::type; // of each lane, as an integer

// c[0] + c[1] x + c[2] x² + ...
template <class T, int N>
MINIDL_INLINE V<T> polynomial(V<T> x, const T (&c)[N]) {
    V<T> y = broadcast<T>(c[N - 1]);
    for (int k = N - 2; k >= 0; --k) y = y * x + c[k];
    return y;
}
#endif

// exp(x) for x up to 80; below -87 (float64: -708), where it is no longer a normal number, 0.
template <class T>
MINIDL_INLINE V<T> exponentials(V<T> x) {
#if defined(__GNUC__)
    constexpr bool single = sizeof(T) == 4;
    constexpr T magic = single ? T(12582912) : T(6755399441055744); // 1.5 · 2^23, 1.5 · 2^52: added, the last bits are n
    constexpr T high = single ? T(0.693359375) : T(6.93145751953125e-1); // ln 2 = high + low
    constexpr T low = single ? T(-2.12194440e-4) : T(1.42860682030941723212e-6);
    const V<T> shifted = x * T(1.44269504088896341) + magic, n = shifted - magic;
    const V<T> r = x - n * high - n * low; // |r| < 0.35
    V<T> y;
    if constexpr (single)
        y = polynomial<T>(r, {5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f, 8.3334519073e-3f, 1.3981999507e-3f,
                              1.9875691500e-4f});
    else
        y = polynomial<T>(r, {1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800,
                              1. / 39916800, 1. / 479001600, 1. / 6227020800});
    y = y * (r * r) + r + T(1);
    const V<T> scale = reinterpret_cast<V<T>>((reinterpret_cast<Bits<T>>(shifted) + (single ? 127 : 1023)) << (single ? 23 : 52));
    return x < T(single ? -87.3 : -708) ? V<T>{} : y * scale;
#else
    for (int i = 0; i < lanes<T>; ++i) x[i] = exponential(x[i]);
    return x;
#endif
}

// log(x) for 1 <= x < ∞ and NaN.
template <class T>
MINIDL_INLINE V<T> logarithms(V<T> x) {
#if defined(__GNUC__)
    if constexpr (sizeof(T) == 4) { // x = 2^e · (1 + f) with √½ <= 1 + f < √2
        const Bits<T> bits = reinterpret_cast<Bits<T>>(x), e = (bits - 0x3f3504f3) >> 23;
        const V<float> f = reinterpret_cast<V<float>>(bits - (e << 23)) - 1.f, n = __builtin_convertvector(e, V<float>);
        V<float> y = polynomial<float>(f, {3.3333331174e-1f, -2.4999993993e-1f, 2.0000714765e-1f, -1.6668057665e-1f,
                                           1.4249322787e-1f, -1.2420140846e-1f, 1.1676998740e-1f, -1.1514610310e-1f,
                                           7.0376836292e-2f});
        y = y * f * (f * f) - n * 2.12194440e-4f - f * f * 0.5f;
        return f + y + n * 0.693359375f + (x - x); // NaN stays NaN
    }
#endif
    for (int i = 0; i < lanes<T>; ++i) x[i] = logarithm(x[i]);
    return x;
}

// tanh(x) = 1 - 2 / (exp(2x) + 1), near 0 a polynomial, for any x: it is odd, and 1 beyond 20.
template <class T>
MINIDL_INLINE V<T> tangents(V<T> x) {
#if defined(__GNUC__)
    const Bits<T> sign = reinterpret_cast<Bits<T>>(-V<T>{}); // the bit of it
    const V<T> a = reinterpret_cast<V<T>>(reinterpret_cast<Bits<T>>(x) & ~sign), z = a * a;
    V<T> inner;
    if constexpr (sizeof(T) == 4)
        inner = polynomial<T>(z, {-3.33332819422e-1f, 1.33314422036e-1f, -5.37397155531e-2f, 2.06390887954e-2f,
                                  -5.70498872745e-3f});
    else
        inner = polynomial<T>(z, {-1.61468768441708447952e3, -9.92877231001918586564e1, -9.64399179425052238628e-1})
             / polynomial<T>(z, {4.84406305325125486048e3, 2.23548839060100448583e3, 1.12811678491632931402e2, 1.});
    inner = inner * z * a + a;
    const V<T> bounded = a > T(20) ? broadcast<T>(20) : a; // NaN stays NaN
    const V<T> outer = T(1) - T(2) / (exponentials<T>(bounded + bounded) + T(1));
    const V<T> y = a < T(0.625) ? inner : outer;
    return reinterpret_cast<V<T>>(reinterpret_cast<Bits<T>>(y) | (reinterpret_cast<Bits<T>>(x) & sign));
#else
    for (int i = 0; i < lanes<T>; ++i) x[i] = tangent(x[i]);
    return x;
#endif
}

template <class T>
MINIDL_INLINE V<T> activate(V<T> v, Activation activation) {
    return activation == Activation::relu ? relu<T>(v) : activation == Activation::tanh ? tangents<T>(v) : v;
}

} // namespace MINIDL_LEVEL
} // namespace minidl

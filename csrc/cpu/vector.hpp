// Vectors of MINIDL_BYTES, and the little that kernels need besides: threads, working memory, min and max.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

#if defined(__GNUC__)
template <class T, int BYTES>
struct Vector { // the compiler's own vectors: +, * work lane by lane, a scalar is broadcast
    typedef T type __attribute__((vector_size(BYTES)));
};
#define MINIDL_INLINE inline __attribute__((always_inline))
#else
template <class T, int BYTES>
struct Vector { // the same in plain loops
    struct type {
        T lane[BYTES / sizeof(T)];
        T& operator[](int i) { return lane[i]; }
        T operator[](int i) const { return lane[i]; }
#define MINIDL_OPERATOR(OP)                                                                                              \
        friend type operator OP(type u, const type& v) {                                                                 \
            for (size_t i = 0; i < BYTES / sizeof(T); ++i) u.lane[i] = u.lane[i] OP v.lane[i];                           \
            return u;                                                                                                    \
        }                                                                                                                \
        friend type operator OP(T s, type v) {                                                                           \
            for (size_t i = 0; i < BYTES / sizeof(T); ++i) v.lane[i] = s OP v.lane[i];                                   \
            return v;                                                                                                    \
        }                                                                                                                \
        friend type operator OP(type u, T s) {                                                                           \
            for (size_t i = 0; i < BYTES / sizeof(T); ++i) u.lane[i] = u.lane[i] OP s;                                   \
            return u;                                                                                                    \
        }                                                                                                                \
        type& operator OP##=(const type& v) { return *this = *this OP v; }
        MINIDL_OPERATOR(+)
        MINIDL_OPERATOR(-)
        MINIDL_OPERATOR(*)
        MINIDL_OPERATOR(/)
#undef MINIDL_OPERATOR
    };
};
#define MINIDL_INLINE inline
#endif

// Before a loop over vectors of a constant number: they shall stay in registers.
#if defined(__clang__)
#define MINIDL_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define MINIDL_UNROLL _Pragma("GCC unroll 16")
#else
#define MINIDL_UNROLL
#endif

template <class T>
using V = typename Vector<T, MINIDL_BYTES>::type;

template <class T>
constexpr int lanes = MINIDL_BYTES / sizeof(T);

template <class T>
MINIDL_INLINE V<T> load(const T* p) {
    V<T> v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
MINIDL_INLINE void store(T* p, V<T> v) {
    memcpy(p, &v, sizeof v);
}

template <class T>
MINIDL_INLINE V<T> broadcast(T s) {
    return V<T>{} + s;
}

// The first `count` lanes; the others are 0 (load) or left alone (store). Copied in halves, quarters, eighths ..., each
// of a size that the compiler knows.
template <class T, int PART = lanes<T> / 2>
MINIDL_INLINE void copy_part(T* to, const T* from, Index count) {
    if constexpr (PART > 0) {
        if (count & PART) {
            memcpy(to, from, PART * sizeof(T));
            to += PART, from += PART;
        }
        copy_part<T, PART / 2>(to, from, count);
    }
}

template <class T>
MINIDL_INLINE V<T> load_part(const T* p, Index count) {
#if MINIDL_BYTES == 64 && defined(__AVX512F__) && defined(__GNUC__)
    const unsigned mask = (1u << (count < lanes<T> ? count : lanes<T>)) - 1;
    if constexpr (sizeof(T) == 4) return (V<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
    else return (V<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
#else
    if (count >= lanes<T>) return load(p);
    V<T> v{};
    copy_part(reinterpret_cast<T*>(&v), p, count);
    return v;
#endif
}

template <class T>
MINIDL_INLINE void store_part(T* p, V<T> v, Index count) {
#if MINIDL_BYTES == 64 && defined(__AVX512F__) && defined(__GNUC__)
    const unsigned mask = (1u << (count < lanes<T> ? count : lanes<T>)) - 1;
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), (__m512)v);
    else _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), (__m512d)v);
#else
    if (count >= lanes<T>) store(p, v);
    else copy_part(p, reinterpret_cast<const T*>(&v), count);
#endif
}

// Ask memory for what will be read soon.
template <class T>
MINIDL_INLINE void prefetch(const T* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 2);
#endif
}

// Write a whole cache line past the caches, to an aligned address: else memory would be read only to be overwritten.
template <class T>
MINIDL_INLINE void stream(T* p, V<T> v) {
#if MINIDL_BYTES == 64 && defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
    typedef float Floats __attribute__((vector_size(64)));
    __builtin_ia32_movntps512(reinterpret_cast<float*>(p), reinterpret_cast<Floats>(v));
#elif MINIDL_BYTES == 64 && defined(__clang__)
    __builtin_nontemporal_store(v, reinterpret_cast<V<T>*>(p));
#else
    store(p, v);
#endif
}

template <class T>
MINIDL_INLINE bool aligned(const T* p) {
    return reinterpret_cast<size_t>(p) % MINIDL_BYTES == 0;
}

// What was streamed is seen by other threads after this.
MINIDL_INLINE void end_stream() {
#if MINIDL_BYTES == 64 && defined(__GNUC__) && defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

MINIDL_INLINE float root(float x) { return sqrtf(x); } // not sqrt: that may be a template of the standard library
MINIDL_INLINE double root(double x) { return sqrt(x); }

// max(v, 0) lane by lane; NaN stays NaN.
template <class T>
MINIDL_INLINE V<T> relu(V<T> v) {
#if defined(__GNUC__)
    return v < V<T>{} ? V<T>{} : v;
#else
    for (int i = 0; i < lanes<T>; ++i) v[i] = v[i] < 0 ? T(0) : v[i];
    return v;
#endif
}

template <class T>
MINIDL_INLINE T min(T a, T b) {
    return b < a ? b : a;
}

template <class T>
MINIDL_INLINE T max(T a, T b) {
    return a < b ? b : a;
}

MINIDL_INLINE Index ceil_div(Index a, Index b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
MINIDL_INLINE Index round_up(Index a, Index b) { return ceil_div(a, b) * b; }

// task(0) ... task(tasks - 1), on at most `threads` threads.
template <class F>
void parallel(int threads, Index tasks, const F& task) {
    run_tasks(threads, tasks, [](const void* f, Index number) { (*static_cast<const F*>(f))(number); }, &task);
}

template <class T>
T* scratch(int slot, Index count) {
    return static_cast<T*>(minidl::scratch(slot, static_cast<size_t>(count) * sizeof(T)));
}

// A large temporary that several threads use.
template <class T>
struct Buffer {
    T* data;
    explicit Buffer(Index count) : data(static_cast<T*>(acquire(static_cast<size_t>(count) * sizeof(T)))) {}
    ~Buffer() { release(data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
};

} // namespace MINIDL_LEVEL
} // namespace minidl

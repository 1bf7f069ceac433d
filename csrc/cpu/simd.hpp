// Which compilation of the microkernels runs: chosen once, when first needed, by what the processor can do.
#pragma once

namespace minidl {

template <class T>
struct Microkernels {
    int rows;  // rows of a panel of A
    int lanes; // numbers in a vector
    void (*product)(long long rows, long long width, long long depth, const T* a, long long panel, const T* b,
                    long long ldb, T* c, long long ldc);
    void (*correlate)(long long rows, long long cols, long long width, const T* g, long long ldg, const T* x,
                      long long ldx, T* c, long long ldc);
};

struct Level {
    const char* name;
    const Microkernels<float>* f32; // null where this build has no such level
    const Microkernels<double>* f64;
    const Microkernels<float>& of(float) const { return *f32; }
    const Microkernels<double>& of(double) const { return *f64; }
};

Level baseline_level(); // SSE2 on x86-64, NEON on arm64
Level avx2_level();
Level avx512_level();

} // namespace minidl

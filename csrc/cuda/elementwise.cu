// What is done number by number, where array code would take several passes.
//
// The ladder: naive array code reads and writes for every operation; here each number is read once and written once, and a
// thread has several loads on their way at once. Nothing is left to gain but memory's speed.

// y[i] = value(i). A thread takes NUMBERS of them, a block apart: as many loads on their way, and neighbours side by side.
constexpr int NUMBERS = 4;

template <class F>
__device__ void each_number(long long count, real* __restrict__ y, const F& value) {
    const long long first = (long long)blockIdx.x * blockDim.x * NUMBERS + threadIdx.x;
    real v[NUMBERS];
#pragma unroll
    for (int k = 0; k < NUMBERS; ++k)
        if (first + k * blockDim.x < count) v[k] = value(first + k * blockDim.x);
#pragma unroll
    for (int k = 0; k < NUMBERS; ++k)
        if (first + k * blockDim.x < count) y[first + k * blockDim.x] = v[k];
}

// g where y > 0, else 0; chosen, not multiplied: 0 · ∞ would be NaN.
extern "C" __global__ void relu_grad(long long count, const real* __restrict__ g, const real* __restrict__ y,
                                     real* __restrict__ dx) {
    each_number(count, dx, [&](long long i) { return y[i] > 0 ? g[i] : real(0); });
}

// g · (1 − y²).
extern "C" __global__ void tanh_grad(long long count, const real* __restrict__ g, const real* __restrict__ y,
                                     real* __restrict__ dx) {
    each_number(count, dx, [&](long long i) { return g[i] * (1 - y[i] * y[i]); });
}

// scale · x where `kept`, else 0 · x.
extern "C" __global__ void dropout(long long count, real scale, const real* __restrict__ x,
                                   const bool* __restrict__ kept, real* __restrict__ y) {
    each_number(count, y, [&](long long i) { return x[i] * (kept[i] ? scale : real(0)); });
}

// scale · (x − t).
extern "C" __global__ void scaled_difference(long long count, real scale, const real* __restrict__ x,
                                             const real* __restrict__ t, real* __restrict__ y) {
    each_number(count, y, [&](long long i) { return scale * (x[i] - t[i]); });
}

// The optimiser's step for many parameters in one launch.
//
// The ladder, in bytes a float32 parameter of Adam:
//   naive       array code, parameter by parameter: ten launches each, some 100 bytes
//   fused       one launch a parameter: reads p, g, m, s, writes p, m, s                                        28
//   one launch  all parameters at once, since most are small: where they lie travels with the launch, as PyTorch's
//               multi-tensor kernels do it. A block works on BLOCK numbers of one parameter

constexpr int MANY = 80;     // parameters a launch: their table must fit into the 4 KB of a kernel's arguments
constexpr int BLOCK = 2048;  // numbers a block

struct Parameters {
    unsigned long long p[MANY], g[MANY], m[MANY], s[MANY]; // addresses; the step of SGD has no s, and perhaps no m
    long long size[MANY];
    int ends[MANY]; // blocks of this parameter and those before it
    int count;
};

// step(p, g, m, s, i) for this thread's numbers of its block's parameter.
template <class F>
__device__ void each_parameter(const Parameters& all, const F& step) {
    int k = 0;
    while (k < all.count - 1 && (int)blockIdx.x >= all.ends[k]) ++k;
    const long long first = ((long long)blockIdx.x - (k ? all.ends[k - 1] : 0)) * BLOCK;
    for (long long i = first + threadIdx.x; i < first + BLOCK && i < all.size[k]; i += blockDim.x)
        step(reinterpret_cast<real*>(all.p[k]), reinterpret_cast<const real*>(all.g[k]), reinterpret_cast<real*>(all.m[k]),
             reinterpret_cast<real*>(all.s[k]), i);
}

// v ← momentum · v + (1 − dampening) · g,  p ← p − lr · v; keep = 1 − dampening. As optim.SGD.
extern "C" __global__ void sgd_step(Parameters all, double lr, double momentum, double keep, double decay, int nesterov) {
    each_parameter(all, [&](real* p, const real* g, real* m, real*, long long i) {
        real v = g[i];
        if (decay != 0) v += (real)decay * p[i];
        if (m) {
            const real kept = (real)momentum * m[i] + (real)keep * v;
            m[i] = kept, v = nesterov ? v + (real)momentum * kept : kept;
        }
        p[i] -= (real)lr * v;
    });
}

// m ← β₁ · m + (1 − β₁) · g,  s ← β₂ · s + (1 − β₂) · g²,  p ← p − rate · m / (√s / root + eps), with
// rate = lr / (1 − β₁ᵗ) and root = √(1 − β₂ᵗ). As optim.Adam, `decoupled` as optim.AdamW.
extern "C" __global__ void adam_step(Parameters all, double lr, double beta1, double beta2, double eps, double decay,
                                     int decoupled, double rate, double root) {
    each_parameter(all, [&](real* p, const real* g, real* m, real* s, long long i) {
        real v = g[i], w = p[i];
        if (decoupled)
            w *= (real)(1 - lr * decay);
        else if (decay != 0)
            v += (real)decay * w;
        const real mean = (real)beta1 * m[i] + (real)(1 - beta1) * v, square = (real)beta2 * s[i] + (real)(1 - beta2) * (v * v);
        m[i] = mean, s[i] = square;
        p[i] = w - (real)rate * (mean / (sqrt(square) / (real)root + (real)eps));
    });
}

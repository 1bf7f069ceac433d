// Local response normalisation and its gradient.
//
// The ladder, for windows of 5 channels of a float32 number:
//   naive      array code: squares, 4 shifted sums, scaled, a power, a product    some 70 bytes forward, 150 backward
//   one pass   a thread a number sums its window; the neighbours of its warp read whole lines, and the other channels of the
//              window come from the cache                                         forward reads 4 and writes 8,
//                                                                                 backward reads 12 and writes 4
//   roots      d^-0.75 = r · √r with r = 1/√d, instead of a power a number
// Windows are summed one by one: differences of running sums are cheaper, but lose the digits of what follows a bright channel.

struct Response { int channels, size; long long count, area; double share, beta, k; }; // share = alpha / size

__device__ inline real shrinkage(real d, double beta) { // d^-beta
    if (beta != 0.75) return pow(d, (real)-beta);
    const real r = 1 / sqrt(d);
    return r * sqrt(r);
}

// Σ term(index) over the channels from `before` below to `after` above that of number i.
template <class F>
__device__ real window(const Response& s, long long i, int before, int after, const F& term) {
    const int c = i / s.area % s.channels;
    real sum = 0;
    for (int j = -smaller(before, c); j <= smaller(after, s.channels - 1 - c); ++j) sum += term(i + j * s.area);
    return sum;
}

// y = x · d^-beta with d = k + share · Σ x² over the channels c - size / 2 ... c + (size - 1) / 2.
extern "C" __global__ void respond(Response s, const real* __restrict__ x, real* __restrict__ y, real* __restrict__ d) {
    for (long long i = thread_of_grid(); i < s.count; i += threads_of_grid()) {
        const real sum = window(s, i, s.size / 2, (s.size - 1) / 2, [&](long long j) { return x[j] * x[j]; });
        const real v = sum * (real)s.share + (real)s.k;
        d[i] = v, y[i] = x[i] * shrinkage(v, s.beta);
    }
}

// dx = g · d^-beta - 2 beta share · x · Σ g x d^(-beta - 1) over the channels whose windows hold this one.
extern "C" __global__ void respond_grad(Response s, const real* __restrict__ g, const real* __restrict__ x,
                                        const real* __restrict__ d, real* __restrict__ dx) {
    for (long long i = thread_of_grid(); i < s.count; i += threads_of_grid()) {
        const real held = window(s, i, (s.size - 1) / 2, s.size / 2,
                                 [&](long long j) { return g[j] * shrinkage(d[j], s.beta) * x[j] / d[j]; });
        dx[i] = g[i] * shrinkage(d[i], s.beta) - (real)(2 * s.beta * s.share) * x[i] * held;
    }
}

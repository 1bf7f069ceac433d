// Batch normalisation with a fused relu, and its gradient.
//
// The ladder, in bytes a float32 number while training:
//   naive        array code: mean, centred, squared, mean, scaled, shifted, relu      forward some 60, backward some 100
//   two passes   moments, then (x − mean) · scale + bias and relu at once             forward read 4, read 4, write 4
//                backward asks x again whether y was > 0: y is not read at all        read 8, read 8, write 4
//   Welford      one pass gives mean and variance, and loses no digit however far from 0 the mean: threads add one number at
//                a time (Welford 1962), warps and slices are merged (Chan, Golub & LeVeque 1983, eq. 2.1)
//   slices       a channel is cut into slices, so that few channels still fill the chip; every block of the second pass merges
//                them itself, in order: no third launch, the same bits in every run

struct Channels { int images, channels, area, slices; }; // x (images, channels, area)

struct Moments { real count, mean, squares; }; // squares = Σ (x − mean)²

__device__ inline Moments merged(const Moments& a, const Moments& b) {
    const real count = a.count + b.count;
    if (count == 0) return a;
    const real delta = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + delta * share, a.squares + b.squares + delta * delta * a.count * share};
}

// visit(index) for this thread's numbers of a slice of a channel.
template <class F>
__device__ void each_of_slice(const Channels& s, int channel, int slice, const F& visit) {
    const long long count = (long long)s.images * s.area, end = count * (slice + 1) / s.slices;
    for (long long i = count * slice / s.slices + threadIdx.x; i < end; i += blockDim.x)
        visit((i / s.area * s.channels + channel) * s.area + i % s.area);
}

// Grid: slices, channels. parts (channels, slices, 3).
extern "C" __global__ void moments(Channels s, const real* __restrict__ x, real* __restrict__ parts) {
    __shared__ real warps[3][WARP];
    Moments own = {0, 0, 0};
    each_of_slice(s, blockIdx.y, blockIdx.x, [&](long long i) {
        const real delta = x[i] - own.mean;
        own.count += 1;
        own.mean += delta / own.count;
        own.squares += delta * (x[i] - own.mean);
    });
    for (int step = 1; step < WARP; step *= 2) {
        const Moments other = {__shfl_down_sync(ALL, own.count, step), __shfl_down_sync(ALL, own.mean, step),
                               __shfl_down_sync(ALL, own.squares, step)};
        own = merged(own, other); // beyond the warp's end other is own; lane 0 sees none of that
    }
    const int warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0) warps[0][warp] = own.count, warps[1][warp] = own.mean, warps[2][warp] = own.squares;
    __syncthreads();
    if (threadIdx.x) return;
    for (unsigned i = 1; i < blockDim.x / WARP; ++i) own = merged(own, {warps[0][i], warps[1][i], warps[2][i]});
    real* part = parts + ((long long)blockIdx.y * s.slices + blockIdx.x) * 3;
    part[0] = own.count, part[1] = own.mean, part[2] = own.squares;
}

struct Norm { real mean, scale, shift; }; // y = (x − mean) · scale + shift

__device__ inline Norm norm_of(real mean, real var, const real* weight, const real* bias, int channel, double eps) {
    const real inverse = 1 / sqrt(var + (real)eps);
    return {mean, weight ? weight[channel] * inverse : inverse, bias ? bias[channel] : real(0)};
}

// Grid: slices, channels. mean and var are read where `parts` is null, else merged from it, and written by slice 0.
extern "C" __global__ void normalize(Channels s, double eps, int cut, const real* __restrict__ x,
                                     const real* __restrict__ parts, real* __restrict__ mean, real* __restrict__ var,
                                     const real* __restrict__ weight, const real* __restrict__ bias, real* __restrict__ y) {
    const int channel = blockIdx.y;
    real m, v;
    if (parts) {
        Moments all = {0, 0, 0};
        for (int i = 0; i < s.slices; ++i) {
            const real* part = parts + ((long long)channel * s.slices + i) * 3;
            all = merged(all, {part[0], part[1], part[2]});
        }
        m = all.mean, v = all.squares / all.count;
        if (blockIdx.x == 0 && threadIdx.x == 0) mean[channel] = m, var[channel] = v;
    } else {
        m = mean[channel], v = var[channel];
    }
    const Norm norm = norm_of(m, v, weight, bias, channel, eps);
    each_of_slice(s, channel, blockIdx.x, [&](long long i) {
        const real value = (x[i] - norm.mean) * norm.scale + norm.shift;
        y[i] = cut ? relu(value) : value;
    });
}

// ĝ: g, or with `cut` g where the result was > 0.
__device__ inline real behind(real g, real x, const Norm& norm, int cut) {
    return cut && !((x - norm.mean) * norm.scale + norm.shift > 0) ? real(0) : g;
}

// Σ ĝ and Σ ĝ · x̂ of each slice. Grid: slices, channels. parts (channels, slices, 2).
extern "C" __global__ void normalize_sums(Channels s, double eps, int cut, const real* __restrict__ g,
                                          const real* __restrict__ x, const real* __restrict__ mean,
                                          const real* __restrict__ var, const real* __restrict__ weight,
                                          const real* __restrict__ bias, real* __restrict__ parts) {
    __shared__ real warps[WARP];
    const int channel = blockIdx.y;
    const Norm norm = norm_of(mean[channel], var[channel], weight, bias, channel, eps);
    const real inverse = 1 / sqrt(var[channel] + (real)eps);
    real sum = 0, product = 0;
    each_of_slice(s, channel, blockIdx.x, [&](long long i) {
        const real v = behind(g[i], x[i], norm, cut);
        sum += v, product += v * ((x[i] - norm.mean) * inverse);
    });
    sum = block_sum(sum, warps), product = block_sum(product, warps);
    if (threadIdx.x) return;
    real* part = parts + ((long long)channel * s.slices + blockIdx.x) * 2;
    part[0] = sum, part[1] = product;
}

// dx = scale · (ĝ − mean ĝ − x̂ · mean(ĝ · x̂)), outside training scale · ĝ; dweight = Σ ĝ · x̂, dbias = Σ ĝ.
// Grid: slices, channels.
extern "C" __global__ void normalize_grad(Channels s, double eps, int cut, int training, const real* __restrict__ g,
                                          const real* __restrict__ x, const real* __restrict__ mean,
                                          const real* __restrict__ var, const real* __restrict__ weight,
                                          const real* __restrict__ bias, const real* __restrict__ parts,
                                          real* __restrict__ dx, real* __restrict__ dweight, real* __restrict__ dbias) {
    const int channel = blockIdx.y;
    const Norm norm = norm_of(mean[channel], var[channel], weight, bias, channel, eps);
    const real inverse = 1 / sqrt(var[channel] + (real)eps);
    real sum = 0, product = 0;
    for (int i = 0; i < s.slices; ++i) {
        const real* part = parts + ((long long)channel * s.slices + i) * 2;
        sum += part[0], product += part[1];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) dweight[channel] = product, dbias[channel] = sum;
    const real count = (real)s.images * s.area, less = training ? sum / count : 0, slope = training ? product / count : 0;
    each_of_slice(s, channel, blockIdx.x, [&](long long i) {
        const real unit = (x[i] - norm.mean) * inverse;
        dx[i] = (behind(g[i], x[i], norm, cut) - less - unit * slope) * norm.scale;
    });
}

// parts[slice][channel] = Σ of a slice of g (images, channels, area). Grid: slices, channels.
extern "C" __global__ void channel_sums(Channels s, const real* __restrict__ g, real* __restrict__ parts) {
    __shared__ real warps[WARP];
    real sum = 0;
    each_of_slice(s, blockIdx.y, blockIdx.x, [&](long long i) { sum += g[i]; });
    sum = block_sum(sum, warps);
    if (threadIdx.x == 0) parts[(long long)blockIdx.x * s.channels + blockIdx.y] = sum;
}

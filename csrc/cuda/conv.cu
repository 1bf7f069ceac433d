// Convolution, its gradient for the images, and its gradient for the weights.
//
// The ladder, for O outputs of K = C · KH · KW products a pixel, P pixels:
//   naive      a thread an output: 2 operations for 8 bytes read, most of them from a cache       (the Numba kernels have it)
//   direct     a thread a pixel, 8 outputs in its registers: each number read serves 8 products. As good as it gets where a
//              group has few outputs; nothing is shared, nothing waits
//   gather     implicit GEMM: y (O, P) = w (O, K) · windows (K, P), tile by tile in shared memory; the windows are never
//              written anywhere. A table says of each k where in the window it lies (16 bytes, read by a warp at once), so no
//              k is divided. An 8 x 8 block in a thread's registers: 128 operations for 64 bytes of shared memory
//   async      two stages: while one is multiplied the other is on its way (cp.async), one barrier a stage
//   wide       weights are packed (K, O) and padded with zeros: 16-byte loads, no question whether a number exists;
//              results leave in 16 bytes where the rows allow
//   tensor     the same stages, multiplied by tensor cores in TF32: 10 bits of each factor, sums in float32
//   split      the gradient of the weights sums over all pixels, and has few outputs: slices of the pixels are summed by
//              blocks of their own, and the slices then in order. The same bits in every run
//
// The gradient for the images is the same gather: of the stride's sh · sw phases each is a convolution of stride 1 whose taps
// are those that meet that phase. Nothing is multiplied by a zero that a stride put there.
// Register and spill counts: tests/cuda_registers.txt. Shares of the ceiling: benchmarks/README.md.

// In the image, from the corner of the window; in the weights (padding: −1). Aligned, so that it is read at once.
struct __align__(16) Tap { int offset, down, right, weight; };

struct Gather {
    int images, groups, rows, taps;      // of one group: outputs, and products of each (padded)
    int channels, h, w;                  // images read: channels of one group
    int oh, ow;                          // outputs of this phase
    int fh, fw;                          // images written
    int sh, sw, top, left;               // output (i, j) looks at a window with corner (i·sh + top, j·sw + left)
    int step_h, step_w, first_h, first_w; // and is written to (i·step_h + first_h, j·step_w + first_w)
    int padded, relu;                    // packed weights are (groups, taps, padded)
};

// packed[q][k][m] = the weight of output m with product k, 0 where there is none. The weight of output m is `stride` further
// than that of output m − 1, that of group q `group` further.
extern "C" __global__ void pack_weights(Gather s, int stride, int group, const Tap* taps, const real* w, real* packed) {
    const long long count = (long long)s.groups * s.taps * s.padded;
    for (long long i = thread_of_grid(); i < count; i += threads_of_grid()) {
        const int m = i % s.padded, k = i / s.padded % s.taps, q = i / s.padded / s.taps, at = taps[k].weight;
        packed[i] = m < s.rows && at >= 0 ? w[(long long)q * group + (long long)m * stride + at] : real(0);
    }
}

// One output pixel: whether there is one, its window's corner, where its plane starts and where it is written.
struct Pixel {
    bool exists;
    int top, left;
    long long corner, to; // in the images read, of channel 0 of the group; in the images written, of output 0 of the group

    __device__ Pixel(const Gather& s, int q, int p) {
        const int n = p / (s.oh * s.ow), i = p / s.ow % s.oh, j = p % s.ow;
        exists = n < s.images;
        top = i * s.sh + s.top, left = j * s.sw + s.left;
        corner = ((long long)n * s.groups + q) * s.channels * s.h * s.w + (long long)top * s.w + left;
        to = ((long long)n * s.groups + q) * s.rows * s.fh * s.fw + (long long)(i * s.step_h + s.first_h) * s.fw +
             j * s.step_w + s.first_w;
    }
    __device__ bool inside(const Gather& s, const Tap& tap) const {
        return exists && within(top + tap.down, s.h) && within(left + tap.right, s.w);
    }
};

constexpr int DIRECT = 8; // outputs a thread of the direct kernel

// Grid: blocks of pixels, blocks of DIRECT outputs, groups.
extern "C" __global__ void
    conv_direct(Gather s, const Tap* __restrict__ taps, const real* __restrict__ x, const real* __restrict__ packed,
                const real* __restrict__ b, real* __restrict__ y) {
    const int q = blockIdx.z, m0 = blockIdx.y * DIRECT;
    const Pixel pixel(s, q, (int)thread_of_grid());
    if (!pixel.exists) return;
    const real* weights = packed + (long long)q * s.taps * s.padded + m0;
    real sum[DIRECT] = {};
    for (int k = 0; k < s.taps; ++k, weights += s.padded) {
        const Tap tap = taps[k];
        const real v = pixel.inside(s, tap) ? x[pixel.corner + tap.offset] : real(0);
        for (int m = 0; m < DIRECT; ++m) sum[m] += v * weights[m];
    }
    for (int m = 0; m < DIRECT && m0 + m < s.rows; ++m) {
        const real v = sum[m] + (b ? b[q * s.rows + m0 + m] : real(0));
        y[pixel.to + (long long)(m0 + m) * s.fh * s.fw] = s.relu ? relu(v) : v;
    }
}

// --- the product of a block: (BM, K) · (K, BN), the factors in stages of BK -----------------------------------------------

constexpr int THREADS = 256;

// PAD numbers more a row: the tensor cores' lanes then read from 32 different banks.
template <int BM, int BN, int BK>
struct __align__(16) Stage {
    static constexpr int PAD = 8, K = BK, M = BM, N = BN;
    real a[BK][BM + PAD], b[BK][BN + PAD];
};

// Each thread multiplies TM rows by TN columns, in runs of LANES that neighbours continue: no bank is asked twice.
template <int BM, int BN, int TM, int TN>
struct Registers {
    typedef Stage<BM, BN, 8> S;
    static_assert(BM / TM * (BN / TN) == THREADS && TM % LANES == 0 && TN % LANES == 0, "a block has THREADS threads");
    real sum[TM][TN] = {};

    __device__ static int row(int i) { return i / LANES * (BM / TM * LANES) + threadIdx.x / (BN / TN) * LANES + i % LANES; }
    __device__ static int column(int j) { return j / LANES * (BN / TN * LANES) + threadIdx.x % (BN / TN) * LANES + j % LANES; }

    __device__ void add(const S& stage) {
#pragma unroll
        for (int k = 0; k < S::K; ++k) {
            Vector<LANES> a[TM / LANES], b[TN / LANES];
#pragma unroll
            for (int i = 0; i < TM; i += LANES) a[i / LANES] = *reinterpret_cast<const Vector<LANES>*>(&stage.a[k][row(i)]);
#pragma unroll
            for (int j = 0; j < TN; j += LANES) b[j / LANES] = *reinterpret_cast<const Vector<LANES>*>(&stage.b[k][column(j)]);
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) sum[i][j] += a[i / LANES].v[i % LANES] * b[j / LANES].v[j % LANES];
        }
    }
    // store(row, column, values): every value of the block once, in runs along a row.
    template <class F>
    __device__ void each(const F& store) const {
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; j += LANES) {
                Vector<LANES> run;
#pragma unroll
                for (int l = 0; l < LANES; ++l) run.v[l] = sum[i][j + l];
                store(row(i), column(j), run);
            }
    }
};

#ifdef TENSOR_CORES
// Each warp multiplies WM rows by WN columns, in pieces of 16 x 8 x 8.
template <int BM, int BN, int WM, int WN>
struct Tensor {
    typedef Stage<BM, BN, 16> S;
    static_assert(BM / WM * (BN / WN) * WARP == THREADS, "a block has THREADS threads");
    float sum[WM / 16][WN / 8][4] = {};

    __device__ static int row(int i) { return threadIdx.x / WARP / (BN / WN) * WM + i * 16 + threadIdx.x % WARP / 4; }
    __device__ static int column(int j) { return threadIdx.x / WARP % (BN / WN) * WN + j * 8; }

    __device__ void add(const S& stage) {
        const int q = threadIdx.x % WARP / 4, r = threadIdx.x % 4;
#pragma unroll
        for (int k = r; k < S::K + r; k += 8) {
            unsigned a[WM / 16][4], b[WN / 8][2];
#pragma unroll
            for (int i = 0; i < WM / 16; ++i) {
                a[i][0] = to_tf32(stage.a[k][row(i)]), a[i][1] = to_tf32(stage.a[k][row(i) + 8]);
                a[i][2] = to_tf32(stage.a[k + 4][row(i)]), a[i][3] = to_tf32(stage.a[k + 4][row(i) + 8]);
            }
#pragma unroll
            for (int j = 0; j < WN / 8; ++j)
                b[j][0] = to_tf32(stage.b[k][column(j) + q]), b[j][1] = to_tf32(stage.b[k + 4][column(j) + q]);
#pragma unroll
            for (int i = 0; i < WM / 16; ++i)
#pragma unroll
                for (int j = 0; j < WN / 8; ++j) multiply_tf32(sum[i][j], a[i], b[j]);
        }
    }
    template <class F>
    __device__ void each(const F& store) const {
        const int r = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < WM / 16; ++i)
#pragma unroll
            for (int j = 0; j < WN / 8; ++j) {
                store(row(i), column(j) + 2 * r, Vector<2>{{sum[i][j][0], sum[i][j][1]}});
                store(row(i) + 8, column(j) + 2 * r, Vector<2>{{sum[i][j][2], sum[i][j][3]}});
            }
    }
};
#endif

// Multiply `steps` stages: load(step, stage) starts the copies of one. The barrier says both that this stage is there for all
// and that nobody reads the other one any more, which may then be filled.
template <class Product, class Load>
__device__ void multiply(Product& product, typename Product::S* stages, int steps, const Load& load) {
    load(0, stages[0]);
    for (int step = 0; step < steps; ++step) {
        copies_arrived();
        __syncthreads();
        if (step + 1 < steps) load(step + 1, stages[(step + 1) % 2]);
        product.add(stages[step % 2]);
    }
}

// Write N values that lie side by side, as one where they may.
template <int N>
__device__ void store_run(real* to, const Vector<N>& run, int count, bool as_one) {
    if (as_one && count >= N)
        *reinterpret_cast<Vector<N>*>(to) = run;
    else
        for (int l = 0; l < N && l < count; ++l) to[l] = run.v[l];
}

// --- gather: forward, and the gradient for the images ------------------------------------------------------------------------

// Grid: tiles of pixels, tiles of outputs, groups.
template <class Product>
__device__ void gather(typename Product::S* stages, const Gather& s, const Tap* __restrict__ taps,
                       const real* __restrict__ x, const real* __restrict__ packed, const real* __restrict__ b,
                       real* __restrict__ y) {
    typedef typename Product::S S;
    const int q = blockIdx.z, m0 = blockIdx.y * S::M, p0 = blockIdx.x * S::N, pixels = s.images * s.oh * s.ow;
    const int own = threadIdx.x % S::N; // this thread's column of b
    const Pixel pixel(s, q, p0 + own);
    const real* weights = packed + (long long)q * s.taps * s.padded + m0;
    Product product;
    multiply(product, stages, s.taps / S::K, [&](int step, S& stage) {
        const int k0 = step * S::K;
        for (int i = threadIdx.x; i < S::K * S::M / LANES; i += THREADS) {
            const int k = i / (S::M / LANES), m = i % (S::M / LANES) * LANES;
            copy_async<LANES>(&stage.a[k][m], weights + (long long)(k0 + k) * s.padded + m, true);
        }
#pragma unroll
        for (int k = threadIdx.x / S::N; k < S::K; k += THREADS / S::N) {
            const Tap tap = taps[k0 + k];
            const bool inside = pixel.inside(s, tap);
            copy_async<1>(&stage.b[k][own], x + (inside ? pixel.corner + tap.offset : 0), inside);
        }
    });
    product.each([&](int row, int column, auto run) {
        constexpr int N = sizeof(run) / sizeof(real);
        const int m = m0 + row, p = p0 + column;
        if (m >= s.rows || p >= pixels) return;
        const real shift = b ? b[q * s.rows + m] : real(0);
#pragma unroll
        for (int l = 0; l < N; ++l) run.v[l] = s.relu ? relu(run.v[l] + shift) : run.v[l] + shift;
        const long long plane = (long long)m * s.fh * s.fw;
        if (s.step_w == 1 && s.fw == s.ow && s.ow % N == 0) { // a run lies in one row, and whole rows are written
            store_run(y + Pixel(s, q, p).to + plane, run, N, true);
        } else {
            for (int l = 0; l < N && p + l < pixels; ++l) y[Pixel(s, q, p + l).to + plane] = run.v[l];
        }
    });
}

#define GATHER(name, ...)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                  \
        name(Gather s, const Tap* taps, const real* x, const real* packed, const real* b, real* y) {                       \
        __shared__ __VA_ARGS__::S stages[2];                                                                               \
        gather<__VA_ARGS__>(stages, s, taps, x, packed, b, y);                                                             \
    }

// --- scatter's adjoint: the gradient for the weights -------------------------------------------------------------------------

// parts[slice][o][k] = Σ over the pixels of a slice of g[o][p] · windows[k][p].
// Grid: tiles of products k, tiles of outputs, groups · slices. Here `taps` is not padded.
template <class Product>
__device__ void weigh(typename Product::S* stages, const Gather& s, int slices, const Tap* __restrict__ taps,
                      const real* __restrict__ g, const real* __restrict__ x, real* __restrict__ parts) {
    typedef typename Product::S S;
    const int q = blockIdx.z % s.groups, slice = blockIdx.z / s.groups, m0 = blockIdx.y * S::M, k0 = blockIdx.x * S::N;
    const int steps = ceil_div(s.images * s.oh * s.ow, S::K), first = (int)((long long)steps * slice / slices);
    const int last = (int)((long long)steps * (slice + 1) / slices), area = s.oh * s.ow;
    const int own = threadIdx.x % S::K; // this thread's row of a and b: one pixel of every K
    Product product;
    multiply(product, stages, last - first, [&](int step, S& stage) {
        const int p = (first + step) * S::K + own;
        const Pixel pixel(s, q, p);
        const long long from = ((long long)(p / area) * s.groups + q) * s.rows * area + p % area;
        for (int m = threadIdx.x / S::K; m < S::M; m += THREADS / S::K) {
            const bool inside = pixel.exists && m0 + m < s.rows;
            copy_async<1>(&stage.a[own][m], g + (inside ? from + (long long)(m0 + m) * area : 0), inside);
        }
        for (int k = threadIdx.x / S::K; k < S::N; k += THREADS / S::K) {
            const Tap tap = taps[smaller(k0 + k, s.taps - 1)];
            const bool inside = k0 + k < s.taps && pixel.inside(s, tap);
            copy_async<1>(&stage.b[own][k], x + (inside ? pixel.corner + tap.offset : 0), inside);
        }
    });
    real* part = parts + ((long long)slice * s.groups + q) * s.rows * s.taps;
    product.each([&](int row, int column, auto run) {
        constexpr int N = sizeof(run) / sizeof(real);
        const int m = m0 + row, k = k0 + column;
        if (m < s.rows && k < s.taps) store_run(part + (long long)m * s.taps + k, run, s.taps - k, s.taps % N == 0);
    });
}

#define WEIGH(name, ...)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                  \
        name(Gather s, int slices, const Tap* taps, const real* g, const real* x, real* parts) {                           \
        __shared__ __VA_ARGS__::S stages[2];                                                                               \
        weigh<__VA_ARGS__>(stages, s, slices, taps, g, x, parts);                                                          \
    }

// y[i] = Σ parts[slice][i], in order.
extern "C" __global__ void sum_slices(int slices, long long count, const real* __restrict__ parts, real* __restrict__ y) {
    for (long long i = thread_of_grid(); i < count; i += threads_of_grid()) {
        real sum = parts[i];
        for (int slice = 1; slice < slices; ++slice) sum += parts[slice * count + i];
        y[i] = sum;
    }
}

// Tiles for many, some and few outputs: rows x columns.
GATHER(conv_128x128, Registers<128, 128, 8, 8>)
GATHER(conv_64x64, Registers<64, 64, 4, 4>)
GATHER(conv_16x256, Registers<16, 256, 4, 4>)
WEIGH(grad_w_128x128, Registers<128, 128, 8, 8>)
WEIGH(grad_w_64x64, Registers<64, 64, 4, 4>)
WEIGH(grad_w_16x256, Registers<16, 256, 4, 4>)
#ifdef TENSOR_CORES
GATHER(tensor_conv_128x128, Tensor<128, 128, 64, 32>)
GATHER(tensor_conv_64x128, Tensor<64, 128, 32, 32>)
GATHER(tensor_conv_16x256, Tensor<16, 256, 16, 32>)
WEIGH(tensor_grad_w_128x128, Tensor<128, 128, 64, 32>)
WEIGH(tensor_grad_w_64x128, Tensor<64, 128, 32, 32>)
WEIGH(tensor_grad_w_16x256, Tensor<16, 256, 16, 32>)
#endif

// What every kernel file stands on: it is compiled after this text, once for each REAL, float and double. No #include, so
// that NVRTC compiles it anywhere. The four primitives at the end are machine instructions; tests/cuda_on_cpu.hpp has their
// meaning in C++, and so the rest of these files runs on a processor too.
//
// Images are (N, C, H, W) in C order. A thread is told apart by threadIdx, a block of threads by blockIdx. Sums are taken in
// an order fixed by the shapes alone and nothing is added atomically: the same bits in every run.

typedef REAL real;

constexpr int WARP = 32;                                  // threads that go in step
[[maybe_unused]] constexpr int LANES = 16 / sizeof(real); // numbers in the widest load or store
constexpr unsigned ALL = 0xffffffffu;                     // every lane of a warp

template <int N>
struct __align__(N * sizeof(real)) Vector { real v[N]; };

__device__ inline long long thread_of_grid() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline long long threads_of_grid() { return (long long)gridDim.x * blockDim.x; }
__device__ inline real infinity() { return (real)__longlong_as_double(0x7ff0000000000000LL); }
__device__ inline bool within(int i, int size) { return (unsigned)i < (unsigned)size; }
__device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; } // for a >= 0
__device__ inline int larger(int a, int b) { return a > b ? a : b; }
__device__ inline int smaller(int a, int b) { return a < b ? a : b; }
__device__ inline real relu(real x) { return x <= 0 ? real(0) : x; } // NaN stays NaN

// Σ over the block, given to every thread. `shared` holds one number a warp; the order of the sum is that of a tree.
__device__ inline real block_sum(real value, real* shared) {
    for (int step = WARP / 2; step; step /= 2) value += __shfl_xor_sync(ALL, value, step);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = value;
    __syncthreads();
    real sum = 0;
    for (unsigned i = 0; i < blockDim.x / WARP; ++i) sum += shared[i];
    __syncthreads(); // before `shared` is used again
    return sum;
}

#ifndef CUDA_ON_CPU
// Copy N numbers from global into shared memory, zeros unless `inside`. From sm_80 on they go there without waiting, and
// arrive at the latest when copies_arrived() returns; before, at once.
template <int N>
__device__ inline void copy_async(real* to, const real* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
                 "n"(N * (int)sizeof(real)), "r"(inside ? N * (int)sizeof(real) : 0)
                 : "memory");
#else
    Vector<N> v = {};
    if (inside) v = *reinterpret_cast<const Vector<N>*>(from);
    *reinterpret_cast<Vector<N>*>(to) = v;
#endif
}

__device__ inline void copies_arrived() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// x rounded to TF32: 10 bits after the point instead of 23, the exponents of float32.
__device__ inline unsigned to_tf32(float x) {
    unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return bits;
}

// d += a · b by one warp on its tensor cores: a (16, 8), b (8, 8), d (16, 8), spread over the lanes. With q = lane / 4 and
// r = lane % 4, a lane holds a of (q, r), (q + 8, r), (q, r + 4), (q + 8, r + 4), b of (r, q), (r + 4, q), and d of
// (q, 2r), (q, 2r + 1), (q + 8, 2r), (q + 8, 2r + 1). PTX ISA, "Matrix fragments for mma.m16n8k8".
__device__ inline void multiply_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif

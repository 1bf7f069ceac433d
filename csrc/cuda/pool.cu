// Max and average pooling and their gradients.
//
// The ladder:
//   naive     a thread an output walks its window; neighbours take neighbouring outputs, whose windows share cache lines:
//             memory sees each pixel once                           4 bytes in for a pixel, 5 out for an output
//   a byte    what max pooling remembers is the number of the tap that won: a byte where it fits, not an index of eight
//   gather    in the gradient every pixel asks the windows that hold it, instead of every window adding to its pixels: no
//             atomics, each pixel written once, the same bits in every run
// All are bound by memory, and the naive forward already reads and writes each number once.

struct Pool {
    int planes, h, w, oh, ow; // images · channels
    int kh, kw, sh, sw, ph, pw, dh, dw;
};

// y = the largest value of each window, index = the number of its tap, k · KW + l. As torch: padding is -inf, of equal values
// the first wins, a NaN beats every number, of several the last wins.
template <class I>
__device__ void max_pool(const Pool& s, const real* __restrict__ x, real* __restrict__ y, I* __restrict__ index) {
    const long long count = (long long)s.planes * s.oh * s.ow;
    for (long long i = thread_of_grid(); i < count; i += threads_of_grid()) {
        const int j = i % s.ow, row = i / s.ow % s.oh, top = row * s.sh - s.ph, left = j * s.sw - s.pw;
        const real* plane = x + i / s.ow / s.oh * s.h * s.w;
        real best = -infinity();
        int where = -1;
        for (int k = 0; k < s.kh; ++k)
            for (int l = 0; l < s.kw; ++l) {
                const int down = top + k * s.dh, right = left + l * s.dw;
                if (!within(down, s.h) || !within(right, s.w)) continue;
                const real v = plane[(long long)down * s.w + right];
                if (where < 0 || v > best || v != v) best = v, where = k * s.kw + l;
            }
        y[i] = best, index[i] = where < 0 ? 0 : where;
    }
}

extern "C" __global__ void max_pool_byte(Pool s, const real* x, real* y, unsigned char* index) { max_pool(s, x, y, index); }
extern "C" __global__ void max_pool_int(Pool s, const real* x, real* y, int* index) { max_pool(s, x, y, index); }

// dx[pixel] = Σ value(output, tap) over the windows that hold the pixel, tap by tap.
template <class F>
__device__ void each_pixel(const Pool& s, real* __restrict__ dx, const F& value) {
    const long long count = (long long)s.planes * s.h * s.w;
    for (long long i = thread_of_grid(); i < count; i += threads_of_grid()) {
        const int right = i % s.w + s.pw, down = i / s.w % s.h + s.ph;
        const long long plane = i / s.w / s.h;
        real sum = 0;
        for (int k = 0; k < s.kh; ++k)
            for (int l = 0; l < s.kw; ++l) {
                const int top = down - k * s.dh, left = right - l * s.dw; // of the window that has the pixel at this tap
                if (top < 0 || left < 0 || top % s.sh || left % s.sw || top / s.sh >= s.oh || left / s.sw >= s.ow) continue;
                sum += value(plane, top / s.sh * s.ow + left / s.sw, k * s.kw + l);
            }
        dx[i] = sum;
    }
}

template <class I>
__device__ void max_pool_grad(const Pool& s, const real* __restrict__ g, const I* __restrict__ index, real* __restrict__ dx) {
    each_pixel(s, dx, [&](long long plane, int at, int tap) {
        const long long output = plane * s.oh * s.ow + at;
        return index[output] == tap ? g[output] : real(0);
    });
}

extern "C" __global__ void max_pool_grad_byte(Pool s, const real* g, const unsigned char* index, real* dx) {
    max_pool_grad(s, g, index, dx);
}
extern "C" __global__ void max_pool_grad_int(Pool s, const real* g, const int* index, real* dx) {
    max_pool_grad(s, g, index, dx);
}

// y = Σ over each window / count (OH, OW).
extern "C" __global__ void avg_pool(Pool s, const real* __restrict__ x, const real* __restrict__ count, real* __restrict__ y) {
    const long long size = (long long)s.planes * s.oh * s.ow;
    for (long long i = thread_of_grid(); i < size; i += threads_of_grid()) {
        const int j = i % s.ow, row = i / s.ow % s.oh, top = row * s.sh - s.ph, left = j * s.sw - s.pw;
        const real* plane = x + i / s.ow / s.oh * s.h * s.w;
        real sum = 0;
        for (int k = larger(top, 0); k < smaller(top + s.kh, s.h); ++k)
            for (int l = larger(left, 0); l < smaller(left + s.kw, s.w); ++l) sum += plane[(long long)k * s.w + l];
        y[i] = sum / count[row * s.ow + j];
    }
}

extern "C" __global__ void avg_pool_grad(Pool s, const real* __restrict__ g, const real* __restrict__ count,
                                         real* __restrict__ dx) {
    each_pixel(s, dx, [&](long long plane, int at, int) { return g[plane * s.oh * s.ow + at] / count[at]; });
}

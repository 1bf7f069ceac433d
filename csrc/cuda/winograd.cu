// Winograd's convolution F(4x4, 3x3): a 3 x 3 convolution of stride 1 with a quarter of the multiplications.
// Winograd 1980; Lavin & Gray 2016, section 4.
//
// The ladder, for tiles of 4 x 4 outputs:
//   gather      9 products an output and channel (conv.cu)
//   winograd    a tile of 6 x 6 pixels and the kernel are transformed, Bᵀ d B and G g Gᵀ; 36 products give 16 outputs, 2.25
//               each; the inverse transform Aᵀ m A adds them up. Summed over channels, the products are 36 matrix products,
//               which the matrix library does for all at once
//   in order    a thread a tile; neighbours take neighbouring tiles: transformed numbers are written side by side
// Bytes: the transformed images are 36/16 of the images, written and read once, the products likewise: it pays from some 32
// channels on, where those bytes are few beside the products. Errors are those of a tile, some 10 times the direct kernel's.
//
// Layouts: weights (36, groups, O, C), images (36, groups, C, tiles), products (36, groups, O, tiles), O and C of one group.

struct Tiles {
    int images, groups, channels, rows; // of one group: channels in, outputs
    int h, w, oh, ow, ph, pw;
    int down, right;  // tiles of an image
    int flipped;      // the gradient for the images: kernels turned by 180°, outputs and channels exchanged
    int relu;
};

// y = Bᵀ x along one line.
__device__ inline void transform_in(const real (&x)[6], real (&y)[6]) {
    y[0] = 4 * x[0] - 5 * x[2] + x[4];
    const real a = x[4] - 4 * x[2], b = x[3] - 4 * x[1], c = x[4] - x[2], d = 2 * (x[3] - x[1]);
    y[1] = a + b, y[2] = a - b, y[3] = c + d, y[4] = c - d;
    y[5] = 4 * x[1] - 5 * x[3] + x[5];
}

// y = G x along one line.
__device__ inline void transform_weights(const real (&x)[3], real (&y)[6]) {
    const real a = -(x[0] + x[2]) / 6, b = -x[1] / 6, c = (x[0] + 4 * x[2]) / 24, d = x[1] / 12;
    y[0] = x[0] / 4, y[1] = a + b, y[2] = a - b, y[3] = c + d, y[4] = c - d, y[5] = x[2];
}

// y = Aᵀ x along one line.
__device__ inline void transform_out(const real (&x)[6], real (&y)[4]) {
    const real a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
    y[0] = x[0] + a + c, y[1] = b + 2 * d, y[2] = a + 4 * c, y[3] = b + 8 * d + x[5];
}

// w (groups · O, C, 3, 3), for `flipped` (groups · C, O, 3, 3) -> to (36, groups, O, C).
extern "C" __global__ void winograd_weights(Tiles s, const real* __restrict__ w, real* __restrict__ to) {
    const long long count = (long long)s.groups * s.rows * s.channels;
    for (long long i = thread_of_grid(); i < count; i += threads_of_grid()) {
        const int c = i % s.channels, o = i / s.channels % s.rows, q = i / s.channels / s.rows;
        const real* from =
            w + 9 * (s.flipped ? ((long long)q * s.channels + c) * s.rows + o : ((long long)q * s.rows + o) * s.channels + c);
        real half[3][6], line[6];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            real x[3];
#pragma unroll
            for (int l = 0; l < 3; ++l) x[l] = from[s.flipped ? 8 - (l * 3 + k) : l * 3 + k];
            transform_weights(x, half[k]);
        }
#pragma unroll
        for (int k = 0; k < 6; ++k) {
            const real x[3] = {half[0][k], half[1][k], half[2][k]};
            transform_weights(x, line);
#pragma unroll
            for (int l = 0; l < 6; ++l) to[(k * 6 + l) * count + i] = line[l];
        }
    }
}

// x (N, groups · C, H, W) -> to (36, groups, C, tiles).
extern "C" __global__ void winograd_images(Tiles s, const real* __restrict__ x, real* __restrict__ to) {
    const int tiles = s.images * s.down * s.right;
    const long long count = (long long)s.groups * s.channels * tiles;
    for (long long i = thread_of_grid(); i < count; i += threads_of_grid()) {
        const int tile = i % tiles, channel = i / tiles; // of all groups
        const int n = tile / (s.down * s.right), top = tile / s.right % s.down * 4 - s.ph, left = tile % s.right * 4 - s.pw;
        const real* from = x + ((long long)n * s.groups * s.channels + channel) * s.h * s.w;
        real half[6][6], line[6];
#pragma unroll
        for (int l = 0; l < 6; ++l) {
            real v[6];
#pragma unroll
            for (int k = 0; k < 6; ++k)
                v[k] = within(top + k, s.h) && within(left + l, s.w) ? from[(long long)(top + k) * s.w + left + l] : real(0);
            transform_in(v, half[l]);
        }
#pragma unroll
        for (int k = 0; k < 6; ++k) {
            const real v[6] = {half[0][k], half[1][k], half[2][k], half[3][k], half[4][k], half[5][k]};
            transform_in(v, line);
#pragma unroll
            for (int l = 0; l < 6; ++l) to[(k * 6 + l) * count + i] = line[l];
        }
    }
}

// products (36, groups, O, tiles) -> y (N, groups · O, OH, OW), plus b (groups · O).
extern "C" __global__ void winograd_results(Tiles s, const real* __restrict__ products, const real* __restrict__ b,
                                            real* __restrict__ y) {
    const int tiles = s.images * s.down * s.right;
    const long long count = (long long)s.groups * s.rows * tiles;
    for (long long i = thread_of_grid(); i < count; i += threads_of_grid()) {
        const int tile = i % tiles, output = i / tiles; // of all groups
        const int n = tile / (s.down * s.right), top = tile / s.right % s.down * 4, left = tile % s.right * 4;
        real* to = y + (((long long)n * s.groups * s.rows + output) * s.oh + top) * s.ow + left;
        const real shift = b ? b[output] : real(0);
        real half[6][4], line[4];
#pragma unroll
        for (int l = 0; l < 6; ++l) {
            real v[6];
#pragma unroll
            for (int k = 0; k < 6; ++k) v[k] = products[(k * 6 + l) * count + i];
            transform_out(v, half[l]);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const real v[6] = {half[0][k], half[1][k], half[2][k], half[3][k], half[4][k], half[5][k]};
            transform_out(v, line);
#pragma unroll
            for (int l = 0; l < 4; ++l)
                if (top + k < s.oh && left + l < s.ow) to[k * s.ow + l] = s.relu ? relu(line[l] + shift) : line[l] + shift;
        }
    }
}

// Resizing that is linear along each axis: every output is a weighted sum of a small rectangle of pixels.
//
// The ladder:
//   naive     array code: one axis after the other, tap by tap, each a pass through memory
//   fused     a thread an output, both axes at once: windows are short, and neighbours share their pixels in the cache. The
//             gradient is the same kernel with the windows turned round

// y[i][j] = Σ_k Σ_l row_weight[i][k] · column_weight[j][l] · x[k][l], the inputs of output i being first[i] ... last[i] − 1.
extern "C" __global__ void resample(long long planes, int h, int w, int oh, int ow, int row_width, int column_width,
                                    const int* __restrict__ row_first, const int* __restrict__ row_last,
                                    const real* __restrict__ row_weight, const int* __restrict__ column_first,
                                    const int* __restrict__ column_last, const real* __restrict__ column_weight,
                                    const real* __restrict__ x, real* __restrict__ y) {
    const long long count = planes * oh * ow;
    for (long long at = thread_of_grid(); at < count; at += threads_of_grid()) {
        const int j = at % ow, i = at / ow % oh;
        const real* plane = x + at / ow / oh * h * w;
        real sum = 0;
        for (int k = row_first[i]; k < row_last[i]; ++k) {
            real line = 0;
            for (int l = column_first[j]; l < column_last[j]; ++l)
                line += column_weight[(long long)j * column_width + l - column_first[j]] * plane[(long long)k * w + l];
            sum += row_weight[(long long)i * row_width + k - row_first[i]] * line;
        }
        y[at] = sum;
    }
}

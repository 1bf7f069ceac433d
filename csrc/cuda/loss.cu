// Softmax and cross-entropy in one, and the gradient.
//
// The ladder, for C classes:
//   naive      array code: largest, shifted, exponentials, their sum, logarithm, shares, product, sum: ten passes and more
//   fused      a thread a position looks at its classes three times: the largest, Σ exp, the loss; the second and third
//              time they come from the cache                                          memory sees 4 C bytes a position
//   a warp     many classes that lie side by side are shared by the lanes of a warp; else neighbouring threads take
//              neighbouring positions, whose classes lie side by side for each class
// The gradient reads the logits once more and writes once.

struct Classes {
    long long positions;
    int classes, area, ignored, lanes; // x (images, classes, area); lanes: threads for a position, 1 or WARP
    double smoothing;
};

__device__ inline real largest(real a, real b) { return b > a || b != b ? b : a; } // NaN wins

__device__ inline real lanes_sum(real v, int lanes) {
    for (int step = lanes / 2; step; step /= 2) v += __shfl_xor_sync(ALL, v, step);
    return v;
}
__device__ inline real lanes_largest(real v, int lanes) {
    for (int step = lanes / 2; step; step /= 2) v = largest(v, __shfl_xor_sync(ALL, v, step));
    return v;
}

// One position: its logits, its class and what each class counts.
struct Position {
    const real *x, *weight;
    long long step; // from class to class
    int target, first, lanes, classes, ignored;
    real hit, miss; // what the target counts beside, and every class
    bool wrong;     // a class that there is not

    __device__ Position(const Classes& s, long long i, const real* logits, const long long* t, const real* w)
        : x(logits + i / s.area * s.classes * s.area + i % s.area), weight(w), step(s.area), target((int)t[i]),
          first(s.lanes > 1 ? threadIdx.x % WARP : 0), lanes(s.lanes), classes(s.classes), ignored(t[i] == s.ignored),
          hit((real)(1 - s.smoothing)), miss((real)(s.smoothing / s.classes)), wrong(!ignored && (t[i] < 0 || t[i] >= s.classes)) {}

    __device__ real share(int c) const { return ignored ? real(0) : weight[c] * ((c == target ? hit : real(0)) + miss); }
    __device__ real top() const {
        real v = -infinity();
        for (int c = first; c < classes; c += lanes) v = largest(v, x[c * step]);
        return lanes_largest(v, lanes);
    }
};

// loss = −Σ q_c · log softmax(x)_c, lse = log Σ exp(x_c − top). A class that there is not gives NaN.
extern "C" __global__ void cross_entropy(Classes s, const real* __restrict__ x, const long long* __restrict__ t,
                                         const real* __restrict__ weight, real* __restrict__ loss, real* __restrict__ lse) {
    const long long i = thread_of_grid() / s.lanes;
    if (i >= s.positions) return; // whole warps, where lanes work together
    const Position p(s, i, x, t, weight);
    const real top = p.top();
    real sum = 0, total = 0;
    for (int c = p.first; c < s.classes; c += s.lanes) sum += exp(p.x[c * p.step] - top);
    const real log_sum = log(lanes_sum(sum, s.lanes));
    for (int c = p.first; c < s.classes; c += s.lanes) {
        const real q = p.share(c);
        if (q != 0) total -= q * (p.x[c * p.step] - top - log_sum); // where q is 0, even −∞ counts nothing
    }
    total = lanes_sum(total, s.lanes);
    if (p.first == 0) loss[i] = p.wrong ? infinity() - infinity() : total, lse[i] = log_sum;
}

// dx_c = g · (softmax(x)_c · Σ q − q_c).
extern "C" __global__ void cross_entropy_grad(Classes s, const real* __restrict__ g, const real* __restrict__ x,
                                              const long long* __restrict__ t, const real* __restrict__ lse,
                                              const real* __restrict__ weight, real* __restrict__ dx) {
    const long long i = thread_of_grid() / s.lanes;
    if (i >= s.positions) return;
    const Position p(s, i, x, t, weight);
    const real top = p.top();
    real all = 0;
    for (int c = p.first; c < s.classes; c += s.lanes) all += p.share(c);
    all = lanes_sum(all, s.lanes);
    real* to = dx + (p.x - x);
    for (int c = p.first; c < s.classes; c += s.lanes)
        to[c * p.step] = g[i] * (exp(p.x[c * p.step] - top - lse[i]) * all - p.share(c));
}

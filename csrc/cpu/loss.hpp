// Cross entropy and its gradient.
//
// The ladder, in passes over logits of C classes for P positions:
//   naive       array code: softmax, its logarithm, a table of all targets' shares, their product, its sum    some 12
//   one pass    a block of positions at a time: largest, sum of exponentials, logarithm; no table of shares: a class
//               that is the target's number has one                        forward reads 4 bytes a float32 logit,
//                                                                          backward reads 4 and writes 4
//   turned      the block is turned in the first cache so that positions lie side by side: vectors are full for 2 classes as
//               for 1000, and no sum runs across a vector
//   polynomials exp and log by vectors (functions.hpp)
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

// f(first position, their number, z, room) for blocks of positions: the logit of class j at position first + i is
// z[j * room + i], 0 beyond their number. Gives whether f was true of all.
template <class T, class F>
bool each_block_of_positions(int threads, Image<const T> x, const F& f) {
    const Index total = pixels(x), room = round_up(min<Index>(512, max<Index>(1, 8192 / x.c)), lanes<T>);
    const Index tasks = ceil_div(total, room);
    Buffer<unsigned char> good(tasks + 1);
    parallel(total * x.c < (1 << 14) ? 1 : threads, tasks, [&](Index task) {
        T* z = scratch<T>(0, x.c * room);
        const Index first = task * room, count = min(room, total - first);
        if (count < room) memset(z, 0, static_cast<size_t>(x.c * room) * sizeof(T));
        transpose<T>(x.data + first * x.pitch, x.pitch, count, x.c, z, room);
        good.data[task] = f(first, count, z, room);
    });
    bool all = true;
    for (Index task = 0; task < tasks; ++task) all = all && good.data[task];
    return all;
}

// max x over the classes, for a vector of positions.
template <class T>
MINIDL_INLINE V<T> largest(const T* z, Index classes, Index room) {
    V<T> top = load(z);
    for (Index j = 1; j < classes; ++j) {
        const V<T> v = load(z + j * room);
        top = where_greater<T>(v, top, v, top);
    }
    return top;
}

// lse = log Σ exp(x - max x) and loss = -Σ q · (x - lse), where q is weight · ((1 - smoothing) · [target] + smoothing / C), or 0
// for targets that are ignored. Where q is 0, even an x of -∞ counts nothing. False if a target is no class.
template <class T>
bool cross_entropy(int threads, const Labels& labels, Image<const T> x, const T* weight, T* loss, T* lse) {
    const T even = static_cast<T>(labels.smoothing / static_cast<double>(x.c)), own = static_cast<T>(1 - labels.smoothing);
    return each_block_of_positions<T>(threads, x, [=](Index first, Index count, const T* block, Index room) {
        const Index classes = x.c;
        const V<T> zero{}, one = broadcast<T>(1), ignored = broadcast<T>(static_cast<T>(labels.ignored));
        V<T> missing{};
        each<T>(count, [&](Index i, auto how) {
            const T* z = block + i;
            const V<T> top = largest(z, classes, room);
            V<T> sum{};
            for (Index start = 0; start < classes; start += 64) { // sums of sums: they lose fewer digits
                V<T> part{};
                for (Index j = start; j < min(start + 64, classes); ++j) part += exponentials<T>(load(z + j * room) - top);
                sum += part;
            }
            const V<T> log = logarithms<T>(sum), target = how.widened(labels.target + first + i);
            V<T> total{}, found = where_equal<T>(target, ignored, one, zero);
            for (Index j = 0; j < classes; ++j) {
                const V<T> hit = where_equal<T>(target, broadcast<T>(static_cast<T>(j)), one, zero);
                const V<T> q = weight[j] * (own * hit + even);
                found += hit;
                total += where_equal<T>(q, zero, zero, q * (load(z + j * room) - top - log));
            }
            missing += where_equal<T>(found, zero, one, zero);
            how.store(lse + first + i, log);
            how.store(loss + first + i, where_equal<T>(target, ignored, zero, zero - total));
        });
        T all = 0;
        for (int k = 0; k < lanes<T>; ++k) all += missing[k];
        return all == 0;
    });
}

// dx = g · (exp(x - max x - lse) · Σ q - q); max x is taken again: max x + lse would lose the digits of lse.
template <class T>
void cross_entropy_grad(int threads, const Labels& labels, Image<const T> x, const T* weight, const T* g, const T* lse,
                        Image<T> dx) {
    const T even = static_cast<T>(labels.smoothing / static_cast<double>(x.c)), own = static_cast<T>(1 - labels.smoothing);
    double total = 0;
    for (Index j = 0; j < x.c; ++j) total += weight[j];
    const T spread = static_cast<T>(total * labels.smoothing / static_cast<double>(x.c));
    each_block_of_positions<T>(threads, x, [=](Index first, Index count, T* block, Index room) {
        const Index classes = x.c;
        each<T>(count, [&](Index i, auto how) {
            T* z = block + i;
            const V<T> zero{}, top = largest<T>(z, classes, room), log = how.load(lse + first + i);
            const V<T> target = how.widened(labels.target + first + i), ignored = broadcast<T>(static_cast<T>(labels.ignored));
            const V<T> share = where_equal<T>(target, ignored, zero, how.load(g + first + i));
            V<T> all = broadcast<T>(spread);
            for (Index j = 0; j < classes; ++j)
                all += where_equal<T>(target, broadcast<T>(static_cast<T>(j)), broadcast<T>(weight[j] * own), zero);
            for (Index j = 0; j < classes; ++j) {
                const V<T> at = broadcast<T>(static_cast<T>(j));
                const V<T> q = where_equal<T>(target, at, broadcast<T>(weight[j] * own), zero) + weight[j] * even;
                store<T>(z + j * room, share * (exponentials<T>(load(z + j * room) - top - log) * all - q));
            }
        });
        transpose<T>(block, room, classes, count, dx.data + first * dx.pitch, dx.pitch);
        return true;
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

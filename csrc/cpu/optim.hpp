// One step of SGD or Adam for all parameters.
//
// The ladder, in bytes an element of float32 for Adam, which is bound by memory:
//   array code   ten operations, each with an array for its result          100 and more, and fresh pages
//   one pass     p, m and s read and written, g read once                   28: at 59 to 76 GB/s on one core, where two
//                million parameters half fit into the L3 cache (32 MB), at 114 on two
// Blocks of all parameters are the tasks, so many small parameters cost one call.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

constexpr Index update_block = 8192; // elements of a task

template <class T>
MINIDL_INLINE V<T> roots(V<T> x) {
    for (int j = 0; j < lanes<T>; ++j) x[j] = root(x[j]);
    return x;
}

template <class T>
MINIDL_INLINE V<T> take(const T* p, Index count) {
    return count == lanes<T> ? load(p) : load_part(p, count);
}

template <class T>
MINIDL_INLINE void put(T* p, V<T> v, Index count) {
    count == lanes<T> ? store(p, v) : store_part(p, v, count);
}

// update(parameter, i, j) for pieces i ... j - 1 of every parameter.
template <class T, class F>
void update_all(int threads, const Update<T>* list, Index count, const F& update) {
    Index tasks = 0;
    for (Index k = 0; k < count; ++k) tasks += ceil_div(list[k].size, update_block);
    parallel(tasks > 8 ? threads : 1, tasks, [&](Index task) {
        const Update<T>* u = list;
        for (; task >= ceil_div(u->size, update_block); ++u) task -= ceil_div(u->size, update_block);
        update(*u, task * update_block, min(u->size, (task + 1) * update_block));
    });
}

template <class T>
void sgd(int threads, const Update<T>* list, Index count, const SgdStep& step) {
    const T lr = T(step.lr), momentum = T(step.momentum), fresh = T(1 - step.dampening), decay = T(step.weight_decay);
    update_all<T>(threads, list, count, [&](const Update<T>& u, Index from, Index to) {
        T *p = u.p, *v = u.m;
        const T* gradient = u.g;
        if (!v) {
            for (Index i = from; i < to; ++i) p[i] -= lr * (gradient[i] + decay * p[i]);
        } else {
            const T ahead = step.nesterov ? momentum : T(1), direct = step.nesterov ? T(1) : T(0);
            for (Index i = from; i < to; ++i) {
                const T g = gradient[i] + decay * p[i];
                v[i] = momentum * v[i] + fresh * g;
                p[i] -= lr * (direct * g + ahead * v[i]);
            }
        }
    });
}

template <class T>
void adam(int threads, const Update<T>* list, Index count, const AdamStep& step) {
    const T beta1 = T(step.beta1), beta2 = T(step.beta2), fresh1 = T(1 - step.beta1), fresh2 = T(1 - step.beta2);
    const T eps = T(step.eps), decay = T(step.decoupled ? 0 : step.weight_decay);
    const T keep = T(step.decoupled ? 1 - step.lr * step.weight_decay : 1);
    const T rate = T(step.lr / (1 - pow(step.beta1, step.t))), scale = T(1 / sqrt(1 - pow(step.beta2, step.t)));
    update_all<T>(threads, list, count, [&](const Update<T>& u, Index from, Index to) {
        for (Index i = from; i < to; i += lanes<T>) {
            const Index count = min<Index>(to - i, lanes<T>);
            const V<T> p = take(u.p + i, count);
            const V<T> g = take(u.g + i, count) + decay * p;
            const V<T> m = beta1 * take(u.m + i, count) + fresh1 * g;
            const V<T> s = beta2 * take(u.s + i, count) + fresh2 * (g * g);
            put(u.m + i, m, count);
            put(u.s + i, s, count);
            put(u.p + i, keep * p - rate * m / (roots<T>(s) * scale + eps), count);
        }
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

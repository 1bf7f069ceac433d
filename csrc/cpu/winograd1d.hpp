// Winograd's convolution in one dimension: kernels of 1 x K, whose stride becomes channels.
//
// With the channels innermost, S pixels of C channels are one pixel of S C channels. Read like that, a convolution of stride
// S with K taps is one of stride 1 with L = ceil(K / S) taps, some of them zero where S does not divide K, and winograd.hpp's
// F(M, L) computes it: M outputs in N = M + L - 1 products, N = 8. No number moves for it: a row of W pixels is W C numbers,
// and output j sees the L S C numbers from (S j - padding) C on.
//
//   forward     y = Aᵀ [(G g) ⊙ (Bᵀ d)]             the taps g[l] are S C x O matrices: tap l S + s for phase s
//   grad_x      the same, with g turned round: O channels in, and the S phases of dx, S C channels, come out side by side
//   grad_w      dg = Gᵀ [sum over tiles (Bᵀ d) ⊙ (A dy)]
//
// The ladder: 64 rows of 950 pixels, 16 -> 32 channels, 1 x 7, stride 2 (L = 4, M = 5), float32, one core of Zen 5, ms:
//                                    multiplications   forward   grad_x   grad_w
//   direct                           7                 .99       1.19     .98      the processor's peak
//   F(5, 4)                          3.2               .61       .62      .65
//   no products with the zeros of    3                 .58       .61      .61      the point at infinity meets the last tap
//     phases that have no last tap                                                 alone; not for grad_x, whose first is it
// of which the products take .41. Images that come from memory are asked for a block ahead: two cores, forward .62 -> .53,
// where .5 is what reading and writing take. Largest error 2e-6 of the largest output.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {
namespace winograd {

// `count` rows of `length` numbers, seen as pixels of `step` numbers from number `start` on; zeros lie around each row.
template <class T>
struct Rows {
    T* data;
    Index count, length, start, step;
};

// SIZE pixels of a row from `pixel` on, readable in whole vectors: in place where they lie inside, else a copy with zeros
// around, of SIZE * step + lanes numbers.
template <int SIZE, class T>
const T* segment(const Rows<const T>& x, Index row, Index pixel, T* patch) {
    const Index first = x.start + pixel * x.step, size = SIZE * x.step, read = size - x.step + round_up(x.step, lanes<T>);
    const T* from = x.data + row * x.length + first;
    if (first >= 0 && first + size <= x.length && row * x.length + first + read <= x.count * x.length) return from;
    const Index a = max(-first, Index(0)), b = min(x.length - first, size);
    memset(patch, 0, static_cast<size_t>(size + lanes<T>) * sizeof(T));
    if (a < b) memcpy(patch + a, from + a, static_cast<size_t>(b - a) * sizeof(T));
    return patch;
}

// to[pos * plane + c] = the transform F of a segment, whose pixels are `step` apart, for each of some channels c.
template <class T, class F>
void transform_segment(const F& f, const T* from, Index step, Index channels, T* to, Index plane) {
    for (Index c = 0; c < channels; c += lanes<T>) {
        V<T> in[F::in], out[F::out];
        for (int i = 0; i < F::in; ++i) in[i] = load(from + i * step + c);
        f(in, out);
        for (int i = 0; i < F::out; ++i) store(to + i * plane + c, out[i]);
    }
}

// Tiles of all rows, counted through, in blocks: of 48, which is whole blocks of the microkernel, 6, 8, 12 or 16 rows each.
struct Segments {
    Index tile, each, count, length, blocks; // outputs of a tile; tiles of a row, of all, of a block; blocks
    Segments(Index rows, Index pixels, Index tile)
        : tile(tile), each(ceil_div(pixels, tile)), count(rows * each), length(count < 192 ? 12 : 48),
          blocks(ceil_div(count, length)) {}
    Index size(Index block) const { return min(length, count - block * length); }
    // f(number in the block, row, first pixel) for the tiles of a block
    template <class F>
    MINIDL_INLINE void in_block(Index block, const F& f) const {
        Index row = block * length / each, at = block * length % each;
        for (Index t = 0; t < size(block); ++t) {
            f(t, row, at * tile);
            if (++at == each) at = 0, ++row;
        }
    }
};

// Ask memory for a part of what the tiles of a block see: the processor has products to compute until it is needed.
template <class T>
MINIDL_INLINE void prefetch(const Rows<const T>& x, const Segments& tiles, Index block, Index part, Index parts) {
    const auto seen = [&](Index tile) { // first number that a tile sees
        const Index number = tile / tiles.each * x.length + x.start + tile % tiles.each * tiles.tile * x.step;
        return min(max(number, Index(0)), x.count * x.length);
    };
    const Index from = seen(block * tiles.length), size = seen((block + 1) * tiles.length) - from;
    constexpr Index line = 64 / sizeof(T);
    for (Index i = size * part / parts; i < size * (part + 1) / parts; i += line) prefetch(x.data + from + i);
}

// A kernel of one dimension: taps[(l * inputs + c) * columns + o], columns a multiple of the lanes. `last` of the inputs
// have a tap L - 1.
template <class T>
struct Taps {
    Index inputs, outputs, columns, last;
    Buffer<T> data, shift; // shift: what is added to each output
    Taps(Index count, Index inputs, Index outputs)
        : inputs(inputs), outputs(outputs), columns(round_up(outputs, lanes<T>)), last(inputs),
          data(count * inputs * columns), shift(columns) {
        memset(data.data, 0, static_cast<size_t>(count * inputs * columns) * sizeof(T));
        memset(shift.data, 0, static_cast<size_t>(columns) * sizeof(T));
    }
};

// Aᵀ m of one tile, `count` outputs of a panel from o on, plus what is added, to the part of the tile that lies inside its
// row. `patch` holds a tile.
template <class F, class T>
void collect_segment(const F& f, const T* m, Index plane, Index o, Index count, const T* shift, bool positive, bool past,
                     const Rows<T>& y, Index row, Index pixel, T* patch) {
    const Index first = y.start + pixel * y.step;
    const bool inside = first >= 0 && first + F::out * y.step <= y.length;
    T *at = y.data + row * y.length + first, *to = inside ? at : patch;
    for (Index j = 0; j < count; j += lanes<T>) {
        V<T> in[F::in], out[F::out];
        for (int i = 0; i < F::in; ++i) in[i] = load(m + i * plane + j);
        f(in, out);
        const V<T> add = load(shift + o + j);
        for (int i = 0; i < F::out; ++i) {
            out[i] += add;
            if (positive) out[i] = relu<T>(out[i]);
            T* place = to + i * y.step + o + j;
            if (count - j < lanes<T>) store_part(place, out[i], count - j);
            else if (past && inside) stream(place, out[i]);
            else store(place, out[i]);
        }
    }
    for (int i = 0; i < F::out && !inside; ++i) {
        const Index a = max(-first, i * y.step + o), b = min(y.length - first, i * y.step + o + count);
        if (a < b) memcpy(at + a, patch + a, static_cast<size_t>(b - a) * sizeof(T));
    }
}

template <int M, int L, class T>
void correlate_rows(int threads, const Rows<const T>& x, const Taps<T>& taps, Activation activation, const Rows<T>& y,
                    Index pixels) {
    constexpr int N = M + L - 1;
    const Index inputs = taps.inputs, outputs = taps.outputs;
    const Segments tiles(x.count, pixels, M);
    const Panels<T> panels(outputs);
    const Index ldv = round_up(inputs, lanes<T>), widest = panels.widest();
    const Index plane_u = odd_lines<T>(inputs * taps.columns), plane_v = odd_lines<T>(tiles.length * ldv);
    const Index plane_m = odd_lines<T>(tiles.length * widest);
    const bool past = aligned(y.data) && (outputs | y.start | y.length) % lanes<T> == 0
        && y.count * y.length * Index(sizeof(T)) >= stream_bytes;

    const Buffer<T> u(N * plane_u); // [pos][panel][input][output of the panel]
    parallel(threads, inputs, [&](Index c) {
        constexpr FactorTable<T, N> factors;
        for (Index panel = 0; panel < panels.count; ++panel)
            for (Index o = panels.first(panel), width = panels.width(panel), j = 0; j < width; j += lanes<T>) {
                V<T> g[L], v[N];
                for (int l = 0; l < L; ++l) g[l] = load(taps.data.data + (l * inputs + c) * taps.columns + o + j);
                Evaluate<T, L, N>()(g, v);
                for (int i = 0; i < N; ++i) store(u.data + i * plane_u + inputs * o + c * width + j, factors.of[i] * v[i]);
            }
    });

    const Index shares = min(tiles.blocks, Index(64));
    parallel(threads, shares, [&](Index share) {
        T* v = scratch<T>(0, N * plane_v);
        T* m = scratch<T>(1, N * plane_m);
        T* patch = scratch<T>(2, N * max(inputs, outputs) + lanes<T>);
        const Index last = tiles.blocks * (share + 1) / shares;
        for (Index block = tiles.blocks * share / shares; block < last; ++block) {
            const Index count = tiles.size(block);
            tiles.in_block(block, [&](Index t, Index row, Index pixel) {
                transform_segment(Interpolate<T, N>(), segment<N>(x, row, pixel, patch), inputs, inputs, v + t * ldv, plane_v);
            });
            for (Index panel = 0; panel < panels.count; ++panel) {
                const Index o = panels.first(panel), width = panels.width(panel);
                for (int pos = 0; pos < N; ++pos) {
                    if (panel == 0 && block + 1 < last) prefetch(x, tiles, block + 1, pos, N);
                    const Index depth = pos == N - 1 ? taps.last : inputs;
                    for (Index c = 0; c < depth; c += terms<N>) {
                        const Factors<T> f{v + pos * plane_v + c, ldv, 1, u.data + pos * plane_u + inputs * o + c * width,
                                           width, min(terms<N>, depth - c), m + pos * plane_m, width};
                        if (c == 0) multiply<T, false, false>(count, width, f);
                        else multiply<T, true, false>(count, width, f);
                    }
                }
                tiles.in_block(block, [&](Index t, Index row, Index pixel) {
                    collect_segment(Collect<T, N, M>(), m + t * width, plane_m, o, min(width, outputs - o), taps.shift.data,
                                    activation == Activation::relu, past, y, row, pixel, patch);
                });
            }
        }
        if (past) end_stream();
    });
}

// dtaps[(l * inputs + c) * columns + o], as Taps has them. A task owns a panel of outputs and a share of the blocks, whose
// number depends on shapes alone; the shares are added in order at the end.
template <int M, int L, class T>
void correlate_rows_grad(int threads, const Rows<const T>& x, const Rows<const T>& g, Index pixels, Index last, T* dtaps) {
    constexpr int N = M + L - 1;
    const Index inputs = x.step, outputs = g.step;
    const Segments tiles(x.count, pixels, M);
    const Panels<T> panels(outputs);
    const Index columns = panels.vectors * lanes<T>, widest = panels.widest(), size = L * inputs * columns;
    const Index shares = max(Index(1), min(min(tiles.blocks, 32 / panels.count), (8 << 20) / (size * Index(sizeof(T)))));
    const Index ldv = round_up(inputs, lanes<T>), plane_v = odd_lines<T>(tiles.length * ldv);
    const Index plane_w = odd_lines<T>(tiles.length * widest), plane_s = odd_lines<T>(inputs * widest);
    const Buffer<T> partial(shares * size);

    parallel(threads, panels.count * shares, [&](Index task) {
        const Index share = task % shares, panel = task / shares;
        const Index o = panels.first(panel), width = panels.width(panel);
        T* v = scratch<T>(0, N * plane_v);
        T* dy = scratch<T>(1, N * plane_w);
        T* patch = scratch<T>(2, N * max(inputs, outputs) + lanes<T>);
        T* sum = scratch<T>(3, N * plane_s);
        const Index from = tiles.blocks * share / shares, to = tiles.blocks * (share + 1) / shares;
        for (Index block = from; block < to; ++block) {
            tiles.in_block(block, [&](Index t, Index row, Index pixel) {
                transform_segment(Interpolate<T, N>(), segment<N>(x, row, pixel, patch), inputs, inputs, v + t * ldv, plane_v);
                transform_segment(Evaluate<T, M, N>(), segment<M>(g, row, pixel, patch) + o, outputs, width,
                                  dy + t * width, plane_w);
            });
            for (int pos = 0; pos < N; ++pos) {
                if (panel == 0 && block + 1 < to)
                    prefetch(x, tiles, block + 1, pos, N), prefetch(g, tiles, block + 1, pos, N);
                const Factors<T> f{v + pos * plane_v, 1, ldv, dy + pos * plane_w, width, tiles.size(block),
                                   sum + pos * plane_s, width};
                const Index rows = pos == N - 1 ? last : inputs;
                if (block == from) multiply<T, false, true>(rows, width, f);
                else multiply<T, true, true>(rows, width, f);
            }
        }
        constexpr FactorTable<T, N> factors;
        for (Index c = 0; c < inputs; ++c)
            for (Index j = 0; j < width; j += lanes<T>) {
                V<T> in[N], out[L];
                for (int i = 0; i < N; ++i) in[i] = factors.of[i] * load(sum + i * plane_s + c * width + j);
                Collect<T, N, L>()(in, out);
                for (int l = 0; l < L; ++l)
                    store(partial.data + share * size + (l * inputs + c) * columns + o + j, out[l]);
            }
    });
    parallel(threads, L * inputs, [&](Index row) {
        for (Index j = row * columns; j < (row + 1) * columns; j += lanes<T>) {
            V<T> sum = load(partial.data + j);
            for (Index share = 1; share < shares; ++share) sum += load(partial.data + share * size + j);
            store(dtaps + j, sum);
        }
    });
}

// The images as rows of numbers; without gaps between the pixels, or copied so.
template <class T>
struct Gapless {
    Buffer<T> copy;
    const T* data;
    Gapless(int threads, const Image<const T>& x) : copy(x.pitch == x.c ? 0 : x.n * x.h * x.w * x.c), data(x.data) {
        if (x.pitch == x.c) return;
        const Index strides[] = {x.h * x.w * x.pitch, 1, x.w * x.pitch, x.pitch};
        to_channels_last(threads, x.data, strides, {copy.data, x.n, x.c, x.h, x.w, x.c});
        data = copy.data;
    }
};

// f(an object whose `taps` and `tile` are constants): the F(M, L) for kernels of L taps
template <int M, int L>
struct Algorithm {
    static constexpr int tile = M, taps = L;
};
template <class F>
void by_taps(Index taps, const F& f) {
    if (taps == 3) f(Algorithm<6, 3>());
    else if (taps == 4) f(Algorithm<5, 4>());
    else f(Algorithm<4, 5>());
}

} // namespace winograd

// --- the kernels --------------------------------------------------------------------------------------------------

// y = x * w + bias
template <class T>
void winograd1d_conv2d(int threads, const Conv& s, Image<const T> x, const T* w, const T* bias, Activation activation,
                       Image<T> y) {
    threads = worth(threads, s);
    const Index count = ceil_div(s.kw, s.sw), inputs = s.sw * s.c;
    const winograd::Gapless<T> dense(threads, x);
    winograd::Taps<T> taps(count, inputs, s.o);
    taps.last = (s.kw - (count - 1) * s.sw) * s.c;
    if (bias) memcpy(taps.shift.data, bias, static_cast<size_t>(s.o) * sizeof(T));
    parallel(threads, s.c, [&](Index c) {
        transpose<T>(w + c * s.kw, s.c * s.kw, s.o, s.kw, taps.data.data + c * taps.columns, s.c * taps.columns);
    });
    const winograd::Rows<const T> from{dense.data, s.n * s.h, s.w * s.c, -s.pw * s.c, inputs};
    const winograd::Rows<T> to{y.data, s.n * s.oh, s.ow * s.o, 0, s.o};
    winograd::by_taps(count, [&](auto a) {
        winograd::correlate_rows<decltype(a)::tile, decltype(a)::taps>(threads, from, taps, activation, to, s.ow);
    });
}

// dx = g * w turned round, with the channels' roles exchanged: pixels of S phases from the first that meets the image on
template <class T>
void winograd1d_grad_x(int threads, const Conv& s, Image<const T> g, const T* w, const T* bias, Activation activation,
                       Image<T> dx) {
    threads = worth(threads, s);
    const Index count = ceil_div(s.kw, s.sw), outputs = s.sw * s.c, first = s.pw / s.sw;
    const winograd::Gapless<T> dense(threads, g);
    winograd::Taps<T> taps(count, s.o, outputs);
    for (Index i = 0; i < outputs && bias; ++i) taps.shift.data[i] = bias[i % s.c];
    parallel(threads, s.o, [&](Index o) {
        for (Index k = 0; k < s.kw; ++k) {
            T* to = taps.data.data + ((count - 1 - k / s.sw) * s.o + o) * taps.columns + k % s.sw * s.c;
            for (Index c = 0; c < s.c; ++c) to[c] = w[(o * s.c + c) * s.kw + k];
        }
    });
    const winograd::Rows<const T> from{dense.data, s.n * s.oh, s.ow * s.o, (first - count + 1) * s.o, s.o};
    const winograd::Rows<T> to{dx.data, s.n * s.h, s.w * s.c, (first * s.sw - s.pw) * s.c, outputs};
    winograd::by_taps(count, [&](auto a) {
        winograd::correlate_rows<decltype(a)::tile, decltype(a)::taps>(threads, from, taps, activation, to,
                                                                       ceil_div(s.w + s.pw, s.sw) - first);
    });
}

// dw = the correlation of x with g
template <class T>
void winograd1d_grad_w(int threads, const Conv& s, Image<const T> g, Image<const T> x, T* dw) {
    threads = worth(threads, s);
    const Index count = ceil_div(s.kw, s.sw), inputs = s.sw * s.c, columns = round_up(s.o, lanes<T>);
    const winograd::Gapless<T> xs(threads, x), gs(threads, g);
    const Buffer<T> taps(count * inputs * columns);
    const winograd::Rows<const T> from{xs.data, s.n * s.h, s.w * s.c, -s.pw * s.c, inputs};
    const winograd::Rows<const T> to{gs.data, s.n * s.oh, s.ow * s.o, 0, s.o};
    winograd::by_taps(count, [&](auto a) {
        winograd::correlate_rows_grad<decltype(a)::tile, decltype(a)::taps>(
            threads, from, to, s.ow, (s.kw - (count - 1) * s.sw) * s.c, taps.data);
    });
    parallel(threads, s.o, [&](Index o) {
        for (Index c = 0; c < s.c; ++c)
            for (Index k = 0; k < s.kw; ++k) dw[(o * s.c + c) * s.kw + k] = taps.data[(k * s.c + c) * columns + o];
    });
}

} // namespace MINIDL_LEVEL
} // namespace minidl

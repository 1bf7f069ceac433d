// The border between Python and the kernels, and the only file that knows pybind11. Nothing behind it checks anything:
// here every dtype, number of dimensions, shape relation and size is checked, arrays are made contiguous, the GIL is
// released, and what is wrong becomes a ValueError or TypeError that says what it is.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/plan.hpp"

namespace py = pybind11;
using namespace minidl;
using Pair = std::array<Index, 2>;
using Shape = std::vector<py::ssize_t>;

namespace {

// --- instruction sets ---------------------------------------------------------------------------------------------

bool processor_has(const std::string& name) {
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    if (name == "avx512") // all that setup.py lets the compiler use
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
    if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return name == "baseline";
}

std::vector<Level> usable_levels() {
    std::vector<Level> levels;
    constexpr std::pair<const char*, Level (*)()> all[] = {
        {"baseline", baseline_level}, {"avx2", avx2_level}, {"avx512", avx512_level}};
    for (const auto& [name, level] : all) // the processor first: avx512_level() itself is compiled with AVX-512
        if (processor_has(name) && level().f32) levels.push_back(level());
    return levels;
}

Level find_level(const std::string& name) {
    std::string names;
    for (const Level& level : usable_levels()) {
        if (level.name == name) return level;
        names += (names.empty() ? "" : ", ") + std::string(level.name);
    }
    throw py::value_error("the SIMD level '" + name + "' cannot run here; this machine and build have " + names);
}

Level& current_level() { // MINIDL_SIMD, else the best there is
    static Level level = [] {
        const char* forced = std::getenv("MINIDL_SIMD");
        return forced && *forced ? find_level(forced) : usable_levels().back();
    }();
    return level;
}

// --- checks -------------------------------------------------------------------------------------------------------

std::string text(const Shape& shape) {
    std::string s = "(";
    for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
    return s + ")";
}

Shape shape_of(const py::array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }

void expect(const char* name, const Shape& found, const Shape& wanted) {
    if (found != wanted) throw py::value_error(std::string(name) + " has shape " + text(found) + ", expected " + text(wanted));
}

int check_threads(Index threads) {
    if (threads < 1) throw py::value_error("the number of threads must be at least 1");
    return static_cast<int>(std::min<Index>(threads, 256)); // more would only wait for one another
}

void check_sizes(const Shape& shape) { // so that products of a few sizes fit into 64 bits
    double count = 1;
    for (const py::ssize_t size : shape) {
        if (size < 0 || size > std::numeric_limits<int>::max()) throw py::value_error("a size is out of range in " + text(shape));
        count *= static_cast<double>(size);
    }
    if (count > 1e15) throw py::value_error("too many numbers in an array of shape " + text(shape));
}

void check_options(std::initializer_list<Pair> at_least_one, Pair padding) {
    constexpr Index most = 1 << 24;
    for (const Pair& pair : at_least_one)
        for (const Index v : pair)
            if (v < 1 || v > most) throw py::value_error("kernel, stride and dilation must lie between 1 and 2**24");
    for (const Index v : padding)
        if (v < 0 || v > most) throw py::value_error("padding must lie between 0 and 2**24");
}

Conv check_conv(const Shape& x, const Shape& w, Pair stride, Pair padding, Pair dilation, Index groups) {
    if (x.size() != 4 || w.size() != 4)
        throw py::value_error("conv2d takes x (N, C, H, W) and w (O, C/groups, KH, KW), got " + text(x) + " and " + text(w));
    check_sizes(x);
    check_sizes(w);
    check_options({{w[2], w[3]}, stride, dilation}, padding);
    if (groups < 1 || groups > x[1] || w[0] < 1 || w[0] % groups || w[1] < 1 || x[1] != groups * w[1])
        throw py::value_error("conv2d: x " + text(x) + " and w " + text(w) + " do not fit with groups = " + std::to_string(groups));
    const Index y_space = x[2] + 2 * padding[0] - dilation[0] * (w[2] - 1) - 1;
    const Index x_space = x[3] + 2 * padding[1] - dilation[1] * (w[3] - 1) - 1;
    if (x[2] < 1 || x[3] < 1 || y_space < 0 || x_space < 0)
        throw py::value_error("conv2d: the kernel of w " + text(w) + " does not fit into x " + text(x) + " with its padding");
    return {x[0], x[1], x[2], x[3], w[0], w[2], w[3], y_space / stride[0] + 1, x_space / stride[1] + 1,
            stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1], groups};
}

template <class T>
using Array = py::array_t<T, py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_ | py::array::forcecast>;

// --- recorded steps -----------------------------------------------------------------------------------------------
//
// While a recording goes on, a kernel is run and also kept with its arguments, to be repeated on the same memory without
// Python. It may read nothing but what is known: the batch, the arrays that were declared, and what recorded kernels have
// written. All but the batch is kept alive, so that nothing else can come to lie there. Numbers from elsewhere (array code,
// kernels that are not kept) would not be computed again: they are refused.
class Recording {
public:
    Recording(const std::vector<py::array>& batch, const std::vector<py::array>& reads) : like(batch), now(batch.size()) {
        for (const py::array& a : batch) know(a.data(), a.nbytes());
        for (const py::array& a : reads)
            if (a.flags() & py::array::c_style) keep(a, a.data(), a.nbytes());
    }

    void keep(py::object owner, const void* data, size_t bytes) {
        know(data, bytes);
        owners.push_back(std::move(owner));
    }

    void check_known(const py::array& a) const {
        const char* start = static_cast<const char*>(a.data());
        const auto after = known.upper_bound(start);
        if (a.size() && (after == known.begin() || start + a.nbytes() > std::prev(after)->second))
            refuse("an array of shape " + text(shape_of(a)) + " comes neither from the batch, the model nor such a layer");
    }

    [[noreturn]] static void refuse(const std::string& why) {
        throw std::runtime_error("this step cannot be recorded: " + why + "; on a processor these are dense layers (ReLU or "
                                 "tanh in the same op) and mse_loss. Train without record");
    }

    // f(pointers to the first elements of `reads`); a null array has a null pointer.
    template <class T, size_t N, class F>
    void add(const py::array* const (&reads)[N], F f) {
        std::array<Source, N> sources;
        for (size_t k = 0; k < N; ++k)
            if (reads[k]) sources[k] = source(*reads[k]);
        calls.emplace_back([=] {
            const T* from[N];
            for (size_t k = 0; k < N; ++k) from[k] = reinterpret_cast<const T*>(*sources[k].base + sources[k].offset);
            f(from);
        });
    }

    void repeat(const py::args& batch) {
        if (batch.size() != like.size()) throw py::value_error("the step was recorded with another number of arrays");
        std::vector<py::array> ready; // themselves, or contiguous copies
        for (size_t k = 0; k < like.size(); ++k) {
            ready.push_back(py::array::ensure(batch[k], py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_));
            expect("an array of the batch", shape_of(ready[k]), shape_of(like[k]));
            if (!ready[k].dtype().equal(like[k].dtype())) throw py::type_error("the step was recorded with another dtype");
            now[k] = reinterpret_cast<std::uintptr_t>(ready[k].data());
        }
        py::gil_scoped_release release;
        for (const auto& call : calls) call();
    }

private:
    struct Source { // an address, from a base that may move
        const std::uintptr_t* base = &fixed;
        std::uintptr_t offset = 0;
    };
    static constexpr std::uintptr_t fixed = 0;

    Source source(const py::array& a) const {
        check_known(a);
        const auto at = reinterpret_cast<std::uintptr_t>(a.data());
        for (size_t k = 0; k < like.size(); ++k) {
            const auto start = reinterpret_cast<std::uintptr_t>(like[k].data());
            if (at >= start && at < start + like[k].nbytes()) return {&now[k], at - start};
        }
        return {&fixed, at};
    }

    void know(const void* data, size_t bytes) {
        const char*& end = known[static_cast<const char*>(data)];
        end = std::max(end, static_cast<const char*>(data) + bytes);
    }

    std::vector<py::array> like;     // the batch that was recorded
    std::vector<std::uintptr_t> now; // where each array of the batch lies
    std::vector<std::function<void()>> calls;
    std::map<const char*, const char*> known; // the memory from here to there
    std::vector<py::object> owners;
};

thread_local Recording* recording = nullptr; // of the step that this thread records

// Run f, which gives the step's results, and keep its kernels -> what repeats them for another batch.
std::unique_ptr<Recording> record_(const py::function& f, const std::vector<py::array>& batch,
                                   const std::vector<py::array>& reads) {
    if (recording) Recording::refuse("another recording goes on");
    auto made = std::make_unique<Recording>(batch, reads);
    struct Scope {
        explicit Scope(Recording* r) { recording = r; }
        ~Scope() { recording = nullptr; }
    } scope(made.get());
    for (const py::handle result : f())
        if (!result.is_none()) made->check_known(result.cast<py::array>());
    return made;
}

// --- arrays -------------------------------------------------------------------------------------------------------

// A new array in memory of the pool, to which it returns when Python forgets it. Strides in elements, C order by default.
template <class T>
py::array pooled(const Shape& shape, Shape strides = {}) {
    py::ssize_t count = 1;
    for (const py::ssize_t size : shape) count *= size;
    if (strides.empty()) {
        py::ssize_t step = count;
        for (const py::ssize_t size : shape) strides.push_back(step = size ? step / size : 0);
    }
    for (py::ssize_t& stride : strides) stride *= sizeof(T);
    T* data = static_cast<T*>(acquire(count * sizeof(T)));
    const py::capsule memory(data, release);
    if (recording) recording->keep(memory, data, count * sizeof(T));
    return py::array(py::dtype::of<T>(), shape, strides, data, memory);
}

// A new (N, C, H, W) array with the channels innermost in memory.
template <class T>
struct ImagesOut {
    py::array array;
    Image<T> view;
    ImagesOut(Index n, Index c, Index h, Index w)
        : array(pooled<T>({n, c, h, w}, {h * w * c, 1, w * c, c})),
          view{static_cast<T*>(array.mutable_data()), n, c, h, w, c} {}
};

// The GIL is back before the caller returns its array: returning may touch a reference count.
template <class F>
void without_gil(F f) {
    if (recording) Recording::refuse("it needs another kernel than those that are kept");
    py::gil_scoped_release release;
    f();
}

// The same for a kernel that can be recorded: f takes pointers to what it reads, and holds its other arguments by value.
template <class T, size_t N, class F>
void launch(const py::array* const (&reads)[N], F f) {
    const T* from[N];
    for (size_t k = 0; k < N; ++k) from[k] = reads[k] ? static_cast<const T*>(reads[k]->data()) : nullptr;
    if (recording) recording->add<T>(reads, f);
    py::gil_scoped_release release;
    f(from);
}

// An (N, C, H, W) array as kernels want it: itself where its channels are innermost, else a copy.
template <class T>
struct ImagesIn {
    py::array array; // keeps what the view looks at
    Image<const T> view;
    ImagesIn(const py::array& a, int threads) : array(a) {
        const Index n = a.shape(0), c = a.shape(1), h = a.shape(2), w = a.shape(3), unit = sizeof(T);
        const Index along = a.strides(1), pitch = w > 1 ? a.strides(3) : h > 1 ? a.strides(2) : n > 1 ? a.strides(0) : c * unit;
        const bool aligned = reinterpret_cast<std::uintptr_t>(a.data()) % unit == 0;
        const bool ready = aligned && pitch % unit == 0 && pitch >= c * unit && (c == 1 || along == unit)
            && (h == 1 || a.strides(2) == w * pitch) && (n == 1 || a.strides(0) == h * w * pitch);
        if (ready) {
            view = {static_cast<const T*>(a.data()), n, c, h, w, pitch / unit};
            return;
        }
        bool whole = aligned; // strides in whole elements
        for (int d = 0; d < 4; ++d) whole &= a.strides(d) % unit == 0;
        const py::array source = whole ? a : py::array(Array<T>(a));
        const ImagesOut<T> copy(n, c, h, w);
        const Index strides[4] = {source.strides(0) / unit, source.strides(1) / unit, source.strides(2) / unit,
                                  source.strides(3) / unit};
        const T* from = static_cast<const T*>(source.data());
        const Kernels<T>& k = current_level().of(T());
        without_gil([&] { k.to_channels_last(threads, from, strides, copy.view); });
        array = copy.array;
        view = {copy.view.data, n, c, h, w, c};
    }
};

// Call f with float or double, whichever all the arrays hold.
template <class F>
auto dispatch(std::initializer_list<std::pair<const char*, py::array>> arrays, F f) {
    bool all32 = true, all64 = true;
    for (const auto& [name, a] : arrays) {
        all32 &= py::isinstance<py::array_t<float>>(a);
        all64 &= py::isinstance<py::array_t<double>>(a);
    }
    if (all32) return f(float());
    if (all64) return f(double());
    std::string found;
    for (const auto& [name, a] : arrays)
        found += (found.empty() ? "" : ", ") + std::string(name) + " " + py::str(a.dtype()).cast<std::string>();
    throw py::type_error("kernels take arrays that are all float32 or all float64, got " + found);
}

// --- kernels ------------------------------------------------------------------------------------------------------

// --- convolution: the plan (plan.hpp) says which algorithm, here it is called

std::atomic<Mode> conv_mode{Mode::automatic};

constexpr std::pair<const char*, Mode> modes[] = {
    {"auto", Mode::automatic}, {"direct", Mode::direct}, {"winograd", Mode::winograd}, {"exact", Mode::exact}};

template <class T>
void forward(const Level& level, int threads, const Conv& s, Joined<const T> x, const T* w, const T* b, Activation activation,
             Image<T> y) {
    const int tile = plan(s, Pass::forward, conv_mode).tile;
    if (tile && s.kh == 1) level.of(T()).winograd1d_conv2d(threads, s, x.first, w, b, activation, y);
    else if (tile) level.of(T()).winograd_conv2d(threads, tile, s, x, w, b, activation, y);
    else level.of(T()).direct_conv2d(threads, s, x.first, w, b, activation, y);
}

template <class T>
void grad_x(const Level& level, int threads, const Conv& s, Image<const T> g, const T* w, const T* b, Activation activation,
            Joined<T> both) {
    const int tile = plan(s, Pass::grad_x, conv_mode).tile;
    const Image<T> dx = both.first;
    if (tile && s.kh == 1) return level.of(T()).winograd1d_grad_x(threads, s, g, w, b, activation, dx);
    if (tile) return level.of(T()).winograd_grad_x(threads, tile, s, g, w, b, activation, both);
    level.of(T()).direct_grad_x(threads, s, g, w, b, dx);
    if (activation == Activation::relu) level.of(T()).relu(threads, {dx.data, dx.n, dx.c, dx.h, dx.w, dx.pitch}, dx);
}

template <class T>
void grad_w(const Level& level, int threads, const Conv& s, Image<const T> g, Joined<const T> x, T* dw) {
    const int tile = plan(s, Pass::grad_w, conv_mode).tile;
    if (tile && s.kh == 1) level.of(T()).winograd1d_grad_w(threads, s, g, x.first, dw);
    else if (tile) level.of(T()).winograd_grad_w(threads, tile, s, g, x, dw);
    else level.of(T()).direct_grad_w(threads, s, g, x.first, dw);
}

// Whether the algorithm takes images of which the first has so many channels, and the second the rest.
bool joins(const Conv& s, Pass pass, Index channels) { return channels % 16 == 0 && s.kh > 1 && plan(s, pass, conv_mode).tile; }

// The exact mode: float32 arrays as float64, the same kernels, and one rounding at the end.
template <class F>
py::array in_double(F f, py::array& x, py::array& w, std::optional<py::array>& b) {
    const auto wide = [](py::array& a) { a = a.attr("astype")("float64", "K"); };
    wide(x), wide(w);
    if (b) wide(*b);
    return f().attr("astype")("float32", "K");
}

bool exact(const py::array& a) { return conv_mode == Mode::exact && py::isinstance<py::array_t<float>>(a); }

py::array concatenate_(const std::vector<py::array>& xs, Index threads);

// Two images side by side: checked, and concatenated where the algorithm takes only one. x is the first then, or all.
struct Beside {
    py::array x;
    std::optional<py::array> second;
    Conv shape;

    Beside(py::array x_, std::optional<py::array> second_, const Shape& w, Pass pass, Pair stride, Pair padding, Pair dilation,
           Index groups, Index threads)
        : x(std::move(x_)), second(std::move(second_)) {
        Shape all = shape_of(x);
        if (second && all.size() == 4) {
            Shape wanted = shape_of(*second);
            if (wanted.size() == 4) all[1] += std::exchange(wanted[1], all[1]);
            expect("the image beside it", wanted, shape_of(x));
        }
        shape = check_conv(all, w, stride, padding, dilation, groups);
        if (!second || joins(shape, pass, x.shape(1))) return;
        x = concatenate_({x, *second}, threads);
        second.reset();
    }
};

template <class T>
struct JoinedIn {
    ImagesIn<T> first;
    std::optional<ImagesIn<T>> second;
    Joined<const T> view;
    JoinedIn(const Beside& images, int threads) : first(images.x, threads), view{first.view, {}} {
        if (images.second) view.second = second.emplace(*images.second, threads).view;
    }
};

py::array conv2d_joined_(py::array first, std::optional<py::array> second, py::array w, std::optional<py::array> b, Pair stride,
                         Pair padding, Pair dilation, Index groups, bool relu, Index threads) {
    threads = check_threads(threads);
    Beside images(first, second, shape_of(w), Pass::forward, stride, padding, dilation, groups, threads);
    const Conv& shape = images.shape;
    if (b) expect("b", shape_of(*b), {shape.o});
    const auto run = [&](auto zero) -> py::array {
        using T = decltype(zero);
        const JoinedIn<T> xs(images, threads);
        const Array<T> ws(w), bs(b ? *b : py::array_t<T>(0));
        const ImagesOut<T> y(shape.n, shape.o, shape.oh, shape.ow);
        const T *pw = ws.data(), *pb = b ? bs.data() : nullptr;
        const Level level = current_level();
        without_gil([&] { forward(level, threads, shape, xs.view, pw, pb, relu ? Activation::relu : Activation::none, y.view); });
        return y.array;
    };
    const auto call = [&] {
        return dispatch({{"x", images.x}, {"w", w}, {"b", b ? *b : w}, {"the image beside it", images.second ? *images.second : w}}, run);
    };
    return exact(images.x) && exact(w) ? in_double(call, images.x, w, b) : call();
}

py::array conv2d_(py::array x, py::array w, std::optional<py::array> b, Pair stride, Pair padding, Pair dilation, Index groups,
                  bool relu, Index threads) {
    return conv2d_joined_(x, std::nullopt, w, b, stride, padding, dilation, groups, relu, threads);
}

// The gradient of two images, the first of `channels` channels; of one alone where that is all of them.
std::pair<py::array, py::array> grad_x_of(py::array g, py::array w, Shape x_shape, Index channels, std::optional<py::array> b,
                                          bool relu, Pair stride, Pair padding, Pair dilation, Index groups, Index threads) {
    const Conv shape = check_conv(x_shape, shape_of(w), stride, padding, dilation, groups);
    expect("g", shape_of(g), {shape.n, shape.o, shape.oh, shape.ow});
    if (b) expect("b", shape_of(*b), {shape.c});
    if (channels < 0 || channels > shape.c) throw py::value_error("conv2d_joined_grad_x: there are not so many channels");
    threads = check_threads(threads);
    const bool two = channels < shape.c && joins(shape, Pass::grad_x, channels);
    const auto run = [&](auto zero) -> std::pair<py::array, py::array> {
        using T = decltype(zero);
        const ImagesIn<T> gs(g, threads);
        const Array<T> ws(w), bs(b ? *b : py::array_t<T>(0));
        const ImagesOut<T> first(shape.n, two ? channels : shape.c, shape.h, shape.w);
        const ImagesOut<T> second(shape.n, two ? shape.c - channels : 0, shape.h, shape.w);
        const Joined<T> dx{first.view, two ? second.view : Image<T>{}};
        const T *pw = ws.data(), *pb = b ? bs.data() : nullptr;
        const Level level = current_level();
        const Activation activation = relu ? Activation::relu : Activation::none;
        without_gil([&] { grad_x(level, threads, shape, gs.view, pw, pb, activation, dx); });
        return {first.array, second.array};
    };
    const auto call = [&] { return dispatch({{"g", g}, {"w", w}, {"b", b ? *b : w}}, run); };
    if (!(exact(g) && exact(w))) return call();
    return {in_double([&] { return call().first; }, g, w, b), py::array()};
}

py::array conv2d_grad_x_(py::array g, py::array w, Shape x_shape, std::optional<py::array> b, Pair stride, Pair padding,
                         Pair dilation, Index groups, bool relu, Index threads) {
    const Index all = x_shape.size() == 4 ? x_shape[1] : 0;
    return grad_x_of(g, w, x_shape, all, b, relu, stride, padding, dilation, groups, threads).first;
}

// The gradients of both, or of all channels together where the algorithm gives only that.
py::object conv2d_joined_grad_x_(py::array g, py::array w, Shape x_shape, Index channels, Pair stride, Pair padding, Pair dilation,
                                 Index groups, Index threads) {
    const auto [first, second] = grad_x_of(g, w, x_shape, channels, std::nullopt, false, stride, padding, dilation, groups, threads);
    if (first.shape(1) != channels) return first;
    return py::make_tuple(first, second);
}

py::array conv2d_joined_grad_w_(py::array g, py::array first, std::optional<py::array> second, Shape w_shape, Pair stride,
                                Pair padding, Pair dilation, Index groups, Index threads) {
    threads = check_threads(threads);
    Beside images(first, second, w_shape, Pass::grad_w, stride, padding, dilation, groups, threads);
    const Conv& shape = images.shape;
    expect("g", shape_of(g), {shape.n, shape.o, shape.oh, shape.ow});
    std::optional<py::array> none;
    const auto run = [&](auto zero) -> py::array {
        using T = decltype(zero);
        const ImagesIn<T> gs(g, threads);
        const JoinedIn<T> xs(images, threads);
        const py::array dw = pooled<T>(w_shape);
        T* pdw = static_cast<T*>(const_cast<void*>(dw.data()));
        const Level level = current_level();
        without_gil([&] { grad_w(level, threads, shape, gs.view, xs.view, pdw); });
        return dw;
    };
    const auto call = [&] {
        return dispatch({{"g", g}, {"x", images.x}, {"the image beside it", images.second ? *images.second : g}}, run);
    };
    return exact(g) && exact(images.x) ? in_double(call, g, images.x, none) : call();
}

py::array conv2d_grad_w_(py::array g, py::array x, Shape w_shape, Pair stride, Pair padding, Pair dilation, Index groups,
                         Index threads) {
    return conv2d_joined_grad_w_(g, x, std::nullopt, w_shape, stride, padding, dilation, groups, threads);
}

void set_conv_algorithm(const std::string& name) {
    std::string names;
    for (const auto& [known, mode] : modes) {
        if (known == name) {
            conv_mode = mode;
            return;
        }
        names += (names.empty() ? "" : ", ") + std::string(known);
    }
    throw py::value_error("there is no convolution algorithm '" + name + "'; there are " + names);
}

std::string explain_conv(Shape x, Shape w, Pair stride, Pair padding, Pair dilation, Index groups) {
    const Conv s = check_conv(x, w, stride, padding, dilation, groups);
    std::string text;
    constexpr std::pair<const char*, Pass> passes[] = {
        {"forward", Pass::forward}, {"grad_x", Pass::grad_x}, {"grad_w", Pass::grad_w}};
    for (const auto& [name, pass] : passes)
        text += (text.empty() ? "" : "\n") + std::string(name) + ": " + plan(s, pass, conv_mode).why;
    return text;
}

std::string get_conv_algorithm() {
    for (const auto& [name, mode] : modes)
        if (mode == conv_mode) return name;
    return "";
}

py::tuple winograd_matrices(int tile, int kernel) {
    const int points = tile + kernel - 1;
    if (!((kernel == 3 && (tile == 4 || tile == 6)) || (kernel == 5 && tile == 4) || (kernel == 4 && tile == 5)))
        throw py::value_error("Winograd's tiles are F(4, 3), F(6, 3), F(4, 5) and F(5, 4)");
    const py::array bt = pooled<double>({points, points}), a = pooled<double>({points, tile}),
                    g = pooled<double>({points, kernel});
    const auto data = [](const py::array& m) { return static_cast<double*>(const_cast<void*>(m.data())); };
    current_level().f64->winograd_matrices(tile, kernel, data(bt), data(a), data(g));
    return py::make_tuple(bt, a, g);
}

// --- kernels bound by memory: arrays of any number of dimensions

bool same_strides(const py::array& a, const py::array& b) { // axes of size 1 apart; in elements
    if (a.ndim() != b.ndim()) return false;
    for (int d = 0; d < a.ndim(); ++d)
        if (a.shape(d) > 1 && a.strides(d) / a.itemsize() != b.strides(d) / b.itemsize()) return false;
    return true;
}

bool gapless(const py::array& a) { // without gaps in memory, in whatever order of the axes
    std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;
    for (int d = 0; d < a.ndim(); ++d)
        if (a.shape(d) != 1) axes.emplace_back(a.strides(d), a.shape(d));
    std::sort(axes.begin(), axes.end());
    py::ssize_t step = a.itemsize();
    for (const auto& [stride, size] : axes) {
        if (stride != step) return false;
        step *= size;
    }
    return reinterpret_cast<std::uintptr_t>(a.data()) % a.itemsize() == 0;
}

// (N, C, ...) as (N, C, H, W), and back; NumPy copies only what cannot be seen that way.
py::array as_images(const py::array& a) {
    if (a.ndim() == 4) return a;
    if (a.ndim() < 2) throw py::value_error("images are (N, C, ...), got shape " + text(shape_of(a)));
    py::ssize_t count = 1;
    for (int d = 2; d < a.ndim(); ++d) count *= a.shape(d);
    return a.attr("reshape")(py::make_tuple(a.shape(0), a.shape(1), 1, count));
}

py::array shaped(const py::array& a, const Shape& shape) {
    return shape_of(a) == shape ? a : py::array(a.attr("reshape")(py::cast(shape)));
}

// Arrays of one shape whose elements are taken one by one, and a result beside them: all as they lie, if they lie alike
// and without gaps, else as images; `turn`: images whose channels are not innermost are turned, for the layers to come.
// Where the first array had to be copied, the result takes the copy's place: its memory need not be fetched once more.
template <class T>
struct Elements {
    std::vector<py::array> kept;
    std::vector<Image<const T>> in;
    py::array result;
    Image<T> out;

    Elements(std::initializer_list<py::array> arrays, int threads, bool turn = false) {
        const py::array& first = *arrays.begin();
        const Shape shape = shape_of(first);
        turn = turn && shape.size() > 2 && shape[1] > 1 && first.strides(1) != first.itemsize();
        bool alike = gapless(first) && !turn;
        for (const py::array& a : arrays) alike = alike && same_strides(a, first);
        for (const py::array& a : arrays) alike = alike && reinterpret_cast<std::uintptr_t>(a.data()) % sizeof(T) == 0;
        if (!alike && shape.size() >= 2) {
            bool copied = false;
            for (const py::array& a : arrays) {
                const py::array given = as_images(a);
                const ImagesIn<T> images(given, threads);
                copied = copied || (kept.empty() && !images.array.is(given));
                kept.push_back(images.array);
                in.push_back(images.view);
            }
            if (copied) {
                result = shaped(kept[0], shape);
                out = {const_cast<T*>(in[0].data), in[0].n, in[0].c, in[0].h, in[0].w, in[0].pitch};
                return;
            }
            const ImagesOut<T> images(in[0].n, in[0].c, in[0].h, in[0].w);
            result = shaped(images.array, shape);
            out = images.view;
            return;
        }
        for (const py::array& a : arrays) kept.push_back(alike ? a : py::array(Array<T>(a)));
        Shape strides;
        if (alike && first.size())
            for (int d = 0; d < first.ndim(); ++d) strides.push_back(first.strides(d) / first.itemsize());
        result = pooled<T>(shape, strides);
        const Index count = first.size();
        for (const py::array& a : kept) in.push_back({static_cast<const T*>(a.data()), 1, count, 1, 1, count});
        out = {static_cast<T*>(result.mutable_data()), 1, count, 1, 1, count};
    }
};

// Numbers beside images, in bytes or ints: without gaps, channels innermost; itself where it is so, else a copy.
template <class I>
py::array gapless_images(const py::array& a) {
    const Index c = a.shape(1), h = a.shape(2), w = a.shape(3), unit = sizeof(I);
    const Index wanted[] = {h * w * c * unit, unit, w * c * unit, c * unit};
    bool ready = reinterpret_cast<std::uintptr_t>(a.data()) % unit == 0;
    for (int d = 0; d < 4; ++d) ready = ready && (a.shape(d) == 1 || a.strides(d) == wanted[d]);
    if (ready || !a.size()) return a;
    const ImagesOut<I> copy(a.shape(0), c, h, w);
    copy.array[py::ellipsis()] = a;
    return copy.array;
}

// A C-contiguous copy of (N, C, ...) whose channels are innermost; None for an array of another layout.
py::object contiguous_(py::array x, Index threads) {
    threads = check_threads(threads);
    if (x.ndim() < 3) return py::none();
    return dispatch({{"x", x}}, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const Index n = x.shape(0), c = x.shape(1), count = n && c ? x.size() / (n * c) : 0, unit = sizeof(T);
        Shape innermost{count * c * unit, unit};
        for (Index step = count * c * unit, d = 2; d < x.ndim(); ++d) innermost.push_back(x.shape(d) ? step /= x.shape(d) : 0);
        for (int d = 0; d < x.ndim(); ++d)
            if (!count || (x.shape(d) > 1 && x.strides(d) != innermost[d])) return py::none();
        py::array y = pooled<T>(shape_of(x));
        const Index strides[4] = {count * c, c, 0, 1}; // the pixels take the place of channels, channels that of pixels
        const Image<T> turned{static_cast<T*>(y.mutable_data()), n, count, 1, c, count};
        const T* from = static_cast<const T*>(x.data());
        const Kernels<T>& k = current_level().of(T());
        without_gil([&] { k.to_channels_last(threads, from, strides, turned); });
        return std::move(y);
    });
}

py::array relu_(py::array x, Index threads) {
    threads = check_threads(threads);
    return dispatch({{"x", x}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Elements<T> e({x}, threads, true);
        const Level level = current_level();
        without_gil([&] { level.of(T()).relu(threads, e.in[0], e.out); });
        return e.result;
    });
}

Activation activation_of(const std::string& name) {
    if (name.empty()) return Activation::none;
    if (name != "relu" && name != "tanh") throw py::value_error("activation is 'relu', 'tanh' or '', not '" + name + "'");
    return name == "relu" ? Activation::relu : Activation::tanh;
}

py::array activation_grad_(py::array g, py::array y, const std::string& activation, Index threads) {
    expect("g", shape_of(g), shape_of(y));
    const Activation which = activation_of(activation);
    if (which == Activation::none) throw py::value_error("activation_grad needs an activation");
    threads = check_threads(threads);
    return dispatch({{"g", g}, {"y", y}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Elements<T> e({g, y}, threads);
        const auto kernel = current_level().of(T()).activation_grad;
        const Image<const T> gs = e.in[0], ys = e.in[1];
        const Image<T> to = e.out;
        launch<T>({&e.kept[0], &e.kept[1]}, [=](const T* const* from) {
            kernel(threads, which, {from[0], gs.n, gs.c, gs.h, gs.w, gs.pitch}, {from[1], ys.n, ys.c, ys.h, ys.w, ys.pitch}, to);
        });
        return e.result;
    });
}

py::array add_(py::array x, py::array y, Index threads) {
    expect("y", shape_of(y), shape_of(x));
    threads = check_threads(threads);
    return dispatch({{"x", x}, {"y", y}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Elements<T> e({x, y}, threads);
        const Level level = current_level();
        without_gil([&] { level.of(T()).add(threads, e.in[0], e.in[1], e.out); });
        return e.result;
    });
}

// The bytes of `a` in the places of memory in which the elements of `model` lie: itself if they do, else a copy.
py::array lying_like(const py::array& model, const py::array& a) {
    if (gapless(a) && same_strides(a, model)) return a;
    Shape strides;
    for (int d = 0; d < model.ndim(); ++d) strides.push_back(model.strides(d) / model.itemsize());
    py::array copy = pooled<unsigned char>(shape_of(a), strides);
    copy[py::ellipsis()] = a;
    return copy;
}

py::array dropout_(py::array x, py::array kept, double scale, Index threads) {
    expect("kept", shape_of(kept), shape_of(x));
    if (!py::isinstance<py::array_t<bool>>(kept)) throw py::type_error("dropout: kept must be bool");
    threads = check_threads(threads);
    return dispatch({{"x", x}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Elements<T> e({x}, threads);
        const py::array mask = lying_like(e.result, kept);
        const unsigned char* bytes = static_cast<const unsigned char*>(mask.data());
        const Level level = current_level();
        without_gil([&] { level.of(T()).dropout(threads, e.in[0], bytes, static_cast<T>(scale), e.out); });
        return e.result;
    });
}

py::array channel_sum_(py::array g, Index threads) {
    threads = check_threads(threads);
    return dispatch({{"g", g}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const ImagesIn<T> gs(as_images(g), threads);
        const py::array sums = pooled<T>({gs.view.c});
        T* to = static_cast<T*>(const_cast<void*>(sums.data()));
        const Level level = current_level();
        without_gil([&] { level.of(T()).channel_sum(threads, gs.view, to); });
        return sums;
    });
}

py::array concatenate_(const std::vector<py::array>& xs, Index threads) { // along the channels
    if (xs.empty()) throw py::value_error("concatenate needs at least one array");
    threads = check_threads(threads);
    Shape shape = shape_of(xs[0]);
    if (shape.size() < 2) throw py::value_error("images are (N, C, ...), got shape " + text(shape));
    shape[1] = 0;
    bool all32 = true, all64 = true;
    for (const py::array& x : xs) {
        Shape wanted = shape_of(x);
        if (wanted.size() < 2) throw py::value_error("images are (N, C, ...), got shape " + text(wanted));
        shape[1] += std::exchange(wanted[1], shape[1]);
        wanted[1] = shape[1];
        expect("the first array, with all the channels so far,", shape, wanted);
        all32 &= py::isinstance<py::array_t<float>>(x);
        all64 &= py::isinstance<py::array_t<double>>(x);
    }
    if (!all32 && !all64) throw py::type_error("kernels take arrays that are all float32 or all float64");
    const auto run = [&](auto zero) -> py::array {
        using T = decltype(zero);
        std::vector<ImagesIn<T>> in;
        std::vector<Image<const T>> views;
        for (const py::array& x : xs) views.push_back(in.emplace_back(as_images(x), threads).view);
        const ImagesOut<T> y(views[0].n, shape[1], views[0].h, views[0].w);
        const Level level = current_level();
        without_gil([&] { level.of(T()).concatenate(threads, static_cast<Index>(views.size()), views.data(), y.view); });
        return shaped(y.array, shape);
    };
    return all32 ? run(float()) : run(double());
}

// --- normalisation

template <class T>
const T* pointer(const std::optional<py::array>& a, Array<T>& kept) { // null where there is none
    if (!a) return nullptr;
    kept = Array<T>(*a);
    return kept.data();
}

void expect_channels(std::initializer_list<std::pair<const char*, std::optional<py::array>>> arrays, py::ssize_t channels) {
    for (const auto& [name, a] : arrays)
        if (a) expect(name, shape_of(*a), {channels});
}

py::tuple batch_norm_(py::array x, std::optional<py::array> weight, std::optional<py::array> bias,
                      std::optional<py::array> mean, std::optional<py::array> var, double eps, bool with_relu, Index threads) {
    const Shape shape = shape_of(x);
    if (shape.size() < 2) throw py::value_error("batch_norm takes x (N, C, ...), got shape " + text(shape));
    if (!mean != !var) throw py::value_error("batch_norm takes mean and var, or neither");
    expect_channels({{"weight", weight}, {"bias", bias}, {"mean", mean}, {"var", var}}, shape[1]);
    threads = check_threads(threads);
    const auto or_x = [&](const std::optional<py::array>& a) { return a ? *a : x; };
    const auto arrays = {std::pair<const char*, py::array>{"x", x}, {"weight", or_x(weight)}, {"bias", or_x(bias)},
                         {"mean", or_x(mean)}, {"var", or_x(var)}};
    return dispatch(arrays, [&](auto zero) -> py::tuple {
        using T = decltype(zero);
        const ImagesIn<T> xs(as_images(x), threads);
        const ImagesOut<T> y(xs.view.n, xs.view.c, xs.view.h, xs.view.w);
        Array<T> ws, bs;
        const T *w = pointer<T>(weight, ws), *b = pointer<T>(bias, bs);
        const py::array means = mean ? py::array(Array<T>(*mean)) : pooled<T>({shape[1]});
        const py::array vars = var ? py::array(Array<T>(*var)) : pooled<T>({shape[1]});
        T *m = static_cast<T*>(const_cast<void*>(means.data())), *v = static_cast<T*>(const_cast<void*>(vars.data()));
        const Level level = current_level();
        without_gil([&] { level.of(T()).batch_norm(threads, xs.view, w, b, eps, with_relu, !mean, m, v, y.view); });
        return py::make_tuple(shaped(y.array, shape), means, vars);
    });
}

py::tuple batch_norm_grad_(py::array g, py::array x, py::array mean, py::array var, std::optional<py::array> weight,
                           std::optional<py::array> bias, double eps, bool with_relu, bool training, Index threads) {
    const Shape shape = shape_of(x);
    if (shape.size() < 2) throw py::value_error("batch_norm takes x (N, C, ...), got shape " + text(shape));
    expect("g", shape_of(g), shape);
    expect_channels({{"weight", weight}, {"bias", bias}, {"mean", mean}, {"var", var}}, shape[1]);
    threads = check_threads(threads);
    const auto or_x = [&](const std::optional<py::array>& a) { return a ? *a : x; };
    const auto arrays = {std::pair<const char*, py::array>{"g", g}, {"x", x}, {"mean", mean}, {"var", var},
                         {"weight", or_x(weight)}, {"bias", or_x(bias)}};
    return dispatch(arrays, [&](auto zero) -> py::tuple {
        using T = decltype(zero);
        const ImagesIn<T> gs(as_images(g), threads), xs(as_images(x), threads);
        const ImagesOut<T> dx(xs.view.n, xs.view.c, xs.view.h, xs.view.w);
        const Array<T> ms(mean), vs(var);
        Array<T> ws, bs;
        const T *w = pointer<T>(weight, ws), *b = pointer<T>(bias, bs), *m = ms.data(), *v = vs.data();
        const py::array dweight = pooled<T>({shape[1]}), dbias = pooled<T>({shape[1]});
        T *dw = static_cast<T*>(const_cast<void*>(dweight.data())), *db = static_cast<T*>(const_cast<void*>(dbias.data()));
        const Level level = current_level();
        without_gil([&] {
            level.of(T()).batch_norm_grad(threads, gs.view, xs.view, m, v, w, b, eps, with_relu, training, dx.view, dw, db);
        });
        return py::make_tuple(shaped(dx.array, shape), dweight, dbias);
    });
}

ResponseNorm check_response_norm(const Shape& x, Index size, double alpha, double beta, double k) {
    if (x.size() < 3 || size < 1) throw py::value_error("local_response_norm takes size >= 1 and x (N, C, ...), got " + text(x));
    return {size, alpha, beta, k};
}

py::tuple local_response_norm_(py::array x, Index size, double alpha, double beta, double k, Index threads) {
    const Shape shape = shape_of(x);
    const ResponseNorm s = check_response_norm(shape, size, alpha, beta, k);
    threads = check_threads(threads);
    return dispatch({{"x", x}}, [&](auto zero) -> py::tuple {
        using T = decltype(zero);
        const ImagesIn<T> xs(as_images(x), threads);
        const Image<const T>& v = xs.view;
        const ImagesOut<T> y(v.n, v.c, v.h, v.w), d(v.n, v.c, v.h, v.w);
        const Level level = current_level();
        without_gil([&] { level.of(T()).local_response_norm(threads, s, v, y.view, d.view); });
        return py::make_tuple(shaped(y.array, shape), shaped(d.array, shape));
    });
}

py::array local_response_norm_grad_(py::array g, py::array x, py::array d, Index size, double alpha, double beta, double k,
                                    Index threads) {
    const Shape shape = shape_of(x);
    const ResponseNorm s = check_response_norm(shape, size, alpha, beta, k);
    expect("g", shape_of(g), shape);
    expect("d", shape_of(d), shape);
    threads = check_threads(threads);
    return dispatch({{"g", g}, {"x", x}, {"d", d}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const ImagesIn<T> gs(as_images(g), threads), xs(as_images(x), threads), ds(as_images(d), threads);
        const Image<const T>& v = xs.view;
        const ImagesOut<T> dx(v.n, v.c, v.h, v.w);
        const Level level = current_level();
        without_gil([&] { level.of(T()).local_response_norm_grad(threads, s, gs.view, v, ds.view, dx.view); });
        return shaped(dx.array, shape);
    });
}

// --- pooling

Pool check_pool(const char* name, const Shape& x, Pair out, Pair kernel, Pair stride, Pair padding, Pair dilation) {
    if (x.size() != 4) throw py::value_error(std::string(name) + " takes x (N, C, H, W), got shape " + text(x));
    check_sizes(x);
    check_sizes({x[0], x[1], out[0], out[1]});
    check_options({kernel, stride, dilation}, padding);
    if (kernel[0] * kernel[1] > 1 << 24) throw py::value_error(std::string(name) + ": a window has at most 2**24 pixels");
    return {x[0], x[1], x[2], x[3], out[0], out[1], kernel[0], kernel[1], stride[0], stride[1],
            padding[0], padding[1], dilation[0], dilation[1]};
}

py::tuple max_pool2d_(py::array x, Pair out, Pair kernel, Pair stride, Pair padding, Pair dilation, Index threads) {
    const Pool s = check_pool("max_pool2d", shape_of(x), out, kernel, stride, padding, dilation);
    threads = check_threads(threads);
    return dispatch({{"x", x}}, [&](auto zero) -> py::tuple {
        using T = decltype(zero);
        const ImagesIn<T> xs(x, threads);
        const ImagesOut<T> y(s.n, s.c, s.oh, s.ow);
        const Kernels<T>& k = current_level().of(T());
        const auto run = [&](auto index, auto kernel) {
            const ImagesOut<decltype(index)> at(s.n, s.c, s.oh, s.ow);
            without_gil([&] { kernel(threads, s, xs.view, y.view, at.view.data); });
            return py::make_tuple(y.array, at.array);
        };
        return s.kh * s.kw <= 256 ? run(std::uint8_t(), k.max_pool2d) : run(int(), k.max_pool2d_wide);
    });
}

py::array max_pool2d_grad_(py::array g, py::array index, Shape x_shape, std::optional<py::array> before, Pair kernel,
                           Pair stride, Pair padding, Pair dilation, Index threads) {
    const Shape out = shape_of(g);
    if (out.size() != 4 || x_shape.size() != 4 || out[0] != x_shape[0] || out[1] != x_shape[1])
        throw py::value_error("max_pool2d_grad: g " + text(out) + " does not belong to an input of shape " + text(x_shape));
    const Pool s = check_pool("max_pool2d_grad", x_shape, {out[2], out[3]}, kernel, stride, padding, dilation);
    expect("index", shape_of(index), out);
    const bool narrow = s.kh * s.kw <= 256;
    if (narrow ? !py::isinstance<py::array_t<std::uint8_t>>(index) : !py::isinstance<py::array_t<int>>(index))
        throw py::type_error(std::string("max_pool2d_grad: index must be ") + (narrow ? "uint8" : "int32"));
    if (before) expect("before", shape_of(*before), x_shape);
    threads = check_threads(threads);
    return dispatch({{"g", g}, {"before", before ? *before : g}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const ImagesIn<T> gs(g, threads);
        std::optional<ImagesIn<T>> old;
        if (before) old.emplace(*before, threads);
        const Image<const T> sum_so_far = old ? old->view : Image<const T>{};
        const ImagesOut<T> dx(s.n, s.c, s.h, s.w);
        const Kernels<T>& k = current_level().of(T());
        const auto run = [&](auto unit, auto kernel) {
            using I = decltype(unit);
            const py::array at = gapless_images<I>(index);
            const I* numbers = static_cast<const I*>(at.data());
            without_gil([&] { kernel(threads, s, gs.view, numbers, sum_so_far, dx.view); });
            return dx.array;
        };
        return narrow ? run(std::uint8_t(), k.max_pool2d_grad) : run(int(), k.max_pool2d_grad_wide);
    });
}

void check_average(const char* name, const Pool& s, const py::array& count) {
    expect("count", shape_of(count), {s.oh, s.ow});
    for (const Index room : {s.h + s.ph - (s.oh - 1) * s.sh, s.w + s.pw - (s.ow - 1) * s.sw})
        if (room < 1) throw py::value_error(std::string(name) + ": the last window starts behind the image");
}

py::array avg_pool2d_(py::array x, py::array count, Pair kernel, Pair stride, Pair padding, Index threads) {
    if (count.ndim() != 2) throw py::value_error("avg_pool2d takes count (OH, OW), got shape " + text(shape_of(count)));
    const Pool s = check_pool("avg_pool2d", shape_of(x), {count.shape(0), count.shape(1)}, kernel, stride, padding, {1, 1});
    check_average("avg_pool2d", s, count);
    threads = check_threads(threads);
    return dispatch({{"x", x}, {"count", count}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const ImagesIn<T> xs(x, threads);
        const ImagesOut<T> y(s.n, s.c, s.oh, s.ow);
        const Array<T> counts(count);
        const T* divisors = counts.data();
        const Level level = current_level();
        without_gil([&] { level.of(T()).avg_pool2d(threads, s, xs.view, divisors, y.view); });
        return y.array;
    });
}

py::array avg_pool2d_grad_(py::array g, py::array count, Shape x_shape, Pair kernel, Pair stride, Pair padding, Index threads) {
    const Shape out = shape_of(g);
    if (out.size() != 4 || x_shape.size() != 4 || out[0] != x_shape[0] || out[1] != x_shape[1])
        throw py::value_error("avg_pool2d_grad: g " + text(out) + " does not belong to an input of shape " + text(x_shape));
    const Pool s = check_pool("avg_pool2d_grad", x_shape, {out[2], out[3]}, kernel, stride, padding, {1, 1});
    check_average("avg_pool2d_grad", s, count);
    threads = check_threads(threads);
    return dispatch({{"g", g}, {"count", count}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const ImagesIn<T> gs(g, threads);
        const ImagesOut<T> dx(s.n, s.c, s.h, s.w);
        const Array<T> counts(count);
        const T* divisors = counts.data();
        const Level level = current_level();
        without_gil([&] { level.of(T()).avg_pool2d_grad(threads, s, gs.view, divisors, dx.view); });
        return dx.array;
    });
}

// --- images at another size

// Windows of one axis as Python gives them, (first (m,), last (m,), weight (m, width)), each checked to lie within `size`.
template <class T>
struct WindowsIn {
    Array<Index> first, last;
    Array<T> weight;
    AxisWindows<T> view;
    WindowsIn(const py::tuple& windows, Index size) {
        if (windows.size() != 3) throw py::value_error("resample takes windows as (first, last, weight)");
        first = windows[0].cast<Array<Index>>(), last = windows[1].cast<Array<Index>>(), weight = windows[2].cast<Array<T>>();
        if (weight.ndim() != 2) throw py::value_error("resample: weight is (outputs, width), got " + text(shape_of(weight)));
        expect("first", shape_of(first), {weight.shape(0)});
        expect("last", shape_of(last), {weight.shape(0)});
        view = {first.data(), last.data(), weight.data(), weight.shape(1)};
        for (Index i = 0; i < weight.shape(0); ++i)
            if (view.first[i] < 0 || view.first[i] > view.last[i] || view.last[i] > size || view.last[i] - view.first[i] > view.width)
                throw py::value_error("resample: window " + std::to_string(i) + " leaves the image or has too few weights");
    }
};

py::array resample_(py::array x, py::tuple rows, py::tuple columns, Index threads) {
    if (x.ndim() != 4) throw py::value_error("resample takes x (N, C, H, W), got shape " + text(shape_of(x)));
    threads = check_threads(threads);
    return dispatch({{"x", x}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const WindowsIn<T> down(rows, x.shape(2)), along(columns, x.shape(3));
        check_sizes({x.shape(0), x.shape(1), down.first.size(), along.first.size()});
        const ImagesIn<T> xs(x, threads);
        const ImagesOut<T> y(x.shape(0), x.shape(1), down.first.size(), along.first.size());
        const Level level = current_level();
        without_gil([&] { level.of(T()).resample(threads, down.view, along.view, xs.view, y.view); });
        return y.array;
    });
}

// --- cross entropy

using Targets = Array<long long>;

Labels check_labels(const py::array& x, const Targets& t, const py::array& weight, Index ignored, double smoothing) {
    if (x.ndim() < 2 || x.shape(1) < 1)
        throw py::value_error("cross_entropy takes x (N, C, ...) of at least one class, got " + text(shape_of(x)));
    Shape positions = shape_of(x);
    const py::ssize_t classes = positions[1];
    positions.erase(positions.begin() + 1);
    expect("t", shape_of(t), positions);
    expect("weight", shape_of(weight), {classes});
    if (classes > 1 << 24) throw py::value_error("cross_entropy: at most 2**24 classes, which float32 still tells apart");
    return {t.data(), ignored, smoothing};
}

py::tuple cross_entropy_(py::array x, Targets t, py::array weight, Index ignored, double smoothing, Index threads) {
    const Labels s = check_labels(x, t, weight, ignored, smoothing);
    threads = check_threads(threads);
    return dispatch({{"x", x}, {"weight", weight}}, [&](auto zero) -> py::tuple {
        using T = decltype(zero);
        const ImagesIn<T> xs(as_images(x), threads);
        const Array<T> ws(weight);
        py::array loss = pooled<T>(shape_of(t)), lse = pooled<T>(shape_of(t));
        const T* w = ws.data();
        T *to = static_cast<T*>(loss.mutable_data()), *logs = static_cast<T*>(lse.mutable_data());
        const Level level = current_level();
        bool good = false;
        without_gil([&] { good = level.of(T()).cross_entropy(threads, s, xs.view, w, to, logs); });
        const auto wrong = [&](long long target) { return target != ignored && (target < 0 || target >= xs.view.c); };
        if (!good)
            throw py::index_error("cross_entropy: class " + std::to_string(*std::find_if(t.data(), t.data() + t.size(), wrong))
                                  + " among the targets, but the input has classes 0 to " + std::to_string(xs.view.c - 1));
        return py::make_tuple(loss, lse);
    });
}

py::array cross_entropy_grad_(py::array g, py::array x, Targets t, py::array lse, py::array weight, Index ignored,
                              double smoothing, Index threads) {
    const Labels s = check_labels(x, t, weight, ignored, smoothing);
    expect("g", shape_of(g), shape_of(t));
    expect("lse", shape_of(lse), shape_of(t));
    threads = check_threads(threads);
    return dispatch({{"g", g}, {"x", x}, {"lse", lse}, {"weight", weight}}, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const ImagesIn<T> xs(as_images(x), threads);
        const Array<T> gs(g), logs(lse), ws(weight);
        const ImagesOut<T> dx(xs.view.n, xs.view.c, xs.view.h, xs.view.w);
        const T *pg = gs.data(), *pl = logs.data(), *w = ws.data();
        const Level level = current_level();
        without_gil([&] { level.of(T()).cross_entropy_grad(threads, s, xs.view, w, pg, pl, dx.view); });
        return shaped(dx.array, shape_of(x));
    });
}

// --- dense layers, squared error, optimisers ----------------------------------------------------------------------
//
// These run on small arrays too, where the way in costs more than the work, so they take only arrays that are ready: of one
// dtype, contiguous, aligned. For others they give None or false, and array code takes over.

template <class T>
bool ready(const py::array& a) {
    constexpr int wanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    return (a.flags() & wanted) == wanted && py::isinstance<py::array_t<T>>(a);
}

// f with float or double if all arrays are ready and hold it, else None.
template <class F>
py::object if_ready(std::initializer_list<const py::array*> arrays, F f) {
    bool all32 = true, all64 = true;
    for (const py::array* a : arrays) {
        all32 = all32 && ready<float>(*a);
        all64 = all64 && !all32 && ready<double>(*a);
    }
    if (all32) return f(float());
    if (all64) return f(double());
    return py::none();
}

template <class T>
T* pointer(const py::array& a) {
    return static_cast<T*>(const_cast<void*>(a.data()));
}

void check_dense(const char* name, const py::array& a, const py::array& b, int a_axis, int b_axis) {
    if (a.ndim() != 2 || b.ndim() != 2 || a.shape(a_axis) != b.shape(b_axis))
        throw py::value_error(std::string(name) + ": shapes " + text(shape_of(a)) + " and " + text(shape_of(b)) + " do not fit");
    const double other = static_cast<double>(a.shape(1 - a_axis)) * static_cast<double>(b.shape(1 - b_axis));
    if (other > 1e15) throw py::value_error(std::string(name) + ": too many numbers in the result");
}

py::object linear_(const py::array& x, const py::array& w, const std::optional<py::array>& b, const std::string& activation,
                   Index threads) {
    check_dense("linear", x, w, 1, 1);
    if (b && (b->ndim() != 1 || b->shape(0) != w.shape(0))) expect("b", shape_of(*b), {w.shape(0)});
    const Activation which = activation_of(activation);
    threads = check_threads(threads);
    return if_ready({&x, &w, b ? &*b : &w}, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const Dense s{x.shape(0), x.shape(1), w.shape(0)};
        py::array y = pooled<T>({s.n, s.o});
        T* to = pointer<T>(y);
        const auto kernel = current_level().of(T()).linear;
        launch<T>({&x, &w, b ? &*b : nullptr},
                  [=](const T* const* from) { kernel(threads, s, from[0], from[1], from[2], which, to); });
        return std::move(y);
    });
}

py::object linear_grad_x_(const py::array& g, const py::array& w, Index threads) {
    check_dense("linear_grad_x", g, w, 1, 0);
    threads = check_threads(threads);
    return if_ready({&g, &w}, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const Dense s{g.shape(0), w.shape(1), g.shape(1)};
        py::array dx = pooled<T>({s.n, s.i});
        T* to = pointer<T>(dx);
        const auto kernel = current_level().of(T()).linear_grad_x;
        launch<T>({&g, &w}, [=](const T* const* from) { kernel(threads, s, from[0], from[1], to); });
        return std::move(dx);
    });
}

py::object linear_grad_w_(const py::array& g, const py::array& x, Index threads) {
    check_dense("linear_grad_w", g, x, 0, 0);
    threads = check_threads(threads);
    return if_ready({&g, &x}, [&](auto zero) -> py::object {
        using T = decltype(zero);
        const Dense s{g.shape(0), x.shape(1), g.shape(1)};
        py::array dw = pooled<T>({s.o, s.i}), db = pooled<T>({s.o});
        T *to = pointer<T>(dw), *sums = pointer<T>(db);
        const auto kernel = current_level().of(T()).linear_grad_w;
        launch<T>({&g, &x}, [=](const T* const* from) { kernel(threads, s, from[0], from[1], to, sums); });
        return py::make_tuple(std::move(dw), std::move(db));
    });
}

void check_same_shape(const char* name, const py::array& x, const py::array& t) {
    if (x.ndim() != t.ndim() || !std::equal(x.shape(), x.shape() + x.ndim(), t.shape()))
        throw py::value_error(std::string(name) + ": shapes " + text(shape_of(x)) + " and " + text(shape_of(t)) + " differ");
}

py::object squared_error_(const py::array& x, const py::array& t, double factor, Index threads) {
    check_same_shape("squared_error", x, t);
    threads = check_threads(threads);
    return if_ready({&x, &t}, [&](auto zero) -> py::object {
        using T = decltype(zero);
        py::array sum = pooled<T>(Shape{});
        T* to = pointer<T>(sum);
        const auto kernel = current_level().of(T()).squared_error;
        const Index count = x.size();
        launch<T>({&x, &t},
                  [=](const T* const* from) { *to = static_cast<T>(factor) * kernel(threads, count, from[0], from[1]); });
        return std::move(sum);
    });
}

py::object squared_error_grad_(const py::array& x, const py::array& t, double factor, Index threads) {
    check_same_shape("squared_error_grad", x, t);
    threads = check_threads(threads);
    return if_ready({&x, &t}, [&](auto zero) -> py::object {
        using T = decltype(zero);
        py::array dx = pooled<T>(shape_of(x));
        T* to = pointer<T>(dx);
        const auto kernel = current_level().of(T()).squared_error_grad;
        const Index count = x.size();
        launch<T>({&x, &t},
                  [=](const T* const* from) { kernel(threads, count, static_cast<T>(factor), from[0], from[1], to); });
        return std::move(dx);
    });
}

// What an optimiser is given, sorted by dtype; `complete` says whether all of it is ready: each parameter of one shape with
// what belongs to it, all that changes writable, no two parameters in the same memory.
struct Updates {
    std::vector<Update<float>> f32;
    std::vector<Update<double>> f64;
    bool complete;

    Updates(const py::list& params, const py::list& grads, const py::list& means, const py::list& squares) {
        const size_t count = params.size();
        if (grads.size() != count || (means.size() && means.size() != count) || (squares.size() && squares.size() != count))
            throw py::value_error("an optimiser's lists must be of one length");
        complete = true;
        for (size_t k = 0; complete && k < count; ++k) {
            const py::handle p = params[k], g = grads[k], m = means.size() ? means[k] : py::handle(),
                             s = squares.size() ? squares[k] : py::handle();
            complete = add(f32, p, g, m, s) || add(f64, p, g, m, s);
        }
        std::vector<std::pair<const char*, const char*>> places;
        for (const auto& u : f32) places.emplace_back(reinterpret_cast<const char*>(u.p), reinterpret_cast<const char*>(u.p + u.size));
        for (const auto& u : f64) places.emplace_back(reinterpret_cast<const char*>(u.p), reinterpret_cast<const char*>(u.p + u.size));
        std::sort(places.begin(), places.end());
        for (size_t k = 1; k < places.size(); ++k) complete = complete && places[k - 1].second <= places[k].first;
    }

    template <class F>
    bool each(F f) {
        if (complete) without_gil([&] { f(float(), f32), f(double(), f64); });
        return complete;
    }

private:
    template <class T>
    static bool add(std::vector<Update<T>>& list, py::handle p, py::handle g, py::handle m, py::handle s) {
        Update<T> u{};
        if (!take(p, p, true, u.p, u.size)) return false;
        T* gradient = nullptr;
        if (!take(g, p, false, gradient, u.size) || (m && !take(m, p, true, u.m, u.size)) || (s && !take(s, p, true, u.s, u.size)))
            return false;
        u.g = gradient;
        list.push_back(u);
        return true;
    }

    template <class T>
    static bool take(py::handle object, py::handle like, bool writable, T*& data, Index& size) {
        if (!py::isinstance<py::array>(object)) return false;
        const auto a = py::reinterpret_borrow<py::array>(object), p = py::reinterpret_borrow<py::array>(like);
        if (!ready<T>(a) || (writable && !a.writeable()) || a.ndim() != p.ndim() || !std::equal(a.shape(), a.shape() + a.ndim(), p.shape()))
            return false;
        data = pointer<T>(a);
        size = a.size();
        return true;
    }
};

bool sgd_step_(const py::list& params, const py::list& grads, const py::list& velocities, double lr, double momentum,
               double dampening, double weight_decay, bool nesterov, Index threads) {
    threads = check_threads(threads);
    const SgdStep step{lr, momentum, dampening, weight_decay, nesterov};
    const Level level = current_level();
    return Updates(params, grads, velocities, py::list()).each([&](auto zero, const auto& list) {
        if (!list.empty()) level.of(zero).sgd(threads, list.data(), list.size(), step);
    });
}

bool adam_step_(const py::list& params, const py::list& grads, const py::list& means, const py::list& squares, double lr,
                double beta1, double beta2, double eps, double weight_decay, bool decoupled, Index t, Index threads) {
    threads = check_threads(threads);
    const AdamStep step{lr, beta1, beta2, eps, weight_decay, decoupled, t};
    const Level level = current_level();
    return Updates(params, grads, means, squares).each([&](auto zero, const auto& list) {
        if (!list.empty()) level.of(zero).adam(threads, list.data(), list.size(), step);
    });
}

} // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "The C++ kernels of minidl.backends.cpp_backend.";
    m.def("simd_levels", [] {
        std::vector<std::string> names;
        for (const Level& level : usable_levels()) names.emplace_back(level.name);
        return names;
    }, "The instruction sets that this build and processor have, slowest first.");
    m.def("simd_level", [] { return std::string(current_level().name); }, "The instruction set in use.");
    m.def("set_simd_level", [](const std::string& name) { current_level() = find_level(name); }, py::arg("name"));
    m.def("set_conv_algorithm", set_conv_algorithm, py::arg("name"));
    m.def("explain_conv", explain_conv);
    m.def("get_conv_algorithm", get_conv_algorithm);
#ifdef __SANITIZE_ADDRESS__
    m.def("read_past_a_buffer", [] {
        const volatile char* buffer = static_cast<char*>(acquire(100));
        return buffer[101];
    }, "An error planted for AddressSanitizer (tests/sanitize.py).");
#endif
    py::class_<Recording>(m, "Recording", "Kernels with their arguments; a call with a batch repeats them.")
        .def("__call__", &Recording::repeat);
    m.def("record", record_);
    m.def("memory", [] {
        const Account a = buffer_account();
        return py::make_tuple(a.used, a.peak, a.kept);
    }, "Bytes in buffers: in use now, most ever in use, kept for reuse.");
    m.def("empty_cache", empty_cache, "Give the buffers kept for reuse back to the system.");
    m.def("winograd_matrices", winograd_matrices, py::arg("tile"), py::arg("kernel"));
    m.def("conv2d", conv2d_);
    m.def("conv2d_joined", conv2d_joined_);
    m.def("conv2d_joined_grad_x", conv2d_joined_grad_x_);
    m.def("conv2d_joined_grad_w", conv2d_joined_grad_w_);
    m.def("conv2d_grad_x", conv2d_grad_x_);
    m.def("conv2d_grad_w", conv2d_grad_w_);
    m.def("contiguous", contiguous_);
    m.def("relu", relu_);
    m.def("activation_grad", activation_grad_);
    m.def("add", add_);
    m.def("dropout", dropout_);
    m.def("channel_sum", channel_sum_);
    m.def("concatenate", concatenate_);
    m.def("batch_norm", batch_norm_);
    m.def("batch_norm_grad", batch_norm_grad_);
    m.def("local_response_norm", local_response_norm_);
    m.def("local_response_norm_grad", local_response_norm_grad_);
    m.def("max_pool2d", max_pool2d_);
    m.def("max_pool2d_grad", max_pool2d_grad_);
    m.def("avg_pool2d", avg_pool2d_);
    m.def("avg_pool2d_grad", avg_pool2d_grad_);
    m.def("resample", resample_);
    m.def("cross_entropy", cross_entropy_);
    m.def("cross_entropy_grad", cross_entropy_grad_);
    m.def("linear", linear_);
    m.def("linear_grad_x", linear_grad_x_);
    m.def("linear_grad_w", linear_grad_w_);
    m.def("squared_error", squared_error_);
    m.def("squared_error_grad", squared_error_grad_);
    m.def("sgd_step", sgd_step_);
    m.def("adam_step", adam_step_);
    current_level(); // so that a wrong MINIDL_SIMD is reported when the module is loaded
    if (const char* forced = std::getenv("MINIDL_CONV"); forced && *forced) set_conv_algorithm(forced);
}

// The pixels that the outputs of a convolution see, cut into strips small enough for the cache.
//
// Window element (k, l, channel) of output (i, j) is source pixel (y0 + i * sy + k * dy, x0 + j * sx + l * dx). Where the
// image is dense, neighbouring elements of a window lie one behind the other: a row of it is one run of kw * channels
// numbers, so that few channels are no special case. A strip is some output rows of one image or some whole images. Where
// the windows leave the image, or are not dense in it, a strip of it is first copied to where they are, with zeros around:
// the kernels know no borders.
#pragma once

namespace minidl {
namespace MINIDL_LEVEL {

struct Windows {
    Index rows, columns; // the grid of outputs
    Index kh, kw, sy, sx, dy, dx, y0, x0;
};

template <class T>
class Strips {
public:
    Index count;           // of strips
    Index images, rows;    // of a strip; the last one may have fewer
    Index pixels;          // outputs of a strip
    Index runs, length;    // of a window
    Index step, line;      // from one output to the next, from one row of outputs to the next
    bool padded;           // windows leave the image
    bool copied;           // so they, or windows that are not dense, are copied
    const Index* offset;   // of each run
    const Index* position; // of each output of a strip

    // `channels` of the source are taken at a time; `bytes` of source and outputs (of `outputs` channels) make a strip.
    Strips(const Windows& windows, Image<const T> image, Index channels_, Index outputs, Index bytes)
        : w(windows), source(image), channels(channels_), tables(0) {
        const Index height = (w.rows - 1) * w.sy + (w.kh - 1) * w.dy + 1, width = (w.columns - 1) * w.sx + (w.kw - 1) * w.dx + 1;
        const bool inside = w.y0 >= 0 && w.x0 >= 0 && w.y0 + height <= source.h && w.x0 + width <= source.w;
        padded = !inside;
        copied = padded || (w.kw > 1 && w.dx == 1 && channels < source.pitch && channels < 16);
        pitch = copied ? channels : source.pitch;
        columns = copied ? width : source.w;
        high = copied ? height : source.h;

        const Index row = (w.sy * columns * pitch + w.columns * outputs) * Index(sizeof(T));
        rows = min(max(max(bytes / row, ceil_div(64, w.columns)), Index(1)), w.rows);
        rows = ceil_div(w.rows, ceil_div(w.rows, rows)); // of nearly equal height
        images = 1;
        if (rows == w.rows) {
            images = min(max(max(bytes / (row * rows), ceil_div(64, rows * w.columns)), Index(1)), source.n);
            if (images > 1) images = min(images, max(ceil_div(source.n, 16), ceil_div(128, rows * w.columns)));
            images = min(images, source.n);
        }
        bands = ceil_div(w.rows, rows);
        count = ceil_div(source.n, images) * bands;
        if (copied && images == 1) high = (rows - 1) * w.sy + (w.kh - 1) * w.dy + 1;
        pixels = images * rows * w.columns;
        step = w.sx * pitch;
        line = w.sy * columns * pitch;

        const bool fused = w.dx == 1 && channels == pitch;
        runs = fused ? w.kh : w.kh * w.kw;
        length = fused ? w.kw * channels : channels;
        Index* table = tables.resize(runs + pixels);
        offset = table;
        for (Index k = 0; k < w.kh; ++k)
            for (Index l = 0; l < (fused ? 1 : w.kw); ++l) *table++ = (k * w.dy * columns + l * w.dx) * pitch;
        position = table;
        for (Index m = 0; m < images; ++m)
            for (Index i = 0; i < rows; ++i)
                for (Index j = 0; j < w.columns; ++j) *table++ = m * high * columns * pitch + i * line + j * step;
    }

    // Strip number s: which images and rows, and how many.
    struct Strip {
        Index image, row, images, rows, pixels;
    };
    Strip strip(Index s) const {
        const Index n = s / bands * images, i = s % bands * rows;
        const Index ns = min(images, source.n - n), is = min(rows, w.rows - i);
        return {n, i, ns, is, ns * is * w.columns};
    }

    // The rows of the source that a strip sees, first and end.
    void seen(const Strip& s, const T*& first, const T*& end) const {
        const Index line_ = source.w * source.pitch, top = w.y0 + s.row * w.sy, height = (s.rows - 1) * w.sy + (w.kh - 1) * w.dy + 1;
        first = source.data + (s.image * source.h + max(top, Index(0))) * line_;
        end = source.data + ((s.image + s.images - 1) * source.h + min(top + height, source.h)) * line_;
    }

    // Where the window of a strip's first output starts, for channels from `channel` on.
    const T* fetch(const Strip& s, Index channel, int slot) const {
        const Index top = w.y0 + s.row * w.sy;
        if (!copied) return source.data + ((s.image * source.h + top) * source.w + w.x0) * source.pitch + channel;
        T* to = scratch<T>(slot, images * high * columns * channels);
        const Index left = min(max(-w.x0, Index(0)), columns), right = max(min(source.w - w.x0, columns), left);
        for (Index m = 0; m < s.images; ++m)
            for (Index y = 0; y < high; ++y) {
                T* line_ = to + (m * high + y) * columns * channels;
                if (top + y < 0 || top + y >= source.h) {
                    memset(line_, 0, static_cast<size_t>(columns * channels) * sizeof(T));
                    continue;
                }
                memset(line_, 0, static_cast<size_t>(left * channels) * sizeof(T));
                memset(line_ + right * channels, 0, static_cast<size_t>((columns - right) * channels) * sizeof(T));
                const T* from = source.data + (((s.image + m) * source.h + top + y) * source.w + w.x0) * source.pitch + channel;
                if (channels == source.pitch)
                    memcpy(line_ + left * channels, from + left * channels, static_cast<size_t>((right - left) * channels) * sizeof(T));
                else
                    for (Index x = left; x < right; ++x)
                        for (Index c = 0; c < channels; ++c) line_[x * channels + c] = from[x * source.pitch + c];
            }
        return to;
    }

private:
    Windows w;
    Image<const T> source;
    Index channels, pitch, columns, high, bands; // pitch, columns and height of what the windows look at
    struct Tables {
        Index* data;
        explicit Tables(int) : data(nullptr) {}
        ~Tables() { release(data); }
        Index* resize(Index n) { return data = static_cast<Index*>(acquire(static_cast<size_t>(n) * sizeof(Index))); }
    } tables;
};

} // namespace MINIDL_LEVEL
} // namespace minidl

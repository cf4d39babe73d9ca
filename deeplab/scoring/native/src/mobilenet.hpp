// MobileNetV2 with holes on the kernels of one build: the first convolution, inverted residuals, the last 1x1, a head.
#pragma once

#include "scores.hpp"

namespace scoring {
namespace SCORING_BUILD {

template <class Kernels> class MobileNet : public Network {
    using Cell = typename Kernels::Cell;
    using Result = typename Kernels::Result;
    using Pointwise = typename Kernels::Pointwise;
    using Depthwise = typename Kernels::Depthwise;

    // Pixels whose features stay in the cache between two 1x1 convolutions.
    static constexpr int chunk = 96;
    // Most taps of an ASPP head that are computed together, unless one branch has more: bounds the memory for their maps.
    static constexpr int most_taps = 256;
    static constexpr int stem_inputs = 28;  // 3 x 3 x 3 and a zero

    struct Block {
        Pointwise expand, project;
        Depthwise depthwise;
        BlockShape shape;
        int inputs, hidden, outputs;
        bool expands;
    };
    // What one thread works with.
    struct Scratch {
        Buffer<Cell> ring, row, gathered, between[2];
        size_t bytes() const { return (ring.bytes() + row.bytes() + gathered.bytes() + between[0].bytes() + between[1].bytes()); }
    };

public:
    ~MobileNet() override {
        delete workers_;
        for (int i = 0; i < block_count_; ++i) delete blocks_[i];
        delete[] scratch_;
    }

    void add_stem(const Convolution& convolution, const Input& input, bool symmetric) override {
        stem_.pack(convolution, false);
        for (int c = 0; c < 3; ++c) {
            border_[c] = Cell(Kernels::quantised ? input.border[c] : 0);
            for (int v = 0; v < 256; ++v) cells_[c][v] = input.values ? Kernels::cell(input.values[c * 256 + v]) : Cell(v);
        }
        symmetric_ = symmetric;
    }
    void add_block(const Convolution& expand, const Convolution& depthwise, const Convolution& project,
                   const BlockShape& shape) override {
        Block* block = new Block();
        blocks_[block_count_++] = block;
        block->shape = shape;
        block->expands = expand.outputs > 0;
        if (block->expands) block->expand.pack(expand, false);
        block->depthwise.pack(depthwise);
        block->project.pack(project, false);
        block->hidden = depthwise.outputs;
        block->inputs = block->expands ? expand.inputs : block->hidden;
        block->outputs = project.outputs;
        features_ = block->outputs;
    }
    void add_last(const Convolution& convolution) override {
        has_last_ = true;
        last_.pack(convolution, false);
        features_ = convolution.outputs;
    }
    void add_aspp(const Convolution& taps, int classes, int branches, const int* rates, const float* bias) override {
        head_ = Head::aspp;
        classes_ = classes;
        branches_ = branches;
        together_ = most(1, most_taps / (9 * classes));
        for (int b = 0; b < branches; ++b) rates_[b] = rates[b];
        bias_.grow(classes);
        for (int c = 0; c < classes; ++c) bias_[c] = bias[c];
        for (int b = 0, group = 0; b < branches; b += together_, ++group) {
            Convolution part = taps;
            size_t first = size_t(b) * 9 * classes;
            part.outputs = least(together_, branches - b) * 9 * classes;
            if (taps.weights) part.weights += first * taps.inputs, part.bias += first;
            if (taps.weight_codes)
                part.weight_codes += first * taps.inputs, part.bias_codes += first, part.scale += first, part.offset += first;
            products_[group].pack(part, true);
        }
    }
    void add_pooling_head(const Pooling& pooling, const Convolution& convolution, const Convolution& project,
                          const Convolution& score) override {
        head_ = Head::pooling;
        classes_ = score.outputs;
        pooling_ = pooling;
        copy(pooled_weights_, pooling.weights, size_t(pooling.inputs) * pooling.width);
        copy(pooled_bias_, pooling.bias, pooling.width);
        copy(pooled_share_, pooling.share, size_t(pooling.width) * pooling.outputs);
        copy(pooled_offset_, pooling.offset, pooling.outputs);
        means_.grow(most(pooling.inputs, pooling.outputs));
        pooled_.grow(pooling.width);
        products_[0].pack(convolution, false);
        products_[1].pack(project, false);
        products_[2].pack(score, true);
    }

    void size_of_scores(int height, int width, int& rows, int& columns) const override {
        rows = half(height);
        columns = half(width);
        for (int i = 0; i < block_count_; ++i)
            if (blocks_[i]->shape.stride == 2) rows = half(rows), columns = half(columns);
    }

    Status run(const uint8_t* pixels, const float* values, int height, int width, float* scores, int threads) override {
        if (!stem_.outputs) return Status::no_stem;
        if (head_ == Head::none) return Status::no_head;
        try {
            reserve(height, width, threads);
            run_all(pixels, values, height, width, scores);
            return Status::ok;
        } catch (OutOfMemory) {
            return Status::out_of_memory;
        }
    }

    size_t bytes() const override {
        size_t n = images_[0].bytes() + images_[1].bytes() + zeros_.bytes() + maps_.bytes() + stem_.bytes() + last_.bytes();
        for (int i = 0; i < block_count_; ++i)
            n += blocks_[i]->expand.bytes() + blocks_[i]->depthwise.bytes() + blocks_[i]->project.bytes();
        for (const Pointwise& product : products_) n += product.bytes();
        for (int t = 0; t < threads_; ++t) n += scratch_[t].bytes();
        return n + pooled_weights_.bytes() + pooled_share_.bytes();
    }

private:
    enum class Head { none, aspp, pooling };

    static int half(int side) { return (side + 1) / 2; }
    // Rows or columns of zeros before the first with stride 2. "Same" padding has none before an even side.
    int before(int side) const { return symmetric_ ? 1 : side % 2; }
    static void copy(Buffer<float>& to, const float* from, size_t count) {
        std::memcpy(to.grow(count), from, count * sizeof(float));
    }

    void reserve(int height, int width, int threads) {
        if (threads != threads_) {
            delete workers_;
            workers_ = nullptr;
            delete[] scratch_;
            scratch_ = nullptr;
            threads_ = 0;
            if (threads > 1) workers_ = crf::make_workers(threads);
            int count = workers_ ? workers_->threads() : 1;
            scratch_ = new Scratch[count];
            threads_ = threads;
            running_ = count;
        }
        int h = half(height), w = half(width);
        size_t image = size_t(h) * w * stem_.outputs, ring = 0, row = 0;
        size_t zeros = 0;
        for (int i = 0; i < block_count_; ++i) {
            const Block& block = *blocks_[i];
            ring = larger(ring, 3 * ring_step(w, block.hidden));
            zeros = larger(zeros, size_t(w) * block.hidden);
            if (block.shape.stride == 2) h = half(h), w = half(w);
            row = larger(row, size_t(w) * block.hidden);
            image = larger(image, size_t(h) * w * block.outputs);
        }
        image = larger(image, size_t(h) * w * features_);
        images_[0].grow(image);
        images_[1].grow(image);
        zeros_.grow(zeros);
        for (int t = 0; t < running_; ++t) {
            Scratch& s = scratch_[t];
            s.ring.grow(larger(ring, 3 * size_t(width + 2) * 3));
            s.row.grow(row);
            s.gathered.grow(size_t(half(width)) * stem_inputs);
            for (int i = 0; head_ == Head::pooling && i < 2; ++i) s.between[i].grow(size_t(chunk) * products_[i].outputs);
        }
        size_t positions = size_t(h) * w;
        maps_.grow(positions * (head_ == Head::aspp ? size_t(least(together_, branches_)) * 9 * classes_ : classes_));
    }
    static size_t larger(size_t a, size_t b) { return a > b ? a : b; }
    static size_t ring_step(int width, int channels) { return ((size_t(width) * channels + 63) & ~size_t(63)) + 64; }

    // work(scratch, first, last) on equal parts of `count` things, by all threads.
    template <class F> void share(int count, const F& work) {
        if (running_ == 1) {
            work(scratch_[0], 0, count);
            return;
        }
        struct Task {
            MobileNet* network;
            const F* work;
            int count;
        } task{this, &work, count};
        workers_->run(
            [](void* argument, int thread) {
                Task& t = *static_cast<Task*>(argument);
                int64_t n = t.count, parts = t.network->running_;
                (*t.work)(t.network->scratch_[thread], int(n * thread / parts), int(n * (thread + 1) / parts));
            },
            &task);
    }

    void run_all(const uint8_t* pixels, const float* values, int height, int width, float* scores) {
        Cell *x = images_[0].data(), *y = images_[1].data();
        share(half(height), [&](Scratch& s, int first, int last) { run_stem(s, pixels, values, height, width, first, last, x); });
        int h = half(height), w = half(width);
        for (int i = 0; i < block_count_; ++i) {
            const Block& block = *blocks_[i];
            int rows = block.shape.stride == 2 ? half(h) : h;
            share(rows, [&](Scratch& s, int first, int last) { run_block(s, block, x, h, w, first, last, y); });
            if (block.shape.stride == 2) h = half(h), w = half(w);
            Cell* swapped = x;
            x = y;
            y = swapped;
        }
        if (head_ == Head::aspp) run_aspp(x, y, h, w, scores);
        else run_pooling_head(x, y, h, w, scores);
    }

    // Rows of the first convolution, 3x3 with stride 2, as a product with the 27 values that each result sees.
    void run_stem(Scratch& s, const uint8_t* pixels, const float* values, int height, int width, int first, int last, Cell* out) {
        const size_t step = size_t(width + 2) * 3;  // a column of padding on each side
        const int columns = half(width), top = before(height), left = before(width);
        int stored[3] = {-2, -2, -2};
        for (int y = first; y < last; ++y) {
            const Cell* rows[3];
            for (int i = 0; i < 3; ++i) {
                int r = 2 * y - top + i;
                int slot = (r + 3) % 3;
                Cell* row = s.ring.data() + slot * step;
                if (stored[slot] != r) fill_row(pixels, values, height, width, r, row);
                stored[slot] = r;
                rows[i] = row + (left ? 0 : 3);
            }
            Cell* gathered = s.gathered.data();
            for (int x = 0; x < columns; ++x, gathered += stem_inputs) {
                for (int i = 0; i < 3; ++i) std::memcpy(gathered + 9 * i, rows[i] + size_t(x) * 6, 9 * sizeof(Cell));
                gathered[27] = 0;
            }
            Kernels::pointwise(s.gathered.data(), columns, stem_, Result(), out + size_t(y) * columns * stem_.outputs);
        }
    }
    // Row r of the image as cells, with a border of zeros (their code); rows outside are all border.
    void fill_row(const uint8_t* pixels, const float* values, int height, int width, int r, Cell* row) const {
        const bool inside = r >= 0 && r < height;
        for (int x = 0; x < width + 2; ++x, row += 3) {
            if (!inside || x == 0 || x == width + 1) {
                for (int c = 0; c < 3; ++c) row[c] = border_[c];
                continue;
            }
            size_t at = (size_t(r) * width + x - 1) * 3;
            if (pixels)
                for (int c = 0; c < 3; ++c) row[c] = cells_[c][pixels[at + c]];
            else
                for (int c = 0; c < 3; ++c) row[c] = Kernels::cell(values[at + c]);
        }
    }

    // Rows of an inverted residual. Expanded rows stay in a ring of three: rows of one phase of the rate see only each other, so
    // results are numbered phase by phase.
    void run_block(Scratch& s, const Block& block, const Cell* x, int height, int width, int first, int last, Cell* out) {
        const int stride = block.shape.stride, rate = block.shape.rate, columns = stride == 2 ? half(width) : width;
        const int top = stride == 2 ? before(height) : 0, left = stride == 2 ? before(width) : 0;
        const size_t ring = ring_step(width, block.hidden), in = size_t(width) * block.inputs;
        const size_t step = size_t(columns) * block.outputs;
        int passed = 0;  // results of the phases before
        for (int phase = 0; phase < rate && passed < last; ++phase) {
            int here = stride == 2 ? half(height) : (height - phase + rate - 1) / rate;
            if (here <= 0) break;
            int begin = most(first - passed, 0), end = least(last - passed, here);
            int done = (stride == 2 ? 2 * begin + 1 - top : begin) - 2;  // the last row of this phase that is expanded
            for (int n = begin; n < end; ++n) {
                int middle = stride == 2 ? 2 * n + 1 - top : n;
                if (block.expands)
                    while (done < middle + 1) {
                        int r = phase + ++done * rate;
                        if (done >= 0 && r < height)
                            Kernels::pointwise(x + r * in, width, block.expand, Result(), s.ring.data() + done % 3 * ring);
                    }
                const Cell* rows[3];
                for (int i = 0; i < 3; ++i) {
                    int m = middle - 1 + i, r = phase + m * rate;
                    rows[i] = m < 0 || r >= height ? zeros_.data() : block.expands ? s.ring.data() + m % 3 * ring : x + r * in;
                }
                Kernels::depthwise_row(block.depthwise, rows, width, stride, rate, left, s.row.data());
                int y = stride == 2 ? n : phase + n * rate;
                Result after;
                if (block.shape.shortcut) {
                    after.shortcut = x + y * in;
                    after.shortcut_scale = block.shape.shortcut_scale;
                }
                Kernels::pointwise(s.row.data(), columns, block.project, after, out + y * step);
            }
            passed += here;
        }
    }

    void run_aspp(const Cell* x, Cell* features, int rows, int columns, float* scores) {
        const int positions = rows * columns, inputs = block_count_ ? blocks_[block_count_ - 1]->outputs : stem_.outputs;
        for (int b = 0, group = 0; b < branches_; b += together_, ++group) {
            const int count = least(together_, branches_ - b);
            const size_t taps = size_t(count) * 9 * classes_;
            share(positions, [&](Scratch&, int first, int last) {
                for (int p = first; p < last; p += chunk) {
                    int pixels = least(chunk, last - p);
                    const Cell* from = x + size_t(p) * inputs;
                    if (has_last_) {
                        Cell* to = features + size_t(p) * features_;
                        if (group == 0) Kernels::pointwise(from, pixels, last_, Result(), to);
                        from = to;
                    }
                    Result after;
                    after.values = maps_.data() + p * taps;
                    Kernels::pointwise(from, pixels, products_[group], after, nullptr);
                }
            });
            share(rows, [&](Scratch&, int first, int last) {
                add_taps(maps_.data(), rows, columns, classes_, rates_ + b, count, bias_.data(), b == 0, first, last, scores);
            });
        }
    }

    void run_pooling_head(Cell* x, Cell* other, int rows, int columns, float* scores) {
        const int positions = rows * columns;
        if (has_last_) {
            const int inputs = block_count_ ? blocks_[block_count_ - 1]->outputs : stem_.outputs;
            share(positions, [&](Scratch&, int first, int last) {
                Kernels::pointwise(x + size_t(first) * inputs, last - first, last_, Result(), other + size_t(first) * features_);
            });
            x = other;
        }
        pool(x, positions);
        share(positions, [&](Scratch& s, int first, int last) {
            for (int p = first; p < last; p += chunk) {
                int pixels = least(chunk, last - p);
                Kernels::pointwise(x + size_t(p) * features_, pixels, products_[0], Result(), s.between[0].data());
                Kernels::pointwise(s.between[0].data(), pixels, products_[1], Result(), s.between[1].data());
                Result after;
                after.values = maps_.data() + size_t(p) * classes_;
                Kernels::pointwise(s.between[1].data(), pixels, products_[2], after, nullptr);
                for (int i = p; i < p + pixels; ++i)
                    for (int c = 0; c < classes_; ++c) scores[size_t(c) * positions + i] = maps_[size_t(i) * classes_ + c];
            }
        });
    }
    // The image pooling branch, in float and in a fixed order; its share becomes the projection's offset for this image.
    void pool(const Cell* x, int positions) {
        const int inputs = pooling_.inputs, width = pooling_.width, outputs = pooling_.outputs;
        for (int k = 0; k < inputs; ++k) {
            double sum = 0;  // exact in int8
            for (int p = 0; p < positions; ++p) sum += Kernels::value(x[size_t(p) * inputs + k]);
            means_[k] = (float(sum / positions) - pooling_.zero) * pooling_.step;
        }
        for (int n = 0; n < width; ++n) pooled_[n] = pooled_bias_[n];
        for (int k = 0; k < inputs; ++k)
            for (int n = 0; n < width; ++n) pooled_[n] += means_[k] * pooled_weights_[size_t(k) * width + n];
        for (int n = 0; n < outputs; ++n) means_[n] = pooled_offset_[n];
        for (int k = 0; k < width; ++k) {
            float value = pooled_[k] > 0 ? pooled_[k] : 0;
            for (int n = 0; n < outputs; ++n) means_[n] += value * pooled_share_[size_t(k) * outputs + n];
        }
        products_[1].set_offset(means_.data());
    }

    Pointwise stem_, last_, products_[most_branches];
    Block* blocks_[most_blocks];
    int block_count_ = 0, features_ = 0, classes_ = 0, branches_ = 0, together_ = 1, threads_ = 0, running_ = 1;
    int rates_[most_branches];
    bool symmetric_ = false, has_last_ = false;
    Head head_ = Head::none;
    Cell cells_[3][256], border_[3];
    Pooling pooling_;
    Buffer<float> bias_, maps_, pooled_weights_, pooled_bias_, pooled_share_, pooled_offset_, means_, pooled_;
    Buffer<Cell> images_[2], zeros_;
    Scratch* scratch_ = nullptr;
    crf::Workers* workers_ = nullptr;
};

}  // namespace SCORING_BUILD
}  // namespace scoring

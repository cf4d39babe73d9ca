// The engine for images. Compiled once per instruction set; see CMakeLists.txt.
#include "feature_filter.hpp"
#include "half_size.hpp"

namespace crf {
namespace CRF_BUILD {
namespace {

// The lattice over positions depends on the image's size only, so images of one size share it.
struct PositionLattice {
    PositionRows rows;  // used with one thread, if the grid suits it; otherwise it has 0 points
    Lattice<2> lattice;
    Buffer<float> ones;  // the filter's response to ones
    int height = 0, width = 0;
    float deviation[2] = {0, 0};
    bool threads = false;
    uint64_t used = 0;

    size_t bytes() const { return rows.bytes() + lattice.bytes() + ones.bytes(); }
    void release() {
        rows.release();
        lattice.release();
        ones.release();
        height = 0;
    }
};

// A pixel's row and column for every place of the tile order.
struct Coordinates {
    Buffer<uint16_t> x, y;
    int height = 0, width = 0;
};

class ImageEngine : public Engine {
public:
    ~ImageEngine() override { delete workers_; }

    Status refine(const uint8_t* image, int height, int width, const Scores& scores, const Settings& settings, uint8_t* labels8,
                  uint16_t* labels16, float* marginals, Stats& stats) override {
        try {
            FlushDenormals flush;
            return refine_checked(image, height, width, scores, settings, labels8, labels16, marginals, stats);
        } catch (OutOfMemory) {
            release();
            return Status::out_of_memory;
        }
    }
    size_t bytes() const override {
        size_t n = unary_.bytes() + space_.bytes() + scratch_.bytes() + bilateral_.bytes() + factors_.bytes() + ones_.bytes();
        n += coordinates_.x.bytes() + coordinates_.y.bytes() + half_image_.bytes() + half_scores_.bytes() + half_planes_.bytes();
        for (const PositionLattice& p : positions_) n += p.bytes();
        return n;
    }
    void release() override {
        unary_.release();
        space_.release();
        scratch_.release();
        bilateral_.release();
        factors_.release();
        ones_.release();
        coordinates_.x.release();
        coordinates_.y.release();
        coordinates_.height = 0;
        half_image_.release();
        half_scores_.release();
        half_planes_.release();
        for (PositionLattice& p : positions_) p.release();
    }

private:
    // From this many pixels on, memory matters more than time: channel blocks are narrow and buffers are freed early.
    static constexpr size_t large = 1 << 20;

    Status refine_checked(const uint8_t* image, int height, int width, const Scores& scores, const Settings& settings,
                          uint8_t* labels8, uint16_t* labels16, float* marginals, Stats& stats) {
        if (height > 65535 || width > 65535) return Status::too_large;
        if (!settings.half) {
            PixelOrder order{height, width};
            Status status = solve(image, order, scores, settings, stats);
            if (status != Status::ok) return status;
            Output output(*this, settings, stats);
            if (labels8) write_labels(unary_, order, output.rows, output.logits, labels8);
            if (labels16) write_labels(unary_, order, output.rows, output.logits, labels16);
            if (marginals) write_marginals(unary_, order, output.rows, output.logits, true, marginals);
            return Status::ok;
        }
        PixelOrder order{half_of(height), half_of(width)};
        Scores halved = scores;
        Status status = halve(image, height, width, halved, stats);
        if (status != Status::ok) return status;
        Settings at_half = settings;
        for (Kernel* kernel : {&at_half.gaussian, &at_half.bilateral}) kernel->deviation[0] *= 0.5f, kernel->deviation[1] *= 0.5f;
        status = solve(half_image_.data(), order, halved, at_half, stats);
        if (status != Status::ok) return status;
        Output output(*this, settings, stats);
        int count = marginals ? unary_.classes : unary_.kept;
        float* planes = half_planes_.reserve(order.count() * count);
        write_marginals(unary_, order, output.rows, output.logits, marginals != nullptr, planes);
        const int* names = unary_.kept_class.data();
        if (labels8) enlarge_labels(planes, count, names, height, width, labels8);
        if (labels16) enlarge_labels(planes, count, names, height, width, labels16);
        if (marginals) enlarge_marginals(planes, count, height, width, marginals);
        return Status::ok;
    }

    // What `solve` leaves, and the time that it takes to write it out.
    struct Output {
        bool logits;
        const float* rows;
        Stats& stats;
        double start = now_ms();

        Output(ImageEngine& engine, const Settings& settings, Stats& s)
            : logits(settings.fast), rows(settings.fast ? engine.unary_.logits.data() : engine.space_.rows.data()), stats(s) {}
        ~Output() { stats.output_ms = now_ms() - start; }
    };

    // The image at half size into half_image_, and `scores` as the scores of its pixels.
    Status halve(const uint8_t* image, int height, int width, Scores& scores, Stats& stats) {
        double start = now_ms();
        size_t count = size_t(half_of(height)) * half_of(width);
        halve_image(image, height, width, half_image_.reserve(count * 3));
        if (scores.full_size) {
            float* values = half_scores_.reserve(count * scores.classes);
            for (int c = 0; c < scores.classes; ++c)
                if (!halve_plane(scores.values + size_t(c) * height * width, height, width, values + c * count))
                    return Status::not_finite;
            scores.values = values;
            scores.rows = half_of(height);
            scores.columns = half_of(width);
        }
        for (Axis* axis : {&scores.y, &scores.x}) {
            axis->shift += 0.5f * axis->step;
            axis->step *= 2;
        }
        stats.unary_ms = now_ms() - start;
        return Status::ok;
    }

    // Mean field on an image: leaves logits in unary_ in fast mode, marginals in space_.rows in exact mode.
    Status solve(const uint8_t* image, const PixelOrder& order, const Scores& scores, const Settings& settings, Stats& stats) {
        double start = now_ms();
        bool big = order.count() >= large;
        Status status =
            unary_.load(scores, order, settings.fast, settings.prune, big && settings.block_lanes > 8 ? 8 : settings.block_lanes);
        if (status != Status::ok) return status;
        stats.classes_kept = unary_.kept;
        double now = now_ms();
        stats.unary_ms += now - start;
        start = now;

        locate_pixels(order);
        Field field{};
        field.pixels = order.count();
        if (unary_.has_rest) field.rest = unary_.rest.data();
        if (unary_.implied) field.last = unary_.last.data();
        const float *ones5 = nullptr, *ones2 = nullptr;
        if (settings.gaussian.weight != 0) {
            PositionLattice* p = nullptr;
            status = position_lattice(order, settings.gaussian, settings.threads > 1, p);
            if (status != Status::ok) return status;
            bool sweep = p->rows.points != 0;
            field.rows2 = sweep ? &p->rows : nullptr;
            field.lattice2 = sweep ? nullptr : &p->lattice;
            field.id2 = sweep ? p->rows.id.data() : p->lattice.id.data();
            field.weight2 = sweep ? p->rows.weight.data() : p->lattice.weight.data();
            ones2 = p->ones.data();
            stats.gaussian_vertices = int64_t(sweep ? p->rows.vertices : p->lattice.vertices);
        }
        if (settings.bilateral.weight != 0) {
            status = bilateral_lattice(image, order, settings.bilateral);
            if (status != Status::ok) return status;
            field.lattice5 = &bilateral_;
            float* a = space_.values5.reserve(bilateral_.vertices);
            filter_ones<5>(bilateral_, a, ones_.reserve(order.count()));
            ones5 = ones_.data();
            stats.bilateral_vertices = int64_t(bilateral_.vertices);
        }
        if (big) scratch_.release();
        set_factors(settings, order.count(), ones5, ones2);
        field.factors = factors_.data();
        if (unary_.implied) field.total = sum_messages(field);
        if (big && !field.total) ones_.release();
        if (field.lattice5) field.values5 = space_.values5.reserve(bilateral_.vertices * unary_.lanes);
        if (field.lattice2) field.values2 = space_.values2.reserve(field.lattice2->vertices * unary_.lanes);
        if (field.rows2) field.values2 = space_.values2.reserve(field.rows2->room(unary_.lanes));
        now = now_ms();
        stats.lattice_ms = now - start;

        start_workers(settings.threads);
        switch (unary_.lanes) {
            case 4: infer<4>(field, settings, stats); break;
            case 8: infer<8>(field, settings, stats); break;
            case 16: infer<16>(field, settings, stats); break;
            case 20: infer<20>(field, settings, stats); break;
            default: infer<24>(field, settings, stats); break;
        }
        return Status::ok;
    }

    template <int L> void infer(const Field& field, const Settings& settings, Stats& stats) {
        Inference<L>(field, unary_, space_, workers_, stats).run(settings);
    }

    void locate_pixels(const PixelOrder& order) {
        if (coordinates_.height == order.height && coordinates_.width == order.width) return;
        coordinates_.height = 0;
        uint16_t *x = coordinates_.x.reserve(order.count()), *y = coordinates_.y.reserve(order.count());
        order.runs([&](size_t at, int row, int column, int length) {
            for (int i = 0; i < length; ++i) {
                x[at + i] = uint16_t(column + i);
                y[at + i] = uint16_t(row);
            }
        });
        coordinates_.height = order.height;
        coordinates_.width = order.width;
    }
    // Places first .. first + 7; past the end, the last place again.
    CRF_INLINE void positions(size_t first, size_t count, float8& x, float8& y) const {
        int8 column{}, row{};
        for (int i = 0; i < 8; ++i) {
            size_t p = first + i < count ? first + i : count - 1;
            column[i] = coordinates_.x[p];
            row[i] = coordinates_.y[p];
        }
        x = __builtin_convertvector(column, float8);
        y = __builtin_convertvector(row, float8);
    }

    Status position_lattice(const PixelOrder& order, const Kernel& kernel, bool threads, PositionLattice*& lattice) {
        PositionLattice* oldest = &positions_[0];
        for (PositionLattice& p : positions_) {
            if (p.height == order.height && p.width == order.width && p.deviation[0] == kernel.deviation[0] &&
                p.deviation[1] == kernel.deviation[1] && p.threads == threads) {
                p.used = ++clock_;
                lattice = &p;
                return Status::ok;
            }
            if (p.used < oldest->used) oldest = &p;
        }
        if (order.count() >= large)  // one large lattice at a time
            for (PositionLattice& p : positions_) p.release();
        PositionLattice& p = *oldest;
        p.height = 0;
        size_t count = order.count();
        float sx = 1 / kernel.deviation[0], sy = 1 / kernel.deviation[1];
        double low[2] = {0, 0}, high[2] = {double(order.width) * sx, double(order.height) * sy};
        auto features = [&](size_t first, float8* f) {
            positions(first, count, f[0], f[1]);
            f[0] = f[0] * sx;
            f[1] = f[1] * sy;
        };
        p.rows.release();
        p.threads = threads;
        if (!threads && p.rows.build(count, size_t(PixelOrder::tile) * order.width, low, high, features)) {
            float *out = p.ones.reserve(count), gain = Lattice<2>::gain();
            sweep_numbers(
                p.rows, space_.values2.reserve(p.rows.room(1)), [](size_t) { return 1.0f; },
                [&](size_t at, float sum) { out[at] = sum * gain; });
        } else {
            p.rows.release();
            Status status = p.lattice.build(count, low, high, features, scratch_);
            if (status != Status::ok) return status;
            filter_ones<2>(p.lattice, space_.values2.reserve(p.lattice.vertices), p.ones.reserve(count));
        }
        p.height = order.height;
        p.width = order.width;
        p.deviation[0] = kernel.deviation[0];
        p.deviation[1] = kernel.deviation[1];
        p.used = ++clock_;
        lattice = &p;
        return Status::ok;
    }

    Status bilateral_lattice(const uint8_t* image, const PixelOrder& order, const Kernel& kernel) {
        size_t count = order.count();
        float scale[5];
        double low[5] = {0, 0, 0, 0, 0}, high[5];
        for (int i = 0; i < 5; ++i) scale[i] = 1 / kernel.deviation[i];
        for (int i = 0; i < 5; ++i) high[i] = (i == 0 ? order.width : i == 1 ? order.height : 256) * double(scale[i]);
        return bilateral_.build(
            count, low, high,
            [&](size_t first, float8* f) {
                positions(first, count, f[0], f[1]);
                f[0] = f[0] * scale[0];
                f[1] = f[1] * scale[1];
                int8 red{}, green{}, blue{};
                for (int i = 0; i < 8; ++i) {
                    size_t p = first + i < count ? first + i : count - 1;
                    const uint8_t* at = image + (size_t(coordinates_.y[p]) * order.width + coordinates_.x[p]) * 3;
                    red[i] = at[0];
                    green[i] = at[1];
                    blue[i] = at[2];
                }
                f[2] = __builtin_convertvector(red, float8) * scale[2];
                f[3] = __builtin_convertvector(green, float8) * scale[3];
                f[4] = __builtin_convertvector(blue, float8) * scale[4];
            },
            scratch_);
    }

    void set_factors(const Settings& settings, size_t count, const float* ones5, const float* ones2) {
        Factors* factors = factors_.reserve(count);
        float gain5 = settings.bilateral.weight * Lattice<5>::gain(), gain2 = settings.gaussian.weight * Lattice<2>::gain();
        for (size_t p = 0; p < count; ++p) {
            Factors f{1, gain5, 1, gain2};
            if (ones5) normalise(settings.normalization, ones5[p], f.splat5, f.slice5);
            if (ones2) normalise(settings.normalization, ones2[p], f.splat2, f.slice2);
            factors[p] = f;
        }
    }
    // The sum of all classes' messages to each pixel: marginals sum to one, and the filter is linear.
    const float* sum_messages(const Field& field) {
        float* total = ones_.reserve(field.pixels);  // the factors already include the ones
        std::memset(total, 0, field.pixels * sizeof(float));
        const Factors* f = factors_.data();
        auto in = [&](size_t p) { return f[p].splat2; };
        auto out = [&](size_t p, float sum) { total[p] += f[p].slice2 * sum; };
        if (field.lattice5)
            filter_numbers<5>(
                *field.lattice5, space_.values5.reserve(field.lattice5->vertices), [&](size_t p) { return f[p].splat5; },
                [&](size_t p, float sum) { total[p] += f[p].slice5 * sum; });
        if (field.rows2) sweep_numbers(*field.rows2, space_.values2.reserve(field.rows2->room(1)), in, out);
        else if (field.lattice2) filter_numbers<2>(*field.lattice2, space_.values2.reserve(field.lattice2->vertices), in, out);
        return total;
    }
    static CRF_INLINE void normalise(Normalization kind, float ones, float& before, float& after) {
        if (kind == Normalization::symmetric) {
            float n = 1 / std::sqrt(ones + 1e-20f);
            before *= n;
            after *= n;
        } else if (kind == Normalization::before) {
            before *= 1 / (ones + 1e-20f);
        } else if (kind == Normalization::after) {
            after *= 1 / (ones + 1e-20f);
        }
    }
    void start_workers(int threads) {
        if (threads > max_threads) threads = max_threads;
        if (workers_ && workers_->threads() == threads) return;
        delete workers_;
        workers_ = threads > 1 ? make_workers(threads) : nullptr;
    }

    Unary unary_;
    Workspace space_;
    Scratch scratch_;
    Lattice<5> bilateral_;
    Buffer<float> ones_;
    Buffer<Factors> factors_;
    Coordinates coordinates_;
    Buffer<uint8_t> half_image_;
    Buffer<float> half_scores_, half_planes_;  // of the image's pixels; marginals before they are enlarged
    PositionLattice positions_[4];
    uint64_t clock_ = 0;
    Workers* workers_ = nullptr;
};

}  // namespace

Engine* make_engine() { return new ImageEngine; }
Filter* make_filter() { return new AnyFilter; }

}  // namespace CRF_BUILD
}  // namespace crf

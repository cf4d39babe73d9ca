// The Python binding. DenseCRF checks shapes and dtypes of arrays; sizes are checked here once more.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "interface.hpp"

namespace nb = nanobind;
using namespace crf;

namespace {

// The engine compiled for one instruction set.
struct Build {
    const char* name;
    bool available;  // built into this package, and the machine can run it
    Engine* (*make_engine)();
    Filter* (*make_filter)();
};

// Best first.
const Build* builds(int& count) {
    static const Build all[] = {
#if defined(CRF_WITH_AVX)
        {"avx512",
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
         avx512::make_engine, avx512::make_filter},
        {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
         avx2::make_engine, avx2::make_filter},
#endif
        {"baseline", true, baseline::make_engine, baseline::make_filter}};
    count = sizeof(all) / sizeof(all[0]);
    return all;
}

const Build& choose(const std::string& name) {
    int count;
    const Build* all = builds(count);
    for (int i = 0; i < count; ++i)
        if (all[i].available && (name == "auto" || name == all[i].name)) return all[i];
    if (name == "avx512" || name == "avx2")
        throw nb::value_error(
            ("build '" + name + "': this machine or this package lacks it; 'auto' and 'baseline' are accepted").c_str());
    throw nb::value_error("build: 'auto', 'avx512', 'avx2' and 'baseline' are accepted");
}

void raise(Status status) {
    switch (status) {
        case Status::ok: return;
        case Status::not_finite:
            throw nb::value_error(
                "scores, probabilities or features contain NaN, infinity or a magnitude above 1e30: finite values are accepted");
        case Status::not_a_distribution:
            throw nb::value_error(
                "probabilities are negative or do not sum to one over the classes (within 0.02): give a softmax, or pass logits as "
                "scores");
        case Status::key_range:
            throw nb::value_error(
                "a deviation is too small for the size of the image or the range of the features: the lattice's coordinates do not "
                "fit 64 bits; raise the deviations");
        case Status::too_large:
            throw nb::value_error(
                "the image is too large: at most 65535 pixels a side and 357 million pixels are accepted; refine it in windows");
        case Status::out_of_memory: throw std::bad_alloc();
    }
}

using Image = nb::ndarray<const uint8_t, nb::numpy, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<const float, nb::numpy, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<nb::numpy, nb::c_contig, nb::device::cpu>;

class PyEngine {
public:
    explicit PyEngine(const std::string& build) : engine_(choose(build).make_engine()) {}

    nb::dict refine(Image image, Values scores, float step_y, float shift_y, float step_x, float shift_x, bool probabilities,
                    bool full_size, Output out, int iterations, float pos_w, float pos_x, float pos_y, float bi_w, float bi_x,
                    float bi_y, float bi_r, float bi_g, float bi_b, int normalization, bool fast, bool half, float prune,
                    float freeze, int block_lanes, int threads) {
        size_t height = image.shape(0), width = image.shape(1), classes = scores.shape(0);
        if (image.shape(2) != 3 || !height || !width || height > 65535 || width > 65535)
            throw nb::value_error("image: H x W x 3 uint8, at most 65535 a side, is accepted");
        if (!classes || classes > 65536 || !scores.shape(1) || !scores.shape(2))
            throw nb::value_error("scores: 1 to 65536 classes x h x w are accepted");
        if (full_size && (scores.shape(1) != height || scores.shape(2) != width))
            throw nb::value_error("scores at full size must have the image's height and width");
        if (!full_size && scores.shape(1) * scores.shape(2) > (size_t(1) << 31))
            throw nb::value_error("scores: at most 2^31 positions are accepted");
        if (iterations < 0 || normalization < 0 || normalization > 3 || block_lanes < 4 || block_lanes > 24 || block_lanes % 4 ||
            threads < 1)
            throw nb::value_error("iterations, normalization, block_lanes or threads out of range");
        Settings settings{iterations,
                          {pos_w, {pos_x, pos_y, 0, 0, 0}},
                          {bi_w, {bi_x, bi_y, bi_r, bi_g, bi_b}},
                          Normalization(normalization),
                          fast,
                          half,
                          prune,
                          freeze,
                          block_lanes,
                          threads};
        Scores grid{scores.data(),     int(classes),      int(scores.shape(1)), int(scores.shape(2)),
                    {step_y, shift_y}, {step_x, shift_x}, probabilities,        full_size};
        uint8_t* labels8 = nullptr;
        uint16_t* labels16 = nullptr;
        float* marginals = nullptr;
        size_t room = 1;
        for (size_t i = 0; i < out.ndim(); ++i) room *= out.shape(i);
        if (out.dtype() == nb::dtype<uint8_t>() && classes <= 256) labels8 = static_cast<uint8_t*>(out.data());
        else if (out.dtype() == nb::dtype<uint16_t>()) labels16 = static_cast<uint16_t*>(out.data());
        else if (out.dtype() == nb::dtype<float>()) marginals = static_cast<float*>(out.data());
        else throw nb::value_error("out: uint8, uint16 or float32");
        if (room != height * width * (marginals ? classes : 1)) throw nb::value_error("out has another size than the result");
        Stats stats;
        Status status;
        {
            nb::gil_scoped_release release;
            std::lock_guard<std::mutex> lock(mutex_);  // one image at a time: the buffers are the engine's
            status = engine_->refine(image.data(), int(height), int(width), grid, settings, labels8, labels16, marginals, stats);
        }
        raise(status);
        nb::dict result;
        result["bilateral_vertices"] = stats.bilateral_vertices;
        result["gaussian_vertices"] = stats.gaussian_vertices;
        result["classes_kept"] = stats.classes_kept;
        result["active_fraction"] = stats.active_fraction;
        result["unary_ms"] = stats.unary_ms;
        result["lattice_ms"] = stats.lattice_ms;
        result["filter_ms"] = stats.filter_ms;
        result["update_ms"] = stats.update_ms;
        result["output_ms"] = stats.output_ms;
        return result;
    }
    size_t bytes() const { return engine_->bytes(); }
    void release() {
        nb::gil_scoped_release release;
        std::lock_guard<std::mutex> lock(mutex_);
        engine_->release();
    }

private:
    std::unique_ptr<Engine> engine_;
    std::mutex mutex_;
};

class PyFilter {
public:
    PyFilter(Matrix features, const std::string& build) {
        count_ = features.shape(0);
        if (!count_ || !features.shape(1) || features.shape(1) > largest_dimension)
            throw nb::value_error("features: points x 1 to 6 dimensions are accepted");
        filter_.reset(choose(build).make_filter());
        Status status;
        {
            nb::gil_scoped_release release;
            status = filter_->build(features.data(), int64_t(count_), int(features.shape(1)));
        }
        raise(status);
    }
    void apply(Matrix values, nb::ndarray<float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
        if (values.shape(1) != count_ || out.shape(0) != values.shape(0) || out.shape(1) != count_)
            throw nb::value_error("values, out: channels x points");
        Status status;
        {
            nb::gil_scoped_release release;
            std::lock_guard<std::mutex> lock(mutex_);
            status = filter_->apply(values.data(), int(values.shape(0)), out.data());
        }
        raise(status);
    }
    int64_t vertices() const { return filter_->vertices(); }

private:
    std::unique_ptr<Filter> filter_;
    size_t count_ = 0;
    std::mutex mutex_;
};

}  // namespace

NB_MODULE(_engine, m) {
    m.doc() = "Dense CRF inference on the permutohedral lattice; use deeplab.crf.";
    int count;
    const Build* all = builds(count);
    nb::list names;
    for (int i = 0; i < count; ++i)
        if (all[i].available) names.append(all[i].name);
    m.attr("builds") = names;  // available ones, best first
    nb::class_<PyEngine>(m, "Engine")
        .def(nb::init<const std::string&>(), nb::arg("build") = "auto")
        .def("refine", &PyEngine::refine, nb::arg("image"), nb::arg("scores"), nb::kw_only(), nb::arg("step_y"), nb::arg("shift_y"),
             nb::arg("step_x"), nb::arg("shift_x"), nb::arg("probabilities"), nb::arg("full_size"), nb::arg("out"),
             nb::arg("iterations"), nb::arg("pos_w"), nb::arg("pos_x"), nb::arg("pos_y"), nb::arg("bi_w"), nb::arg("bi_x"),
             nb::arg("bi_y"), nb::arg("bi_r"), nb::arg("bi_g"), nb::arg("bi_b"), nb::arg("normalization"), nb::arg("fast"),
             nb::arg("half"), nb::arg("prune"), nb::arg("freeze"), nb::arg("block_lanes"), nb::arg("threads"))
        .def_prop_ro("bytes", &PyEngine::bytes)
        .def("release", &PyEngine::release);
    nb::class_<PyFilter>(m, "Filter")
        .def(nb::init<Matrix, const std::string&>(), nb::arg("features"), nb::arg("build") = "auto")
        .def("apply", &PyFilter::apply, nb::arg("values"), nb::arg("out"))
        .def_prop_ro("vertices", &PyFilter::vertices);
}

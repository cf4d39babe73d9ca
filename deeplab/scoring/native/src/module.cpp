// The Python binding of the scoring engine. deeplab.scoring.native prepares the arrays; sizes are checked here once more.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "interface.hpp"

namespace nb = nanobind;
using namespace scoring;

namespace {

// The engine compiled for one instruction set and one number format.
struct Build {
    const char *name, *precision;
    bool available;  // built into this package, and the machine can run it
    Network* (*make)();
};

// Best first.
std::vector<Build> builds() {
    return {
#if defined(SCORING_WITH_BF16)
        {"avx512bf16", "bfloat16",
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl"),
         avx512bf16::make_bfloat16},
#endif
#if defined(SCORING_WITH_AVX)
        {"avx512vnni", "int8",
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl"),
         avx512vnni::make_int8},
        {"avx2", "int8", bool(__builtin_cpu_supports("avx2")), avx2::make_int8},
#endif
        {"baseline", "int8", true, baseline::make_int8}};
}

using Array = nb::ndarray<nb::numpy, nb::c_contig, nb::device::cpu, nb::ro>;
using Floats = nb::ndarray<const float, nb::numpy, nb::c_contig, nb::device::cpu>;

template <class T> const T* vector_of(const Array& array, size_t count, const char* what) {
    if (array.dtype() != nb::dtype<T>() || array.ndim() != 1 || array.shape(0) != count)
        throw nb::value_error((std::string(what) + ": another dtype or size than the convolution's").c_str());
    return static_cast<const T*>(array.data());
}

// bfloat16: (weights, bias, activation), float32. int8: (weights int8, bias int32, scale float32, offset float32).
Convolution convolution(const nb::tuple& parts, bool int8) {
    Convolution c{};
    if (parts.size() != (int8 ? 4u : 3u)) throw nb::value_error("convolution: 3 parts, in int8 4, are accepted");
    Array weights = nb::cast<Array>(parts[0]);
    if (weights.ndim() != 2 || !weights.shape(0) || !weights.shape(1) || weights.shape(0) > (1 << 20) ||
        weights.shape(1) > (1 << 20))
        throw nb::value_error("weights: outputs x inputs are accepted");
    if (weights.dtype() != (int8 ? nb::dtype<int8_t>() : nb::dtype<float>())) throw nb::value_error("weights: another dtype");
    c.outputs = int(weights.shape(0));
    c.inputs = int(weights.shape(1));
    if (int8) {
        c.weight_codes = static_cast<const int8_t*>(weights.data());
        c.bias_codes = vector_of<int32_t>(nb::cast<Array>(parts[1]), c.outputs, "bias");
        c.scale = vector_of<float>(nb::cast<Array>(parts[2]), c.outputs, "scale");
        c.offset = vector_of<float>(nb::cast<Array>(parts[3]), c.outputs, "offset");
    } else {
        c.weights = static_cast<const float*>(weights.data());
        c.bias = vector_of<float>(nb::cast<Array>(parts[1]), c.outputs, "bias");
        int activation = nb::cast<int>(parts[2]);
        if (activation < 0 || activation > 2) throw nb::value_error("activation: 0, 1 and 2 are accepted");
        c.activation = Activation(activation);
    }
    return c;
}

void require(bool fits, const char* what) {
    if (!fits) throw nb::value_error(what);
}

class PyNetwork {
public:
    explicit PyNetwork(const std::string& name) {
        for (const Build& build : builds())
            if (build.available && name == build.name) {
                int8_ = std::string(build.precision) == "int8";
                network_.reset(build.make());
                return;
            }
        throw nb::value_error(("build '" + name + "': this machine or this package lacks it").c_str());
    }

    void add_stem(nb::tuple parts, Floats values, std::vector<int> border, bool symmetric) {
        require(!channels_, "the first convolution was added before");
        Convolution c = convolution(parts, int8_);
        require(c.inputs == 28, "the first convolution has 27 inputs and a zero");
        require(values.size() == (int8_ ? 0 : 3 * 256), "values: 3 x 256, in int8 none, are accepted");
        require(border.size() == 3, "border: three codes are accepted");
        require(c.outputs % 4 == 0, "channels: multiples of 4 are accepted");
        Input input{int8_ ? nullptr : values.data(), {}};
        for (int i = 0; i < 3; ++i) input.border[i] = uint8_t(border[i]);
        network_->add_stem(c, input, symmetric);
        channels_ = c.outputs;
    }
    void add_block(nb::object expand, nb::tuple depthwise, nb::tuple project, int stride, int rate, bool shortcut,
                   float shortcut_scale) {
        require(channels_ && !head_ && !last_ && blocks_ < most_blocks,
                "a block follows the first convolution or a block, up to 64");
        Convolution e{}, d = convolution(depthwise, int8_), p = convolution(project, int8_);
        if (!expand.is_none()) e = convolution(nb::cast<nb::tuple>(expand), int8_);
        require(e.outputs ? e.inputs == channels_ && e.outputs == d.outputs : d.outputs == channels_, "channels of a block differ");
        require(d.inputs == 9 && p.inputs == d.outputs && d.outputs % 4 == 0 && p.outputs % 4 == 0, "channels of a block differ");
        require((stride == 1 && rate >= 1 && rate <= 4096) || (stride == 2 && rate == 1), "stride 2 has rate 1");
        require(!shortcut || (stride == 1 && p.outputs == channels_), "a shortcut needs equal shapes");
        network_->add_block(e, d, p, {stride, rate, shortcut, shortcut_scale});
        channels_ = p.outputs;
        ++blocks_;
    }
    void add_last(nb::tuple parts) {
        Convolution c = convolution(parts, int8_);
        require(channels_ && !head_ && !last_ && c.inputs == channels_ && c.outputs % 4 == 0, "channels of the last 1x1 differ");
        network_->add_last(c);
        channels_ = c.outputs;
        last_ = true;
    }
    void add_aspp(nb::tuple taps, std::vector<int> rates, Floats bias) {
        Convolution c = convolution(taps, int8_);
        int classes = int(bias.size()), branches = int(rates.size());
        require(channels_ && !head_ && c.inputs == channels_, "channels of the head differ");
        require(classes >= 1 && classes <= 65536 && branches >= 1 && branches <= most_branches, "1 to 8 branches are accepted");
        require(int64_t(c.outputs) == int64_t(9) * classes * branches, "taps: branches x 9 x classes are accepted");
        for (int rate : rates) require(rate >= 1 && rate <= 4096, "rates: 1 to 4096 are accepted");
        network_->add_aspp(c, classes, branches, rates.data(), bias.data());
        classes_ = classes;
        head_ = true;
    }
    void add_pooling_head(nb::tuple pooling, nb::tuple parts, nb::tuple project, nb::tuple score, float zero, float step) {
        Convolution c = convolution(parts, int8_), p = convolution(project, int8_), s = convolution(score, int8_);
        require(channels_ && !head_ && c.inputs == channels_, "channels of the head differ");
        require(p.inputs == c.outputs && s.inputs == p.outputs && c.outputs % 4 == 0 && p.outputs % 4 == 0,
                "channels of the head differ");
        require(pooling.size() == 4, "pooling: weights, bias, share and offset are accepted");
        Array weights = nb::cast<Array>(pooling[0]);
        int width = weights.ndim() == 1 ? int(weights.shape(0) / channels_) : 0;
        Pooling b{channels_,
                  width,
                  p.outputs,
                  vector_of<float>(weights, size_t(channels_) * width, "pooling"),
                  vector_of<float>(nb::cast<Array>(pooling[1]), width, "pooling"),
                  vector_of<float>(nb::cast<Array>(pooling[2]), size_t(width) * p.outputs, "pooling"),
                  vector_of<float>(nb::cast<Array>(pooling[3]), p.outputs, "pooling"),
                  zero,
                  step};
        require(width > 0, "pooling: inputs x width weights are accepted");
        network_->add_pooling_head(b, c, p, s);
        classes_ = s.outputs;
        head_ = true;
    }

    void run(nb::ndarray<nb::numpy, nb::c_contig, nb::device::cpu, nb::ro> pixels,
             nb::ndarray<float, nb::numpy, nb::ndim<4>, nb::c_contig, nb::device::cpu> out, int threads) {
        require(head_, "a network without a head computes nothing");
        require(pixels.ndim() == 4 && pixels.shape(3) == 3, "pixels: B x H x W x 3 are accepted");
        bool bytes = pixels.dtype() == nb::dtype<uint8_t>();
        require(bytes || (!int8_ && pixels.dtype() == nb::dtype<float>()), "pixels: uint8, in bfloat16 also float32, are accepted");
        size_t height = pixels.shape(1), width = pixels.shape(2);
        require(height >= 1 && width >= 1 && height <= 65535 && width <= 65535, "pixels: sides of 1 to 65535 are accepted");
        require(height * width <= size_t(100) << 20, "pixels: at most 100 million are accepted");
        require(threads >= 1 && threads <= 64, "threads: 1 to 64 are accepted");
        int rows, columns;
        network_->size_of_scores(int(height), int(width), rows, columns);
        require(out.shape(0) == pixels.shape(0) && out.shape(1) == size_t(classes_) && out.shape(2) == size_t(rows) &&
                    out.shape(3) == size_t(columns),
                "out has another size than the scores");
        Status status = Status::ok;
        {
            nb::gil_scoped_release release;
            std::lock_guard<std::mutex> lock(mutex_);  // one image at a time: the buffers are the network's
            size_t in = height * width * 3, step = size_t(classes_) * rows * columns;
            for (size_t i = 0; i < pixels.shape(0) && status == Status::ok; ++i)
                status = network_->run(bytes ? static_cast<const uint8_t*>(pixels.data()) + i * in : nullptr,
                                       bytes ? nullptr : static_cast<const float*>(pixels.data()) + i * in, int(height), int(width),
                                       out.data() + i * step, threads);
        }
        if (status == Status::out_of_memory) throw std::bad_alloc();
        require(status == Status::ok, "the network is not complete");
    }
    nb::tuple size_of_scores(int height, int width) const {
        int rows, columns;
        network_->size_of_scores(height, width, rows, columns);
        return nb::make_tuple(rows, columns);
    }
    size_t bytes() const { return network_->bytes(); }

private:
    std::unique_ptr<Network> network_;
    bool int8_ = false, last_ = false, head_ = false;
    int channels_ = 0, classes_ = 0, blocks_ = 0;
    std::mutex mutex_;
};

}  // namespace

NB_MODULE(_mobilenet, m) {
    m.doc() = "Class scores of MobileNetV2 networks in bfloat16 and int8; use deeplab.scoring.native.";
    nb::list names;
    for (const Build& build : builds())
        if (build.available) names.append(nb::make_tuple(build.precision, build.name));
    m.attr("builds") = names;  // (precision, name) of the available ones, best first
    nb::class_<PyNetwork>(m, "Network")
        .def(nb::init<const std::string&>(), nb::arg("build"))
        .def("add_stem", &PyNetwork::add_stem, nb::arg("convolution"), nb::kw_only(), nb::arg("values"), nb::arg("border"),
             nb::arg("symmetric"))
        .def("add_block", &PyNetwork::add_block, nb::arg("expand").none(), nb::arg("depthwise"), nb::arg("project"), nb::kw_only(),
             nb::arg("stride"), nb::arg("rate"), nb::arg("shortcut"), nb::arg("shortcut_scale"))
        .def("add_last", &PyNetwork::add_last, nb::arg("convolution"))
        .def("add_aspp", &PyNetwork::add_aspp, nb::arg("taps"), nb::kw_only(), nb::arg("rates"), nb::arg("bias"))
        .def("add_pooling_head", &PyNetwork::add_pooling_head, nb::arg("pooling"), nb::arg("convolution"), nb::arg("project"),
             nb::arg("score"), nb::kw_only(), nb::arg("zero"), nb::arg("step"))
        .def("run", &PyNetwork::run, nb::arg("pixels"), nb::arg("out"), nb::arg("threads"))
        .def("size_of_scores", &PyNetwork::size_of_scores, nb::arg("height"), nb::arg("width"))
        .def_prop_ro("bytes", &PyNetwork::bytes);
}

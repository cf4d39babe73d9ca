// Shared by the binding and all builds of the engine: plain data and an abstract class, no inline code.
#pragma once

#include <cstddef>
#include <cstdint>

#include "crf/src/interface.hpp"  // crf::allocate and crf::Workers

namespace scoring {

enum class Activation : int { none, relu6, relu };

// A convolution with folded batch norm: 1x1, weights outputs x inputs, or depthwise 3x3, weights channels x 9.
// In bfloat16: float weights and bias. In int8: result code = round(sum * scale + offset), sum = bias code + weights * codes;
// the range of the codes, 0 to 255, is the activation.
struct Convolution {
    int outputs, inputs;
    const float* weights;
    const float* bias;
    const int8_t* weight_codes;
    const int32_t* bias_codes;
    const float* scale;
    const float* offset;
    Activation activation;
};

// An inverted residual: expand (outputs 0: none), depthwise, project. Stride 2 has rate 1. shortcut_scale: in int8, of the input's
// codes as they are added.
struct BlockShape {
    int stride, rate;
    bool shortcut;
    float shortcut_scale;
};

// What an input pixel means: codes[channel * 256 + value] for uint8 pixels in bfloat16; in int8 a pixel is its own code. border:
// the code of zero, for the padding.
struct Input {
    const float* values;  // bfloat16: 3 x 256
    uint8_t border[3];    // int8
};

// The pooled branch of an image pooling head: means -> 1x1 with ReLU -> its share of the projection, added to the bias.
struct Pooling {
    int inputs, width, outputs;
    const float* weights;  // inputs x width
    const float* bias;     // width
    const float* share;    // width x outputs, in units of the projection's result (codes in int8)
    const float* offset;   // outputs: what the shares are added to
    float zero, step;      // a mean of features is (mean of cells - zero) * step; 0 and 1 in bfloat16
};

enum class Status : int { ok, no_stem, no_head, out_of_memory };

class Network {
public:
    virtual ~Network() {}
    // Layers in order, packed as they are added. The caller checks that channels fit.
    virtual void add_stem(const Convolution& convolution, const Input& input, bool symmetric) = 0;
    virtual void add_block(const Convolution& expand, const Convolution& depthwise, const Convolution& project,
                           const BlockShape& shape) = 0;
    virtual void add_last(const Convolution& convolution) = 0;
    // taps: (branches * 9 * classes) x inputs.
    virtual void add_aspp(const Convolution& taps, int classes, int branches, const int* rates, const float* bias) = 0;
    virtual void add_pooling_head(const Pooling& pooling, const Convolution& convolution, const Convolution& project,
                                  const Convolution& score) = 0;
    // height x width x 3 pixels, uint8 or (bfloat16 only) normalised floats -> classes x rows x columns.
    virtual Status run(const uint8_t* pixels, const float* values, int height, int width, float* scores, int threads) = 0;
    virtual void size_of_scores(int height, int width, int& rows, int& columns) const = 0;
    virtual size_t bytes() const = 0;  // of the weights and the buffers kept for the next image
};

constexpr int most_blocks = 64, most_branches = 8;

namespace baseline {
Network* make_int8();
}
namespace avx2 {
Network* make_int8();
}
namespace avx512vnni {
Network* make_int8();
}
namespace avx512bf16 {
Network* make_bfloat16();
}

}  // namespace scoring

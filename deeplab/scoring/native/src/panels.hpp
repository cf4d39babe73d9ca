// A 1x1 convolution as a matrix product: its outputs in panels of 64, 32 or 16.
#pragma once

#include "buffer.hpp"

namespace scoring {
namespace SCORING_BUILD {

// vectors: of 16 outputs; count: outputs that exist, at most 16 * vectors.
struct Panel {
    int first, vectors, count;
    size_t weights;
};

// What is done with a sum before it is stored, besides the layer's own factors.
template <class Cell> struct After {
    const Cell* shortcut = nullptr;  // added, pixels x outputs
    float shortcut_scale = 0;
    float* values = nullptr;  // store floats here instead of cells, pixels x outputs
};

// The panels of a number of outputs; a vector of 16 outputs takes `inputs` * 16 weights. Returns the number of all weights.
inline size_t divide(int outputs, size_t inputs, Buffer<Panel>& panels, int& count) {
    panels.grow(size_t(outputs) / 16 + 2);
    size_t total = 0;
    count = 0;
    for (int first = 0; first < outputs;) {
        int left = outputs - first;
        int vectors = left > 48 ? 4 : left > 16 ? 2 : 1;
        panels[count++] = {first, vectors, least(left, 16 * vectors), total};
        total += inputs * 16 * vectors;
        first += 16 * vectors;
    }
    return total;
}

}  // namespace SCORING_BUILD
}  // namespace scoring

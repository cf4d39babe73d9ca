// Reading class scores: their values between grid points, and planes of classes to rows of a pixel's classes.
#pragma once

#include "pixel_order.hpp"

namespace crf {
namespace CRF_BUILD {

constexpr float padding = -1000.0f;    // logit of lanes without a class
constexpr float lowest_logit = -1e6f;  // keeps differences of extreme scores finite
constexpr float smallest_probability = 1e-5f;
constexpr float largest_score = 1e30f;  // accepted magnitude: sums and differences of scores stay finite

class ScoreGrid {
protected:
    static CRF_INLINE float clip(float p) { return p > smallest_probability ? p : smallest_probability; }

    struct Position {
        int low, high;
        float weight;
    };
    static Position position(int pixel, int length, const Axis& axis) {
        float at = pixel * axis.step + axis.shift;
        at = at < 0 ? 0 : at > length - 1 ? float(length - 1) : at;
        int low = int(at);
        if (low > length - 2) low = length > 1 ? length - 2 : 0;
        return {low, length > 1 ? low + 1 : 0, at - low};
    }
    float value_at(int c, int y, int x) const {
        const float* plane = scores_.values + size_t(c) * scores_.rows * scores_.columns;
        if (scores_.full_size) return plane[size_t(y) * scores_.columns + x];
        Position v = position(y, scores_.rows, scores_.y), h = position(x, scores_.columns, scores_.x);
        const float *a = plane + size_t(v.low) * scores_.columns, *b = plane + size_t(v.high) * scores_.columns;
        float upper = a[h.low] + h.weight * (a[h.high] - a[h.low]), lower = b[h.low] + h.weight * (b[h.high] - b[h.low]);
        return upper + v.weight * (lower - upper);
    }

    // Planes to pixel-major: `count` values from `offset` of every plane. Missing lanes are padded.
    void transpose(size_t offset, int count, const int* chosen, int chosen_count, int stride, float* out) const {
        size_t plane = size_t(scores_.rows) * scores_.columns;
        float fill = scores_.probabilities ? 0.0f : -largest_score;
        for (int c = 0; c < stride; c += 4) {
            const float* from[4];
            for (int k = 0; k < 4; ++k)
                from[k] = c + k < chosen_count ? scores_.values + plane * (chosen ? chosen[c + k] : c + k) + offset : nullptr;
            if (from[3]) {
                for (int x = 0; x < count; ++x)
                    *(loose4*)(out + size_t(x) * stride + c) = float4{from[0][x], from[1][x], from[2][x], from[3][x]};
            } else {
                for (int x = 0; x < count; ++x)
                    for (int k = 0; k < 4; ++k) out[size_t(x) * stride + c + k] = from[k] ? from[k][x] : fill;
            }
        }
    }

    Scores scores_{};
};

}  // namespace CRF_BUILD
}  // namespace crf

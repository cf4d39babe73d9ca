// Final rows to label maps and marginals in image order.
#pragma once

#include "inference.hpp"

namespace crf {
namespace CRF_BUILD {

// The channel with the largest value. rows: `blocks` planes of pixels x lanes.
template <class Label>
void write_labels(const Unary& unary, const PixelOrder& order, const float* rows, bool logits, Label* out) {
    size_t plane = order.count() * unary.lanes;
    order.runs([&](size_t at, int y, int x, int length) {
        for (int i = 0; i < length; ++i) {
            int best = 0;
            float top = -2 * largest_score, left = 1;
            for (int b = 0, c = 0; b < unary.blocks; ++b) {
                const float* row = rows + b * plane + (at + i) * unary.lanes;
                for (int l = 0; l < unary.lanes && c < unary.channels(); ++l, ++c) {
                    left -= row[l];
                    if (row[l] > top) top = row[l], best = c;
                }
            }
            if (unary.implied && (logits ? unary.last[at + i] : left) > top) best = unary.kept - 1;
            out[size_t(y) * order.width + x + i] = Label(unary.kept_class[best]);
        }
    });
}

// Marginals classes x height x width; without `dropped`, of the kept classes only. logits: softmax first, and share the dropped
// classes' mass among them.
inline void write_marginals(Unary& unary, const PixelOrder& order, const float* rows, bool logits, bool dropped, float* out) {
    size_t pixels = order.count(), plane = pixels * unary.lanes;
    int wide = unary.blocks * unary.lanes, stride = wide + (unary.implied ? 4 : 0);
    Buffer<float> values, shares;
    values.reserve(size_t(PixelOrder::tile) * stride);
    shares.reserve(unary.classes);
    dropped &= unary.has_rest;
    if (dropped) std::memset(out, 0, pixels * unary.classes * sizeof(float));
    order.runs([&](size_t at, int y, int x, int length) {
        size_t pixel = size_t(y) * order.width + x;
        for (int i = 0; i < length; ++i) {
            float* v = values.data() + size_t(i) * stride;
            for (int b = 0; b < unary.blocks; ++b)
                std::memcpy(v + b * unary.lanes, rows + b * plane + (at + i) * unary.lanes, unary.lanes * sizeof(float));
            if (unary.implied) {
                float left = 1;
                for (int k = 0; k < wide; ++k) left -= v[k];
                v[wide] = logits ? unary.last[at + i] : left > 0 ? left : 0;
                for (int k = wide + 1; k < stride; ++k) v[k] = padding;
            }
            if (!logits) continue;
            float rest = unary.has_rest ? unary.rest[at + i] : 0.0f;
            float peak = 0;
            for (int k = 0; k < unary.kept; ++k) peak = v[k] > peak ? v[k] : peak;
            if (peak > 0) rest *= exponential(float4{} - (peak < 80 ? peak : 80))[0];
            float sum = rest;
            for (int k = 0; k < stride; k += 4) {
                float4 e = exponential<float4>(*(const loose4*)(v + k) - peak);
                *(loose4*)(v + k) = e;
                sum += total(e);
            }
            for (int k = 0; k < stride; ++k) v[k] /= sum;
            rest /= sum;
            if (!dropped || rest < 1e-7f) continue;
            unary.dropped_shares(y, x + i, shares.data());
            for (int c = 0; c < unary.classes; ++c)
                if (shares[c] > 0) out[c * pixels + pixel + i] = rest * shares[c];
        }
        for (int k = 0; k < unary.kept; ++k) {
            float* to = out + size_t(dropped ? unary.kept_class[k] : k) * pixels + pixel;
            for (int i = 0; i < length; ++i) to[i] = values[size_t(i) * stride + k];
        }
    });
}

}  // namespace CRF_BUILD
}  // namespace crf

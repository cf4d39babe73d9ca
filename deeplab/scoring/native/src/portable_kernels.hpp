// int8 in plain C++, with AVX2 for the products where it is compiled for that. The result of a sum is
//   round(float(sum) * scale + offset [+ float(shortcut) * shortcut scale]), half to even, cut to 0 ... 255,
// in float with a rounding after every operation (the compiler must not fuse them); vnni_kernels.hpp does the same.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "panels.hpp"

namespace scoring {
namespace SCORING_BUILD {

struct Kernels {
    using Cell = uint8_t;
    using Result = After<uint8_t>;
    static constexpr bool quantised = true;
    static uint8_t cell(float value) { return uint8_t(value); }
    static float value(uint8_t cell) { return cell; }
    static constexpr int group = 2;

    static uint8_t code(float value) {
        value = value > 0 ? value : 0;
        value = value < 255 ? value : 255;
        // Adding 1.5 * 2^23 leaves no bits for fractions, so the sum is rounded half to even.
        float rounded = value + 12582912.0f;
        int32_t bits;
        std::memcpy(&bits, &rounded, 4);
        return uint8_t(bits);
    }

    struct Pointwise {
        int inputs = 0, outputs = 0, panel_count = 0;
        Buffer<Panel> panels;
        Buffer<int16_t> weights;  // [16 outputs][inputs / 2][16 outputs][2 inputs]
        Buffer<int32_t> bias;
        Buffer<float> scale, offset;

        void pack(const Convolution& c, bool) {
            inputs = c.inputs;
            outputs = c.outputs;
            weights.grow(divide(outputs, inputs, panels, panel_count));
            bias.grow(outputs + 64);
            scale.grow(outputs + 64);
            offset.grow(outputs + 64);
            for (int n = 0; n < outputs; ++n) {
                bias[n] = c.bias_codes[n];
                scale[n] = c.scale[n];
                for (int k = 0; k < inputs; ++k)
                    weights[size_t(n / 16) * 16 * inputs + size_t(k / 2) * 32 + n % 16 * 2 + k % 2] =
                        c.weight_codes[size_t(n) * inputs + k];
            }
            set_offset(c.offset);
        }
        void set_offset(const float* values) {
            for (int n = 0; n < outputs; ++n) offset[n] = values[n];
        }
        size_t bytes() const { return weights.bytes() + bias.bytes() + scale.bytes() + offset.bytes(); }
    };

    static void pointwise(const uint8_t* x, int pixels, const Pointwise& p, const Result& after, uint8_t* out) {
        for (int n = 0; n < p.outputs; n += 16) {
            int m = 0;
            for (; m + 4 <= pixels; m += 4) tile<4>(x, m, n, p, after, out);
            for (; m < pixels; ++m) tile<1>(x, m, n, p, after, out);
        }
    }

    struct Depthwise {
        int channels = 0;
        Buffer<int16_t> weights;  // [9 taps][channels]
        Buffer<int32_t> bias;
        Buffer<float> scale, offset;

        void pack(const Convolution& c) {
            channels = c.outputs;
            weights.grow(size_t(channels) * 9);
            bias.grow(channels);
            scale.grow(channels);
            offset.grow(channels);
            for (int n = 0; n < channels; ++n) {
                bias[n] = c.bias_codes[n];
                scale[n] = c.scale[n];
                offset[n] = c.offset[n];
                for (int t = 0; t < 9; ++t) weights[size_t(t) * channels + n] = c.weight_codes[size_t(n) * 9 + t];
            }
        }
        size_t bytes() const { return weights.bytes() + bias.bytes() + scale.bytes() + offset.bytes(); }
    };

    static void depthwise_row(const Depthwise& d, const uint8_t* const* rows, int width, int stride, int rate, int before,
                              uint8_t* out) {
        const int channels = d.channels, results = stride == 2 ? (width + 1) / 2 : width;
        for (int x = 0; x < results; ++x) {
            int middle = stride == 2 ? 2 * x + 1 - before : x;
            for (int first = 0; first < channels; first += 64) {
                int count = least(64, channels - first);
                int32_t sums[64];
                for (int c = 0; c < count; ++c) sums[c] = d.bias[first + c];
                for (int column = 0; column < 3; ++column) {
                    int at = middle + (column - 1) * rate;
                    if (at < 0 || at >= width) continue;
                    for (int row = 0; row < 3; ++row) {
                        const uint8_t* codes = rows[row] + size_t(at) * channels + first;
                        const int16_t* w = d.weights.data() + size_t(row * 3 + column) * channels + first;
                        for (int c = 0; c < count; ++c) sums[c] += int16_t(codes[c] * w[c]);  // at most 255 * 127
                    }
                }
                uint8_t* target = out + size_t(x) * channels + first;
                for (int c = 0; c < count; ++c) target[c] = code(float(sums[c]) * d.scale[first + c] + d.offset[first + c]);
            }
        }
    }

private:
    // M pixels by 16 outputs.
    template <int M>
    static void tile(const uint8_t* x, int m0, int n, const Pointwise& p, const Result& after, uint8_t* out) {
        const int inputs = p.inputs, count = least(16, p.outputs - n);
        const int16_t* w = p.weights.data() + size_t(n / 16) * 16 * inputs;
        x += size_t(m0) * inputs;
        alignas(32) int32_t sums[M][16];
#if defined(__AVX2__)
        __m256i low[M], high[M];
        for (int m = 0; m < M; ++m) {
            low[m] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.bias.data() + n));
            high[m] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.bias.data() + n + 8));
        }
        for (int k = 0; k < inputs; k += 2, w += 32) {
            __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
            __m256i b = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 16));
            for (int m = 0; m < M; ++m) {
                const uint8_t* two = x + size_t(m) * inputs + k;
                __m256i codes = _mm256_set1_epi32(two[0] | two[1] << 16);
                low[m] = _mm256_add_epi32(low[m], _mm256_madd_epi16(codes, a));
                high[m] = _mm256_add_epi32(high[m], _mm256_madd_epi16(codes, b));
            }
        }
        for (int m = 0; m < M; ++m) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(sums[m]), low[m]);
            _mm256_store_si256(reinterpret_cast<__m256i*>(sums[m] + 8), high[m]);
        }
#else
        for (int m = 0; m < M; ++m)
            for (int e = 0; e < 16; ++e) sums[m][e] = p.bias[n + e];
        for (int k = 0; k < inputs; k += 2, w += 32)
            for (int m = 0; m < M; ++m) {
                const int32_t a = x[size_t(m) * inputs + k], b = x[size_t(m) * inputs + k + 1];
                for (int e = 0; e < 16; ++e) sums[m][e] += a * w[2 * e] + b * w[2 * e + 1];
            }
#endif
        const float *scale = p.scale.data() + n, *offset = p.offset.data() + n;
        for (int m = 0; m < M; ++m) {
            size_t at = size_t(m0 + m) * p.outputs + n;
            float f[16];
            for (int e = 0; e < 16; ++e) f[e] = float(sums[m][e]) * scale[e] + offset[e];
            if (after.values) {
                for (int e = 0; e < count; ++e) after.values[at + e] = f[e];
                continue;
            }
            if (after.shortcut)
                for (int e = 0; e < count; ++e) f[e] = f[e] + float(after.shortcut[at + e]) * after.shortcut_scale;
            for (int e = 0; e < count; ++e) out[at + e] = code(f[e]);
        }
    }
};

}  // namespace SCORING_BUILD
}  // namespace scoring

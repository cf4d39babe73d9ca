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
        int m = 0;
        for (; m + 6 <= pixels; m += 6) strip<6>(x, m, p, after, out);
        for (; m < pixels; ++m) strip<1>(x, m, p, after, out);
    }

    struct Depthwise {
        int channels = 0;
        Buffer<int16_t> weights;  // [9 taps][channels]
        Buffer<int32_t> bias;
        Buffer<float> scale, offset;

        void pack(const Convolution& c) {
            channels = c.outputs;
            weights.grow(size_t(channels) * 9);
            bias.grow(channels + 16);
            scale.grow(channels + 16);
            offset.grow(channels + 16);
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
            // The taps that lie in the image.
            const uint8_t* codes[9];
            const int16_t* weights[9];
            int taps = 0;
            for (int column = 0; column < 3; ++column) {
                int at = middle + (column - 1) * rate;
                if (at < 0 || at >= width) continue;
                for (int row = 0; row < 3; ++row, ++taps) {
                    codes[taps] = rows[row] + size_t(at) * channels;
                    weights[taps] = d.weights.data() + size_t(row * 3 + column) * channels;
                }
            }
            uint8_t* target = out + size_t(x) * channels;
            for (int first = 0; first < channels; first += 16) {
                alignas(32) int32_t sums[16];
                for (int c = 0; c < 16; ++c) sums[c] = d.bias[first + c];
                add_taps(codes, weights, taps, first, sums);
                float f[16];
                for (int c = 0; c < 16; ++c) f[c] = float(sums[c]) * d.scale[first + c] + d.offset[first + c];
                put(f, least(16, channels - first), target + first);
            }
        }
    }

private:
    static constexpr int most_together = 1024;  // inputs whose codes are widened at a time

    // M pixels by all outputs.
    template <int M>
    static void strip(const uint8_t* x, int m0, const Pointwise& p, const Result& after, uint8_t* out) {
        const int inputs = p.inputs;
        x += size_t(m0) * inputs;
        // Once for all outputs: two neighbouring codes are loaded together as int16.
        alignas(32) int16_t wide[M][most_together];
        if (inputs <= most_together)
            for (int m = 0; m < M; ++m)
                for (int k = 0; k < inputs; ++k) wide[m][k] = x[size_t(m) * inputs + k];
        for (int n = 0; n < p.outputs; n += 16) {
            alignas(32) int32_t sums[M][16];
            for (int m = 0; m < M; ++m)
                for (int e = 0; e < 16; ++e) sums[m][e] = p.bias[n + e];
            const int16_t* w = p.weights.data() + size_t(n / 16) * 16 * inputs;
            for (int first = 0; first < inputs; first += most_together) {
                const int count = least(most_together, inputs - first);
                if (inputs > most_together)
                    for (int m = 0; m < M; ++m)
                        for (int k = 0; k < count; ++k) wide[m][k] = x[size_t(m) * inputs + first + k];
                add_products<M>(wide, count, w + size_t(first) * 16, sums);
            }
            for (int m = 0; m < M; ++m) store(sums[m], p, n, after, size_t(m0 + m) * p.outputs + n, out);
        }
    }

    template <int M>
    static void add_products(const int16_t (*x)[most_together], int inputs, const int16_t* w, int32_t (*sums)[16]) {
#if defined(__AVX2__)
        __m256i low[M], high[M];
        for (int m = 0; m < M; ++m) {
            low[m] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums[m]));
            high[m] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums[m] + 8));
        }
        for (int k = 0; k < inputs; k += 2, w += 32) {
            __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
            __m256i b = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 16));
            for (int m = 0; m < M; ++m) {
                int32_t two;
                std::memcpy(&two, x[m] + k, 4);
                __m256i codes = _mm256_set1_epi32(two);
                low[m] = _mm256_add_epi32(low[m], _mm256_madd_epi16(codes, a));
                high[m] = _mm256_add_epi32(high[m], _mm256_madd_epi16(codes, b));
            }
        }
        for (int m = 0; m < M; ++m) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(sums[m]), low[m]);
            _mm256_store_si256(reinterpret_cast<__m256i*>(sums[m] + 8), high[m]);
        }
#else
        for (int k = 0; k < inputs; k += 2, w += 32)
            for (int m = 0; m < M; ++m) {
                const int32_t a = x[m][k], b = x[m][k + 1];
                for (int e = 0; e < 16; ++e) sums[m][e] += a * w[2 * e] + b * w[2 * e + 1];
            }
#endif
    }

    // Products of 16 channels; a buffer may be read beyond its end, what is read there is not used.
    static void add_taps(const uint8_t* const* codes, const int16_t* const* weights, int taps, int first, int32_t* sums) {
#if defined(__AVX2__)
        __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums));
        __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + 8));
        for (int t = 0; t < taps; ++t) {
            __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes[t] + first)));
            __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights[t] + first));
            __m256i product = _mm256_mullo_epi16(c, w);  // at most 255 * 127
            low = _mm256_add_epi32(low, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(product)));
            high = _mm256_add_epi32(high, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(product, 1)));
        }
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums), low);
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums + 8), high);
#else
        for (int t = 0; t < taps; ++t)
            for (int c = 0; c < 16; ++c) sums[c] += codes[t][first + c] * weights[t][first + c];
#endif
    }

    // 16 values as codes, of which `count` are stored.
    static void put(const float* f, int count, uint8_t* out) {
        alignas(16) uint8_t codes[16];
#if defined(__AVX2__)
        __m256 zero = _mm256_setzero_ps(), most = _mm256_set1_ps(255);
        __m256i a = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_loadu_ps(f), zero), most));
        __m256i b = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_loadu_ps(f + 8), zero), most));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        if (count == 16) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
            return;
        }
        _mm_store_si128(reinterpret_cast<__m128i*>(codes), bytes);
#else
        for (int e = 0; e < 16; ++e) codes[e] = code(f[e]);
#endif
        std::memcpy(out, codes, count);
    }

    // Up to 16 results of a pixel; `at`: of the first one in the output.
    static void store(const int32_t* sums, const Pointwise& p, int n, const Result& after, size_t at, uint8_t* out) {
        const int count = least(16, p.outputs - n);
        const float *scale = p.scale.data() + n, *offset = p.offset.data() + n;
        float f[16];
        for (int e = 0; e < 16; ++e) f[e] = float(sums[e]) * scale[e] + offset[e];
        if (after.values) {
            for (int e = 0; e < count; ++e) after.values[at + e] = f[e];
            return;
        }
        if (after.shortcut) {
            uint8_t codes[16] = {};
            std::memcpy(codes, after.shortcut + at, count);
            for (int e = 0; e < 16; ++e) f[e] = f[e] + float(codes[e]) * after.shortcut_scale;
        }
        put(f, count, out + at);
    }
};

}  // namespace SCORING_BUILD
}  // namespace scoring

// int8 for AVX-512 VNNI: vpdpbusd adds four products of a uint8 and an int8 to an int32. Sums are exact; the one rounding of a
// result is that of portable_kernels.hpp, operation by operation, so the codes are the same.
#pragma once

#include <immintrin.h>

#include "panels.hpp"

#define UNROLL_4 _Pragma("GCC unroll 4")
#define UNROLL_16 _Pragma("GCC unroll 16")

namespace scoring {
namespace SCORING_BUILD {

struct Kernels {
    using Cell = uint8_t;
    using Result = After<uint8_t>;
    static constexpr bool quantised = true;
    static uint8_t cell(float value) { return uint8_t(value); }
    static float value(uint8_t cell) { return cell; }
    static constexpr int group = 4;  // inputs that are multiplied together: every number of inputs is a multiple of it

    // The channel at place 16 * j + e of a panel, so that packing four vectors of int32 to one of uint8 puts channels in order.
    // Floats are stored without packing: their panels are in order.
    static int channel(int vectors, int j, int e, bool in_order) {
        int lane = e / 4, i = e % 4;
        if (in_order || vectors == 1) return 16 * j + e;
        return vectors == 4 ? 16 * lane + 4 * j + i : 8 * lane + 4 * j + i;
    }

    struct Pointwise {
        int inputs = 0, outputs = 0, panel_count = 0;
        bool in_order = false;
        Buffer<Panel> panels;
        Buffer<int8_t> weights;  // [panel][inputs / 4][vectors][16 outputs][4 inputs]
        Buffer<int32_t> bias;
        Buffer<float> scale, offset;

        void pack(const Convolution& c, bool floats) {
            inputs = c.inputs;
            outputs = c.outputs;
            in_order = floats;
            weights.grow(divide(outputs, inputs, panels, panel_count));
            bias.grow(outputs + 64);
            scale.grow(outputs + 64);
            offset.grow(outputs + 64);
            each([&](const Panel& p, int j, int e, int at, int c0) {
                bias[at] = c.bias_codes[c0];
                scale[at] = c.scale[c0];
                for (int k = 0; k < inputs; ++k)
                    weights[p.weights + size_t(k / 4) * 64 * p.vectors + 64 * j + 4 * e + k % 4] =
                        c.weight_codes[size_t(c0) * inputs + k];
            });
            set_offset(c.offset);
        }
        void set_offset(const float* values) {
            each([&](const Panel&, int, int, int at, int c0) { offset[at] = values[c0]; });
        }
        size_t bytes() const { return weights.bytes() + bias.bytes() + scale.bytes() + offset.bytes(); }

    private:
        template <class F> void each(F f) {
            for (int b = 0; b < panel_count; ++b)
                for (int j = 0; j < panels[b].vectors; ++j)
                    for (int e = 0; e < 16; ++e) {
                        int c0 = panels[b].first + channel(panels[b].vectors, j, e, in_order);
                        if (c0 < outputs) f(panels[b], j, e, panels[b].first + 16 * j + e, c0);
                    }
        }
    };

    static void pointwise(const uint8_t* x, int pixels, const Pointwise& p, const Result& after, uint8_t* out) {
        for (int b = 0; b < p.panel_count; ++b) {
            const Panel& panel = p.panels[b];
            if (panel.vectors == 4) sweep<4, 6>(x, pixels, p, panel, after, out);
            else if (panel.vectors == 2) sweep<2, 12>(x, pixels, p, panel, after, out);
            else sweep<1, 12>(x, pixels, p, panel, after, out);
        }
    }

    struct Depthwise {
        int channels = 0;
        Buffer<int8_t> weights;  // [64 channels][3 columns][4 vectors][16 channels][3 rows and a zero]
        Buffer<int32_t> bias;
        Buffer<float> scale, offset;

        void pack(const Convolution& c) {
            channels = c.outputs;
            int blocks = (channels + 63) / 64;
            weights.grow(size_t(blocks) * 768);
            bias.grow(size_t(blocks) * 64);
            scale.grow(size_t(blocks) * 64);
            offset.grow(size_t(blocks) * 64);
            for (int b = 0; b < blocks; ++b)
                for (int j = 0; j < 4; ++j)
                    for (int e = 0; e < 16; ++e) {
                        int c0 = 64 * b + channel(4, j, e, false), at = 64 * b + 16 * j + e;
                        if (c0 >= channels) continue;
                        bias[at] = c.bias_codes[c0];
                        scale[at] = c.scale[c0];
                        offset[at] = c.offset[c0];
                        for (int column = 0; column < 3; ++column)
                            for (int row = 0; row < 3; ++row)
                                weights[size_t(b) * 768 + column * 256 + j * 64 + 4 * e + row] =
                                    c.weight_codes[size_t(c0) * 9 + row * 3 + column];
                    }
        }
        size_t bytes() const { return weights.bytes() + bias.bytes() + scale.bytes() + offset.bytes(); }
    };

    // One row of results from three rows of `width` pixels. before: columns of padding on the left with stride 2.
    static void depthwise_row(const Depthwise& d, const uint8_t* const* rows, int width, int stride, int rate, int before,
                              uint8_t* out) {
        for (int b = 0; b < (d.channels + 63) / 64; ++b) {
            if (64 * b + 64 <= d.channels) depthwise_block<true>(d, b, rows, width, stride, rate, before, out);
            else depthwise_block<false>(d, b, rows, width, stride, rate, before, out);
        }
    }

private:
    static inline __attribute__((always_inline)) void multiply_add(__m512i& sum, __m512i codes, __m512i weights) {
        // As an intrinsic GCC spills the sums of the product: 200 instead of 430 billion operations a second.
        asm("vpdpbusd %2,%1,%0" : "+v"(sum) : "v"(codes), "v"(weights));
    }
    static __mmask64 first(int count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

    template <int V>
    static inline void store(const __m512i* sums, const Pointwise& p, const Panel& panel, const Result& after, uint8_t* out,
                             size_t at) {
        const float *scale = p.scale.data() + panel.first, *offset = p.offset.data() + panel.first;
        __m512 f[V];
        UNROLL_4 for (int j = 0; j < V; ++j) f[j] = _mm512_add_ps(
            _mm512_mul_ps(_mm512_cvtepi32_ps(sums[j]), _mm512_loadu_ps(scale + 16 * j)), _mm512_loadu_ps(offset + 16 * j));
        if (after.values) {
            UNROLL_4 for (int j = 0; j < V; ++j) {
                int left = panel.count - 16 * j;
                if (left > 0) _mm512_mask_storeu_ps(after.values + at + 16 * j, left >= 16 ? 0xffff : (1 << left) - 1, f[j]);
            }
            return;
        }
        if (after.shortcut) {
            const uint8_t* shortcut = after.shortcut + at;
            __m512 by = _mm512_set1_ps(after.shortcut_scale);
            __m512i zero = _mm512_setzero_si512(), y[V];
            if (V == 4) {
                __m512i x = _mm512_maskz_loadu_epi8(first(panel.count), shortcut);
                __m512i low = _mm512_unpacklo_epi8(x, zero), high = _mm512_unpackhi_epi8(x, zero);
                y[0] = _mm512_unpacklo_epi16(low, zero);
                y[1 % V] = _mm512_unpackhi_epi16(low, zero);
                y[2 % V] = _mm512_unpacklo_epi16(high, zero);
                y[3 % V] = _mm512_unpackhi_epi16(high, zero);
            } else if (V == 2) {
                __m512i x = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(__mmask32(first(panel.count)), shortcut));
                y[0] = _mm512_unpacklo_epi16(x, zero);
                y[1 % V] = _mm512_unpackhi_epi16(x, zero);
            } else {
                y[0] = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(__mmask16(first(panel.count)), shortcut));
            }
            UNROLL_4 for (int j = 0; j < V; ++j) f[j] = _mm512_add_ps(f[j], _mm512_mul_ps(_mm512_cvtepi32_ps(y[j]), by));
        }
        __m512i v[V];
        UNROLL_4 for (int j = 0; j < V; ++j) v[j] = _mm512_cvtps_epi32(f[j]);
        uint8_t* target = out + at;
        if (V == 4) {
            __m512i r = _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1 % V]), _mm512_packs_epi32(v[2 % V], v[3 % V]));
            if (panel.count >= 64) _mm512_storeu_si512(target, r);
            else _mm512_mask_storeu_epi8(target, first(panel.count), r);
        } else if (V == 2) {
            __m512i packed = _mm512_max_epi16(_mm512_packs_epi32(v[0], v[1 % V]), _mm512_setzero_si512());
            _mm256_mask_storeu_epi8(target, __mmask32(first(panel.count)), _mm512_cvtusepi16_epi8(packed));
        } else {
            __m128i r = _mm512_cvtusepi32_epi8(_mm512_max_epi32(v[0], _mm512_setzero_si512()));
            _mm_mask_storeu_epi8(target, __mmask16(first(panel.count)), r);
        }
    }

    // M pixels by V vectors of outputs, all sums in registers.
    template <int M, int V>
    static void tile(const uint8_t* x, const Pointwise& p, const Panel& panel, const Result& after, uint8_t* out, size_t at) {
        const size_t step = p.inputs;
        __m512i sums[M][V];
        UNROLL_16 for (int m = 0; m < M; ++m) {
            UNROLL_4 for (int j = 0; j < V; ++j) sums[m][j] = _mm512_loadu_si512(p.bias.data() + panel.first + 16 * j);
        }
        const int8_t* w = p.weights.data() + panel.weights;
        const int inputs = p.inputs;
        for (int k = 0; k < inputs; k += 4, w += 64 * V) {
            __m512i weights[V];
            UNROLL_4 for (int j = 0; j < V; ++j) weights[j] = _mm512_load_si512(w + 64 * j);
            UNROLL_16 for (int m = 0; m < M; ++m) {
                int four;
                std::memcpy(&four, x + m * step + k, 4);
                __m512i codes = _mm512_set1_epi32(four);
                UNROLL_4 for (int j = 0; j < V; ++j) multiply_add(sums[m][j], codes, weights[j]);
            }
        }
        UNROLL_16 for (int m = 0; m < M; ++m) store<V>(sums[m], p, panel, after, out, at + size_t(m) * p.outputs);
    }
    template <int V, int M>
    static void rest(int left, const uint8_t* x, const Pointwise& p, const Panel& panel, const Result& after, uint8_t* out,
                     size_t at) {
        if constexpr (M > 0) {
            if (left == M) tile<M, V>(x, p, panel, after, out, at);
            else rest<V, M - 1>(left, x, p, panel, after, out, at);
        }
    }
    template <int V, int M>
    static void sweep(const uint8_t* x, int pixels, const Pointwise& p, const Panel& panel, const Result& after, uint8_t* out) {
        const size_t in = p.inputs, step = p.outputs;
        int m = 0;
        for (; m + M <= pixels; m += M) tile<M, V>(x + m * in, p, panel, after, out, m * step + panel.first);
        if (m < pixels) rest<V, M - 1>(pixels - m, x + m * in, p, panel, after, out, m * step + panel.first);
    }

    // A column of three rows, interleaved: four bytes for each channel.
    struct Column {
        __m512i v[4];
    };
    template <bool Full>
    static inline __attribute__((always_inline)) Column column(const uint8_t* r0, const uint8_t* r1, const uint8_t* r2,
                                                               __mmask64 mask) {
        __m512i zero = _mm512_setzero_si512(), a, b, c;
        if (Full) {
            a = _mm512_loadu_si512(r0);
            b = _mm512_loadu_si512(r1);
            c = _mm512_loadu_si512(r2);
        } else {
            a = _mm512_maskz_loadu_epi8(mask, r0);
            b = _mm512_maskz_loadu_epi8(mask, r1);
            c = _mm512_maskz_loadu_epi8(mask, r2);
        }
        __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
        __m512i low2 = _mm512_unpacklo_epi8(c, zero), high2 = _mm512_unpackhi_epi8(c, zero);
        return {{_mm512_unpacklo_epi16(low, low2), _mm512_unpackhi_epi16(low, low2), _mm512_unpacklo_epi16(high, high2),
                 _mm512_unpackhi_epi16(high, high2)}};
    }
    static inline __attribute__((always_inline)) void dot(__m512i* sums, const Column& c, const __m512i* w) {
        UNROLL_4 for (int j = 0; j < 4; ++j) sums[j] = _mm512_dpbusd_epi32(sums[j], c.v[j], w[j]);
    }
    template <bool Full>
    static inline __attribute__((always_inline)) void put(const __m512i* sums, const float* scale, const float* offset,
                                                          uint8_t* out, __mmask64 mask) {
        __m512i v[4];
        UNROLL_4 for (int j = 0; j < 4; ++j) v[j] = _mm512_cvtps_epi32(_mm512_add_ps(
            _mm512_mul_ps(_mm512_cvtepi32_ps(sums[j]), _mm512_loadu_ps(scale + 16 * j)), _mm512_loadu_ps(offset + 16 * j)));
        __m512i r = _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
        if (Full) _mm512_storeu_si512(out, r);
        else _mm512_mask_storeu_epi8(out, mask, r);
    }

    // Each interleaved column serves the three results that see it.
    template <bool Full>
    static void depthwise_block(const Depthwise& d, int b, const uint8_t* const* rows, int width, int stride, int rate, int before,
                                uint8_t* out) {
        const size_t step = d.channels;
        const __mmask64 mask = first(d.channels - 64 * b);
        const int8_t* w = d.weights.data() + size_t(b) * 768;
        __m512i left[4], middle[4], right[4];
        UNROLL_4 for (int j = 0; j < 4; ++j) {
            left[j] = _mm512_load_si512(w + 64 * j);
            middle[j] = _mm512_load_si512(w + 256 + 64 * j);
            right[j] = _mm512_load_si512(w + 512 + 64 * j);
        }
        const int32_t* bias = d.bias.data() + 64 * b;
        const float *scale = d.scale.data() + 64 * b, *offset = d.offset.data() + 64 * b;
        const uint8_t *r0 = rows[0] + 64 * b, *r1 = rows[1] + 64 * b, *r2 = rows[2] + 64 * b;
        out += 64 * b;
        auto load = [&](int x) { return column<Full>(r0 + x * step, r1 + x * step, r2 + x * step, mask); };
        auto start = [&](__m512i* sums) { UNROLL_4 for (int j = 0; j < 4; ++j) sums[j] = _mm512_loadu_si512(bias + 16 * j); };
        if (stride == 2) {
            Column edge;  // the left column of the next result
            if (before) {
                UNROLL_4 for (int j = 0; j < 4; ++j) edge.v[j] = _mm512_setzero_si512();
            } else edge = load(0);
            for (int x = 0; 2 * x < width; ++x) {
                __m512i sums[4];
                start(sums);
                dot(sums, edge, left);
                int next = 2 * x + 1 - before;
                if (next < width) dot(sums, load(next), middle);
                if (next + 1 < width) {
                    edge = load(next + 1);
                    dot(sums, edge, right);
                }
                put<Full>(sums, scale, offset, out + x * step, mask);
            }
            return;
        }
        for (int phase = 0; phase < rate && phase < width; ++phase) {
            __m512i now[4], next[4], fresh[4];
            start(now);
            start(next);
            Column c = load(phase);
            dot(now, c, middle);
            dot(next, c, left);
            int x = phase;
            for (; x + rate < width; x += rate) {
                c = load(x + rate);
                dot(now, c, right);
                put<Full>(now, scale, offset, out + x * step, mask);
                dot(next, c, middle);
                start(fresh);
                dot(fresh, c, left);
                UNROLL_4 for (int j = 0; j < 4; ++j) {
                    now[j] = next[j];
                    next[j] = fresh[j];
                }
            }
            put<Full>(now, scale, offset, out + x * step, mask);
        }
    }
};

}  // namespace SCORING_BUILD
}  // namespace scoring

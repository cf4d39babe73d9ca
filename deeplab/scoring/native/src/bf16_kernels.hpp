// bfloat16 for AVX-512 BF16: vdpbf16ps adds two products of bfloat16 to a float. Results are rounded to bfloat16, half to even.
#pragma once

#include <immintrin.h>

#include "panels.hpp"

#define UNROLL_4 _Pragma("GCC unroll 4")
#define UNROLL_16 _Pragma("GCC unroll 16")

namespace scoring {
namespace SCORING_BUILD {

inline uint16_t rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float widened(uint16_t value) {
    uint32_t bits = uint32_t(value) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

struct Kernels {
    using Cell = uint16_t;
    using Result = After<uint16_t>;
    static constexpr bool quantised = false;
    static uint16_t cell(float value) { return rounded(value); }
    static float value(uint16_t cell) { return widened(cell); }
    static constexpr int group = 2;

    struct Pointwise {
        int inputs = 0, outputs = 0, panel_count = 0;
        float most = 0;  // of the activation; below 0: none
        Buffer<Panel> panels;
        Buffer<uint16_t> weights;  // [panel][inputs / 2][vectors][16 outputs][2 inputs]
        Buffer<float> bias;

        void pack(const Convolution& c, bool) {
            inputs = c.inputs;
            outputs = c.outputs;
            most = c.activation == Activation::none ? -1 : c.activation == Activation::relu6 ? 6 : 3.4e38f;
            weights.grow(divide(outputs, inputs, panels, panel_count));
            bias.grow(outputs + 64);
            for (int b = 0; b < panel_count; ++b) {
                const Panel& p = panels[b];
                for (int n = 0; n < p.count; ++n)
                    for (int k = 0; k < inputs; ++k)
                        weights[p.weights + size_t(k / 2) * 32 * p.vectors + 2 * n + k % 2] =
                            rounded(c.weights[size_t(p.first + n) * inputs + k]);
            }
            set_offset(c.bias);
        }
        void set_offset(const float* values) {
            for (int n = 0; n < outputs; ++n) bias[n] = values[n];
        }
        size_t bytes() const { return weights.bytes() + bias.bytes(); }
    };

    static void pointwise(const uint16_t* x, int pixels, const Pointwise& p, const Result& after, uint16_t* out) {
        for (int b = 0; b < p.panel_count; ++b) {
            const Panel& panel = p.panels[b];
            if (panel.vectors == 4) sweep<4, 6>(x, pixels, p, panel, after, out);
            else if (panel.vectors == 2) sweep<2, 12>(x, pixels, p, panel, after, out);
            else sweep<1, 12>(x, pixels, p, panel, after, out);
        }
    }

    struct Depthwise {
        int channels = 0;
        // [32 channels][3 columns][rows 0 and 1 of 16 channels, of 16 more, row 2 and a zero of 16 channels, of 16 more]
        Buffer<uint16_t> weights;
        Buffer<float> bias;

        void pack(const Convolution& c) {
            channels = c.outputs;
            int blocks = (channels + 31) / 32;
            weights.grow(size_t(blocks) * 384);
            bias.grow(size_t(blocks) * 32);
            for (int b = 0; b < blocks; ++b)
                for (int j = 0; j < 2; ++j)
                    for (int e = 0; e < 16; ++e) {
                        int c0 = 32 * b + 8 * (e / 4) + 4 * j + e % 4;  // as unpacking two vectors orders channels
                        if (c0 >= channels) continue;
                        bias[32 * b + 16 * j + e] = c.bias[c0];
                        const float* w = c.weights + size_t(c0) * 9;
                        for (int column = 0; column < 3; ++column) {
                            uint16_t* t = weights.data() + size_t(b) * 384 + column * 128;
                            t[32 * j + 2 * e] = rounded(w[column]);
                            t[32 * j + 2 * e + 1] = rounded(w[3 + column]);
                            t[64 + 32 * j + 2 * e] = rounded(w[6 + column]);
                        }
                    }
        }
        size_t bytes() const { return weights.bytes() + bias.bytes(); }
    };

    // One row of results, ReLU6, from three rows of `width` pixels. before: columns of padding on the left with stride 2.
    static void depthwise_row(const Depthwise& d, const uint16_t* const* rows, int width, int stride, int rate, int before,
                              uint16_t* out) {
        for (int b = 0; b < (d.channels + 31) / 32; ++b) {
            if (32 * b + 32 <= d.channels) depthwise_block<true>(d, b, rows, width, stride, rate, before, out);
            else depthwise_block<false>(d, b, rows, width, stride, rate, before, out);
        }
    }

private:
    static inline __attribute__((always_inline)) void multiply_add(__m512& sum, __m512i cells, __m512i weights) {
        // As an intrinsic GCC spills the sums of the product.
        asm("vdpbf16ps %2,%1,%0" : "+v"(sum) : "v"(cells), "v"(weights));
    }
    static __m512 wide(__m256i cells) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(cells), 16)); }

    template <int V>
    static inline void store(const __m512* sums, const Pointwise& p, const Panel& panel, const Result& after, uint16_t* out,
                             size_t at) {
        UNROLL_4 for (int j = 0; j < V; ++j) {
            int left = panel.count - 16 * j;
            if (left <= 0) continue;
            __mmask16 mask = left >= 16 ? 0xffff : __mmask16((1 << left) - 1);
            __m512 v = sums[j];
            if (p.most > 0) v = _mm512_min_ps(_mm512_max_ps(v, _mm512_setzero_ps()), _mm512_set1_ps(p.most));
            if (after.values) {
                _mm512_mask_storeu_ps(after.values + at + 16 * j, mask, v);
                continue;
            }
            if (after.shortcut) v = _mm512_add_ps(v, wide(_mm256_maskz_loadu_epi16(mask, after.shortcut + at + 16 * j)));
            _mm256_mask_storeu_epi16(out + at + 16 * j, mask, (__m256i)_mm512_cvtneps_pbh(v));
        }
    }

    // M pixels by V vectors of outputs, all sums in registers.
    template <int M, int V>
    static void tile(const uint16_t* x, const Pointwise& p, const Panel& panel, const Result& after, uint16_t* out, size_t at) {
        const size_t step = p.inputs;
        __m512 sums[M][V];
        UNROLL_16 for (int m = 0; m < M; ++m) {
            UNROLL_4 for (int j = 0; j < V; ++j) sums[m][j] = _mm512_loadu_ps(p.bias.data() + panel.first + 16 * j);
        }
        const uint16_t* w = p.weights.data() + panel.weights;
        const int inputs = p.inputs;
        for (int k = 0; k < inputs; k += 2, w += 32 * V) {
            __m512i weights[V];
            UNROLL_4 for (int j = 0; j < V; ++j) weights[j] = _mm512_load_si512(w + 32 * j);
            UNROLL_16 for (int m = 0; m < M; ++m) {
                int two;
                std::memcpy(&two, x + m * step + k, 4);
                __m512i cells = _mm512_set1_epi32(two);
                UNROLL_4 for (int j = 0; j < V; ++j) multiply_add(sums[m][j], cells, weights[j]);
            }
        }
        UNROLL_16 for (int m = 0; m < M; ++m) store<V>(sums[m], p, panel, after, out, at + size_t(m) * p.outputs);
    }
    template <int V, int M>
    static void rest(int left, const uint16_t* x, const Pointwise& p, const Panel& panel, const Result& after, uint16_t* out,
                     size_t at) {
        if constexpr (M > 0) {
            if (left == M) tile<M, V>(x, p, panel, after, out, at);
            else rest<V, M - 1>(left, x, p, panel, after, out, at);
        }
    }
    template <int V, int M>
    static void sweep(const uint16_t* x, int pixels, const Pointwise& p, const Panel& panel, const Result& after, uint16_t* out) {
        const size_t in = p.inputs, step = p.outputs;
        int m = 0;
        for (; m + M <= pixels; m += M) tile<M, V>(x + m * in, p, panel, after, out, m * step + panel.first);
        if (m < pixels) rest<V, M - 1>(pixels - m, x + m * in, p, panel, after, out, m * step + panel.first);
    }

    // A column of three rows of 32 channels: rows 0 and 1 interleaved, row 2 and zeros interleaved.
    struct Column {
        __m512i v[4];
    };
    template <bool Full>
    static inline __attribute__((always_inline)) Column column(const uint16_t* r0, const uint16_t* r1, const uint16_t* r2,
                                                               __mmask32 mask) {
        __m512i zero = _mm512_setzero_si512(), a, b, c;
        if (Full) {
            a = _mm512_loadu_si512(r0);
            b = _mm512_loadu_si512(r1);
            c = _mm512_loadu_si512(r2);
        } else {
            a = _mm512_maskz_loadu_epi16(mask, r0);
            b = _mm512_maskz_loadu_epi16(mask, r1);
            c = _mm512_maskz_loadu_epi16(mask, r2);
        }
        return {{_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b), _mm512_unpacklo_epi16(c, zero),
                 _mm512_unpackhi_epi16(c, zero)}};
    }
    static inline __attribute__((always_inline)) void dot(__m512* sums, const Column& c, const __m512i* w) {
        multiply_add(sums[0], c.v[0], w[0]);
        multiply_add(sums[1], c.v[1], w[1]);
        multiply_add(sums[0], c.v[2], w[2]);
        multiply_add(sums[1], c.v[3], w[3]);
    }
    template <bool Full>
    static inline __attribute__((always_inline)) void put(const __m512* sums, __m512i order, uint16_t* out, __mmask32 mask) {
        __m512 zero = _mm512_setzero_ps(), six = _mm512_set1_ps(6);
        __m512 a = _mm512_min_ps(_mm512_max_ps(sums[0], zero), six), b = _mm512_min_ps(_mm512_max_ps(sums[1], zero), six);
        __m512i r = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        if (Full) _mm512_storeu_si512(out, r);
        else _mm512_mask_storeu_epi16(out, mask, r);
    }

    // Each interleaved column serves the three results that see it.
    template <bool Full>
    static void depthwise_block(const Depthwise& d, int b, const uint16_t* const* rows, int width, int stride, int rate, int before,
                                uint16_t* out) {
        const size_t step = d.channels;
        const __mmask32 mask = Full ? ~0u : (1u << (d.channels - 32 * b)) - 1;
        alignas(64) uint16_t places[32];
        for (int c = 0; c < 32; ++c) places[c] = uint16_t((c % 8 < 4 ? 0 : 16) + 4 * (c / 8) + c % 4);
        const __m512i order = _mm512_load_si512(places);
        const uint16_t* w = d.weights.data() + size_t(b) * 384;
        __m512i left[4], middle[4], right[4];
        UNROLL_4 for (int j = 0; j < 4; ++j) {
            left[j] = _mm512_load_si512(w + 32 * j);
            middle[j] = _mm512_load_si512(w + 128 + 32 * j);
            right[j] = _mm512_load_si512(w + 256 + 32 * j);
        }
        const __m512 bias0 = _mm512_loadu_ps(d.bias.data() + 32 * b), bias1 = _mm512_loadu_ps(d.bias.data() + 32 * b + 16);
        const uint16_t *r0 = rows[0] + 32 * b, *r1 = rows[1] + 32 * b, *r2 = rows[2] + 32 * b;
        out += 32 * b;
        auto load = [&](int x) { return column<Full>(r0 + x * step, r1 + x * step, r2 + x * step, mask); };
        if (stride == 2) {
            Column edge;  // the left column of the next result
            if (before) {
                UNROLL_4 for (int j = 0; j < 4; ++j) edge.v[j] = _mm512_setzero_si512();
            } else edge = load(0);
            for (int x = 0; 2 * x < width; ++x) {
                __m512 sums[2] = {bias0, bias1};
                dot(sums, edge, left);
                int next = 2 * x + 1 - before;
                if (next < width) dot(sums, load(next), middle);
                if (next + 1 < width) {
                    edge = load(next + 1);
                    dot(sums, edge, right);
                }
                put<Full>(sums, order, out + x * step, mask);
            }
            return;
        }
        for (int phase = 0; phase < rate && phase < width; ++phase) {
            __m512 now[2] = {bias0, bias1}, next[2] = {bias0, bias1};
            Column c = load(phase);
            dot(now, c, middle);
            dot(next, c, left);
            int x = phase;
            for (; x + rate < width; x += rate) {
                c = load(x + rate);
                dot(now, c, right);
                put<Full>(now, order, out + x * step, mask);
                dot(next, c, middle);
                __m512 fresh[2] = {bias0, bias1};
                dot(fresh, c, left);
                now[0] = next[0];
                now[1] = next[1];
                next[0] = fresh[0];
                next[1] = fresh[1];
            }
            put<Full>(now, order, out + x * step, mask);
        }
    }
};

}  // namespace SCORING_BUILD
}  // namespace scoring

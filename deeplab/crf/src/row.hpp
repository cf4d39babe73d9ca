// A row of channels of one pixel or vertex, in registers.
#pragma once

#include "vector.hpp"

namespace crf {
namespace CRF_BUILD {

// LANES is 1 or a multiple of 4 up to 24: vectors of 16 where the machine has them, then of 8, then one of 4.
template <int LANES> struct Row {
#if defined(__AVX512F__)
    static constexpr int full = LANES / 16;
#else
    static constexpr int full = 0;
#endif
    static constexpr int wide = (LANES - 16 * full) / 8, tail = LANES % 8 / 4;
    static constexpr int wide_at = 16 * full, tail_at = wide_at + 8 * wide;
    float16 z[full ? full : 1];
    float8 a[wide ? wide : 1];
    float4 b;

    static CRF_INLINE Row load(const float* p) {
        Row r;
        for (int i = 0; i < full; ++i) r.z[i] = *(const loose16*)(p + 16 * i);
        for (int i = 0; i < wide; ++i) r.a[i] = *(const loose8*)(p + wide_at + 8 * i);
        if constexpr (tail) r.b = *(const loose4*)(p + tail_at);
        return r;
    }
    CRF_INLINE void store(float* p) const {
        for (int i = 0; i < full; ++i) *(loose16*)(p + 16 * i) = z[i];
        for (int i = 0; i < wide; ++i) *(loose8*)(p + wide_at + 8 * i) = a[i];
        if constexpr (tail) *(loose4*)(p + tail_at) = b;
    }
    static CRF_INLINE Row all(float x) {
        Row r;
        for (int i = 0; i < full; ++i) r.z[i] = splat_value<float16>(x);
        for (int i = 0; i < wide; ++i) r.a[i] = splat_value<float8>(x);
        if constexpr (tail) r.b = splat_value<float4>(x);
        return r;
    }
    CRF_INLINE Row operator+(const Row& o) const {
        Row r;
        for (int i = 0; i < full; ++i) r.z[i] = z[i] + o.z[i];
        for (int i = 0; i < wide; ++i) r.a[i] = a[i] + o.a[i];
        if constexpr (tail) r.b = b + o.b;
        return r;
    }
    CRF_INLINE Row operator-(const Row& o) const {
        Row r;
        for (int i = 0; i < full; ++i) r.z[i] = z[i] - o.z[i];
        for (int i = 0; i < wide; ++i) r.a[i] = a[i] - o.a[i];
        if constexpr (tail) r.b = b - o.b;
        return r;
    }
    CRF_INLINE Row operator*(float x) const {
        Row r;
        for (int i = 0; i < full; ++i) r.z[i] = z[i] * x;
        for (int i = 0; i < wide; ++i) r.a[i] = a[i] * x;
        if constexpr (tail) r.b = b * x;
        return r;
    }
    CRF_INLINE void add(float x, const Row& o) {
        for (int i = 0; i < full; ++i) z[i] = z[i] + x * o.z[i];
        for (int i = 0; i < wide; ++i) a[i] = a[i] + x * o.a[i];
        if constexpr (tail) b = b + x * o.b;
    }
    CRF_INLINE Row exp() const {
        Row r;
        for (int i = 0; i < full; ++i) r.z[i] = exponential(z[i]);
        for (int i = 0; i < wide; ++i) r.a[i] = exponential(a[i]);
        if constexpr (tail) r.b = exponential(b);
        return r;
    }
    CRF_INLINE float sum() const {
        return total(folded([](auto x, auto y) { return x + y; }));
    }
    CRF_INLINE float max() const {
        return largest(folded([](auto x, auto y) { return larger(x, y); }));
    }
    // Whether any lane lies outside [-limit, limit], or above it.
    CRF_INLINE bool beyond(float limit) const {
        return any([limit](auto x) { return (x > limit) | (x < -limit); });
    }
    CRF_INLINE bool above(float limit) const {
        return any([limit](auto x) { return x > limit; });
    }

private:
    // Halves the row with `join` until four lanes are left.
    template <class Join> CRF_INLINE float4 folded(const Join& join) const {
        float8 eight{};
        float4 four{};
#if defined(__AVX512F__)
        if constexpr (full > 0)
            eight = join((float8)_mm512_castps512_ps256((__m512)z[0]), (float8)_mm512_extractf32x8_ps((__m512)z[0], 1));
#endif
        for (int i = 0; i < wide; ++i) eight = i || full ? join(eight, a[i]) : a[i];
        if constexpr (full + wide > 0) four = join(low(eight), high(eight));
        if constexpr (tail) four = full + wide ? join(four, b) : b;
        return four;
    }
    template <class Test> CRF_INLINE bool any(const Test& test) const {
        bool result = false;
#if defined(__AVX512F__)
        if constexpr (full > 0) result = _mm512_movepi32_mask((__m512i)test(z[0])) != 0;
#endif
        int8 m{};
        int4 t{};
        for (int i = 0; i < wide; ++i) m = m | (int8)test(a[i]);
        if constexpr (tail) t = (int4)test(b);
#if defined(__AVX2__)
        int w = wide ? _mm256_movemask_ps((__m256)m) : 0;
        return result | ((w | (tail ? _mm_movemask_ps((__m128)t) : 0)) != 0);
#else
        int32_t bits = 0;
        for (int i = 0; i < 8; ++i) bits |= m[i];
        for (int i = 0; i < 4; ++i) bits |= t[i];
        return result | (bits != 0);
#endif
    }
};

template <> struct Row<1> {
    float a;
    static CRF_INLINE Row load(const float* p) { return {*p}; }
    CRF_INLINE void store(float* p) const { *p = a; }
    static CRF_INLINE Row all(float x) { return {x}; }
    CRF_INLINE Row operator+(const Row& o) const { return {a + o.a}; }
    CRF_INLINE Row operator*(float x) const { return {a * x}; }
    CRF_INLINE void add(float x, const Row& o) { a += x * o.a; }
};

}  // namespace CRF_BUILD
}  // namespace crf

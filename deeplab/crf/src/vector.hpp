// Short vectors through the compiler's vector extension: AVX-512 or AVX2 if this build has them, else SSE2 or NEON.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define CRF_INLINE inline __attribute__((always_inline))

namespace crf {
namespace CRF_BUILD {

typedef float float4 __attribute__((vector_size(16)));
typedef float float8 __attribute__((vector_size(32)));
typedef float float16 __attribute__((vector_size(64)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef int32_t int8 __attribute__((vector_size(32)));
typedef int32_t int16 __attribute__((vector_size(64)));
typedef int64_t long8 __attribute__((vector_size(64)));
typedef uint64_t word8 __attribute__((vector_size(64)));
typedef float loose4 __attribute__((vector_size(16), aligned(4)));
typedef float loose8 __attribute__((vector_size(32), aligned(4)));
typedef float loose16 __attribute__((vector_size(64), aligned(4)));

template <class V> struct IntegerOf;
template <> struct IntegerOf<float4> {
    typedef int4 type;
};
template <> struct IntegerOf<float8> {
    typedef int8 type;
};
template <> struct IntegerOf<float16> {
    typedef int16 type;
};

template <class V> CRF_INLINE V splat_value(float x) { return V{} + x; }

template <class V, class I> CRF_INLINE V select(I mask, V yes, V no) { return (typename IntegerOf<V>::type)mask ? yes : no; }

template <class V> CRF_INLINE V floor_value(V x) {
    typedef typename IntegerOf<V>::type I;
    V truncated = __builtin_convertvector(__builtin_convertvector(x, I), V);
    return truncated - select<V>(x < truncated, splat_value<V>(1.0f), V{});
}

// e^x to 2 units in the last place for x <= 88; 0 below -80, so that no denormal arises.
template <class V> CRF_INLINE V exponential(V x) {
    typedef typename IntegerOf<V>::type I;
    I live = x > -80.0f;
    V y = select<V>(live, x, V{});
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const V magic = splat_value<V>(12582912.0f);
    V shifted = y * 1.44269504088896341f + magic;
    V n = shifted - magic;
    V r = y - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = splat_value<V>(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    I scale = (__builtin_convertvector(n, I) + 127) << 23;
    return select<V>(live, p * (V)scale, V{});
}

// ln x for positive normal x, to 1e-7 relative (minimax polynomial of the Cephes library's logf).
template <class V> CRF_INLINE V logarithm(V x) {
    typedef typename IntegerOf<V>::type I;
    I bits = (I)x;
    V e = __builtin_convertvector((bits >> 23) - 126, V);
    V m = (V)((bits & 0x007fffff) | 0x3f000000);
    I small = m < 0.707106781186547524f;
    e = e - select<V>(small, splat_value<V>(1.0f), V{});
    m = m + select<V>(small, m, V{}) - 1.0f;
    V z = m * m;
    V p = splat_value<V>(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    V y = m * z * p;
    y = y + e * -2.12194440e-4f - 0.5f * z;
    return m + y + e * 0.693359375f;
}

CRF_INLINE float4 low(float8 x) { return float4{x[0], x[1], x[2], x[3]}; }
CRF_INLINE float4 high(float8 x) { return float4{x[4], x[5], x[6], x[7]}; }
template <class V> CRF_INLINE V larger(V a, V b) { return select<V>(a > b, a, b); }
CRF_INLINE float total(float4 x) {
#if defined(__SSE2__)
    __m128 v = (__m128)x;
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}
CRF_INLINE float largest(float4 x) {
    float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
}

// Flushes denormals to zero during its lifetime; each would otherwise cost a hundred cycles.
class FlushDenormals {
public:
#if defined(__SSE2__)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#elif defined(__aarch64__)
    FlushDenormals() {
        __asm__ __volatile__("mrs %0, fpcr" : "=r"(saved_));
        __asm__ __volatile__("msr fpcr, %0" : : "r"(saved_ | (uint64_t(1) << 24)));
    }
    ~FlushDenormals() { __asm__ __volatile__("msr fpcr, %0" : : "r"(saved_)); }

private:
    uint64_t saved_;
#else
    FlushDenormals() {}
#endif
};

}  // namespace CRF_BUILD
}  // namespace crf

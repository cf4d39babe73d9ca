// Where a point lies on the permutohedral lattice (Adams, Baek & Davis 2010, section 3): its enclosing simplex and its
// barycentric weights, for eight points at a time.
#pragma once

#include <cmath>

#include "vector.hpp"

namespace crf {
namespace CRF_BUILD {

// A vertex's coordinates all have one remainder modulo D + 1. Its key packs that remainder, as the highest bits, and the quotients
// of its first D coordinates into 64 bits, each with the bits that its range needs. Packing is additive: a step on the lattice
// from any vertex of one remainder is one addition.
template <int D> struct KeyLayout {
    uint64_t unit[D + 1];  // 1 of quotient i; the last coordinate is implied and has none
    int shift[D];          // unit[i] is 1 << shift[i]
    uint64_t ones;         // 1 of every quotient
    uint64_t bias;         // makes every quotient positive
    uint64_t next;         // 1 of the remainder
    int bits;              // of a key

    // lowest, highest: of each elevated coordinate. False if 64 bits do not suffice.
    bool fit(const double* lowest, const double* highest) {
        int at = 0;
        ones = bias = 0;
        unit[D] = 0;
        for (int i = 0; i < D; ++i) {
            if (!(std::fabs(lowest[i]) < 1e9) || !(std::fabs(highest[i]) < 1e9)) return false;
            // A vertex lies within 2 (D + 1) of its point, its neighbours within D more.
            double first = std::floor(lowest[i] / (D + 1)) - 4, range = std::floor(highest[i] / (D + 1)) + 4 - first;
            int width = 1;
            while (double(uint64_t(1) << width) <= range + 1) ++width;
            if (at + width > 61) return false;
            shift[i] = at;
            unit[i] = uint64_t(1) << at;
            ones += unit[i];
            bias += uint64_t(int64_t(-first)) << at;
            at += width;
        }
        next = uint64_t(1) << at;
        bits = at + 3;
        return true;
    }
    // From a vertex with this remainder along direction j: +1 at every coordinate but -D at coordinate j.
    uint64_t step(int remainder, int j) const { return remainder < D ? next - unit[j] : ones - unit[j] - uint64_t(D) * next; }
};

// Scale of feature i that makes a filter of unit deviation out of the [1 2 1] blurs (Adams et al., section 3.1).
template <int D> inline void elevation_scales(float* scale) {
    for (int i = 0; i < D; ++i) scale[i] = float(std::sqrt(2.0 / 3.0) * (D + 1) / std::sqrt(double(i + 1) * (i + 2)));
}

// Bounds of the elevated coordinates of points whose features lie in [lowest, highest].
template <int D>
inline void elevated_bounds(const float* scale, const double* lowest, const double* highest, double* low, double* high) {
    for (int i = 0; i <= D; ++i) {
        low[i] = high[i] = 0;
        for (int k = i; k < D; ++k) {
            low[i] += scale[k] * lowest[k];
            high[i] += scale[k] * highest[k];
        }
        if (i) {
            low[i] -= i * scale[i - 1] * highest[i - 1];
            high[i] -= i * scale[i - 1] * lowest[i - 1];
        }
    }
}

template <int D> struct Simplices {
    alignas(32) int32_t corner[D + 1][8];  // the remainder-0 vertex, divided by D + 1
    alignas(32) int32_t rank[D + 1][8];    // of each coordinate's distance from it
    alignas(32) float weight[D + 1][8];    // barycentric, of the vertices 0..D

    // feature: of eight points, one in each lane, divided by the deviations.
    CRF_INLINE void locate(const float8* feature, const float* scale) {
        float8 e[D + 1];
        float8 suffix{};
        for (int j = D; j > 0; --j) {
            float8 f = feature[j - 1] * scale[j - 1];
            e[j] = suffix - float(j) * f;
            suffix = suffix + f;
        }
        e[0] = suffix;
        int8 root[D + 1], order[D + 1];
        int8 sum{};
        float8 offset[D + 1];
        for (int i = 0; i <= D; ++i) {
            float8 down = floor_value(e[i] * (1.0f / (D + 1)));
            float8 beyond = e[i] - down * float(D + 1);
            int8 up = beyond > 0.5f * (D + 1);
            float8 nearest = down + select<float8>(up, splat_value<float8>(1.0f), float8{});
            int8 n = __builtin_convertvector(nearest, int8);
            sum = sum + n;
            root[i] = n;
            offset[i] = e[i] - nearest * float(D + 1);
            order[i] = int8{};
        }
        for (int i = 0; i <= D; ++i)
            for (int j = i + 1; j <= D; ++j) {
                int8 less = offset[i] < offset[j];  // -1 where true
                order[i] = order[i] - less;
                order[j] = order[j] + less + 1;
            }
        for (int i = 0; i <= D; ++i) {
            // Bring the point's nearest corner onto the plane where the coordinates sum to zero.
            order[i] = order[i] + sum;
            int8 under = order[i] < 0;
            int8 over = order[i] > D;
            order[i] = order[i] + (under & (D + 1)) - (over & (D + 1));
            int8 move = over - under;  // -1, 0 or 1
            root[i] = root[i] + move;
            offset[i] = (offset[i] - __builtin_convertvector(move, float8) * float(D + 1)) * (1.0f / (D + 1));
            *(int8*)corner[i] = root[i];
            *(int8*)rank[i] = order[i];
        }
        float8 sorted[D + 1];
        for (int r = 0; r <= D; ++r) {
            sorted[r] = float8{};
            for (int i = 0; i <= D; ++i) {
                int8 match = order[i] == D - r;
                sorted[r] = sorted[r] + (float8)((int8)offset[i] & match);
            }
        }
        *(float8*)weight[0] = 1.0f + sorted[0] - sorted[D];
        for (int r = 1; r <= D; ++r) *(float8*)weight[r] = sorted[r] - sorted[r - 1];
    }

    // The keys of the D + 1 vertices around every point.
    CRF_INLINE void keys(const KeyLayout<D>& layout, word8* key) const {
        word8 k = word8{} + layout.bias;
        long8 order[D];
        for (int i = 0; i < D; ++i) {
            k = k + ((word8) __builtin_convertvector(*(const int8*)corner[i], long8) << layout.shift[i]);
            order[i] = __builtin_convertvector(*(const int8*)rank[i], long8);
        }
        key[0] = k;
        for (int r = 1; r <= D; ++r) {
            // From vertex r-1 to r: +1 everywhere, and the coordinate of rank D+1-r falls by D+1.
            k = k + layout.next;
            for (int i = 0; i < D; ++i) k = k - ((word8)(order[i] == D + 1 - r) & layout.unit[i]);
            key[r] = k;
        }
    }
};

}  // namespace CRF_BUILD
}  // namespace crf

// Half size: the photo and its scores as means of 2 x 2 pixels, and marginals back at the photo's size. The mean of pixels
// 2 i and 2 i + 1 stands at 2 i + 1/2, so pixel y reads row (y - 1/2) / 2; an odd last row or column counts twice.
#pragma once

#include "output.hpp"

namespace crf {
namespace CRF_BUILD {

CRF_INLINE int half_of(int length) { return (length + 1) / 2; }

inline void halve_image(const uint8_t* image, int height, int width, uint8_t* out) {
    for (int y = 0; y < height; y += 2) {
        const uint8_t* a = image + size_t(y) * width * 3;
        const uint8_t* b = y + 1 < height ? a + size_t(width) * 3 : a;
        for (int x = 0; x + 1 < width; x += 2, a += 6, b += 6)
            for (int c = 0; c < 3; ++c) *out++ = uint8_t((a[c] + a[c + 3] + b[c] + b[c + 3] + 2) >> 2);
        for (int c = 0; c < 3 && width % 2; ++c) *out++ = uint8_t((a[c] + b[c] + 1) >> 1);
    }
}

// One plane of scores at the photo's size. False if any is not finite or too large, which a mean could hide.
inline bool halve_plane(const float* plane, int height, int width, float* out) {
    bool fine = true;
    for (int y = 0; y < height; y += 2) {
        const float* a = plane + size_t(y) * width;
        const float* b = y + 1 < height ? a + width : a;
        for (int x = 0; x < width; x += 2) {
            int right = x + 1 < width ? x + 1 : x;
            float four[4] = {a[x], a[right], b[x], b[right]};
            for (float f : four) fine &= (f <= largest_score) & (f >= -largest_score);
            *out++ = 0.25f * ((four[0] + four[1]) + (four[2] + four[3]));
        }
    }
    return fine;
}

// Rows of planes at half size, interpolated along y, with one more value at both ends.
class Enlargement {
public:
    // planes: `count` of half height x half width.
    Enlargement(const float* planes, int height, int width) : planes_(planes), height_(height), width_(width) {
        row_.reserve(size_t(half_of(width)) + 2);
    }
    // Pixels 2 j of row y are near(j), pixels 2 j + 1 are far(j), of the plane's row `row(plane, y)`, for j < half width.
    const float* row(int plane, int y) {
        int rows = half_of(height_), columns = half_of(width_), low = y ? (y - 1) / 2 : 0, high = (y + 1) / 2;
        if (high > rows - 1) high = rows - 1;
        const float* a = planes_ + (size_t(plane) * rows + low) * columns;
        const float* b = planes_ + (size_t(plane) * rows + high) * columns;
        float weight = y % 2 ? 0.25f : 0.75f;  // of the lower row
        float* v = row_.data() + 1;
        for (int x = 0; x < columns; ++x) v[x] = a[x] + weight * (b[x] - a[x]);
        v[-1] = v[0];
        v[columns] = v[columns - 1];
        return v;
    }
    static CRF_INLINE float even(const float* v, int j) { return v[j] + 0.25f * (v[j - 1] - v[j]); }
    static CRF_INLINE float odd(const float* v, int j) { return v[j] + 0.25f * (v[j + 1] - v[j]); }

private:
    const float* planes_;
    int height_, width_;
    Buffer<float> row_;
};

// The plane with the largest interpolated value, as names[plane].
template <class Label>
void enlarge_labels(const float* planes, int count, const int* names, int height, int width, Label* out) {
    Enlargement enlargement(planes, height, width);
    const int columns = half_of(width);
    Buffer<float> tops;
    Buffer<int32_t> bests;
    float* top[2] = {tops.reserve(2 * size_t(columns)), tops.data() + columns};
    int32_t* best[2] = {bests.reserve(2 * size_t(columns)), bests.data() + columns};
    for (int y = 0; y < height; ++y, out += width) {
        for (int k = 0; k < count; ++k) {
            const float* v = enlargement.row(k, y);
            const int32_t name = names[k];
            for (int j = 0; j < columns; ++j) {
                float even = Enlargement::even(v, j), odd = Enlargement::odd(v, j);
                bool more = !k | (even > top[0][j]), more_odd = !k | (odd > top[1][j]);
                top[0][j] = more ? even : top[0][j];
                best[0][j] = more ? name : best[0][j];
                top[1][j] = more_odd ? odd : top[1][j];
                best[1][j] = more_odd ? name : best[1][j];
            }
        }
        for (int x = 0; x < width; ++x) out[x] = Label(best[x & 1][x >> 1]);
    }
}

inline void enlarge_marginals(const float* planes, int count, int height, int width, float* out) {
    Enlargement enlargement(planes, height, width);
    for (int k = 0; k < count; ++k)
        for (int y = 0; y < height; ++y, out += width) {
            const float* v = enlargement.row(k, y);
            for (int x = 0; x < width; ++x) out[x] = x & 1 ? Enlargement::odd(v, x >> 1) : Enlargement::even(v, x >> 1);
        }
}

}  // namespace CRF_BUILD
}  // namespace crf

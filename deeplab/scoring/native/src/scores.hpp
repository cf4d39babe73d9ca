// The last step of an ASPP head: what each tap of each branch adds to the scores.
#pragma once

#include "buffer.hpp"

namespace scoring {
namespace SCORING_BUILD {

// Rows first ... last - 1 of classes x rows x columns scores. maps: rows x columns x (branches * 9 * classes), each tap's share at
// the position that the tap reads. fresh: begin with the bias, else add to what is there. The order of the additions to a score
// depends on nothing but its position.
inline void add_taps(const float* maps, int rows, int columns, int classes, const int* rates, int branches, const float* bias,
                     bool fresh, int first, int last, float* scores) {
    const size_t taps = size_t(branches) * 9 * classes, plane = size_t(rows) * columns;
    for (int y = first; y < last; ++y) {
        if (fresh)
            for (int c = 0; c < classes; ++c)
                for (int x = 0; x < columns; ++x) scores[c * plane + size_t(y) * columns + x] = bias[c];
        for (int b = 0; b < branches; ++b)
            for (int i = 0; i < 3; ++i) {
                int row = y + (i - 1) * rates[b];
                if (row < 0 || row >= rows) continue;
                for (int j = 0; j < 3; ++j) {
                    int across = (j - 1) * rates[b];
                    int begin = most(0, -across), end = least(columns, columns - across);
                    const float* tap =
                        maps + (size_t(row) * columns + begin + across) * taps + size_t((b * 3 + i) * 3 + j) * classes;
                    float* target = scores + size_t(y) * columns + begin;
                    for (int x = begin; x < end; ++x, tap += taps, ++target)
                        for (int c = 0; c < classes; ++c) target[c * plane] += tap[c];
                }
            }
    }
}

}  // namespace SCORING_BUILD
}  // namespace scoring

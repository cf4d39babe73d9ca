// The order in which the engine walks an image: tiles of 16 x 16 pixels, so that neighbours share vertices in the cache.
#pragma once

#include "memory.hpp"
#include "vector.hpp"

namespace crf {
namespace CRF_BUILD {

struct PixelOrder {
    static constexpr int tile = 16;
    int height = 0, width = 0;

    size_t count() const { return size_t(height) * width; }

    // Place of pixel (y, x); the pixels of one tile row follow each other.
    CRF_INLINE size_t place(int y, int x) const {
        int top = y / tile * tile, left = x / tile * tile;
        int rows = height - top < tile ? height - top : tile, columns = width - left < tile ? width - left : tile;
        return size_t(top) * width + size_t(left) * rows + size_t(y - top) * columns + (x - left);
    }

    // visit(place, y, x, length) for every run of pixels of one tile row, in order.
    template <class Visit> void runs(const Visit& visit) const {
        size_t at = 0;
        for (int top = 0; top < height; top += tile)
            for (int left = 0; left < width; left += tile) {
                int columns = width - left < tile ? width - left : tile;
                for (int y = top; y < height && y < top + tile; ++y, at += columns) visit(at, y, left, columns);
            }
    }
};

}  // namespace CRF_BUILD
}  // namespace crf

// The lattice over positions, filtered in one sweep down the image. In two dimensions the vertices form a regular grid
// whose rows run along x, so splat, blur and slice can follow each other a few rows apart. Only those rows are kept, and
// they stay in the cache, whereas whole arrays would go through memory seven times.
#pragma once

#include "filtering.hpp"

namespace crf {
namespace CRF_BUILD {

class PositionRows {
public:
    size_t points = 0, vertices = 0;
    Buffer<uint32_t> id;   // points x 3: places in the ring of rows
    Buffer<float> weight;  // points x 3

    // Points come in bands of `band` (the last may be shorter), each below the one before it. False if the grid is unsuitable:
    // with very small deviations vertices are scattered over it. features, lowest, highest: as in Lattice::build.
    template <class Features>
    bool build(size_t count, size_t band, const double* lowest, const double* highest, const Features& features) {
        points = 0;
        float scale[2];
        elevation_scales<2>(scale);
        double low[3], high[3];
        elevated_bounds<2>(scale, lowest, highest, low, high);
        // A vertex lies within 6 of its point in every coordinate.
        double tall = high[2] - low[2] + 16, wide = scale[0] * (highest[0] - lowest[0]) / 3 + 12;
        if (!(tall * wide < 4.0 * count + 65536)) return false;
        const int bottom = int(std::floor(high[2])) + 7;                 // coordinate 2 of row 0: it falls as y grows
        const int left = int(std::floor(scale[0] * lowest[0] / 3)) - 4;  // column 0
        rows_ = int(tall) + 1;
        columns_ = int(wide) + 1;
        bands_ = int((count + band - 1) / band);
        band_ = band;
        odd_ = bottom & 1;
        Buffer<uint8_t> touched;
        std::memset(touched.reserve(size_t(rows_) * columns_), 0, size_t(rows_) * columns_);
        int* first = first_.reserve(bands_ + 1);
        int* last = last_.reserve(bands_);
        for (int b = 0; b < bands_; ++b) first[b] = rows_, last[b] = -1;
        uint32_t* to = id.reserve((count + 8) * 3);
        float* w = weight.reserve((count + 8) * 3);
        for (size_t p = 0; p < count; p += 8) {
            float8 feature[2];
            features(p, feature);
            Simplices<2> s;
            s.locate(feature, scale);
            for (size_t lane = 0; lane < 8 && p + lane < count; ++lane)
                for (int r = 0; r < 3; ++r) {
                    int at[3];
                    for (int i = 0; i < 3; ++i) at[i] = 3 * (s.corner[i][lane] - (s.rank[i][lane] > 2 - r)) + r;
                    int row = bottom - at[2], column = ((at[0] - at[1]) / 3 - (at[2] & 1)) / 2 - left;
                    if (row < 0 || row >= rows_ || column < 1 || column + 1 >= columns_) return false;
                    to[(p + lane) * 3 + r] = uint32_t(row) * columns_ + column;
                    w[(p + lane) * 3 + r] = s.weight[r][lane];
                    touched[size_t(row) * columns_ + column] = 1;
                    int b = int((p + lane) / band);
                    if (row < first[b]) first[b] = row;
                    if (row > last[b]) last[b] = row;
                }
        }
        if (!measure_rows(touched)) return false;
        size_ring();
        for (size_t k = 0; k < count * 3; ++k) to[k] = to[k] / columns_ % ring_ * columns_ + to[k] % columns_;
        points = count;
        return true;
    }

    // Floats of memory for a sweep over rows of `lanes`.
    size_t room(int lanes) const { return (size_t(ring_) + window0 + window1 + 1) * columns_ * lanes; }

    // For every band: splat(from, to) must add the points [from, to) to `ring` at their ids; slice(from, to) may read
    // the filtered values at the ids of its points. Splats run ahead of slices, both in order.
    template <int L, class Splat, class Slice> void sweep(float* ring, const Splat& splat, const Slice& slice) const {
        Sweep<L> sweep(*this, ring);
        int splatted = 0;
        for (int b = 0; b < bands_; ++b) {
            for (int reached = last_[b] + reach; sweep.row <= reached; sweep.advance()) {
                while (splatted < bands_ && first_[splatted] <= sweep.row) {
                    sweep.clear_to(last_[splatted]);
                    splat(band_ * splatted, end(splatted));
                    ++splatted;
                }
                sweep.clear_to(sweep.row);
            }
            slice(band_ * b, end(b));
        }
    }

    // A vertex's place in the whole grid: `place` of corner r of a point, `step` one step along a direction (back: against it).
    static constexpr uint32_t nowhere = 0xffffffffu;
    size_t places() const { return size_t(rows_) * columns_; }
    uint32_t place(size_t point, int r) const {
        uint32_t in_ring = id[point * 3 + r], slot = in_ring / columns_;
        int first = first_[point / band_];
        int row = first + int((slot + ring_ - first % ring_) % ring_);
        return uint32_t(row) * columns_ + in_ring % columns_;
    }
    uint32_t step(uint32_t place, int direction, bool back) const {
        int row = int(place / columns_), column = int(place % columns_), parity = (odd_ ^ row) & 1;
        if (direction == 2) row += back ? -2 : 2;
        else column += parity - ((direction == 0) != back), row += back ? 1 : -1;
        bool exists = row >= 0 && row < rows_ && column >= from_[row] && column < to_[row];
        return exists ? uint32_t(row) * columns_ + column : nowhere;
    }

    size_t bytes() const { return id.bytes() + weight.bytes() + first_.bytes() + last_.bytes() + from_.bytes() + to_.bytes(); }
    void release() {
        id.release();
        weight.release();
        first_.release();
        last_.release();
        from_.release();
        to_.release();
        points = 0;
    }

private:
    static constexpr int reach = 4;                 // rows that the three blurs reach together: 1, 1 and 2
    static constexpr int window0 = 3, window1 = 5;  // rows kept for the next blur

    size_t end(int b) const { return band_ * (b + 1) < points ? band_ * (b + 1) : points; }

    // The vertices of a row must be contiguous, so that two bounds describe them.
    bool measure_rows(const Buffer<uint8_t>& touched) {
        int *from = from_.reserve(rows_), *to = to_.reserve(rows_);
        vertices = 0;
        for (int r = 0; r < rows_; ++r) {
            const uint8_t* row = touched.data() + size_t(r) * columns_;
            int existing = 0;
            from[r] = to[r] = 0;
            for (int i = 0; i < columns_; ++i) {
                if (!row[i]) continue;
                if (!existing++) from[r] = i;
                to[r] = i + 1;
            }
            if (existing != to[r] - from[r]) return false;
            vertices += existing;
        }
        return true;
    }
    // Makes the bands' bounds monotone and determines how many rows are needed at once.
    void size_ring() {
        for (int b = 1; b < bands_; ++b)
            if (last_[b] < last_[b - 1]) last_[b] = last_[b - 1];
        for (int b = bands_ - 2; b >= 0; --b)
            if (first_[b] > first_[b + 1]) first_[b] = first_[b + 1];
        ring_ = 1;
        for (int b = 0, ahead = 0; b < bands_; ++b) {
            int highest = last_[b] + reach;
            while (ahead < bands_ && first_[ahead] <= last_[b] + reach) ++ahead;
            if (ahead && last_[ahead - 1] > highest) highest = last_[ahead - 1];
            int lowest = b && last_[b - 1] < first_[b] ? last_[b - 1] : first_[b];
            if (highest - lowest + 1 > ring_) ring_ = highest - lowest + 1;
        }
    }

    template <int L> struct Sweep {
        const PositionRows& rows;
        float *ring, *blurred0, *blurred1, *nothing;
        size_t stride;
        int row = 0;  // the next row to complete
        int cleared = 0;

        Sweep(const PositionRows& r, float* memory) : rows(r), ring(memory), stride(size_t(r.columns_) * L) {
            blurred0 = ring + r.ring_ * stride;
            blurred1 = blurred0 + window0 * stride;
            nothing = blurred1 + window1 * stride;
            std::memset(nothing, 0, stride * sizeof(float));
        }
        float* at(float* a, int window, int r) const {
            return r < 0 || r >= rows.rows_ ? nothing : a + size_t(r % window) * stride;
        }

        void clear_to(int r) {
            for (; cleared <= r; ++cleared) std::memset(ring + size_t(cleared % rows.ring_) * stride, 0, stride * sizeof(float));
        }
        // Row `row` is complete: blurs the rows that waited for it.
        void advance() {
            int r = row++, a = r - 1, b = r - 2, c = r - 4;
            int p = (rows.odd_ ^ a) & 1, q = (rows.odd_ ^ b) & 1;
            blur_row(a, at(blurred0, window0, a), at(ring, rows.ring_, a), at(ring, rows.ring_, a - 1), p - 1,
                     at(ring, rows.ring_, a + 1), p, true);
            blur_row(b, at(blurred1, window1, b), at(blurred0, window0, b), at(blurred0, window0, b - 1), q,
                     at(blurred0, window0, b + 1), q - 1, true);
            blur_row(c, at(ring, rows.ring_, c), at(blurred1, window1, c), at(blurred1, window1, c - 2), 0,
                     at(blurred1, window1, c + 2), 0, false);
        }
        void blur_row(int r, float* out, const float* here, const float* above, int shift_above, const float* below,
                      int shift_below, bool pad) const {
            if (r < 0 || r >= rows.rows_) return;
            size_t from = rows.from_[r], to = rows.to_[r];
            if (pad) {
                std::memset(out, 0, from * L * sizeof(float));
                std::memset(out + to * L, 0, (rows.columns_ - to) * L * sizeof(float));
            }
            above += shift_above * L;
            below += shift_below * L;
            for (size_t i = from * L; i < to * L; i += L) {
                Row<L> sum = Row<L>::load(here + i);
                sum.add(0.5f, Row<L>::load(above + i) + Row<L>::load(below + i));
                sum.store(out + i);
            }
        }
    };

    int rows_ = 0, columns_ = 0, bands_ = 0, ring_ = 0, odd_ = 0;
    size_t band_ = 0;
    Buffer<int> first_, last_;  // rows that a band touches, made monotone
    Buffer<int> from_, to_;     // the columns that exist in a row
};

// Like filter_numbers. ring: room(1) floats.
template <class In, class Out> void sweep_numbers(const PositionRows& rows, float* ring, const In& in, const Out& out) {
    const uint32_t* id = rows.id.data();
    const float* w = rows.weight.data();
    rows.sweep<1>(
        ring,
        [&](size_t from, size_t to) {
            for (size_t p = from; p < to; ++p) {
                float x = in(p);
                for (size_t k = p * 3; k < p * 3 + 3; ++k) ring[id[k]] += w[k] * x;
            }
        },
        [&](size_t from, size_t to) {
            for (size_t p = from; p < to; ++p) {
                float sum = 0;
                for (size_t k = p * 3; k < p * 3 + 3; ++k) sum += w[k] * ring[id[k]];
                out(p, sum);
            }
        });
}

}  // namespace CRF_BUILD
}  // namespace crf

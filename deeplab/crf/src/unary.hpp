// Scores to logits in pixel order: selects the classes to keep, upsamples, and sums the mass of dropped classes.
#pragma once

#include "score_grid.hpp"

namespace crf {
namespace CRF_BUILD {

// Logits U (at most 0) as `blocks` planes of pixels x lanes, and per pixel the dropped classes' sum of exp(U).
class Unary : private ScoreGrid {
public:
    int classes = 0, kept = 0, lanes = 0, blocks = 0;
    Buffer<int> kept_class;  // class of every channel
    Buffer<float> logits, rest;
    bool has_rest = false;
    // The last kept class has no channel if that saves lanes: its marginal is one minus the others.
    bool implied = false;
    Buffer<float> last;  // its logits

    int channels() const { return kept - implied; }

    Status load(const Scores& scores, const PixelOrder& order, bool prune, float threshold, int block_lanes) {
        scores_ = scores;
        classes = scores.classes;
        stride_ = (classes + 3) / 4 * 4;
        float* best = best_.reserve(stride_);
        for (int c = 0; c < stride_; ++c) best[c] = 0;
        if (scores.full_size) {
            Status status = survey_full_size(order, prune);
            if (status != Status::ok) return status;
        } else {
            Status status = survey_grid(prune);
            if (status != Status::ok) return status;
        }
        choose(prune, threshold, block_lanes);
        if (!scores.full_size) reduce_grid();
        fill(order);
        return Status::ok;
    }

    // Shares of the dropped classes at a pixel, summing to 1, into share[class]; kept classes get 0.
    void dropped_shares(int y, int x, float* share) {
        float sum = 0, top = -2 * largest_score;
        for (int c = 0; c < classes; ++c) {
            share[c] = 0;
            if (!dropped_[c]) continue;
            share[c] = value_at(c, y, x);
            if (share[c] > top) top = share[c];
        }
        for (int c = 0; c < classes; ++c)
            if (dropped_[c]) {
                share[c] = scores_.probabilities ? clip(share[c]) : exponential(float4{} + (share[c] - top))[0];
                sum += share[c];
            }
        for (int c = 0; c < classes; ++c)
            if (dropped_[c]) share[c] /= sum;
    }
    size_t logits_plane() const { return plane_; }
    size_t bytes() const {
        return logits.bytes() + rest.bytes() + last.bytes() + grid_.bytes() + reduced_.bytes() + row_.bytes() + total_.bytes() +
               peak_.bytes();
    }
    void release() {
        Buffer<float>* all[] = {&logits, &rest, &last, &grid_, &reduced_, &row_, &total_, &peak_, &grid_rest_, &rest_row_};
        for (Buffer<float>* b : all) b->release();
    }

private:
    // Lanes for `count` channels. Twelve would straddle two cache lines every other time; sixteen fill one.
    static int whole_lanes(int count) { return (count + 3) / 4 == 3 ? 16 : (count + 3) / 4 * 4; }
    int row_lanes() const { return lanes * blocks + (implied ? 4 : 0); }

    // Checks one point. To prune, also updates the classes' largest probabilities and returns the peak score and the sum.
    CRF_INLINE Status survey_point(const float* row, bool prune, float& peak, float& sum) {
        float* best = best_.data();
        int4 fine = int4{} - 1;
        for (int c = 0; c < stride_; c += 4) {
            float4 x = *(const loose4*)(row + c);
            fine = fine & (int4)(x <= largest_score) & (int4)(x >= -largest_score);
        }
        if (!(fine[0] & fine[1] & fine[2] & fine[3])) return Status::not_finite;
        if (scores_.probabilities) {
            float plain = 0;
            sum = 0;
            for (int c = 0; c < classes; ++c) {
                if (row[c] < -1e-3f) return Status::not_a_distribution;
                plain += row[c];
                sum += clip(row[c]);
                if (row[c] > best[c]) best[c] = row[c];
            }
            return plain > 0.98f && plain < 1.02f ? Status::ok : Status::not_a_distribution;
        }
        if (!prune) return Status::ok;
        float4 top = *(const loose4*)row;
        for (int c = 4; c < stride_; c += 4) top = larger<float4>(top, *(const loose4*)(row + c));
        peak = largest(top);
        float4 all{};
        float* e = exponentials_.data();
        for (int c = 0; c < stride_; c += 4) {
            float4 x = exponential<float4>(*(const loose4*)(row + c) - peak);
            *(loose4*)(e + c) = x;
            all = all + x;
        }
        sum = total(all);
        float scale = 1 / sum;
        for (int c = 0; c < stride_; c += 4)
            *(loose4*)(best + c) = larger<float4>(*(const loose4*)(best + c), *(const loose4*)(e + c) * scale);
        return Status::ok;
    }
    Status survey_full_size(const PixelOrder& order, bool prune) {
        exponentials_.reserve(stride_);
        float* row = row_.reserve(size_t(order.width) * stride_);
        if (prune) {
            total_.reserve(order.count());
            peak_.reserve(order.count());
        }
        for (int y = 0; y < order.height; ++y) {
            transpose(size_t(y) * order.width, order.width, nullptr, classes, stride_, row);
            for (int x = 0; x < order.width; ++x) {
                float peak = 0, sum = 0;
                Status status = survey_point(row + size_t(x) * stride_, prune, peak, sum);
                if (status != Status::ok) return status;
                if (!prune) continue;
                total_[size_t(y) * order.width + x] = sum;
                peak_[size_t(y) * order.width + x] = peak;
            }
        }
        return Status::ok;
    }
    // Every grid point and the points half way between: the softmax of interpolated scores can peak inside a cell.
    Status survey_grid(bool prune) {
        exponentials_.reserve(stride_);
        int rows = scores_.rows, columns = scores_.columns;
        float* grid = grid_.reserve(size_t(rows) * columns * stride_);
        transpose(0, rows * columns, nullptr, classes, stride_, grid);
        float* middle = row_.reserve(stride_);
        int step = prune && !scores_.probabilities ? 1 : 2;
        for (int i = 0; i < 2 * rows - 1; i += step)
            for (int j = 0; j < 2 * columns - 1; j += step) {
                const float* corner[4];
                for (int k = 0; k < 4; ++k) {
                    int y = i / 2 + (k & 1) * (i & 1), x = j / 2 + (k >> 1) * (j & 1);
                    corner[k] = grid + (size_t(y) * columns + x) * stride_;
                }
                const float* point = corner[0];
                if ((i | j) & 1) {
                    for (int c = 0; c < stride_; ++c)
                        middle[c] = 0.25f * (corner[0][c] + corner[1][c] + corner[2][c] + corner[3][c]);
                    point = middle;
                }
                float peak = 0, sum = 0;
                Status status = survey_point(point, prune, peak, sum);
                if (status != Status::ok) return status;
            }
        return Status::ok;
    }
    void choose(bool prune, float threshold, int block_lanes) {
        kept = 0;
        int* chosen = kept_class.reserve(classes);
        uint8_t* dropped = dropped_.reserve(classes);
        int top = 0;
        for (int c = 0; c < classes; ++c)
            if (best_[c] > best_[top]) top = c;
        for (int c = 0; c < classes; ++c) {
            dropped[c] = prune && best_[c] < threshold && c != top;
            if (!dropped[c]) chosen[kept++] = c;
        }
        has_rest = kept < classes;
        float dropped_mass = 0;  // an upper bound; dropped mass must not be attributed to the implied class
        for (int c = 0; c < classes; ++c)
            if (dropped[c]) dropped_mass += best_[c];
        implied = kept > 1 && kept - 1 <= block_lanes && whole_lanes(kept - 1) < whole_lanes(kept) && dropped_mass < 1e-3f;
        blocks = (channels() + block_lanes - 1) / block_lanes;
        lanes = whole_lanes((channels() + blocks - 1) / blocks);
    }
    // The grid of the kept classes, and of all dropped ones as one: log-sum-exp of scores, or sum of probabilities.
    void reduce_grid() {
        size_t points = size_t(scores_.rows) * scores_.columns;
        int wide = row_lanes();
        float* reduced = reduced_.reserve(points * wide);
        float* joined = grid_rest_.reserve(points);
        float fill = scores_.probabilities ? 0.0f : -largest_score;
        for (size_t p = 0; p < points; ++p) {
            const float* row = grid_.data() + p * stride_;
            for (int k = 0; k < wide; ++k) reduced[p * wide + k] = k < kept ? row[kept_class[k]] : fill;
            if (!has_rest) continue;
            float top = -2 * largest_score, sum = 0;
            for (int c = 0; c < classes; ++c)
                if (dropped_[c] && row[c] > top) top = row[c];
            for (int c = 0; c < classes; ++c)
                if (dropped_[c]) sum += scores_.probabilities ? clip(row[c]) : exponential(float4{} + (row[c] - top))[0];
            joined[p] = scores_.probabilities ? sum : top + logarithm(float4{} + sum)[0];
        }
    }
    void fill(const PixelOrder& order) {
        int wide = row_lanes();
        size_t plane = order.count() * lanes;
        plane_ = plane;
        logits.reserve(plane * blocks);
        if (has_rest) rest.reserve(order.count());
        if (implied) last.reserve(order.count());
        int columns = scores_.columns;
        float* row = row_.reserve(size_t(columns) * wide);
        float* rest_row = rest_row_.reserve(columns);
        Buffer<Position> across;
        across.reserve(order.width);
        for (int x = 0; x < order.width; ++x)
            across[x] = scores_.full_size ? Position{x, x, 0.0f} : position(x, columns, scores_.x);
        for (int y = 0; y < order.height; ++y) {
            if (scores_.full_size) {
                transpose(size_t(y) * columns, columns, kept_class.data(), kept, wide, row);
            } else {
                Position v = position(y, scores_.rows, scores_.y);
                const float* a = reduced_.data() + size_t(v.low) * columns * wide;
                const float* b = reduced_.data() + size_t(v.high) * columns * wide;
                for (size_t k = 0; k < size_t(columns) * wide; k += 4) {
                    float4 upper = *(const loose4*)(a + k);
                    *(loose4*)(row + k) = upper + v.weight * (*(const loose4*)(b + k) - upper);
                }
                const float *c = grid_rest_.data() + size_t(v.low) * columns, *d = grid_rest_.data() + size_t(v.high) * columns;
                for (int x = 0; has_rest && x < columns; ++x) rest_row[x] = c[x] + v.weight * (d[x] - c[x]);
            }
            for (int x = 0; x < order.width; ++x) {
                Position h = across[x];
                size_t place = order.place(y, x);
                store_pixel(row + size_t(h.low) * wide, row + size_t(h.high) * wide, h.weight, place, plane);
                if (!has_rest) continue;
                size_t pixel = size_t(y) * order.width + x;
                if (scores_.full_size) finish_full_size(place, plane, total_[pixel], peak_[pixel]);
                else finish_pixel(place, plane, rest_row[h.low] + h.weight * (rest_row[h.high] - rest_row[h.low]));
            }
        }
    }
    // Interpolates one pixel's channels and turns them into logits with maximum 0.
    CRF_INLINE void store_pixel(const float* a, const float* b, float weight, size_t place, size_t plane) {
        float4 top = splat_value<float4>(-2 * largest_score);
        for (int k = 0, block = 0; block < blocks; ++block) {
            float* out = logits.data() + block * plane + place * lanes;
            for (int l = 0; l < lanes; l += 4, k += 4) {
                float4 left = *(const loose4*)(a + k);
                float4 x = left + weight * (*(const loose4*)(b + k) - left);
                if (scores_.probabilities) x = logarithm(larger<float4>(x, splat_value<float4>(smallest_probability)));
                top = larger<float4>(top, x);
                *(loose4*)(out + l) = x;
            }
        }
        float peak = scores_.probabilities ? 0.0f : largest(top);
        if (implied) {
            float x = a[lanes] + weight * (b[lanes] - a[lanes]);
            if (scores_.probabilities) x = logarithm(float4{} + clip(x))[0];
            else if (x > peak) peak = x;
            last[place] = x - peak > lowest_logit ? x - peak : lowest_logit;
        }
        peak_now_ = peak;
        for (int k = 0, block = 0; block < blocks; ++block) {
            float* out = logits.data() + block * plane + place * lanes;
            for (int l = 0; l < lanes; l += 4, k += 4)
                *(loose4*)(out + l) = larger<float4>(*(const loose4*)(out + l) - peak, splat_value<float4>(lowest_logit));
            for (int l = 0; l < lanes; ++l)
                if (k - lanes + l >= kept) out[l] = padding;
        }
    }
    CRF_INLINE void finish_pixel(size_t place, size_t plane, float joined) {
        if (scores_.probabilities) {
            rest[place] = joined;
            return;
        }
        // The joined score may be the largest; then all logits are lowered by the difference.
        float over = joined - peak_now_;
        if (over > 0) {
            for (int block = 0; block < blocks; ++block)
                for (int l = 0; l < lanes; ++l) logits[block * plane + place * lanes + l] -= over;
            if (implied) last[place] -= over;
        }
        rest[place] = over > 0 ? 1.0f : exponential(float4{} + over)[0];
    }
    CRF_INLINE void finish_full_size(size_t place, size_t plane, float sum, float peak) {
        float over = scores_.probabilities ? 0.0f : peak - peak_now_;
        float kept_mass = 0;
        for (int block = 0; block < blocks; ++block)
            for (int l = 0; l < lanes; l += 4) {
                loose4* at = (loose4*)(logits.data() + block * plane + place * lanes + l);
                *at = *at - over;
                kept_mass += total(exponential<float4>(*at));
            }
        if (implied) {
            last[place] -= over;
            kept_mass += exponential(float4{} + last[place])[0];
        }
        rest[place] = sum > kept_mass ? sum - kept_mass : 0.0f;
    }

    int stride_ = 0;
    size_t plane_ = 0;
    float peak_now_ = 0;
    Buffer<float> best_, exponentials_, grid_, reduced_, grid_rest_, row_, rest_row_, total_, peak_;
    Buffer<uint8_t> dropped_;
};

}  // namespace CRF_BUILD
}  // namespace crf

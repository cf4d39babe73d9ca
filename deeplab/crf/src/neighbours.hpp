// Finds neighbours on the lattice. Adding a step to the keys of one remainder keeps their order, so one walk over the sorted
// keys finds all neighbours along one direction: no look-up leaves the cache, and no branch depends on data.
#pragma once

#include <utility>

#include "memory.hpp"
#include "vector.hpp"

namespace crf {
namespace CRF_BUILD {

class Neighbours {
public:
    static constexpr uint32_t none = 0xffffffffu;
    static constexpr int directions_at_once = 2;  // directions searched at once

    // keys[id] of `count` vertices, all different and below 2^key_bits; remainder_of: 1 of a key's remainder, its highest bits.
    void sort(const uint64_t* keys, size_t count, int key_bits, uint64_t remainder_of) {
        count_ = count;
        // A radix sort by digits of at most 11 bits: caches can hold 2048 places to write to.
        const int passes = (key_bits + 10) / 11, digit = (key_bits + passes - 1) / passes;
        const size_t values = size_t(1) << digit;
        uint32_t* starts = starts_.reserve(passes * values);
        std::memset(starts, 0, passes * values * sizeof(uint32_t));
        for (size_t v = 0; v < count; ++v)
            for (int pass = 0; pass < passes; ++pass) ++starts[pass * values + (keys[v] >> (pass * digit) & (values - 1))];
        uint64_t *key = key_[0].reserve(count + 1), *key_to = key_[1].reserve(count + 1);
        uint32_t *id = id_[0].reserve(count + 1), *id_to = id_[1].reserve(count + 1);
        for (int pass = 0; pass < passes; ++pass) {
            uint32_t* start = starts + pass * values;
            for (size_t value = 0, sum = 0; value < values; ++value) {
                size_t entries = start[value];
                start[value] = uint32_t(sum);
                sum += entries;
            }
            for (size_t v = 0; v < count; ++v) {
                uint64_t k = pass ? key[v] : keys[v];
                uint32_t at = start[k >> (pass * digit) & (values - 1)]++;
                key_to[at] = k;
                id_to[at] = pass ? id[v] : uint32_t(v);
            }
            std::swap(key, key_to);
            std::swap(id, id_to);
        }
        sorted_key_ = key;
        sorted_id_ = id;
        for (int r = 0; r <= most_remainders; ++r) {
            size_t low = 0, high = count;
            while (low < high) {
                size_t middle = (low + high) / 2;
                if (key[middle] < uint64_t(r) * remainder_of) low = middle + 1;
                else high = middle;
            }
            first_[r] = uint32_t(low);
        }
    }

    // For two directions k: next[k][id] is the vertex one step after id, or `none`; has_previous[k][id]: whether one is before.
    // step(r, k): from the vertices of remainder r, of `remainders`, along direction k.
    template <class Step>
    void find(int remainders, const Step& step, uint32_t* const* next, uint8_t* const* has_previous) {
        Pair* ends[directions_at_once] = {pairs_[0].reserve(count_ + 1), pairs_[1].reserve(count_ + 1)};
        for (int r = 0; r < remainders; ++r) {
            const int then = r + 1 < remainders ? r + 1 : 0;
            // Two chains of dependent loads, one per direction, in flight at once.
            Walk a{sorted_key_, step(r, 0), ends[0], first_[r], first_[then]}, b = a;
            b.step = step(r, 1);
            b.end = ends[1];
            const uint32_t from_end = first_[r + 1], to_end = first_[then + 1];
            while (a.in_range(from_end, to_end) & b.in_range(from_end, to_end)) {
                a.advance();
                b.advance();
            }
            while (a.in_range(from_end, to_end)) a.advance();
            while (b.in_range(from_end, to_end)) b.advance();
            ends[0] = a.end;
            ends[1] = b.end;
        }
        for (int k = 0; k < directions_at_once; ++k) {
            std::memset(next[k], 0xff, count_ * sizeof(uint32_t));
            std::memset(has_previous[k], 0, count_);
            for (const Pair* pair = pairs_[k].data(); pair < ends[k]; ++pair) {
                uint32_t to = sorted_id_[pair->to];
                next[k][sorted_id_[pair->from]] = to;
                has_previous[k][to] = 1;
            }
        }
    }

    size_t bytes() const {
        size_t n = starts_.bytes();
        for (int k = 0; k < 2; ++k) n += key_[k].bytes() + id_[k].bytes() + pairs_[k].bytes();
        return n;
    }
    void release() {
        for (int k = 0; k < 2; ++k) {
            key_[k].release();
            id_[k].release();
            pairs_[k].release();
        }
        starts_.release();
    }

private:
    struct Pair {
        uint32_t from, to;  // indices of the sorted keys
    };
    struct Walk {
        const uint64_t* keys;
        uint64_t step;
        Pair* end;
        uint32_t from, to;  // a vertex, and the first that may be its neighbour

        CRF_INLINE bool in_range(uint32_t from_end, uint32_t to_end) const { return (from < from_end) & (to < to_end); }
        CRF_INLINE void advance() {
            uint64_t wanted = keys[from] + step, candidate = keys[to];
            *end = {from, to};
            end += candidate == wanted;
            from += candidate >= wanted;
            to += candidate <= wanted;
        }
    };

    static constexpr int most_remainders = largest_dimension + 1;

    size_t count_ = 0;
    uint32_t first_[most_remainders + 1];  // sorted vertex of every remainder, and the end
    const uint64_t* sorted_key_ = nullptr;
    const uint32_t* sorted_id_ = nullptr;
    Buffer<uint64_t> key_[2];
    Buffer<uint32_t> id_[2], starts_;
    Buffer<Pair> pairs_[directions_at_once];
};

}  // namespace CRF_BUILD
}  // namespace crf

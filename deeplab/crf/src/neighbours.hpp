// Finds neighbours on the lattice. Adding a step keeps the order of keys, so one walk over the sorted keys finds all
// neighbours along one direction: no look-up leaves the cache, and no branch depends on data.
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

    // keys[id] of `count` vertices, all different and below 2^key_bits.
    void sort(const uint64_t* keys, size_t count, int key_bits) {
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
    }

    // For two directions k: next[k][id] is the vertex one step after id, or `none`; has_previous[k][id]: whether one is before.
    void find(const uint64_t* steps, uint32_t* const* next, uint8_t* const* has_previous) {
        const uint64_t* keys = sorted_key_;
        Pair *ends0 = pairs_[0].reserve(count_ + 1), *ends1 = pairs_[1].reserve(count_ + 1);
        // Two chains of dependent loads, one per direction, in flight at once.
        Walk a{keys, steps[0], ends0}, b{keys, steps[1], ends1};
        while (a.in_range(count_) & b.in_range(count_)) {
            a.advance();
            b.advance();
        }
        while (a.in_range(count_)) a.advance();
        while (b.in_range(count_)) b.advance();
        const Pair* ends[directions_at_once] = {a.end, b.end};
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
        uint32_t from = 0, to = 0;  // a vertex, and the first that may be its neighbour

        Walk(const uint64_t* k, uint64_t s, Pair* m) : keys(k), step(s), end(m) {}
        CRF_INLINE bool in_range(size_t count) const { return (from < count) & (to < count); }
        CRF_INLINE void advance() {
            uint64_t wanted = keys[from] + step, candidate = keys[to];
            *end = {from, to};
            end += candidate == wanted;
            from += candidate >= wanted;
            to += candidate <= wanted;
        }
    };

    size_t count_ = 0;
    const uint64_t* sorted_key_ = nullptr;
    const uint32_t* sorted_id_ = nullptr;
    Buffer<uint64_t> key_[2];
    Buffer<uint32_t> id_[2], starts_;
    Buffer<Pair> pairs_[directions_at_once];
};

}  // namespace CRF_BUILD
}  // namespace crf

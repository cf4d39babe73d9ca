// Vertex keys to ids, numbered in the order of first touch: an open-addressing hash table of 32-bit slots, each an id
// and a tag that rejects most foreign keys without a look at them.
#pragma once

#include "memory.hpp"
#include "vector.hpp"

namespace crf {
namespace CRF_BUILD {

class VertexTable {
public:
    static constexpr uint32_t none = 0xffffffffu;

    void clear(size_t expected) {
        size_ = 0;
        int bits = 12;
        while ((size_t(1) << bits) < 2 * expected) ++bits;
        id_bits_ = 22;
        resize(bits);
        keys_.reserve(expected + 1024);
    }
    // Before up to `count` insertions; pointers into keys may move.
    CRF_INLINE void make_room(size_t count) {
        if (size_ + count >= key_room() || 2 * (size_ + count) > (size_t(1) << slot_bits_)) enlarge(count);
    }
    CRF_INLINE static uint64_t mix(uint64_t key) { return (key ^ (key >> 29)) * 0x9e3779b97f4a7c15ull; }
    CRF_INLINE void prefetch(uint64_t mixed) const { __builtin_prefetch(&slots_[mixed >> (64 - slot_bits_)]); }

    CRF_INLINE uint32_t insert(uint64_t key, uint64_t mixed) {
        size_t mask = (size_t(1) << slot_bits_) - 1;
        size_t at = mixed >> (64 - slot_bits_);
        uint32_t tag = uint32_t(mixed) << id_bits_;
        for (;; at = (at + 1) & mask) {
            uint32_t slot = slots_[at];
            if (slot == 0) {
                keys_[size_] = key;
                slots_[at] = tag | uint32_t(size_ + 1);
                return uint32_t(size_++);
            }
            uint32_t id = slot & id_mask();
            if ((slot & ~id_mask()) == tag && keys_[id - 1] == key) return id - 1;
        }
    }
    CRF_INLINE uint32_t find(uint64_t key, uint64_t mixed) const {
        size_t mask = (size_t(1) << slot_bits_) - 1;
        size_t at = mixed >> (64 - slot_bits_);
        uint32_t tag = uint32_t(mixed) << id_bits_;
        for (;; at = (at + 1) & mask) {
            uint32_t slot = slots_[at];
            if (slot == 0) return none;
            uint32_t id = slot & id_mask();
            if ((slot & ~id_mask()) == tag && keys_[id - 1] == key) return id - 1;
        }
    }
    size_t size() const { return size_; }
    uint64_t key(size_t id) const { return keys_[id]; }
    size_t bytes() const { return slots_.bytes() + keys_.bytes(); }
    void release() {
        slots_.release();
        keys_.release();
    }

private:
    uint32_t id_mask() const { return (1u << id_bits_) - 1; }
    size_t key_room() const { return keys_.bytes() / sizeof(uint64_t); }
    void resize(int bits) {
        slot_bits_ = bits;
        slots_.reserve(size_t(1) << bits);
        std::memset(slots_.data(), 0, sizeof(uint32_t) << bits);
    }
    void enlarge(size_t count) {
        size_t wanted = size_ + count + 1;
        if (wanted >= key_room()) keys_.grow(wanted + wanted / 2, size_);
        int bits = slot_bits_;
        while (2 * wanted > (size_t(1) << bits)) ++bits;
        int ids = id_bits_;
        while (2 * wanted > (size_t(1) << ids) && ids < 31) ++ids;
        if (bits == slot_bits_ && ids == id_bits_) return;
        id_bits_ = ids;
        resize(bits);
        size_t mask = (size_t(1) << slot_bits_) - 1;
        for (size_t id = 0; id < size_; ++id) {
            uint64_t mixed = mix(keys_[id]);
            size_t at = mixed >> (64 - slot_bits_);
            while (slots_[at]) at = (at + 1) & mask;
            slots_[at] = (uint32_t(mixed) << id_bits_) | uint32_t(id + 1);
        }
    }
    Buffer<uint32_t> slots_;
    Buffer<uint64_t> keys_;
    size_t size_ = 0;
    int slot_bits_ = 12, id_bits_ = 22;
};

}  // namespace CRF_BUILD
}  // namespace crf

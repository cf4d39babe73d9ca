// Vertex keys to ids, numbered in the order of first touch: an open-addressing hash table of 64-bit slots. A slot holds the
// id and the whole key if both fit, so that a look-up touches one place; otherwise the id and a part of the key's hash.
#pragma once

#include "memory.hpp"
#include "vector.hpp"

namespace crf {
namespace CRF_BUILD {

class VertexTable {
public:
    // key_bits: every key is below 2^key_bits.
    void clear(size_t expected, int key_bits) {
        size_ = 0;
        int bits = 12;
        while ((size_t(1) << bits) < 2 * expected) ++bits;
        id_bits_ = 64 - key_bits;
        whole_ = id_bits_ >= bits;  // ids for half the slots fit; `enlarge` checks again
        if (!whole_ || id_bits_ > 31) id_bits_ = 31;
        resize(bits);
        keys_.reserve(expected + 1024);
        key_room_ = keys_.bytes() / sizeof(uint64_t);
    }
    // Before up to `count` insertions.
    CRF_INLINE void make_room(size_t count) {
        if (size_ + count >= limit_ || size_ + count >= key_room_) enlarge(count);
    }
    template <class Word> CRF_INLINE static Word mix(Word key) { return (key ^ (key >> 29)) * 0x9e3779b97f4a7c15ull; }
    CRF_INLINE void prefetch(uint64_t mixed) const { __builtin_prefetch(&slots_[mixed >> shift_]); }

    CRF_INLINE uint32_t insert(uint64_t key, uint64_t mixed) {
        uint64_t tag = tag_of(key, mixed);
        for (size_t at = mixed >> shift_;; at = (at + 1) & mask_) {
            uint64_t slot = slots_[at];
            if (slot == 0) {
                keys_[size_] = key;
                slots_[at] = tag | (size_ + 1);
                return uint32_t(size_++);
            }
            if ((slot & ~id_mask()) == tag) {
                uint32_t id = uint32_t(slot & id_mask()) - 1;
                if (whole_ || keys_[id] == key) return id;
            }
        }
    }
    size_t size() const { return size_; }
    const uint64_t* keys() const { return keys_.data(); }  // of every id
    size_t bytes() const { return slots_.bytes() + keys_.bytes(); }
    void release() {
        slots_.release();
        keys_.release();
    }

private:
    uint64_t id_mask() const { return (uint64_t(1) << id_bits_) - 1; }
    CRF_INLINE uint64_t tag_of(uint64_t key, uint64_t mixed) const { return (whole_ ? key : mixed) << id_bits_; }

    void resize(int bits) {
        shift_ = 64 - bits;
        mask_ = (size_t(1) << bits) - 1;
        limit_ = size_t(1) << (bits - 1);
        slots_.reserve(mask_ + 1);
        std::memset(slots_.data(), 0, (mask_ + 1) * sizeof(uint64_t));
    }
    void enlarge(size_t count) {
        size_t wanted = size_ + count + 1;
        if (wanted >= key_room_) {
            keys_.grow(wanted * 2, size_);
            key_room_ = keys_.bytes() / sizeof(uint64_t);
        }
        if (wanted < limit_) return;
        if (whole_ && 2 * wanted >= id_mask()) {
            whole_ = false;
            id_bits_ = 31;
        }
        resize(64 - shift_ + 1);
        for (size_t id = 0; id < size_; ++id) {
            prefetch(mix(keys_[id + 16 < size_ ? id + 16 : id]));
            uint64_t mixed = mix(keys_[id]);
            size_t at = mixed >> shift_;
            while (slots_[at]) at = (at + 1) & mask_;
            slots_[at] = tag_of(keys_[id], mixed) | (id + 1);
        }
    }
    Buffer<uint64_t> slots_, keys_;
    size_t size_ = 0, mask_ = 0, limit_ = 0, key_room_ = 0;
    int shift_ = 52, id_bits_ = 31;
    bool whole_ = false;
};

}  // namespace CRF_BUILD
}  // namespace crf

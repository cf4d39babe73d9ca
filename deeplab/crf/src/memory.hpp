// Reusable buffers. Fresh pages and their zeroing cost a fifth of pydensecrf's time, so capacity is kept between images.
#pragma once

#include <cstring>

#include "interface.hpp"

namespace crf {
namespace CRF_BUILD {

struct OutOfMemory {};

template <class T>
class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { release(); }

    // Room for `count` elements; contents are lost if the buffer grows.
    T* reserve(size_t count) {
        if (count > capacity_) {
            release();
            allocate_exactly(count);
        }
        return data_;
    }
    // Room for `count` elements; the first `used` are kept.
    T* grow(size_t count, size_t used) {
        if (count > capacity_) {
            T* old = data_;
            size_t old_capacity = capacity_;
            data_ = nullptr;
            try {
                allocate_exactly(count);
            } catch (OutOfMemory) {
                data_ = old;
                capacity_ = old_capacity;
                throw;
            }
            if (used) std::memcpy(data_, old, used * sizeof(T));
            deallocate(old);
        }
        return data_;
    }
    void release() {
        deallocate(data_);
        data_ = nullptr;
        capacity_ = 0;
    }
    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }
    size_t bytes() const { return capacity_ * sizeof(T); }

private:
    void allocate_exactly(size_t count) {
        // 32 floats of slack: kernels may load whole vectors past the end.
        data_ = static_cast<T*>(allocate(count * sizeof(T) + 128));
        capacity_ = data_ ? count : 0;
        if (!data_) throw OutOfMemory();
    }
    T* data_ = nullptr;
    size_t capacity_ = 0;
};

}  // namespace CRF_BUILD
}  // namespace crf

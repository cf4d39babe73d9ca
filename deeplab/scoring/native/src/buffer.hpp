// Memory that is kept for the next image. No templates of the standard library: they would be compiled with instructions that
// another machine lacks, and the linker may choose those.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "interface.hpp"

namespace scoring {
namespace SCORING_BUILD {

struct OutOfMemory {};

inline int least(int a, int b) { return a < b ? a : b; }
inline int most(int a, int b) { return a > b ? a : b; }

// Kernels may read, not use, this many bytes beyond the end.
constexpr size_t slack = 256;

template <class T> class Buffer {
public:
    Buffer() {}
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { crf::deallocate(data_); }
    // At least `count` zeros or what was there before: contents are kept only if the size suffices.
    T* grow(size_t count) {
        if (count > count_) {
            crf::deallocate(data_);
            count_ = 0;
            data_ = static_cast<T*>(crf::allocate(count * sizeof(T) + slack));
            if (!data_) throw OutOfMemory();
            std::memset(data_, 0, count * sizeof(T) + slack);
            count_ = count;
        }
        return data_;
    }
    T* data() const { return data_; }
    T& operator[](size_t i) const { return data_[i]; }
    size_t bytes() const { return count_ * sizeof(T); }

private:
    T* data_ = nullptr;
    size_t count_ = 0;
};

}  // namespace SCORING_BUILD
}  // namespace scoring

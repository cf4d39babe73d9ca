// Shared by the binding and all builds of the engine: plain data and two abstract classes, no inline code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace crf {

enum class Normalization : int { none, before, after, symmetric };

// One Gaussian kernel over image features, equation (3) of Krahenbuhl & Koltun 2011. weight 0: no such kernel.
struct Kernel {
    float weight;
    float deviation[5];  // pixels along x and y, then intensity units for red, green and blue
};

struct Settings {
    int iterations;
    Kernel gaussian;   // positions only
    Kernel bilateral;  // positions and colours
    Normalization normalization;
    bool fast;        // prune classes and freeze pixels
    bool half;        // at half the image's size
    float prune;      // a class is kept if its probability exceeds this anywhere
    float freeze;     // a pixel is frozen once none of its marginals changes by more than this
    int block_lanes;  // most channels filtered together, a multiple of 4 up to 24
    int threads;
};

// Rows or columns of a grid of scores: pixel p reads position p * step + shift.
struct Axis {
    float step, shift;
};

// Class scores or probabilities on a grid, whose rows lie along y and columns along x.
struct Scores {
    const float* values;  // classes x rows x columns
    int classes, rows, columns;
    Axis y, x;
    bool probabilities;
    bool full_size;  // the grid is the pixel grid
};

struct Stats {
    int64_t bilateral_vertices = 0, gaussian_vertices = 0;
    int classes_kept = 0;
    double active_fraction = 0;  // pixel updates done, over pixels x iterations
    double lattice_ms = 0, unary_ms = 0, filter_ms = 0, update_ms = 0, output_ms = 0;
};

// Outcome of a call; the binding turns everything but `ok` into an exception.
enum class Status : int { ok, not_finite, not_a_distribution, key_range, too_large, out_of_memory };

class Engine {
public:
    virtual ~Engine() {}
    // image: height x width x 3. Exactly one of labels8, labels16 (height x width) and marginals (classes x height x
    // width) is not null.
    virtual Status refine(const uint8_t* image, int height, int width, const Scores& scores, const Settings& settings,
                          uint8_t* labels8, uint16_t* labels16, float* marginals, Stats& stats) = 0;
    virtual size_t bytes() const = 0;  // kept for reuse
    virtual void release() = 0;
};

// A Gaussian filter over arbitrary features of unit deviation, on the permutohedral lattice.
class Filter {
public:
    virtual ~Filter() {}
    virtual Status build(const float* features, int64_t count, int dimensions) = 0;
    // values, out: channels x count.
    virtual Status apply(const float* values, int channels, float* out) = 0;
    virtual int64_t vertices() const = 0;
};

constexpr int largest_dimension = 6;

namespace baseline {
Engine* make_engine();
Filter* make_filter();
}  // namespace baseline
namespace avx2 {
Engine* make_engine();
Filter* make_filter();
}  // namespace avx2
namespace avx512 {
Engine* make_engine();
Filter* make_filter();
}  // namespace avx512

// A group of threads that run one function together; the caller is thread 0. Implemented in a separate file, so that no
// template of the standard library is compiled with instructions that the machine may lack.
class Workers {
public:
    virtual ~Workers() {}
    virtual void run(void (*work)(void* argument, int thread), void* argument) = 0;
    virtual int threads() const = 0;
};
Workers* make_workers(int threads);  // null when threads cannot be started

void* allocate(size_t bytes);  // 64-byte aligned, null on failure
void deallocate(void* memory);
double now_ms();  // CPU time of the calling thread

}  // namespace crf

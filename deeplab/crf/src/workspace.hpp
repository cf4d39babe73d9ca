// The buffers of the mean-field iterations.
#pragma once

#include "mean_field.hpp"
#include "restriction.hpp"

namespace crf {
namespace CRF_BUILD {

// Fast mode once most pixels are frozen: the pixels that still change, and their part of the lattices.
struct Part {
    Lattice<5> lattice5;
    Lattice<2> lattice2;
    Buffer<Factors> factors;
    Buffer<float> rest, last, logits;
    Buffer<uint32_t> origin;  // index of every pixel in the whole image
    size_t bytes() const {
        return lattice5.bytes() + lattice2.bytes() + factors.bytes() + rest.bytes() + last.bytes() + logits.bytes() +
               origin.bytes();
    }
    void release() {
        lattice5.release();
        lattice2.release();
        factors.release();
        rest.release();
        last.release();
        logits.release();
        origin.release();
    }
};

// The buffers of one refinement, kept for the next.
struct Workspace {
    Buffer<float> values5, values2, rows;
    Buffer<uint32_t> active, renamed;
    Part parts[2];
    size_t bytes() const {
        size_t n = values5.bytes() + values2.bytes() + rows.bytes() + active.bytes() + renamed.bytes();
        return n + parts[0].bytes() + parts[1].bytes();
    }
    void release() {
        values5.release();
        values2.release();
        rows.release();
        active.release();
        renamed.release();
        parts[0].release();
        parts[1].release();
    }
};

}  // namespace CRF_BUILD
}  // namespace crf

// The part of a lattice that some of its points use. Once most pixels are frozen, the changes of the others travel on
// this part alone: fewer rows to blur, and all of them close together.
#pragma once

#include "lattice.hpp"

namespace crf {
namespace CRF_BUILD {

// to: the lattice of the points listed (places in `from`, ascending). Links to vertices that none of them uses are cut.
template <int D>
void restrict_lattice(const Lattice<D>& from, const uint32_t* listed, size_t count, Lattice<D>& to, Buffer<uint32_t>& renamed) {
    constexpr int K = D + 1;
    constexpr uint32_t none = VertexTable::none;
    uint32_t* name = renamed.reserve(2 * from.vertices);
    uint32_t* run = name + from.vertices;
    std::memset(name, 0xff, from.vertices * sizeof(uint32_t));
    to.points = count;
    uint32_t* id = to.id.reserve((count + 8) * K);
    float* weight = to.weight.reserve((count + 8) * K);
    uint32_t vertices = 0;
    for (size_t k = 0; k < count; ++k) {
        size_t p = listed[k];
        for (int r = 0; r < K; ++r) {
            uint32_t& n = name[from.id[p * K + r]];
            if (n == none) n = vertices++;
            id[k * K + r] = n;
            weight[k * K + r] = from.weight[p * K + r];
        }
    }
    to.vertices = vertices;
    for (int j = 0; j <= D; ++j) {
        const Chains& chains = from.chains[j];
        Chains& out = to.chains[j];
        out.clear();
        for (int kind = 0; kind < 4; ++kind) {
            const uint32_t* ids = chains.runs[kind].data();
            for (size_t k = 0; k < chains.used[kind];) {
                size_t length = kind < 3 ? size_t(kind) + 2 : ids[k++];
                size_t n = 0;
                for (size_t i = 0; i < length; ++i) {
                    uint32_t v = name[ids[k + i]];
                    if (v != none) run[n++] = v;
                    if (v == none || i + 1 == length) {
                        if (n > 1) out.append(run, n);
                        n = 0;
                    }
                }
                k += length;
            }
        }
        out.finish();
    }
}

}  // namespace CRF_BUILD
}  // namespace crf

// The part of a lattice that some of its points use. Once most pixels are frozen, the changes of the others are filtered on
// this part only, which has fewer rows to blur, close together in memory.
#pragma once

#include "position_rows.hpp"

namespace crf {
namespace CRF_BUILD {

// visit(ids, length) for every run.
template <class Visit> void each_run(const Chains& chains, const Visit& visit) {
    for (int kind = 0; kind < 4; ++kind) {
        const uint32_t* ids = chains.runs[kind].data();
        for (size_t k = 0; k < chains.used[kind];) {
            size_t length = kind < 3 ? size_t(kind) + 2 : ids[k++];
            visit(ids + k, length);
            k += length;
        }
    }
}

// to: the lattice of the listed points (ascending indices in `from`), with one ring of neighbours of their vertices. Links
// beyond the ring are cut, and those between vertices of the ring on runs that no point's vertex is on, because nearly everything
// that leaves the part and returns in one filter passes through the ring: 0.001 % of labels differ from those without the cut,
// and up to 0.06 % without the ring.
template <int D>
void restrict_lattice(const Lattice<D>& from, const uint32_t* listed, size_t count, Lattice<D>& to, Buffer<uint32_t>& renamed) {
    constexpr int K = D + 1;
    constexpr uint32_t none = Neighbours::none;
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
    const uint32_t inner = vertices;
    // The runs with a vertex of the points, each as its length and its ids, direction by direction.
    uint32_t* const runs = to.runs.reserve(2 * from.links() + 16);
    uint32_t *end = runs, *starts[D + 2];
    for (int j = 0; j <= D; ++j) {
        starts[j] = end;
        each_run(from.chains[j], [&](const uint32_t* ids, size_t length) {
            bool inside = false;
            for (size_t i = 0; i < length; ++i) inside |= name[ids[i]] < inner;
            if (!inside) return;
            *end++ = uint32_t(length);
            for (size_t i = 0; i < length; ++i) {
                end[i] = ids[i];
                bool beside = (i && name[ids[i - 1]] < inner) || (i + 1 < length && name[ids[i + 1]] < inner);
                if (beside && name[ids[i]] == none) name[ids[i]] = vertices++;
            }
            end += length;
        });
    }
    starts[D + 1] = end;
    to.vertices = vertices;
    for (int j = 0; j <= D; ++j) {
        Chains& out = to.chains[j];
        out.clear();
        for (const uint32_t* ids = starts[j]; ids < starts[j + 1];) {
            const size_t length = *ids++;
            size_t n = 0;
            for (size_t i = 0; i < length; ++i) {
                uint32_t v = name[ids[i]];
                if (v != none) run[n++] = v;
                if (v == none || i + 1 == length) {
                    if (n > 1) out.append(run, n);
                    n = 0;
                }
            }
            ids += length;
        }
        out.finish();
    }
}

// The same for the lattice over positions.
inline void restrict_rows(const PositionRows& from, const uint32_t* listed, size_t count, Lattice<2>& to,
                          Buffer<uint32_t>& renamed) {
    constexpr uint32_t none = PositionRows::nowhere;
    uint32_t* name = renamed.reserve(2 * from.places());
    uint32_t *at = name + from.places(), vertices = 0;  // at: place of each new vertex
    std::memset(name, 0xff, from.places() * sizeof(uint32_t));
    auto called = [&](uint32_t place) {
        if (name[place] == none) {
            at[vertices] = place;
            name[place] = vertices++;
        }
        return name[place];
    };
    to.points = count;
    uint32_t* id = to.id.reserve((count + 8) * 3);
    float* weight = to.weight.reserve((count + 8) * 3);
    for (size_t k = 0; k < count; ++k)
        for (int r = 0; r < 3; ++r) {
            id[k * 3 + r] = called(from.place(listed[k], r));
            weight[k * 3 + r] = from.weight[size_t(listed[k]) * 3 + r];
        }
    const uint32_t inner = vertices;
    for (uint32_t v = 0; v < inner; ++v)
        for (int k = 0; k < 6; ++k) {
            uint32_t place = from.step(at[v], k / 2, k & 1);
            if (place != none) called(place);
        }
    to.vertices = vertices;
    Buffer<uint32_t> runs;
    uint32_t* run = runs.reserve(vertices);
    for (int j = 0; j < 3; ++j) {
        Chains& out = to.chains[j];
        out.clear();
        auto named = [&](uint32_t place) { return place != none && name[place] != none; };
        for (uint32_t v = 0; v < vertices; ++v) {
            if (named(from.step(at[v], j, true))) continue;
            size_t n = 0;
            for (uint32_t place = at[v]; named(place); place = from.step(place, j, false)) run[n++] = name[place];
            if (n > 1) out.append(run, n);
        }
        out.finish();
    }
}

}  // namespace CRF_BUILD
}  // namespace crf

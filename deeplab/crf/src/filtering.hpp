// Splat, blur and slice of rows of channels (Adams et al. 2010, section 3; equation (5)-(7) of their Gaussian filter).
#pragma once

#include "lattice.hpp"
#include "row.hpp"

namespace crf {
namespace CRF_BUILD {

constexpr size_t ahead = 12;  // rows prefetched

// Part `part` of `parts` of a range of `count`, cut at multiples of `grain`.
CRF_INLINE void share(size_t count, size_t grain, int part, int parts, size_t& from, size_t& to) {
    size_t grains = (count + grain - 1) / grain;
    from = grains * part / parts * grain;
    to = grains * (part + 1) / parts * grain;
    if (from > count) from = count;
    if (to > count) to = count;
}

// Prefetches a row. Rows of 16 lanes are one line of the cache; others may cross into the next.
template <int L> CRF_INLINE void touch(const float* row) {
    __builtin_prefetch(row);
    if constexpr (L > 4 && L != 16) __builtin_prefetch(row + L - 1);
}

template <int L, int N> void blur_runs(float* a, const uint32_t* ids, size_t from, size_t to) {
    for (size_t k = from; k < to; k += N) {
        for (int i = 0; i < N; ++i) touch<L>(a + size_t(ids[k + ahead + i]) * L);
        Row<L> before = Row<L>::load(a + size_t(ids[k]) * L), here = Row<L>::load(a + size_t(ids[k + 1]) * L);
        Row<L> first = before;
        first.add(0.5f, here);
        first.store(a + size_t(ids[k]) * L);
        for (int i = 1; i < N; ++i) {
            Row<L> sum = before;
            Row<L> after = here;
            if (i + 1 < N) {
                after = Row<L>::load(a + size_t(ids[k + i + 1]) * L);
                sum = sum + after;
            }
            Row<L> out = here;
            out.add(0.5f, sum);
            out.store(a + size_t(ids[k + i]) * L);
            before = here;
            here = after;
        }
    }
}

// One direction of the blur, in place: every vertex becomes itself + half its two neighbours.
// Threads take disjoint runs, so the result does not depend on their number.
template <int L> void blur(float* a, const Chains& chains, int part, int parts) {
    size_t from, to;
    share(chains.used[0], 2, part, parts, from, to);
    blur_runs<L, 2>(a, chains.runs[0].data(), from, to);
    share(chains.used[1], 3, part, parts, from, to);
    blur_runs<L, 3>(a, chains.runs[1].data(), from, to);
    share(chains.used[2], 4, part, parts, from, to);
    blur_runs<L, 4>(a, chains.runs[2].data(), from, to);
    // Threads take long runs in turn, because only a walk over all of them finds where each starts.
    const uint32_t* ids = chains.runs[3].data();
    int turn = 0;
    for (size_t k = 0; k < chains.used[3];) {
        size_t length = ids[k++];
        if (turn == part) {
            Row<L> before = Row<L>::all(0), here = Row<L>::load(a + size_t(ids[k]) * L);
            for (size_t i = 0; i + 1 < length; ++i) {
                touch<L>(a + size_t(ids[k + i + ahead]) * L);
                Row<L> after = Row<L>::load(a + size_t(ids[k + i + 1]) * L);
                Row<L> out = here;
                out.add(0.5f, before + after);
                out.store(a + size_t(ids[k + i]) * L);
                before = here;
                here = after;
            }
            here.add(0.5f, before);
            here.store(a + size_t(ids[k + length - 1]) * L);
        }
        if (++turn == parts) turn = 0;
        k += length;
    }
}

template <int D, class Out> void blur_and_slice_numbers(const Lattice<D>& lattice, float* a, const Out& out) {
    constexpr int K = D + 1;
    const uint32_t* id = lattice.id.data();
    const float* w = lattice.weight.data();
    for (const Chains& chains : lattice.chains) blur<1>(a, chains, 0, 1);
    for (size_t p = 0; p < lattice.points; ++p) {
        float sum = 0;
        for (int r = 0; r < K; ++r) sum += w[p * K + r] * a[id[p * K + r]];
        out(p, sum);
    }
}

// Filters one number in(p) per point, without the gain, and passes it to out(p, number). a: `vertices` floats.
template <int D, class In, class Out> void filter_numbers(const Lattice<D>& lattice, float* a, const In& in, const Out& out) {
    constexpr int K = D + 1;
    std::memset(a, 0, lattice.vertices * sizeof(float));
    const uint32_t* id = lattice.id.data();
    const float* w = lattice.weight.data();
    for (size_t p = 0; p < lattice.points; ++p) {
        float x = in(p);
        for (int r = 0; r < K; ++r) a[id[p * K + r]] += w[p * K + r] * x;
    }
    blur_and_slice_numbers(lattice, a, out);
}

// The filter's response to ones, sum_j k(f_i, f_j), for every point. Once per lattice: it uses up `lattice.ones`.
template <int D> void filter_ones(Lattice<D>& lattice, float* out) {
    float gain = lattice.gain();
    blur_and_slice_numbers(lattice, lattice.ones.data(), [&](size_t p, float sum) { out[p] = sum * gain; });
}

}  // namespace CRF_BUILD
}  // namespace crf

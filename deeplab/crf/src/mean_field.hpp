// Mean-field updates (Krahenbuhl & Koltun 2011, algorithm 1): splat of marginals, slice of messages, softmax.
#pragma once

#include "position_rows.hpp"
#include "unary.hpp"

namespace crf {
namespace CRF_BUILD {

// Per pixel: factors before the splat and after the slice of each kernel. They combine the normalisation, the kernel's
// weight and the lattice's gain, so that these need no pass of their own.
struct Factors {
    float splat5, slice5, splat2, slice2;
};

struct Field {
    const Lattice<5>* lattice5;  // null: the kernel is absent
    const Lattice<2>* lattice2;  // null: the kernel is absent or uses rows2
    const PositionRows* rows2;   // null: the kernel is absent or uses lattice2
    const uint32_t* id2;         // of lattice2 or rows2: points x 3; null: the kernel is absent
    const float* weight2;
    const Factors* factors;
    const float* rest;   // null: no class was dropped
    float* last;         // logits of the implied class; null: there is none
    const float* total;  // the sum of a pixel's messages over all classes; null if rows hold changes, whose messages sum to 0
    float *values5, *values2;
    size_t pixels;
};

template <int L> CRF_INLINE Row<L> softmax(Row<L> x, float rest) {
    if (__builtin_expect(x.above(80.0f), 0)) {
        float peak = x.max();
        x = x - Row<L>::all(peak);
        rest *= exponential(float4{} - (peak < 80 ? peak : 80))[0];
    }
    Row<L> e = x.exp();
    return e * (1.0f / (e.sum() + rest));
}

// The same with one more class, whose logit is `last` and whose marginal becomes `own`.
template <int L> CRF_INLINE Row<L> softmax(Row<L> x, float rest, float last, float& own) {
    if (__builtin_expect(x.above(80.0f) || last > 80.0f, 0)) {
        float peak = x.max();
        if (last > peak) peak = last;
        x = x - Row<L>::all(peak);
        last -= peak;
        rest *= exponential(float4{} - (peak < 80 ? peak : 80))[0];
    }
    Row<L> e = x.exp();
    float o = exponential(float4{} + last)[0];
    float scale = 1.0f / (e.sum() + (rest + o));
    own = o * scale;
    return e * scale;
}

template <int L, int K> CRF_INLINE void scatter(float* a, const uint32_t* id, const float* w, const Row<L>& q) {
    for (int r = 0; r < K; ++r) {
        float* to = a + size_t(id[r]) * L;
        Row<L> sum = Row<L>::load(to);
        sum.add(w[r], q);
        sum.store(to);
    }
}
template <int L, int K> CRF_INLINE Row<L> gather(const float* a, const uint32_t* id, const float* w) {
    Row<L> sum = Row<L>::load(a + size_t(id[0]) * L) * w[0];
    for (int r = 1; r < K; ++r) sum.add(w[r], Row<L>::load(a + size_t(id[r]) * L));
    return sum;
}
// Prefetches the rows of a pixel a few places ahead: vertices of the appearance kernel are scattered in memory.
template <int L> CRF_INLINE void prefetch_rows(const Field& field, size_t p) {
    if (!field.lattice5) return;
    const uint32_t* id = field.lattice5->id.data() + p * 6;
    for (int r = 0; r < 6; ++r) touch<L>(field.values5 + size_t(id[r]) * L);
}
template <int L> CRF_INLINE Row<L> message(const Field& field, size_t p) {
    Row<L> sum = Row<L>::all(0);
    const Factors& f = field.factors[p];
    if (field.lattice5)
        sum.add(f.slice5, gather<L, 6>(field.values5, field.lattice5->id.data() + p * 6, field.lattice5->weight.data() + p * 6));
    if (field.id2) sum.add(f.slice2, gather<L, 3>(field.values2, field.id2 + p * 3, field.weight2 + p * 3));
    return sum;
}

template <int L> CRF_INLINE Row<L> first_marginals(const Field& field, const Row<L>& logits, size_t p) {
    float rest = field.rest ? field.rest[p] : 0.0f, own;
    return field.last ? softmax<L>(logits, rest, field.last[p], own) : softmax<L>(logits, rest);
}

// Splat of every pixel by one thread; each vertex's row is zeroed just before its first use, while it is in the cache.
// rows: of pixels. FromLogits: applies the softmax first and stores it in `marginals` unless that is null.
template <int L, bool FromLogits> void splat_all(const Field& field, const float* rows, float* marginals) {
    for (size_t first = 0, mark = 0; first < field.pixels; first += fresh_step, ++mark) {
        if (field.lattice5) {
            size_t from = field.lattice5->vertices_before[mark], to = field.lattice5->vertices_before[mark + 1];
            std::memset(field.values5 + from * L, 0, (to - from) * L * sizeof(float));
        }
        if (field.lattice2) {
            size_t from = field.lattice2->vertices_before[mark], to = field.lattice2->vertices_before[mark + 1];
            std::memset(field.values2 + from * L, 0, (to - from) * L * sizeof(float));
        }
        size_t end = first + fresh_step < field.pixels ? first + fresh_step : field.pixels;
        for (size_t p = first; p < end; ++p) {
            if (p + 4 < end) prefetch_rows<L>(field, p + 4);
            Row<L> q = Row<L>::load(rows + p * L);
            if constexpr (FromLogits) {
                q = first_marginals<L>(field, q, p);
                if (marginals) q.store(marginals + p * L);
            }
            const Factors& f = field.factors[p];
            if (field.lattice5)
                scatter<L, 6>(field.values5, field.lattice5->id.data() + p * 6, field.lattice5->weight.data() + p * 6,
                              q * f.splat5);
            if (field.lattice2) scatter<L, 3>(field.values2, field.id2 + p * 3, field.weight2 + p * 3, q * f.splat2);
        }
    }
}

// Splat of listed pixels (all when `list` is null; rows in the order of the list) into one thread's share of the
// vertices: every vertex adds its pixels in the same order whatever the number of threads.
template <int L, int D>
void splat_share(const Lattice<D>& lattice, float* a, const Factors* factors, const uint32_t* list, size_t count, const float* rows,
                 int part, int parts, bool zero) {
    size_t from, to;
    share(lattice.vertices, 64, part, parts, from, to);
    if (zero) std::memset(a + from * L, 0, (to - from) * L * sizeof(float));
    const uint32_t* ids = lattice.id.data();
    const float* weights = lattice.weight.data();
    for (size_t k = 0; k < count; ++k) {
        size_t p = list ? list[k] : k;
        const uint32_t* id = ids + p * (D + 1);
        Row<L> q = Row<L>::load(rows + k * L) * (D == 5 ? factors[p].splat5 : factors[p].splat2);
        if (parts == 1) {
            if (k + 4 < count)
                for (int r = 0; r <= D; ++r) touch<L>(a + size_t(ids[(list ? list[k + 4] : k + 4) * (D + 1) + r]) * L);
            scatter<L, D + 1>(a, id, weights + p * (D + 1), q);
            continue;
        }
        for (int r = 0; r <= D; ++r) {
            if (id[r] < from || id[r] >= to) continue;
            float* at = a + size_t(id[r]) * L;
            Row<L> sum = Row<L>::load(at);
            sum.add(weights[p * (D + 1) + r], q);
            sum.store(at);
        }
    }
}

// Exact mode: marginals = softmax(logits + message), pixels [from, to).
template <int L> void update_exact(const Field& field, const float* logits, float* marginals, size_t from, size_t to) {
    for (size_t p = from; p < to; ++p) {
        if (p + 4 < to) prefetch_rows<L>(field, p + 4);
        Row<L> sent = message<L>(field, p), x = Row<L>::load(logits + p * L) + sent;
        float own;
        (field.last ? softmax<L>(x, 0, field.last[p] + (field.total[p] - sent.sum()), own) : softmax<L>(x, 0))
            .store(marginals + p * L);
    }
}

// Splats the pixels [from, to) of the list into the ring of the sweep over positions.
template <int L> void splat_positions(const Field& field, const uint32_t* list, size_t from, size_t to, const float* rows) {
    for (size_t k = from; k < to; ++k) {
        size_t p = list ? list[k] : k;
        scatter<L, 3>(field.values2, field.id2 + p * 3, field.weight2 + p * 3,
                      Row<L>::load(rows + k * L) * field.factors[p].splat2);
    }
}

// The pixels of one thread's share of a fast update that still change: `active` of them, listed from `from` on.
struct Survivors {
    size_t from, active;
};

// Fast mode: the filter is linear, so only changes of marginals are filtered. Adds the message of the last changes to the
// logits of the pixels [from, to) of the list (of all pixels if it is null). A pixel none of whose marginals changes by
// more than `freeze` is frozen, and its last change is dropped; changes of the others are packed behind those of `out`.
template <int L>
void update_fast(const Field& field, float* logits, const uint32_t* list, size_t from, size_t to, float freeze, uint32_t* active,
                 float* changes, Survivors& out) {
    for (size_t k = from; k < to; ++k) {
        size_t p = list ? list[k] : k;
        if (k + 4 < to) prefetch_rows<L>(field, list ? list[k + 4] : k + 4);
        float rest = field.rest ? field.rest[p] : 0.0f;
        Row<L> x = Row<L>::load(logits + p * L);
        Row<L> sent = message<L>(field, p), y = x + sent, change;
        y.store(logits + p * L);
        bool live;
        if (field.last) {
            float before, after, last = field.last[p], now = last + ((field.total ? field.total[p] : 0.0f) - sent.sum());
            field.last[p] = now;
            change = softmax<L>(y, rest, now, after) - softmax<L>(x, rest, last, before);
            live = change.beyond(freeze) | (after - before > freeze) | (before - after > freeze);
        } else {
            change = softmax<L>(y, rest) - softmax<L>(x, rest);
            live = change.beyond(freeze);
        }
        change.store(changes + (out.from + out.active) * L);
        active[out.from + out.active] = uint32_t(p);
        out.active += live;
    }
}

// Messages alone, where channels are filtered in several blocks.
template <int L> void slice_messages(const Field& field, const uint32_t* list, size_t from, size_t to, float* out) {
    for (size_t k = from; k < to; ++k) message<L>(field, list ? list[k] : k).store(out + k * L);
}

// Softmax in place over several planes of L lanes; `rest` is added to the sum.
template <int L>
CRF_INLINE void softmax_planes(float* rows, size_t plane, int blocks, float rest) {
    float peak = 0;
    for (int b = 0; b < blocks; ++b) {
        float m = Row<L>::load(rows + b * plane).max();
        if (m > peak) peak = m;
    }
    if (peak < 80) peak = 0;
    float sum = rest * (peak > 0 ? exponential(float4{} - (peak < 80 ? peak : 80))[0] : 1.0f);
    for (int b = 0; b < blocks; ++b) {
        Row<L> e = (Row<L>::load(rows + b * plane) - Row<L>::all(peak)).exp();
        sum += e.sum();
        e.store(rows + b * plane);
    }
    float scale = 1.0f / sum;
    for (int b = 0; b < blocks; ++b) (Row<L>::load(rows + b * plane) * scale).store(rows + b * plane);
}

}  // namespace CRF_BUILD
}  // namespace crf

// The permutohedral lattice of a set of points: splatting ids and weights, and the chains of neighbours to blur along.
#pragma once

#include "neighbours.hpp"
#include "simplex.hpp"
#include "vertex_table.hpp"

namespace crf {
namespace CRF_BUILD {

// Vertices linked along one direction, as runs of ids. Short runs are stored by length, so that the blur has no
// unpredictable inner loop: pairs, triples and quadruples, and longer runs as a length followed by ids.
struct Chains {
    Buffer<uint32_t> runs[4];
    size_t used[4] = {0, 0, 0, 0};

    void clear() {
        for (size_t& n : used) n = 0;
    }
    CRF_INLINE void append(const uint32_t* ids, size_t length) {
        int kind = length < 5 ? int(length) - 2 : 3;
        size_t need = length + (kind == 3);
        if ((used[kind] + need) * sizeof(uint32_t) > runs[kind].bytes())
            runs[kind].grow((used[kind] + need) * 3 / 2 + 4096, used[kind]);
        uint32_t* to = runs[kind].data() + used[kind];
        if (kind == 3) *to++ = uint32_t(length);
        std::memcpy(to, ids, length * sizeof(uint32_t));
        used[kind] += need;
    }
    // The blur prefetches by a few ids past the end, which must be valid.
    void finish() {
        for (int kind = 0; kind < 4; ++kind)
            if (used[kind]) std::memset(runs[kind].data() + used[kind], 0, 32 * sizeof(uint32_t));
    }
    size_t bytes() const { return runs[0].bytes() + runs[1].bytes() + runs[2].bytes() + runs[3].bytes(); }
};

// Temporary buffers for building lattices, shared between them.
struct Scratch {
    VertexTable table;
    Neighbours neighbours;
    Buffer<uint32_t> next[Neighbours::directions_at_once], chain;
    Buffer<uint8_t> has_previous[Neighbours::directions_at_once];
    size_t bytes() const {
        size_t n = table.bytes() + neighbours.bytes() + chain.bytes();
        for (int k = 0; k < Neighbours::directions_at_once; ++k) n += next[k].bytes() + has_previous[k].bytes();
        return n;
    }
    void release() {
        table.release();
        neighbours.release();
        chain.release();
        for (int k = 0; k < Neighbours::directions_at_once; ++k) {
            next[k].release();
            has_previous[k].release();
        }
    }
};

constexpr size_t fresh_step = 64;  // points between two entries of vertices_before

template <int D> class Lattice {
public:
    size_t vertices = 0, points = 0;
    Buffer<uint32_t> id;               // points x (D + 1)
    Buffer<float> weight;              // points x (D + 1)
    Buffer<uint32_t> vertices_before;  // [k]: vertices touched before point 64 k; ids are in the order of first touch
    Chains chains[D + 1];
    Buffer<uint32_t> runs;  // scratch, for a part of another lattice
    Buffer<float> ones;     // scratch: the splat of ones, until `filter_ones` blurs it

    // features(first, float8[D]): features of the points first .. first+7, in units of the deviations; lanes past
    // the end may hold anything finite. Throws OutOfMemory; returns too_large or key_range if ids or keys do not suffice.
    template <class Features>
    Status build(size_t count, const double* lowest, const double* highest, const Features& features, Scratch& scratch) {
        if (count >= (size_t(1) << 31) / (D + 1)) return Status::too_large;
        float scale[D];
        elevation_scales<D>(scale);
        double low[D + 1], high[D + 1];
        elevated_bounds<D>(scale, lowest, highest, low, high);
        KeyLayout<D> layout;
        if (!layout.fit(low, high)) return Status::key_range;
        // Images that follow each other have about as many vertices per point.
        size_t expected = points ? size_t(1.1 * count * vertices / points) : 0;
        if (expected < count) expected = count;
        points = count;
        id.reserve((count + 8) * (D + 1));
        weight.reserve((count + 8) * (D + 1));
        vertices_before.reserve(count / fresh_step + 2);
        VertexTable& table = scratch.table;
        table.clear(expected + 64, layout.bits);
        constexpr int batch = 8 * (D + 1);
        word8 keys[2][D + 1], mixed[2][D + 1];
        float* sums = ones.reserve(expected + 1024);
        size_t room = ones.bytes() / sizeof(float);
        std::memset(sums, 0, room * sizeof(float));
        int pending = 0;
        for (size_t first = 0, turn = 0; first < count + 8; first += 8, turn ^= 1) {
            int present = first >= count ? 0 : int(count - first < 8 ? count - first : 8);
            if (present) {
                float8 feature[D];
                features(first, feature);
                Simplices<D> simplices;
                simplices.locate(feature, scale);
                simplices.keys(layout, keys[turn]);
                for (int lane = 0; lane < present; ++lane)
                    for (int r = 0; r <= D; ++r) weight[(first + lane) * (D + 1) + r] = simplices.weight[r][lane];
                for (int r = 0; r <= D; ++r) {
                    mixed[turn][r] = VertexTable::mix(keys[turn][r]);
                    for (int lane = 0; lane < 8; ++lane) table.prefetch(mixed[turn][r][lane]);
                }
            }
            // Insert the previous batch, whose slots are in the cache by now.
            if (pending) {
                size_t from = first - 8;
                if (from % fresh_step == 0) vertices_before[from / fresh_step] = uint32_t(table.size());
                table.make_room(batch);
                if (table.size() + batch > room) {
                    sums = ones.grow(2 * room + batch, room);
                    std::memset(sums + room, 0, (ones.bytes() / sizeof(float) - room) * sizeof(float));
                    room = ones.bytes() / sizeof(float);
                }
                for (int lane = 0; lane < pending; ++lane)
                    for (int r = 0; r <= D; ++r) {
                        size_t at = (from + lane) * (D + 1) + r;
                        uint32_t v = table.insert(keys[turn ^ 1][r][lane], mixed[turn ^ 1][r][lane]);
                        id[at] = v;
                        sums[v] += weight[at];
                    }
            }
            pending = present;
        }
        vertices = table.size();
        vertices_before[(count + fresh_step - 1) / fresh_step] = uint32_t(vertices);
        link(layout, scratch);
        return Status::ok;
    }

    // The factor on a splat, blur and slice that compensates for the gain of the D + 1 blurs (Adams et al. 2010).
    static float gain() { return 1.0f / (1.0f + std::pow(2.0f, -float(D))); }

    // Vertices on runs, and the runs that are longer than four, over all directions.
    size_t links() const {
        size_t n = 0;
        for (const Chains& c : chains) n += c.used[0] + c.used[1] + c.used[2] + c.used[3];
        return n;
    }

    void release() {
        id.release();
        weight.release();
        vertices_before.release();
        runs.release();
        ones.release();
        for (Chains& c : chains) {
            for (Buffer<uint32_t>& b : c.runs) b.release();
            c.clear();
        }
    }
    size_t bytes() const {
        size_t n = id.bytes() + weight.bytes() + vertices_before.bytes() + runs.bytes() + ones.bytes();
        for (const Chains& c : chains) n += c.bytes();
        return n;
    }

private:
    void link(const KeyLayout<D>& layout, Scratch& scratch) {
        constexpr int directions_at_once = Neighbours::directions_at_once;
        scratch.neighbours.sort(scratch.table.keys(), vertices, layout.bits, layout.next);
        uint32_t* next[directions_at_once];
        uint8_t* has_previous[directions_at_once];
        for (int k = 0; k < directions_at_once; ++k) {
            next[k] = scratch.next[k].reserve(vertices);
            has_previous[k] = scratch.has_previous[k].reserve(vertices + 1);
        }
        for (int first = 0; first <= D; first += directions_at_once) {
            auto step = [&](int remainder, int k) { return layout.step(remainder, first + k <= D ? first + k : D); };
            scratch.neighbours.find(D + 1, step, next, has_previous);
            for (int k = 0; k < directions_at_once && first + k <= D; ++k) {
                collect(next[k], has_previous[k], scratch, chains[first + k]);
                chains[first + k].finish();
            }
        }
    }

    // Links to runs. All runs are followed one step at a time and then sorted by length, so that look-ups of different runs
    // overlap and no branch depends on a run's length.
    void collect(const uint32_t* next, const uint8_t* has_previous, Scratch& scratch, Chains& out) {
        constexpr uint32_t none = Neighbours::none;
        uint32_t* four = scratch.chain.reserve(3 * vertices + 24);  // first four vertices of the runs that are longer
        uint32_t *start = four + vertices + 8, *three = start + vertices + 8;
        size_t starts = 0;
        for (size_t v = 0; v < vertices; ++v) {
            start[starts] = uint32_t(v);
            starts += !has_previous[v] & (next[v] != none);
        }
        out.clear();
        uint32_t* two = out.runs[0].reserve(vertices + 8);
        size_t n2 = 0, n3 = 0, n4 = 0;
        for (size_t k = 0; k < starts; ++k) {
            uint32_t a = start[k], b = next[a], c = next[b];
            two[n2] = a;
            two[n2 + 1] = b;
            n2 += c == none ? 2 : 0;
            three[n3] = a;
            three[n3 + 1] = b;
            three[n3 + 2] = c;
            n3 += c == none ? 0 : 3;
        }
        size_t longer = n3;
        n3 = 0;
        for (size_t k = 0; k < longer; k += 3) {
            uint32_t a = three[k], b = three[k + 1], c = three[k + 2], d = next[c];
            four[n4] = a;
            four[n4 + 1] = b;
            four[n4 + 2] = c;
            four[n4 + 3] = d;
            n4 += d == none ? 0 : 4;
            three[n3] = a;
            three[n3 + 1] = b;
            three[n3 + 2] = c;
            n3 += d == none ? 3 : 0;
        }
        out.used[0] = n2;
        out.used[1] = n3;
        std::memcpy(out.runs[1].reserve(n3 + 1), three, n3 * sizeof(uint32_t));
        for (size_t k = 0; k < n4; k += 4) {
            if (next[four[k + 3]] == none) {
                out.append(four + k, 4);
                continue;
            }
            size_t length = 0;  // overwrites the starts, which are no longer needed
            for (uint32_t n = four[k]; n != none; n = next[n]) start[length++] = n;
            out.append(start, length);
        }
    }
};

}  // namespace CRF_BUILD
}  // namespace crf

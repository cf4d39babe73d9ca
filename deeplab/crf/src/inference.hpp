// The mean-field iterations over the filters, for rows of any width, on one thread or several.
#pragma once

#include "mean_field.hpp"
#include "restriction.hpp"

namespace crf {
namespace CRF_BUILD {

// Runs f(part, parts) on all workers (here, when there are none).
template <class F> void together(Workers* workers, const F& f) {
    if (!workers) {
        f(0, 1);
        return;
    }
    struct Call {
        const F* f;
        int parts;
    } call{&f, workers->threads()};
    workers->run(
        [](void* argument, int thread) {
            FlushDenormals flush;
            const Call* c = static_cast<const Call*>(argument);
            (*c->f)(thread, c->parts);
        },
        &call);
}

// Fast mode's problem once most pixels are frozen: the pixels that still change, and their part of the lattices.
struct Part {
    Lattice<5> lattice5;
    Lattice<2> lattice2;
    Buffer<Factors> factors;
    Buffer<float> rest, logits;
    Buffer<uint32_t> origin;  // place of every pixel in the whole image
    size_t bytes() const {
        return lattice5.bytes() + lattice2.bytes() + factors.bytes() + rest.bytes() + logits.bytes() + origin.bytes();
    }
    void release() {
        lattice5.release();
        lattice2.release();
        factors.release();
        rest.release();
        logits.release();
        origin.release();
    }
};

// The buffers of one refinement that the caller keeps for the next.
struct Workspace {
    Buffer<float> values5, values2, rows;
    Buffer<uint32_t> changed, active, renamed;
    Part parts[2];
    size_t bytes() const {
        size_t n = values5.bytes() + values2.bytes() + rows.bytes() + changed.bytes() + active.bytes() + renamed.bytes();
        return n + parts[0].bytes() + parts[1].bytes();
    }
    void release() {
        values5.release();
        values2.release();
        rows.release();
        changed.release();
        active.release();
        renamed.release();
        parts[0].release();
        parts[1].release();
    }
};

constexpr int most_threads = 64;

template <int L> class Inference {
public:
    Inference(const Field& field, Unary& unary, Workspace& space, Workers* workers, Stats& stats)
        : field_(field), unary_(unary), space_(space), workers_(workers), stats_(stats), logits_(unary.logits.data()),
          plane_(field.pixels * L), logits_plane_(field.pixels * L) {}

    // Exact: leaves the marginals in space.rows. Fast: leaves final logits in unary.logits.
    void run(const Settings& settings) {
        double start = now_ms();
        float* rows = space_.rows.reserve(plane_ * unary_.blocks);
        bool fast = settings.fast;
        if (fast) {
            space_.changed.reserve(field_.pixels);
            space_.active.reserve(field_.pixels);
        }
        size_t whole = field_.pixels, changed = whole, active = whole;
        bool listed = false;  // changed and active are lists, not all pixels
        double updates = 0;
        if (unary_.blocks > 1 || workers_ || settings.iterations == 0) initial_marginals();
        for (int iteration = 0; iteration < settings.iterations; ++iteration) {
            const uint32_t* splat_list = listed && !packed_ ? space_.changed.data() : nullptr;
            const uint32_t* active_list = listed ? space_.active.data() : nullptr;
            updates += double(active) / whole;
            if (unary_.blocks == 1) {
                filter(rows, splat_list, changed, iteration == 0);
                packed_ = false;
                lap(start, stats_.filter_ms);
                if (fast) update_changes(active_list, active, changed, settings.freeze);
                else update_all();
            } else {
                for (int b = 0; b < unary_.blocks; ++b) {
                    filter(rows + b * plane_, splat_list, changed, false);
                    // The block's rows are dead after their splat; its messages take their place.
                    together(workers_, [&](int part, int parts) {
                        size_t from, to;
                        share(active, 64, part, parts, from, to);
                        slice_messages<L>(field_, active_list, from, to, rows + b * plane_);
                    });
                }
                packed_ = false;
                lap(start, stats_.filter_ms);
                if (fast) combine_changes(active_list, active, changed, settings.freeze);
                else combine_all();
            }
            listed = fast;
            int left = settings.iterations - iteration - 1;
            if (fast && left * (field_.pixels - changed) > 2 * field_.pixels) narrow(changed, active);
            lap(start, stats_.update_ms);
        }
        write_back();
        stats_.active_fraction = settings.iterations ? updates / settings.iterations : 0;
    }

private:
    static void lap(double& start, double& total) {
        double now = now_ms();
        total += now - start;
        start = now;
    }
    float rest(size_t p) const { return field_.rest ? field_.rest[p] : 0.0f; }

    // Goes on with the changed pixels alone. Their changes lie packed in the rows already.
    void narrow(size_t changed, size_t active) {
        write_back();
        Part& part = space_.parts[part_ == &space_.parts[0]];
        const uint32_t* list = space_.changed.data();
        if (field_.lattice5) restrict_lattice<5>(*field_.lattice5, list, changed, part.lattice5, space_.renamed);
        if (field_.lattice2) restrict_lattice<2>(*field_.lattice2, list, changed, part.lattice2, space_.renamed);
        part.factors.reserve(changed);
        part.origin.reserve(changed);
        part.logits.reserve(changed * L * unary_.blocks);
        if (field_.rest) part.rest.reserve(changed);
        uint32_t* live = space_.active.data();
        for (size_t k = 0, a = 0; k < changed; ++k) {
            size_t p = list[k];
            part.factors[k] = field_.factors[p];
            part.origin[k] = part_ ? part_->origin[p] : uint32_t(p);
            if (field_.rest) part.rest[k] = field_.rest[p];
            for (int b = 0; b < unary_.blocks; ++b)
                Row<L>::load(logits_ + b * logits_plane_ + p * L).store(part.logits.data() + (b * changed + k) * L);
            if (a < active && live[a] == p) live[a++] = uint32_t(k);
        }
        if (field_.lattice5) field_.lattice5 = &part.lattice5;
        if (field_.lattice2) field_.lattice2 = &part.lattice2;
        if (field_.rest) field_.rest = part.rest.data();
        field_.factors = part.factors.data();
        field_.pixels = changed;
        logits_ = part.logits.data();
        logits_plane_ = changed * L;
        part_ = &part;
        packed_ = true;
    }
    void write_back() {
        if (!part_) return;
        size_t plane = unary_.logits_plane();
        for (int b = 0; b < unary_.blocks; ++b)
            for (size_t k = 0; k < field_.pixels; ++k)
                Row<L>::load(logits_ + b * logits_plane_ + k * L).store(unary_.logits.data() + b * plane + part_->origin[k] * L);
    }

    void initial_marginals() {
        float* rows = space_.rows.data();
        const float* logits = unary_.logits.data();
        together(workers_, [&](int part, int parts) {
            size_t from, to;
            share(field_.pixels, 64, part, parts, from, to);
            for (size_t p = from; p < to; ++p) {
                for (int b = 0; b < unary_.blocks; ++b)
                    Row<L>::load(logits + b * plane_ + p * L).store(rows + b * plane_ + p * L);
                softmax_planes<L>(rows + p * L, plane_, unary_.blocks, rest(p));
            }
        });
    }
    void filter(const float* rows, const uint32_t* list, size_t count, bool first) {
        if (!workers_ && !list && !part_) {
            if (first) splat_all<L, true>(field_, unary_.logits.data());
            else splat_all<L, false>(field_, rows);
        } else {
            together(workers_, [&](int part, int parts) {
                if (field_.lattice5) splat_share<L, 5>(*field_.lattice5, field_.values5, field_.factors, list, count, rows, part, parts, true);
                if (field_.lattice2) splat_share<L, 2>(*field_.lattice2, field_.values2, field_.factors, list, count, rows, part, parts, true);
            });
        }
        for (int j = 0; field_.lattice5 && j < 6; ++j)
            together(workers_, [&](int part, int parts) { blur<L>(field_.values5, field_.lattice5->chains[j], part, parts); });
        for (int j = 0; field_.lattice2 && j < 3; ++j)
            together(workers_, [&](int part, int parts) { blur<L>(field_.values2, field_.lattice2->chains[j], part, parts); });
    }
    void update_all() {
        together(workers_, [&](int part, int parts) {
            size_t from, to;
            share(field_.pixels, 64, part, parts, from, to);
            update_exact<L>(field_, unary_.logits.data(), space_.rows.data(), from, to);
        });
    }
    void combine_all() {
        float* rows = space_.rows.data();
        const float* logits = unary_.logits.data();
        together(workers_, [&](int part, int parts) {
            size_t from, to;
            share(field_.pixels, 64, part, parts, from, to);
            for (size_t p = from; p < to; ++p) {
                for (int b = 0; b < unary_.blocks; ++b) {
                    float* at = rows + b * plane_ + p * L;
                    (Row<L>::load(at) + Row<L>::load(logits + b * plane_ + p * L)).store(at);
                }
                softmax_planes<L>(rows + p * L, plane_, unary_.blocks, 0);
            }
        });
    }
    void update_changes(const uint32_t* list, size_t& active, size_t& changed, float freeze) {
        Survivors left[most_threads];
        together(workers_, [&](int part, int parts) {
            size_t from, to;
            share(active, 64, part, parts, from, to);
            left[part] = update_fast<L>(field_, logits_, list, from, to, freeze, space_.changed.data(),
                                        space_.active.data(), space_.rows.data());
        });
        pack(left, active, changed);
    }
    void combine_changes(const uint32_t* list, size_t& active, size_t& changed, float freeze) {
        Survivors left[most_threads];
        int blocks = unary_.blocks;
        float *rows = space_.rows.data(), *logits = logits_;
        Buffer<float> scratch;
        size_t need = size_t(blocks) * L;
        scratch.reserve(need * 2 * most_threads);
        together(workers_, [&](int part, int parts) {
            size_t from, to;
            share(active, 64, part, parts, from, to);
            Survivors out{from, 0, 0};
            float *old = scratch.data() + need * 2 * part, *now = old + need;
            for (size_t k = from; k < to; ++k) {
                size_t p = list ? list[k] : k;
                for (int b = 0; b < blocks; ++b) {
                    float* at = logits + b * logits_plane_ + p * L;
                    Row<L> x = Row<L>::load(at);
                    x.store(old + b * L);
                    x = x + Row<L>::load(rows + b * plane_ + k * L);
                    x.store(at);
                    x.store(now + b * L);
                }
                softmax_planes<L>(old, L, blocks, rest(p));
                softmax_planes<L>(now, L, blocks, rest(p));
                bool moved = false, live = false;
                for (int b = 0; b < blocks; ++b) {
                    Row<L> change = Row<L>::load(now + b * L) - Row<L>::load(old + b * L);
                    change.store(rows + b * plane_ + (from + out.changed) * L);
                    moved |= change.beyond(quiet_below(freeze));
                    live |= change.beyond(freeze);
                }
                space_.changed[from + out.changed] = uint32_t(p);
                out.changed += moved;
                space_.active[from + out.active] = uint32_t(p);
                out.active += live;
            }
            left[part] = out;
        });
        pack(left, active, changed);
    }
    // Joins the threads' lists (and rows) into one.
    void pack(const Survivors* left, size_t& active, size_t& changed) {
        int parts = workers_ ? workers_->threads() : 1;
        active = changed = 0;
        for (int t = 0; t < parts; ++t) {
            const Survivors& s = left[t];
            if (s.from != changed) {
                std::memmove(space_.changed.data() + changed, space_.changed.data() + s.from, s.changed * sizeof(uint32_t));
                for (int b = 0; b < unary_.blocks; ++b) {
                    float* rows = space_.rows.data() + b * plane_;
                    std::memmove(rows + changed * L, rows + s.from * L, s.changed * L * sizeof(float));
                }
            }
            if (s.from != active)
                std::memmove(space_.active.data() + active, space_.active.data() + s.from, s.active * sizeof(uint32_t));
            changed += s.changed;
            active += s.active;
        }
    }

    Field field_;
    Unary& unary_;
    Workspace& space_;
    Workers* workers_;
    Stats& stats_;
    Part* part_ = nullptr;    // null: the whole image
    bool packed_ = false;     // the changed pixels are all pixels of the part, in order
    float* logits_;
    size_t plane_, logits_plane_;  // between blocks of rows and of logits
};

}  // namespace CRF_BUILD
}  // namespace crf

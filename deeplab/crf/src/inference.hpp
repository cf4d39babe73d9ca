// The mean-field iterations over the filters, for rows of any width, on one thread or several.
#pragma once

#include "workspace.hpp"

namespace crf {
namespace CRF_BUILD {

// Runs f(part, parts) on all workers, or in this thread if there are none.
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

constexpr int max_threads = 64;

template <int L> class Inference {
public:
    Inference(const Field& field, Unary& unary, Workspace& space, Workers* workers, Stats& stats)
        : field_(field),
          unary_(unary),
          space_(space),
          workers_(workers),
          stats_(stats),
          logits_(unary.logits.data()),
          plane_(field.pixels * L),
          logits_plane_(field.pixels * L) {}

    // Exact: leaves the marginals in space.rows. Fast: leaves final logits in unary.logits.
    void run(const Settings& settings) {
        double start = now_ms();
        float* rows = space_.rows.reserve(plane_ * unary_.blocks);
        bool fast = settings.fast;
        if (fast) space_.active.reserve(field_.pixels);
        size_t whole = field_.pixels, active = whole;
        double updates = 0;
        if (unary_.blocks > 1 || workers_ || settings.iterations == 0) initial_marginals();
        for (int iteration = 0; iteration < settings.iterations; ++iteration) {
            const uint32_t* list = listed_ ? space_.active.data() : nullptr;
            updates += double(active) / whole;
            if (unary_.blocks == 1) {
                filter(rows, list, active, iteration == 0);
                lap(start, stats_.filter_ms);
                if (fast) update_changes(list, active, settings.freeze);
                else update_all();
            } else {
                for (int b = 0; b < unary_.blocks; ++b) {
                    filter(rows + b * plane_, list, active, false);
                    // The block's rows are not needed after their splat; its messages overwrite them.
                    each_part(list, active, rows + b * plane_,
                              [&](size_t from, size_t to, int) { slice_messages<L>(field_, list, from, to, rows + b * plane_); });
                }
                lap(start, stats_.filter_ms);
                if (fast) combine_changes(list, active, settings.freeze);
                else combine_all();
            }
            if (fast) field_.total = nullptr;
            if (fast && !active) break;
            // Narrowing costs as much as about three iterations of the filter, and hardly shrinks the lattice until seven of
            // eight pixels are frozen.
            bool pays = settings.iterations - iteration > 3 && 8 * active < field_.pixels;
            if (fast && pays) narrow(active);
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

    // Continues with the active pixels only. Their changes are already packed in the rows.
    void narrow(size_t active) {
        write_back();
        Part& part = space_.parts[part_ == &space_.parts[0]];
        const uint32_t* list = space_.active.data();
        if (field_.lattice5) restrict_lattice<5>(*field_.lattice5, list, active, part.lattice5, space_.renamed);
        if (field_.rows2) restrict_rows(*field_.rows2, list, active, part.lattice2, space_.renamed);
        else if (field_.lattice2) restrict_lattice<2>(*field_.lattice2, list, active, part.lattice2, space_.renamed);
        part.factors.reserve(active);
        part.origin.reserve(active);
        part.logits.reserve(active * L * unary_.blocks);
        if (field_.rest) part.rest.reserve(active);
        if (field_.last) part.last.reserve(active);
        for (size_t k = 0; k < active; ++k) {
            size_t p = list[k];
            part.factors[k] = field_.factors[p];
            part.origin[k] = part_ ? part_->origin[p] : uint32_t(p);
            if (field_.rest) part.rest[k] = field_.rest[p];
            if (field_.last) part.last[k] = field_.last[p];
            for (int b = 0; b < unary_.blocks; ++b)
                Row<L>::load(logits_ + b * logits_plane_ + p * L).store(part.logits.data() + (b * active + k) * L);
        }
        if (field_.lattice5) field_.lattice5 = &part.lattice5;
        if (field_.id2) {
            field_.lattice2 = &part.lattice2;
            field_.rows2 = nullptr;
            field_.id2 = part.lattice2.id.data();
            field_.weight2 = part.lattice2.weight.data();
            field_.values2 = space_.values2.reserve(part.lattice2.vertices * L);
        }
        if (field_.rest) field_.rest = part.rest.data();
        if (field_.last) field_.last = part.last.data();
        field_.factors = part.factors.data();
        field_.pixels = active;
        logits_ = part.logits.data();
        logits_plane_ = active * L;
        part_ = &part;
        listed_ = false;
    }
    // Calls update(from, to, thread) for ranges that together cover the list's pixels 0 .. count. If positions are filtered
    // in a sweep, it happens here: update then reads the filtered values of `rows`, and may overwrite its own rows.
    template <class Update> void each_part(const uint32_t* list, size_t count, const float* rows, const Update& update) {
        if (!field_.rows2) {
            together(workers_, [&](int part, int parts) {
                size_t from, to;
                share(count, 64, part, parts, from, to);
                update(from, to, part);
            });
            return;
        }
        size_t splatted = 0, updated = 0;
        auto upto = [&](size_t from, size_t place) {
            if (!list) return place;
            while (from < count && list[from] < place) ++from;
            return from;
        };
        field_.rows2->sweep<L>(
            field_.values2,
            [&](size_t, size_t end) {
                size_t to = upto(splatted, end);
                splat_positions<L>(field_, list, splatted, to, rows);
                splatted = to;
            },
            [&](size_t, size_t end) {
                size_t to = upto(updated, end);
                update(updated, to, 0);
                updated = to;
            });
    }
    void write_back() {
        if (!part_) return;
        size_t plane = unary_.logits_plane();
        for (int b = 0; b < unary_.blocks; ++b)
            for (size_t k = 0; k < field_.pixels; ++k)
                Row<L>::load(logits_ + b * logits_plane_ + k * L).store(unary_.logits.data() + b * plane + part_->origin[k] * L);
        for (size_t k = 0; field_.last && k < field_.pixels; ++k) unary_.last[part_->origin[k]] = field_.last[k];
    }

    void initial_marginals() {
        float* rows = space_.rows.data();
        const float* logits = unary_.logits.data();
        together(workers_, [&](int part, int parts) {
            size_t from, to;
            share(field_.pixels, 64, part, parts, from, to);
            for (size_t p = from; p < to; ++p) {
                if (unary_.blocks == 1) {
                    first_marginals<L>(field_, Row<L>::load(logits + p * L), p).store(rows + p * L);
                    continue;
                }
                for (int b = 0; b < unary_.blocks; ++b) Row<L>::load(logits + b * plane_ + p * L).store(rows + b * plane_ + p * L);
                softmax_planes<L>(rows + p * L, plane_, unary_.blocks, rest(p));
            }
        });
    }
    void filter(const float* rows, const uint32_t* list, size_t count, bool first) {
        if (!workers_ && !list && !part_) {
            if (first) splat_all<L, true>(field_, unary_.logits.data(), field_.rows2 ? space_.rows.data() : nullptr);
            else splat_all<L, false>(field_, rows, nullptr);
        } else {
            together(workers_, [&](int part, int parts) {
                if (field_.lattice5)
                    splat_share<L, 5>(*field_.lattice5, field_.values5, field_.factors, list, count, rows, part, parts, true);
                if (field_.lattice2)
                    splat_share<L, 2>(*field_.lattice2, field_.values2, field_.factors, list, count, rows, part, parts, true);
            });
        }
        for (int j = 0; field_.lattice5 && j < 6; ++j)
            together(workers_, [&](int part, int parts) { blur<L>(field_.values5, field_.lattice5->chains[j], part, parts); });
        for (int j = 0; field_.lattice2 && j < 3; ++j)
            together(workers_, [&](int part, int parts) { blur<L>(field_.values2, field_.lattice2->chains[j], part, parts); });
    }
    void update_all() {
        each_part(nullptr, field_.pixels, space_.rows.data(), [&](size_t from, size_t to, int) {
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
    void update_changes(const uint32_t* list, size_t& active, float freeze) {
        Survivors left[max_threads];
        for (Survivors& s : left) s = {active, 0};
        each_part(list, active, space_.rows.data(), [&](size_t from, size_t to, int thread) {
            if (from < left[thread].from) left[thread].from = from;
            update_fast<L>(field_, logits_, list, from, to, freeze, space_.active.data(), space_.rows.data(), left[thread]);
        });
        active = pack(left);
    }
    void combine_changes(const uint32_t* list, size_t& active, float freeze) {
        Survivors left[max_threads];
        int blocks = unary_.blocks;
        float *rows = space_.rows.data(), *logits = logits_;
        Buffer<float> scratch;
        size_t need = size_t(blocks) * L;
        scratch.reserve(need * 2 * max_threads);
        together(workers_, [&](int part, int parts) {
            size_t from, to;
            share(active, 64, part, parts, from, to);
            Survivors out{from, 0};
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
                bool live = false;
                for (int b = 0; b < blocks; ++b) {
                    Row<L> change = Row<L>::load(now + b * L) - Row<L>::load(old + b * L);
                    change.store(rows + b * plane_ + (from + out.active) * L);
                    live |= change.beyond(freeze);
                }
                space_.active[from + out.active] = uint32_t(p);
                out.active += live;
            }
            left[part] = out;
        });
        active = pack(left);
    }
    // Joins the threads' lists and rows; returns the total length.
    size_t pack(const Survivors* left) {
        int parts = workers_ ? workers_->threads() : 1;
        size_t active = 0;
        for (int t = 0; t < parts; ++t) {
            const Survivors& s = left[t];
            if (s.from != active) {
                uint32_t* list = space_.active.data();
                std::memmove(list + active, list + s.from, s.active * sizeof(uint32_t));
                for (int b = 0; b < unary_.blocks; ++b) {
                    float* rows = space_.rows.data() + b * plane_;
                    std::memmove(rows + active * L, rows + s.from * L, s.active * L * sizeof(float));
                }
            }
            active += s.active;
        }
        listed_ = true;
        return active;
    }

    Field field_;
    Unary& unary_;
    Workspace& space_;
    Workers* workers_;
    Stats& stats_;
    Part* part_ = nullptr;  // null: the whole image
    bool listed_ = false;   // only the listed pixels are active, and the rows hold theirs
    float* logits_;
    size_t plane_, logits_plane_;  // between blocks of rows and of logits
};

}  // namespace CRF_BUILD
}  // namespace crf

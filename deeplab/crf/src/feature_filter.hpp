// The Gaussian filter over arbitrary features, of one to six dimensions.
#pragma once

#include "mean_field.hpp"

namespace crf {
namespace CRF_BUILD {
namespace {

template <int D> class FeatureFilter {
public:
    Status build(const float* features, size_t count, Scratch& scratch) {
        double low[D], high[D];
        for (int i = 0; i < D; ++i) {
            low[i] = high[i] = features[i];
            for (size_t p = 0; p < count; ++p) {
                double f = features[p * D + i];
                if (!(f - f == 0)) return Status::not_finite;
                low[i] = f < low[i] ? f : low[i];
                high[i] = f > high[i] ? f : high[i];
            }
        }
        return lattice.build(
            count, low, high,
            [&](size_t first, float8* f) {
                for (int i = 0; i < 8; ++i) {
                    size_t p = first + i < count ? first + i : count - 1;
                    for (int k = 0; k < D; ++k) f[k][i] = features[p * D + k];
                }
            },
            scratch);
    }
    void apply(const float* values, int channels, float* out, Buffer<float>& room, Buffer<float>& rows) const {
        constexpr int L = 8, K = D + 1;
        size_t count = lattice.points;
        float* a = room.reserve(lattice.vertices * L);
        float* q = rows.reserve(count * L);
        float gain = lattice.gain();
        for (int c = 0; c < channels; c += L) {
            int present = channels - c < L ? channels - c : L;
            for (int l = 0; l < L; ++l)
                for (size_t p = 0; p < count; ++p) q[p * L + l] = l < present ? values[(c + l) * count + p] : 0.0f;
            std::memset(a, 0, lattice.vertices * L * sizeof(float));
            for (size_t p = 0; p < count; ++p)
                scatter<L, K>(a, lattice.id.data() + p * K, lattice.weight.data() + p * K, Row<L>::load(q + p * L));
            for (const Chains& chains : lattice.chains) blur<L>(a, chains, 0, 1);
            for (size_t p = 0; p < count; ++p)
                (gather<L, K>(a, lattice.id.data() + p * K, lattice.weight.data() + p * K) * gain).store(q + p * L);
            for (int l = 0; l < present; ++l)
                for (size_t p = 0; p < count; ++p) out[(c + l) * count + p] = q[p * L + l];
        }
    }
    Lattice<D> lattice;
};

class AnyFilter : public Filter {
public:
    Status build(const float* features, int64_t count, int dimensions) override {
        try {
            FlushDenormals flush;
            dimensions_ = dimensions;
            Status status = Status::ok;
            with([&](auto& f) { status = f.build(features, size_t(count), scratch_); });
            scratch_.release();
            return status;
        } catch (OutOfMemory) {
            return Status::out_of_memory;
        }
    }
    Status apply(const float* values, int channels, float* out) override {
        try {
            FlushDenormals flush;
            with([&](auto& f) { f.apply(values, channels, out, room_, rows_); });
            return Status::ok;
        } catch (OutOfMemory) {
            return Status::out_of_memory;
        }
    }
    int64_t vertices() const override {
        int64_t n = 0;
        const_cast<AnyFilter*>(this)->with([&](auto& f) { n = int64_t(f.lattice.vertices); });
        return n;
    }

private:
    template <class F> void with(const F& f) {
        switch (dimensions_) {
            case 1: f(d1_); break;
            case 2: f(d2_); break;
            case 3: f(d3_); break;
            case 4: f(d4_); break;
            case 5: f(d5_); break;
            case 6: f(d6_); break;
        }
    }
    int dimensions_ = 0;
    FeatureFilter<1> d1_;
    FeatureFilter<2> d2_;
    FeatureFilter<3> d3_;
    FeatureFilter<4> d4_;
    FeatureFilter<5> d5_;
    FeatureFilter<6> d6_;
    Scratch scratch_;
    Buffer<float> room_, rows_;
};

}  // namespace
}  // namespace CRF_BUILD
}  // namespace crf

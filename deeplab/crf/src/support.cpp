// Memory, time and threads: all code with templates of the standard library, compiled with baseline instructions.
#include <sys/mman.h>

#include <condition_variable>
#include <cstdlib>
#include <ctime>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "interface.hpp"

namespace crf {

void* allocate(size_t bytes) {
    constexpr size_t huge = size_t(2) << 20;
    void* memory = nullptr;
    if (posix_memalign(&memory, bytes < huge ? 64 : huge, bytes) != 0) return nullptr;
#if defined(MADV_HUGEPAGE)
    // Vertices are met in random order, which costs a page walk each with pages of 4 KiB: 12 % of exact mode's time.
    if (bytes >= huge) madvise(memory, bytes / huge * huge, MADV_HUGEPAGE);
#endif
    return memory;
}
void deallocate(void* memory) { std::free(memory); }

double now_ms() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}

namespace {

class ThreadGroup : public Workers {
public:
    explicit ThreadGroup(int count) {
        try {
            for (int i = 1; i < count; ++i) threads_.emplace_back([this, i] { serve(i); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~ThreadGroup() override { stop(); }
    int threads() const override { return int(threads_.size()) + 1; }

    void run(void (*work)(void*, int), void* argument) override {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = work;
            argument_ = argument;
            left_ = int(threads_.size());
            ++turn_;
        }
        start_.notify_all();
        work(argument, 0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return left_ == 0; });
    }

private:
    void serve(int thread) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, [&] { return turn_ != seen || stopping_; });
            if (stopping_) return;
            seen = turn_;
            auto work = work_;
            void* argument = argument_;
            lock.unlock();
            work(argument, thread);
            lock.lock();
            if (--left_ == 0) done_.notify_one();
        }
    }
    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        start_.notify_all();
        for (std::thread& t : threads_) t.join();
        threads_.clear();
    }
    std::mutex mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> threads_;
    void (*work_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    uint64_t turn_ = 0;
    int left_ = 0;
    bool stopping_ = false;
};

}  // namespace

Workers* make_workers(int threads) {
    try {
        return new ThreadGroup(threads);
    } catch (const std::system_error&) {
        return nullptr;  // no threads available: the caller works alone
    }
}

}  // namespace crf

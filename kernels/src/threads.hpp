// A few threads that work on one step together. They spin for some microseconds, as the next phase
// is near, then sleep in the kernel: neither a waiting caller nor an idle engine costs a core.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace smollm3 {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Threads {
  public:
    explicit Threads(int count) : count_(count < 1 ? 1 : count) {
        for (int i = 1; i < count_; i++) workers_.emplace_back([this, i] { work(i); });
    }
    ~Threads() {
        stop_ = true;
        start_.fetch_add(1);
        start_.notify_all();
        for (auto& w : workers_) w.join();
    }
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int count() const { return count_; }

    // Run task(i) on every thread, the caller as thread 0; returns when all have ended.
    void run(const std::function<void(int)>& task) {
        task_ = &task;
        start_.fetch_add(1);
        start_.notify_all();
        task(0);
        barrier();
    }

    // All threads of a task reach this before any goes on.
    void barrier() {
        if (count_ == 1) return;
        uint32_t round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_acq_rel);
            round_.notify_all();
        } else {
            wait(round_, round);
        }
    }

  private:
    // About 50 microseconds. A hypervisor may take the processor from a loop of nothing but pauses.
    static constexpr int SPINS = 20000, RELAX_EVERY = 64;

    static void wait(std::atomic<uint32_t>& value, uint32_t old) {
        for (int i = 1; i <= SPINS; i++) {
            if (value.load(std::memory_order_acquire) != old) return;
            if (i % RELAX_EVERY == 0) relax();
        }
        value.wait(old, std::memory_order_acquire);
    }

    void work(int index) {
        for (uint32_t seen = 0;; seen++) {
            wait(start_, seen);
            if (stop_) return;
            (*task_)(index);
            barrier();
        }
    }

    const int count_;
    const std::function<void(int)>* task_ = nullptr;
    std::atomic<bool> stop_{false};
    std::atomic<uint32_t> start_{0}, round_{0};
    std::atomic<int> arrived_{0};
    std::vector<std::thread> workers_;
};

// Hands out 0..total-1 to whoever asks.
class Counter {
  public:
    template <typename Work>
    void each(int total, int least, int threads, Work work) {
        for (Part p = take(total, least, threads); p.begin < p.end; p = take(total, least, threads)) work(p.begin, p.end);
    }

    struct Part {
        int begin, end;
    };
    // Long stretches first, of which memory is read in one go, and ever shorter ones (at least `least`),
    // so that all threads end at about the same time. Empty when all is handed out.
    Part take(int total, int least, int threads) {
        int begin = next_.load(std::memory_order_relaxed);
        while (begin < total) {
            const int part = (total - begin) / (2 * threads), size = part > least ? part : least;
            const int end = begin + size < total ? begin + size : total;
            if (next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) return {begin, end};
        }
        return {total, total};
    }
    void reset() { next_.store(0, std::memory_order_relaxed); }

  private:
    alignas(64) std::atomic<int> next_{0};
};

}  // namespace smollm3

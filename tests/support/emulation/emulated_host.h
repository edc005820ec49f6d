// The host of the launchers (launch.cuh) that runs kernels in the emulation, and the C interface of the emulated ops.
#pragma once
#include "cuda_emulation.h"
// The emulation stands for the CUDA runtime, so it comes first.
#include <algorithm>
#include <numeric>

#include "launch.cuh"

namespace emulation {

class Host {
  public:
    explicit Host(const Options& options) : options_(options) {}
    Host(const Host&) = delete;
    ~Host() {
        for (void* memory : owned_) std::free(memory);
    }

    pcl_clora::Limits limits() const {
        return {options_.register_points, options_.thread_queries, options_.max_blocks, options_.max_cloud_rows};
    }

    template <class Task>
    void launch(void (*kernel)(Task), dim3 grid, dim3 threads, const Task& task) {
        emulation::launch(options_, grid, threads, 0, false, [&] { kernel(task); });
    }

    template <class Task>
    void launch_cooperative(void (*kernel)(Task), dim3 grid, dim3 threads, const Task& task) {
        emulation::launch(options_, grid, threads, 0, true, [&] { kernel(task); });
    }

    template <class Task>
    int64_t resident_blocks(void (*)(Task), int) const {
        return options_.resident_blocks;
    }

    // Every piece is an allocation of its own with garbage in it (NaN, where it is read as a float).
    template <class T>
    T* scratch(int64_t count) {
        const size_t bytes = sizeof(T) * static_cast<size_t>(count);
        void* memory = std::malloc(bytes);
        owned_.push_back(memory);
        std::memset(memory, 0xff, bytes);
        return static_cast<T*>(memory);
    }

    pcl_clora::Sorted sort(const int64_t* idx, int64_t clouds, int64_t positions) {
        auto* targets = scratch<int64_t>(clouds * positions);
        auto* order = scratch<int64_t>(clouds * positions);
        for (int64_t cloud = 0; cloud < clouds; ++cloud) {
            const int64_t* row = idx + cloud * positions;
            int64_t* begin = order + cloud * positions;
            std::iota(begin, begin + positions, int64_t{0});
            std::stable_sort(begin, begin + positions, [row](int64_t a, int64_t b) { return row[a] < row[b]; });
            for (int64_t i = 0; i < positions; ++i) targets[cloud * positions + i] = row[begin[i]];
        }
        return {targets, order};
    }

  private:
    Options options_;
    std::vector<void*> owned_;
};

// What every emulated op is given: numbers in the order of its schema, and its tensors, results last.
struct Call {
    const Options* options;
    const int64_t* ints;
    double real;
    void* const* buffers;
};

void keep_error(const char* text);

template <class Op>
int guarded(const Op& op) {
    try {
        op();
        return 0;
    } catch (const std::exception& error) {
        keep_error(error.what());
        return 1;
    }
}

}  // namespace emulation

#if defined(EMULATED_FLOAT_ONLY)  // half the time of the compiler
#define EMULATED_DOUBLE float
#else
#define EMULATED_DOUBLE double
#endif

#define EMULATED_OP(name)                                                                                     \
    template <class T>                                                                                        \
    static void name(emulation::Host& host, const emulation::Call& call);                                     \
    extern "C" int emulated_##name(const emulation::Call* call, int is_double) {                              \
        return emulation::guarded([&] {                                                                       \
            emulation::Host host(*call->options);                                                             \
            is_double != 0 ? name<EMULATED_DOUBLE>(host, *call) : name<float>(host, *call);                   \
        });                                                                                                   \
    }                                                                                                         \
    template <class T>                                                                                        \
    static void name(emulation::Host& host, const emulation::Call& call)

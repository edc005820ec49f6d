// Runs CUDA kernels on the CPU, unchanged: every thread of a block is a fibre, and fibres switch only where CUDA
// threads wait for one another. For tests; include it before the kernels.
//
// Blocks of an ordinary launch run one after another in a shuffled order, those of a cooperative launch side by side.
// A seed shuffles which thread goes on, by warps or all mixed, so a missing barrier shows as a wrong result. What real hardware would
// hang on or leave undefined is an error here, with the place: a barrier that not all threads of the block reach,
// threads that wait at different barriers, a warp operation whose lanes differ in kind or mask, a cooperative launch
// that is too large. `__shared__` variables live in thread-local memory, which is filled with garbage at the start of
// every block and swapped where blocks take turns. Dynamic shared memory has the name `dynamic_shared`, in the global
// namespace.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation {

struct Options {
    int64_t seed;             // 0: threads in their order; odd: a warp runs until it waits; even: all mixed
    int64_t resident_blocks;  // of a cooperative launch; 0: none can be had
    int64_t register_points;  // these four are Limits of the launchers
    int64_t thread_queries;
    int64_t max_blocks;
    int64_t max_cloud_rows;
};

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Thread;
extern Thread* current;
const dim3& thread_index();
const dim3& block_index();
extern dim3 block_size, grid_size;

enum class WarpOp { kShuffle, kShuffleXor, kShuffleUp, kShuffleDown, kBallot, kSync };

// The values that all lanes of the warp brought to this operation.
const uint64_t* exchange(WarpOp op, unsigned mask, uint64_t value, int line);
unsigned vote(unsigned mask, bool mine, int line);
int lane();
void block_barrier(int line);
void grid_barrier();
void let_others_run();

using Entry = void (*)(void* closure);
void run(const Options& options, dim3 grid, dim3 block, size_t dynamic_bytes, bool cooperative, Entry, void* closure);

template <class Body>
void launch(const Options& options, dim3 grid, dim3 block, size_t dynamic_bytes, bool cooperative, Body body) {
    run(options, grid, block, dynamic_bytes, cooperative, [](void* closure) { (*static_cast<Body*>(closure))(); }, &body);
}

template <class T>
T shuffle(WarpOp op, unsigned mask, T value, int source, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(op, mask, bits, line)[source];
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class T>
T shuffle_up(unsigned mask, T value, int delta, int line) {
    return shuffle(WarpOp::kShuffleUp, mask, value, lane() < delta ? lane() : lane() - delta, line);
}

template <class T>
T shuffle_down(unsigned mask, T value, int delta, int line) {
    return shuffle(WarpOp::kShuffleDown, mask, value, lane() + delta > 31 ? lane() : lane() + delta, line);
}

template <class T, class Change>
T atomic(T* at, Change change) {
    let_others_run();
    const T before = *at;
    *at = change(before);
    return before;
}

}  // namespace emulation

constexpr size_t kDynamicCapacity = 16384;
extern thread_local unsigned char dynamic_shared[kDynamicCapacity];

#define __global__ inline
#define __device__ inline
#define __host__
#define __forceinline__
#define __shared__ thread_local
#define __launch_bounds__(...)
#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index())
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)
#define __syncthreads() emulation::block_barrier(__LINE__)
#define __syncwarp(mask) (void)emulation::exchange(emulation::WarpOp::kSync, mask, 0, __LINE__)
#define __ballot_sync(mask, mine) emulation::vote(mask, mine, __LINE__)
#define __shfl_sync(mask, value, from) \
    emulation::shuffle(emulation::WarpOp::kShuffle, mask, value, (from) & 31, __LINE__)
#define __shfl_xor_sync(mask, value, with) \
    emulation::shuffle(emulation::WarpOp::kShuffleXor, mask, value, (emulation::lane() ^ (with)) & 31, __LINE__)
#define __shfl_up_sync(mask, value, delta) emulation::shuffle_up(mask, value, delta, __LINE__)
#define __shfl_down_sync(mask, value, delta) emulation::shuffle_down(mask, value, delta, __LINE__)

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

template <class T>
T atomicAdd(T* at, T value) {
    return emulation::atomic(at, [value](T before) { return before + value; });
}
template <class T>
T atomicMax(T* at, T value) {
    return emulation::atomic(at, [value](T before) { return before < value ? value : before; });
}
template <class T>
T atomicCAS(T* at, T expected, T value) {
    return emulation::atomic(at, [=](T before) { return before == expected ? value : before; });
}

namespace cooperative_groups {
struct Grid {
    void sync() const { emulation::grid_barrier(); }
};
inline Grid this_grid() { return {}; }
}  // namespace cooperative_groups

// Small kernels that show what the emulation does and what it refuses; run by test_cuda_emulation.py.
#include "emulated_host.h"

// Dynamic shared memory is declared in the global namespace.
__global__ void reverse_by_dynamic_memory(int64_t* numbers) {
    extern __shared__ unsigned char dynamic_shared[];
    auto* copy = reinterpret_cast<int64_t*>(dynamic_shared);
    copy[threadIdx.x] = numbers[threadIdx.x];
    __syncthreads();
    numbers[threadIdx.x] = copy[blockDim.x - 1 - threadIdx.x];
}

namespace {

__global__ void reverse_without_barrier(int64_t* numbers) {
    __shared__ int64_t copy[64];
    copy[threadIdx.x] = numbers[threadIdx.x];
    __syncwarp(0xffffffffu);
    numbers[threadIdx.x] = copy[blockDim.x - 1 - threadIdx.x];
}

__global__ void count_by_atomics(int64_t* numbers) {
    atomicAdd(&numbers[0], int64_t{1});
    atomicMax(&numbers[1], int64_t{threadIdx.x});
    atomicCAS(&numbers[2], int64_t{0}, int64_t{7});
}

__global__ void sum_of_lanes(int64_t* numbers) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    int up = __shfl_up_sync(0xffffffffu, lane, 1), down = __shfl_down_sync(0xffffffffu, lane, 1);
    int mirrored = __shfl_xor_sync(0xffffffffu, lane, 31);
    numbers[threadIdx.x] = up + 100 * down + 10000 * mirrored + 1000000 * __shfl_sync(0xffffffffu, lane, 5);
}

// Every block holds its number in shared memory while all others run.
__global__ void rotate_over_grid(int64_t* numbers) {
    __shared__ int64_t mine;
    if (threadIdx.x == 0) mine = blockIdx.x;
    __syncthreads();
    if (threadIdx.x == 1) numbers[blockIdx.x] = mine;
    cooperative_groups::this_grid().sync();
    const int64_t other = numbers[(blockIdx.x + 1) % gridDim.x];
    cooperative_groups::this_grid().sync();
    if (threadIdx.x == 2) numbers[blockIdx.x] = other + 10 * mine;
}

__global__ void read_before_writing(int64_t* numbers) {
    __shared__ int64_t copy[64];
    if (numbers[threadIdx.x] < 0) copy[threadIdx.x] = 0;  // never, but the compiler cannot know
    numbers[threadIdx.x] = copy[threadIdx.x];
}

__global__ void barrier_for_some(int64_t*) {
    if (threadIdx.x < 50) __syncthreads();
}

__global__ void two_barriers(int64_t*) {
    if (threadIdx.x < 50) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void shuffle_for_some(int64_t* numbers) {
    if (threadIdx.x % 32 < 31) numbers[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
}

__global__ void two_shuffles(int64_t* numbers) {
    if (threadIdx.x % 32 < 16) {
        numbers[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
    } else {
        numbers[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
    }
}

__global__ void lane_outside_of_its_mask(int64_t* numbers) { numbers[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0); }

struct Experiment {
    void (*kernel)(int64_t*);
    unsigned blocks;
    size_t dynamic_bytes;
    bool cooperative;
};

constexpr size_t kNumber = sizeof(int64_t);
const Experiment experiments[] = {
    {reverse_by_dynamic_memory, 1, 64 * kNumber, false},
    {reverse_without_barrier, 1, 0, false},
    {count_by_atomics, 3, 0, false},
    {sum_of_lanes, 1, 0, false},
    {rotate_over_grid, 5, 0, true},
    {read_before_writing, 1, 0, false},
    {barrier_for_some, 1, 0, false},
    {two_barriers, 1, 0, false},
    {shuffle_for_some, 1, 0, false},
    {two_shuffles, 1, 0, false},
    {lane_outside_of_its_mask, 1, 0, false},
    {rotate_over_grid, 5, 0, false},
    {rotate_over_grid, 7, 0, true},
    {reverse_by_dynamic_memory, 1, 63 * kNumber, false},
};

}  // namespace

// 64 threads per block; ints[0] is a place in the table above.
extern "C" int emulated_selftest(const emulation::Call* call, int) {
    return emulation::guarded([&] {
        const Experiment& chosen = experiments[call->ints[0]];
        auto* numbers = static_cast<int64_t*>(call->buffers[0]);
        emulation::launch(
            *call->options, dim3(chosen.blocks), dim3(64), chosen.dynamic_bytes, chosen.cooperative,
            [&] { chosen.kernel(numbers); });
    });
}

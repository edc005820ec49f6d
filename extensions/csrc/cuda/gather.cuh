// Picking and blending rows by index, and their transposes.
//
// An index out of range never leads out of an array: a row picked by it is NaN, so that it cannot go unseen, and a
// gradient sent to it is dropped. Checking before the launch would wait for the device.
//
// The transposes are deterministic: the positions of every cloud come sorted by where they point to (stably), each
// result row adds its own run in ascending order, and nothing is added atomically.
#pragma once
#include "common.cuh"

namespace pcl_clora {

template <class T>
struct GatherTask {
    const T* rows;         // (clouds, num_rows, channels)
    const int64_t* idx;    // (clouds, num_picks) or (clouds, num_picks, 3)
    const T* weight;       // (clouds, num_picks, 3), only for blending
    T* out;                // (clouds, num_picks, channels)
    int64_t num_clouds;
    int64_t num_rows;
    int64_t num_picks;
    int64_t channels;
};

template <class T>
__device__ __forceinline__ T picked(const T* rows, int64_t index, const GatherTask<T>& task, int64_t channel) {
    return index >= 0 && index < task.num_rows ? rows[index * task.channels + channel] : static_cast<T>(NAN);
}

// Threads are laid out (channels, rows). INTERPOLATE adds three weighted rows, in the order of the weights.
template <class T, bool INTERPOLATE>
__global__ void gather_kernel(const GatherTask<T> task) {
    const int64_t total = task.num_clouds * task.num_picks;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t pick = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; pick < total; pick += stride) {
        const T* rows = task.rows + pick / task.num_picks * task.num_rows * task.channels;
        for (int64_t channel = threadIdx.x; channel < task.channels; channel += blockDim.x) {
            T value;
            if constexpr (INTERPOLATE) {
                const int64_t* idx = task.idx + 3 * pick;
                const T* weight = task.weight + 3 * pick;
                value = multiply(weight[0], picked(rows, idx[0], task, channel));
                value = add(value, multiply(weight[1], picked(rows, idx[1], task, channel)));
                value = add(value, multiply(weight[2], picked(rows, idx[2], task, channel)));
            } else {
                value = picked(rows, task.idx[pick], task, channel);
            }
            task.out[pick * task.channels + channel] = value;
        }
    }
}

template <class T>
struct ScatterTask {
    const T* grad;           // (clouds, num_positions / corners, channels)
    const int64_t* targets;  // (clouds, num_positions), ascending within a cloud
    const int64_t* order;    // (clouds, num_positions), the position each target stood at
    const T* weight;         // (clouds, num_positions) or null
    T* out;                  // (clouds, num_rows, channels)
    int64_t num_clouds;
    int64_t num_rows;
    int64_t num_positions;
    int64_t channels;
    int64_t corners;         // positions that share a row of grad: 1, or 3 for blending
};

// The first place in an ascending list that is not below `value`.
__device__ __forceinline__ int64_t lower_bound(const int64_t* list, int64_t size, int64_t value) {
    int64_t low = 0;
    while (size > 0) {
        const int64_t half = size / 2;
        if (list[low + half] < value) {
            low += half + 1;
            size -= half + 1;
        } else {
            size = half;
        }
    }
    return low;
}

template <class T>
__global__ void scatter_kernel(const ScatterTask<T> task) {
    const int64_t total = task.num_clouds * task.num_rows;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < total; row += stride) {
        const int64_t cloud = row / task.num_rows, target = row % task.num_rows;
        const int64_t* targets = task.targets + cloud * task.num_positions;
        const int64_t* order = task.order + cloud * task.num_positions;
        const T* grad = task.grad + cloud * (task.num_positions / task.corners) * task.channels;
        const int64_t begin = lower_bound(targets, task.num_positions, target);
        for (int64_t channel = threadIdx.x; channel < task.channels; channel += blockDim.x) {
            T sum = T(0);
            for (int64_t i = begin; i < task.num_positions && targets[i] == target; ++i) {
                T share = grad[order[i] / task.corners * task.channels + channel];
                if (task.weight != nullptr) {
                    share = multiply(share, task.weight[cloud * task.num_positions + order[i]]);
                }
                sum = add(sum, share);
            }
            task.out[row * task.channels + channel] = sum;
        }
    }
}

}  // namespace pcl_clora

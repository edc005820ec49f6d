// Farthest point sampling. Both kernels choose the same indices: the largest distance to the chosen points, the lowest
// index of equals.
//
// fps_register_kernel: one block per cloud, coordinates and distances stay in registers.
// fps_stream_kernel: distances in global memory; one block per cloud, or (SPREAD) several that meet at a grid barrier.
//
// Each step writes its candidates to the half of a double buffer that the step before does not use. A half is written
// again two steps later, behind a barrier that no thread reaches before it has read that half. So one barrier per step
// is enough, and nobody reads a winner that is being overwritten.
#pragma once
#include "common.cuh"

namespace pcl_clora {

template <class T>
struct FpsTask {
    const T* points;         // (clouds, num_points, 3)
    const int64_t* lengths;  // (clouds) or null
    int64_t* chosen;         // (clouds, num_samples)
    T* nearest;              // (clouds, num_points), scratch of the stream kernel
    Candidate<T>* meeting;   // (2, clouds, blocks per cloud), scratch of the spread stream kernel
    int64_t num_clouds;
    int64_t num_samples;
    int64_t start_index;
    int32_t num_points;
    bool skip_origin;       // the rule of pointnet2_ops
    bool order_if_all;      // a cloud of num_samples points keeps its order
};

// The distance a point starts with: none yet. pointnet2_ops starts at 1e10 and never takes a point within 1e-3
// (squared) of the origin; -1 loses every comparison and survives every minimum.
template <class T>
__device__ __forceinline__ T first_nearest(T x, T y, T z, bool skip_origin) {
    if (!skip_origin) return infinity<T>();
    return static_cast<double>(squared_norm(x, y, z)) <= 1e-3 ? T(-1) : T(1e10);
}

template <class T>
__device__ __forceinline__ int32_t first_index(const FpsTask<T>& task, int32_t length) {
    return task.start_index < 0            ? 0
           : task.start_index < length ? static_cast<int32_t>(task.start_index)
                                           : length - 1;
}

template <class T, int THREADS, int POINTS>
__global__ void __launch_bounds__(THREADS) fps_register_kernel(const FpsTask<T> task) {
    constexpr int kWarps = THREADS / 32;
    __shared__ T best_value[2][kWarps];
    __shared__ int32_t best_index[2][kWarps];
    __shared__ T best_point[2][kWarps][3];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

    for (int64_t cloud = blockIdx.x; cloud < task.num_clouds; cloud += gridDim.x) {
        const T* points = task.points + cloud * task.num_points * 3;
        int64_t* chosen = task.chosen + cloud * task.num_samples;
        const int32_t length = cloud_length(task.lengths, cloud, task.num_points);
        if (task.order_if_all && task.num_samples == length) {
            for (int32_t i = thread; i < length; i += THREADS) chosen[i] = i;
            continue;
        }
        T x[POINTS], y[POINTS], z[POINTS], nearest[POINTS];
#pragma unroll
        for (int slot = 0; slot < POINTS; ++slot) {
            const int32_t index = thread + slot * THREADS;
            x[slot] = y[slot] = z[slot] = T(0);
            nearest[slot] = -infinity<T>();  // no point: loses against -1 too
            if (index < length) {
                x[slot] = points[3 * index];
                y[slot] = points[3 * index + 1];
                z[slot] = points[3 * index + 2];
                nearest[slot] = first_nearest(x[slot], y[slot], z[slot], task.skip_origin);
            }
        }
        const int32_t first = first_index(task, length);
        T last_x = points[3 * first], last_y = points[3 * first + 1], last_z = points[3 * first + 2];
        if (thread == 0) chosen[0] = first;
        __syncthreads();  // the buffers of the cloud before are no longer read

        for (int64_t step = 1; step < task.num_samples; ++step) {
            const int half = step % 2;
            int best_slot = 0;
#pragma unroll
            for (int slot = 0; slot < POINTS; ++slot) {
                const T dist2 = squared_norm(
                    subtract(x[slot], last_x), subtract(y[slot], last_y), subtract(z[slot], last_z));
                nearest[slot] = dist2 < nearest[slot] ? dist2 : nearest[slot];
            }
            Candidate<T> mine = {nearest[0], thread};
#pragma unroll
            for (int slot = 1; slot < POINTS; ++slot) {
                if (nearest[slot] > mine.value) {
                    mine = {nearest[slot], thread + slot * THREADS};
                    best_slot = slot;
                }
            }
            Candidate<T> best = farthest_of_warp(mine);
            if (best.index == mine.index) {  // the owner hands its coordinates on: nobody has to load them
                best_value[half][warp] = best.value;
                best_index[half][warp] = best.index;
#pragma unroll
                for (int slot = 0; slot < POINTS; ++slot) {
                    if (slot == best_slot) {
                        best_point[half][warp][0] = x[slot];
                        best_point[half][warp][1] = y[slot];
                        best_point[half][warp][2] = z[slot];
                    }
                }
            }
            __syncthreads();
            best = {-infinity<T>(), kNoIndex};
            if (lane < kWarps) best = {best_value[half][lane], best_index[half][lane]};
            best = farthest_of_warp(best);
            const int owner = best.index % THREADS / 32;
            last_x = best_point[half][owner][0];
            last_y = best_point[half][owner][1];
            last_z = best_point[half][owner][2];
            if (thread == 0) chosen[step] = best.index;
        }
    }
}

template <class T, int THREADS, bool SPREAD>
__global__ void __launch_bounds__(THREADS) fps_stream_kernel(const FpsTask<T> task) {
    constexpr int kWarps = THREADS / 32;
    __shared__ T best_value[2][kWarps];
    __shared__ int32_t best_index[2][kWarps];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int64_t cloud = blockIdx.y;
    const int parts = gridDim.x;
    const int64_t stride = static_cast<int64_t>(parts) * THREADS;
    const T* points = task.points + cloud * task.num_points * 3;
    T* nearest = task.nearest + cloud * task.num_points;
    int64_t* chosen = task.chosen + cloud * task.num_samples;
    const int32_t length = cloud_length(task.lengths, cloud, task.num_points);
    // Under SPREAD a cloud that keeps its order still takes every step: all blocks must meet at the grid barrier.
    const bool in_order = task.order_if_all && task.num_samples == length;
    const int32_t searched = in_order ? 0 : length;
    const bool writes = thread == 0 && blockIdx.x == 0;
    int64_t last = first_index(task, length);
    if (in_order) last = 0;
    if (writes) chosen[0] = last;

    for (int64_t step = 1; step < task.num_samples; ++step) {
        const int half = step % 2;
        const T last_x = points[3 * last], last_y = points[3 * last + 1], last_z = points[3 * last + 2];
        Candidate<T> best = {-infinity<T>(), kNoIndex};
        for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + thread; i < searched; i += stride) {
            const T x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
            const T before = step == 1 ? first_nearest(x, y, z, task.skip_origin) : nearest[i];
            const T dist2 = squared_norm(subtract(x, last_x), subtract(y, last_y), subtract(z, last_z));
            const T now = dist2 < before ? dist2 : before;
            nearest[i] = now;
            if (now > best.value) best = {now, static_cast<int32_t>(i)};
        }
        best = farthest_of_warp(best);
        if (lane == 0) {
            best_value[half][warp] = best.value;
            best_index[half][warp] = best.index;
        }
        __syncthreads();
        best = {-infinity<T>(), kNoIndex};
        if (lane < kWarps) best = {best_value[half][lane], best_index[half][lane]};
        best = farthest_of_warp(best);
        if constexpr (SPREAD) {
            Candidate<T>* meeting = task.meeting + (half * task.num_clouds + cloud) * parts;
            if (thread == 0) meeting[blockIdx.x] = best;
            cooperative_groups::this_grid().sync();
            best = {-infinity<T>(), kNoIndex};
            for (int part = lane; part < parts; part += 32) {
                const Candidate<T> other = meeting[part];
                if (farther(other, best)) best = other;
            }
            best = farthest_of_warp(best);
        }
        last = in_order ? step : best.index;
        if (writes) chosen[step] = last;
    }
}

}  // namespace pcl_clora

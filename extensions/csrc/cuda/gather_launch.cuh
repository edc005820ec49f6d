// Grids for picking, blending and their transposes.
#pragma once
#include "gather.cuh"
#include "launch.cuh"

namespace pcl_clora {

constexpr unsigned kRowThreads = 128;

// (channels, rows): enough threads along the channels, the rest takes rows.
inline dim3 threads_for(int64_t channels) {
    unsigned along = 1;
    while (along < channels && along < kRowThreads) along *= 2;
    return dim3(along, kRowThreads / along);
}

template <bool INTERPOLATE, class Host, class T>
void launch_gather(Host& host, const GatherTask<T>& task) {
    const int64_t picks = task.num_clouds * task.num_picks;
    if (picks == 0 || task.channels == 0) return;
    const dim3 threads = threads_for(task.channels);
    host.launch(gather_kernel<T, INTERPOLATE>, grid_of(host, ceil_div(picks, threads.y)), threads, task);
}

// `idx` says where each position of each cloud points to, as whatever the host can sort; the scratch is set here.
template <class Host, class T, class Idx>
void launch_scatter(Host& host, ScatterTask<T> task, const Idx& idx) {
    const int64_t rows = task.num_clouds * task.num_rows;
    if (rows == 0 || task.channels == 0) return;
    const Sorted sorted = host.sort(idx, task.num_clouds, task.num_positions);
    task.targets = sorted.targets;
    task.order = sorted.order;
    const dim3 threads = threads_for(task.channels);
    host.launch(scatter_kernel<T>, grid_of(host, ceil_div(rows, threads.y)), threads, task);
}

}  // namespace pcl_clora

// Which kernel samples a cloud, on which grid.
#pragma once
#include "fps.cuh"
#include "launch.cuh"

namespace pcl_clora {

constexpr int kStreamThreads = 512;
constexpr int64_t kStreamPoints = 4;  // points of a thread from which another block pays

template <class T>
constexpr int kRegisterPoints = sizeof(T) == 4 ? 8 : 4;  // points of a thread; 1,024 threads have 64 registers each

template <int THREADS, class Host, class T>
void fps_in_registers(Host& host, const FpsTask<T>& task) {
    host.launch(fps_register_kernel<T, THREADS, kRegisterPoints<T>>, grid_of(host, task.num_clouds), dim3(THREADS), task);
}

// Blocks per cloud: as many as have work and fit on the device together with those of the other clouds.
inline int64_t parts_of_cloud(int64_t num_points, int64_t num_clouds, int64_t resident_blocks) {
    const int64_t useful = ceil_div(num_points, kStreamThreads * kStreamPoints);
    const int64_t room = resident_blocks / num_clouds;
    const int64_t parts = useful < room ? useful : room;
    return parts < 1 ? 1 : parts;
}

template <class Host, class T>
void fps_streaming(Host& host, FpsTask<T> task) {
    const auto spread = fps_stream_kernel<T, kStreamThreads, true>;
    const int64_t resident = host.resident_blocks(spread, kStreamThreads);
    const int64_t parts = parts_of_cloud(task.num_points, task.num_clouds, resident);
    // The blocks of a grid that meets are all resident, so its clouds fit one launch.
    const int64_t most = parts > 1 ? task.num_clouds : host.limits().max_cloud_rows;
    const int64_t at_once = task.num_clouds < most ? task.num_clouds : most;
    task.nearest = host.template scratch<T>(at_once * task.num_points);
    if (parts > 1) task.meeting = host.template scratch<Candidate<T>>(2 * at_once * parts);
    while (task.num_clouds > 0) {  // launches on one stream follow one another, so they share the scratch
        FpsTask<T> part = task;
        part.num_clouds = task.num_clouds < at_once ? task.num_clouds : at_once;
        const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(part.num_clouds));
        if (parts > 1) {
            host.launch_cooperative(spread, grid, dim3(kStreamThreads), part);
        } else {
            host.launch(fps_stream_kernel<T, kStreamThreads, false>, grid, dim3(kStreamThreads), part);
        }
        task.num_clouds -= part.num_clouds;
        task.points += part.num_clouds * task.num_points * 3;
        task.chosen += part.num_clouds * task.num_samples;
        if (task.lengths != nullptr) task.lengths += part.num_clouds;
    }
}

// points, lengths and chosen are set by the caller, the scratch here.
template <class Host, class T>
void launch_farthest_point_sample(Host& host, const FpsTask<T>& task) {
    if (task.num_clouds == 0 || task.num_samples == 0) return;
    const int64_t num_points = task.num_points;
    constexpr int64_t kPerThread = kRegisterPoints<T>;
    const bool all_in_order = task.order_if_all && task.lengths == nullptr && task.num_samples == num_points;
    if (all_in_order) {
        fps_in_registers<1024>(host, task);  // only writes the order, which fits every cloud
    } else if (num_points > host.limits().register_points || num_points > 1024 * kPerThread) {
        fps_streaming(host, task);
    } else if (num_points <= 128 * kPerThread) {
        fps_in_registers<128>(host, task);
    } else if (num_points <= 256 * kPerThread) {
        fps_in_registers<256>(host, task);
    } else if (num_points <= 512 * kPerThread) {
        fps_in_registers<512>(host, task);
    } else {
        fps_in_registers<1024>(host, task);
    }
}

}  // namespace pcl_clora

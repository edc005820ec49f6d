// Which kernel searches neighbours, on which grid.
#pragma once
#include "fps.cuh"
#include "knn.cuh"
#include "launch.cuh"

namespace pcl_clora {

constexpr int kSearchThreads = 256;
constexpr int kSearchTile = 256;  // points in shared memory at a time
constexpr int kNearestThreads = 128;
constexpr int kBallThreads = 128;

// Defined in fps_launch.cuh, which a build compiles once.
template <class Host, class T>
void launch_farthest_point_sample(Host& host, const FpsTask<T>& task);

template <int SLOTS, class Host, class T>
void knn_by_warps(Host& host, const KnnTask<T>& task) {
    const int64_t blocks = task.num_clouds * ceil_div(task.num_queries, kSearchThreads / 32);
    host.launch(
        knn_warp_kernel<T, kSearchThreads, kSearchTile, SLOTS>, grid_of(host, blocks), dim3(kSearchThreads), task);
}

template <int K, class Host, class T>
void knn_by_threads(Host& host, const KnnTask<T>& task) {
    const int64_t blocks = task.num_clouds * ceil_div(task.num_queries, kNearestThreads);
    host.launch(nearest_kernel<T, kNearestThreads, K>, grid_of(host, blocks), dim3(kNearestThreads), task);
}

template <class Host, class T>
void launch_knn(Host& host, const KnnTask<T>& task) {
    const int64_t queries = task.num_clouds * task.num_queries;
    if (queries == 0 || task.k == 0) return;
    const bool by_threads = task.queries != nullptr && queries >= host.limits().thread_queries;
    if (by_threads && task.k == 1) {
        knn_by_threads<1>(host, task);
    } else if (by_threads && task.k == 3) {
        knn_by_threads<3>(host, task);
    } else if (task.k <= 32) {
        knn_by_warps<1>(host, task);
    } else if (task.k <= 64) {
        knn_by_warps<2>(host, task);
    } else {
        knn_by_warps<4>(host, task);
    }
}

// The sampling writes sample.chosen, the search reads it as search.center_idx.
template <class Host, class T>
void launch_group_points(Host& host, const FpsTask<T>& sample, const KnnTask<T>& search) {
    launch_farthest_point_sample(host, sample);
    launch_knn(host, search);
}

template <class Host, class T>
void launch_ball_query(Host& host, const BallTask<T>& task) {
    const int64_t queries = task.num_clouds * task.num_queries;
    if (queries == 0 || task.num_samples == 0) return;
    const int64_t blocks = ceil_div(queries, kBallThreads / 32);
    host.launch(ball_kernel<T, kBallThreads>, grid_of(host, blocks), dim3(kBallThreads), task);
}

}  // namespace pcl_clora

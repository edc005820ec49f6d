#include "emulated_host.h"
// After the emulation:
#include "knn_launch.cuh"

template <class T>
static pcl_clora::KnnTask<T> search_task(const emulation::Call& call) {
    pcl_clora::KnnTask<T> task{};
    task.points = static_cast<const T*>(call.buffers[0]);
    task.num_clouds = call.ints[0];
    task.num_points = static_cast<int32_t>(call.ints[1]);
    task.num_queries = call.ints[2];
    task.k = call.ints[3];
    return task;
}

EMULATED_OP(knn) {
    auto task = search_task<T>(call);
    task.queries = static_cast<const T*>(call.buffers[1]);
    task.lengths = static_cast<const int64_t*>(call.buffers[2]);
    task.dist2 = static_cast<T*>(call.buffers[3]);
    task.idx = static_cast<int64_t*>(call.buffers[4]);
    pcl_clora::launch_knn(host, task);
}

EMULATED_OP(group_points) {
    auto search = search_task<T>(call);
    search.lengths = static_cast<const int64_t*>(call.buffers[1]);
    search.center = static_cast<T*>(call.buffers[2]);
    search.neighborhood = static_cast<T*>(call.buffers[3]);
    search.idx = static_cast<int64_t*>(call.buffers[4]);
    search.center_idx = static_cast<const int64_t*>(call.buffers[5]);
    pcl_clora::FpsTask<T> sample{};
    sample.points = search.points;
    sample.lengths = search.lengths;
    sample.chosen = static_cast<int64_t*>(call.buffers[5]);
    sample.num_clouds = search.num_clouds;
    sample.num_points = search.num_points;
    sample.num_samples = search.num_queries;
    sample.start_index = call.ints[4];
    sample.skip_origin = call.ints[5] != 0;
    sample.order_if_all = true;
    pcl_clora::launch_group_points(host, sample, search);
}

EMULATED_OP(ball_query) {
    pcl_clora::BallTask<T> task{};
    task.points = static_cast<const T*>(call.buffers[0]);
    task.queries = static_cast<const T*>(call.buffers[1]);
    task.idx = static_cast<int64_t*>(call.buffers[2]);
    task.num_clouds = call.ints[0];
    task.num_points = static_cast<int32_t>(call.ints[1]);
    task.num_queries = call.ints[2];
    task.num_samples = call.ints[3];
    task.radius = static_cast<T>(call.real);
    pcl_clora::launch_ball_query(host, task);
}

EMULATED_OP(chamfer_distance) {
    pcl_clora::KnnTask<T> task{};
    task.num_clouds = call.ints[0];
    task.k = 1;
    for (int side = 0; side < 2; ++side) {
        task.queries = static_cast<const T*>(call.buffers[side]);
        task.points = static_cast<const T*>(call.buffers[1 - side]);
        task.num_queries = call.ints[1 + side];
        task.num_points = static_cast<int32_t>(call.ints[2 - side]);
        task.dist2 = static_cast<T*>(call.buffers[2 + side]);
        task.idx = static_cast<int64_t*>(call.buffers[4 + side]);
        pcl_clora::launch_knn(host, task);
    }
}

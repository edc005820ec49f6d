#include "emulated_host.h"
// After the emulation:
#include "fps_launch.cuh"

template void pcl_clora::launch_farthest_point_sample(emulation::Host&, const FpsTask<float>&);
#if !defined(EMULATED_FLOAT_ONLY)
template void pcl_clora::launch_farthest_point_sample(emulation::Host&, const FpsTask<double>&);
#endif

EMULATED_OP(farthest_point_sample) {
    pcl_clora::FpsTask<T> task{};
    task.points = static_cast<const T*>(call.buffers[0]);
    task.lengths = static_cast<const int64_t*>(call.buffers[1]);
    task.chosen = static_cast<int64_t*>(call.buffers[2]);
    task.num_clouds = call.ints[0];
    task.num_points = static_cast<int32_t>(call.ints[1]);
    task.num_samples = call.ints[2];
    task.start_index = call.ints[3];
    task.skip_origin = call.ints[4] != 0;
    pcl_clora::launch_farthest_point_sample(host, task);
}

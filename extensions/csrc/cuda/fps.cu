// farthest_point_sample for CUDA tensors.
#include "fps_launch.cuh"
#include "host.cuh"

namespace pcl_clora {

// knn.cu samples through these.
template void launch_farthest_point_sample(CudaHost&, const FpsTask<float>&);
template void launch_farthest_point_sample(CudaHost&, const FpsTask<double>&);

namespace {

Tensor farthest_point_sample(
    const Tensor& points_in, int64_t num_samples, int64_t start_index, bool skip_origin, const MaybeTensor& lengths_in) {
    check_points(points_in, "points");
    check_count(num_samples, "num_samples", points_in.size(1));
    check_start(start_index, points_in.size(1));
    CudaHost host(points_in);
    const Tensor points = contiguous(points_in);
    const MaybeTensor lengths = checked_lengths(lengths_in, points);
    Tensor chosen = new_empty(points, {points.size(0), num_samples}, ScalarType::Long);
    with_type(points, [&](auto zero) {
        using T = decltype(zero);
        FpsTask<T> task{};
        task.points = data<T>(points);
        task.lengths = data<int64_t>(lengths);
        task.chosen = out<int64_t>(chosen);
        task.num_clouds = points.size(0);
        task.num_points = static_cast<int32_t>(points.size(1));
        task.num_samples = num_samples;
        task.start_index = start_index;
        task.skip_origin = skip_origin;
        launch_farthest_point_sample(host, task);
    });
    return chosen;
}

}  // namespace
}  // namespace pcl_clora

STABLE_TORCH_LIBRARY_IMPL(pcl_clora, CUDA, m) {
    m.impl("farthest_point_sample", TORCH_BOX(&pcl_clora::farthest_point_sample));
}

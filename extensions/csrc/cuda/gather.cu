// gather_points, three_interpolate and their gradients for CUDA tensors.
#include "gather_launch.cuh"
#include "host.cuh"

namespace pcl_clora {
namespace {

std::vector<int64_t> shape_of(const Tensor& tensor) {
    std::vector<int64_t> shape;
    for (int64_t axis = 0; axis < tensor.dim(); ++axis) shape.push_back(tensor.size(axis));
    return shape;
}

// The sizes of idx behind the batch axis, as one number.
int64_t picks_per_cloud(const Tensor& idx) {
    int64_t count = 1;
    for (int64_t axis = 1; axis < idx.dim(); ++axis) count *= idx.size(axis);
    return count;
}

template <class T>
GatherTask<T> gather_task(const Tensor& rows, const Tensor& idx, int64_t num_picks, const Tensor& result) {
    GatherTask<T> task{};
    task.rows = data<T>(rows);
    task.idx = data<int64_t>(idx);
    task.out = out<T>(result);
    task.num_clouds = rows.size(0);
    task.num_rows = rows.size(1);
    task.num_picks = num_picks;
    task.channels = rows.size(2);
    return task;
}

Tensor gather_points(const Tensor& points_in, const Tensor& idx_in) {
    check_rows(points_in, "points", 3, 0);
    check_real(points_in, "points");
    check_index(idx_in, "idx");
    check_same(points_in, "points", idx_in, "idx", false);
    CudaHost host(points_in);
    const Tensor points = contiguous(points_in), idx = contiguous(idx_in);
    std::vector<int64_t> shape = shape_of(idx);
    shape.push_back(points.size(2));
    Tensor picked = new_empty(points, shape);
    with_type(points, [&](auto zero) {
        using T = decltype(zero);
        launch_gather<false>(host, gather_task<T>(points, idx, picks_per_cloud(idx), picked));
    });
    return picked;
}

Tensor add_back(const Tensor& grad_in, const Tensor& idx_in, const MaybeTensor& weight, int64_t num_points) {
    if (num_points < 0) refuse("num_points=", num_points, " must not be negative.");
    CudaHost host(grad_in);
    const Tensor grad = contiguous(grad_in), idx = contiguous(idx_in);
    Tensor total = new_empty(grad, {grad.size(0), num_points, grad.size(grad.dim() - 1)});
    with_type(grad, [&](auto zero) {
        using T = decltype(zero);
        ScatterTask<T> task{};
        task.grad = data<T>(grad);
        task.weight = data<T>(weight);
        task.out = out<T>(total);
        task.num_clouds = grad.size(0);
        task.num_rows = num_points;
        task.num_positions = picks_per_cloud(idx);
        task.channels = grad.size(grad.dim() - 1);
        task.corners = weight ? 3 : 1;
        launch_scatter(host, task, idx);
    });
    return total;
}

Tensor gather_points_backward(const Tensor& grad, const Tensor& idx, int64_t num_points) {
    check_index(idx, "idx");
    check_real(grad, "grad");
    check_same(grad, "grad", idx, "idx", false);
    bool fits = grad.dim() == idx.dim() + 1;
    for (int64_t axis = 0; fits && axis < idx.dim(); ++axis) fits = grad.size(axis) == idx.size(axis);
    if (!fits) {
        refuse(
            "grad has shape ", shape_text(grad), " and idx ", shape_text(idx),
            "; grad is idx with channels.");
    }
    return add_back(grad, idx, std::nullopt, num_points);
}

void check_three_interpolate(const Tensor& rows, const char* name, const Tensor& idx, const Tensor& weight) {
    check_rows(rows, name, 3, 0);
    check_real(rows, name);
    check_index(idx, "idx");
    check_rows(idx, "idx", 3, 3);
    check_rows(weight, "weight", 3, 3);
    check_same(rows, name, idx, "idx", false);
    check_same(rows, name, weight, "weight", true);
    if (idx.size(1) != weight.size(1)) {
        refuse(
            "idx has shape ", shape_text(idx), " and weight ", shape_text(weight),
            "; both must be (B, N, 3).");
    }
}

Tensor three_interpolate(const Tensor& features_in, const Tensor& idx_in, const Tensor& weight_in) {
    check_three_interpolate(features_in, "features", idx_in, weight_in);
    CudaHost host(features_in);
    const Tensor features = contiguous(features_in), idx = contiguous(idx_in), weight = contiguous(weight_in);
    Tensor blended = new_empty(features, {features.size(0), idx.size(1), features.size(2)});
    with_type(features, [&](auto zero) {
        using T = decltype(zero);
        auto task = gather_task<T>(features, idx, idx.size(1), blended);
        task.weight = data<T>(weight);
        launch_gather<true>(host, task);
    });
    return blended;
}

Tensor three_interpolate_backward(const Tensor& grad, const Tensor& idx, const Tensor& weight, int64_t num_points) {
    check_three_interpolate(grad, "grad", idx, weight);
    if (grad.size(1) != idx.size(1)) {
        refuse(
            "grad has shape ", shape_text(grad), " and idx ", shape_text(idx), "; both need the same N.");
    }
    return add_back(grad, idx, contiguous(weight), num_points);
}

}  // namespace
}  // namespace pcl_clora

STABLE_TORCH_LIBRARY_IMPL(pcl_clora, CUDA, m) {
    m.impl("gather_points", TORCH_BOX(&pcl_clora::gather_points));
    m.impl("gather_points_backward", TORCH_BOX(&pcl_clora::gather_points_backward));
    m.impl("three_interpolate", TORCH_BOX(&pcl_clora::three_interpolate));
    m.impl("three_interpolate_backward", TORCH_BOX(&pcl_clora::three_interpolate_backward));
}

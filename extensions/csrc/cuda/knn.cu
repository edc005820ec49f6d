// knn, group_points, chamfer_distance and ball_query for CUDA tensors.
#include "host.cuh"
#include "knn_launch.cuh"

#include <tuple>

namespace pcl_clora {
namespace {

template <class T>
KnnTask<T> search_task(const Tensor& points, const MaybeTensor& lengths, int64_t num_queries, int64_t k) {
    KnnTask<T> task{};
    task.points = data<T>(points);
    task.lengths = data<int64_t>(lengths);
    task.num_clouds = points.size(0);
    task.num_points = static_cast<int32_t>(points.size(1));
    task.num_queries = num_queries;
    task.k = k;
    return task;
}

std::tuple<Tensor, Tensor> knn(
    const Tensor& points_in, const Tensor& queries_in, int64_t k, const MaybeTensor& lengths_in) {
    check_points(points_in, "points");
    check_points(queries_in, "queries");
    check_same(points_in, "points", queries_in, "queries", true);
    check_count(k, "k", points_in.size(1));
    CudaHost host(points_in);
    const Tensor points = contiguous(points_in), queries = contiguous(queries_in);
    const MaybeTensor lengths = checked_lengths(lengths_in, points);
    Tensor dist2 = new_empty(points, {points.size(0), queries.size(1), k});
    Tensor idx = new_empty(points, {points.size(0), queries.size(1), k}, ScalarType::Long);
    with_type(points, [&](auto zero) {
        using T = decltype(zero);
        auto task = search_task<T>(points, lengths, queries.size(1), k);
        task.queries = data<T>(queries);
        task.dist2 = out<T>(dist2);
        task.idx = out<int64_t>(idx);
        launch_knn(host, task);
    });
    return {dist2, idx};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_points(
    const Tensor& points_in, int64_t num_groups, int64_t group_size, int64_t start_index, bool skip_origin,
    const MaybeTensor& lengths_in) {
    check_points(points_in, "points");
    check_count(num_groups, "num_groups", points_in.size(1));
    check_count(group_size, "group_size", points_in.size(1));
    check_start(start_index, points_in.size(1));
    CudaHost host(points_in);
    const Tensor points = contiguous(points_in);
    const MaybeTensor lengths = checked_lengths(lengths_in, points);
    const int64_t batch = points.size(0);
    Tensor center = new_empty(points, {batch, num_groups, 3});
    Tensor neighborhood = new_empty(points, {batch, num_groups, group_size, 3});
    Tensor idx = new_empty(points, {batch, num_groups, group_size}, ScalarType::Long);
    Tensor center_idx = new_empty(points, {batch, num_groups}, ScalarType::Long);
    with_type(points, [&](auto zero) {
        using T = decltype(zero);
        auto search = search_task<T>(points, lengths, num_groups, group_size);
        search.center_idx = data<int64_t>(center_idx);
        search.center = out<T>(center);
        search.neighborhood = out<T>(neighborhood);
        search.idx = out<int64_t>(idx);
        FpsTask<T> sample{};
        sample.points = search.points;
        sample.lengths = search.lengths;
        sample.chosen = out<int64_t>(center_idx);
        sample.num_clouds = batch;
        sample.num_points = search.num_points;
        sample.num_samples = num_groups;
        sample.start_index = start_index;
        sample.skip_origin = skip_origin;
        sample.order_if_all = true;
        launch_group_points(host, sample, search);
    });
    return {center, neighborhood, idx, center_idx};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_distance(const Tensor& a_in, const Tensor& b_in) {
    check_points(a_in, "a");
    check_points(b_in, "b");
    check_same(a_in, "a", b_in, "b", true);
    if (a_in.size(1) == 0 || b_in.size(1) == 0) {
        refuse("a has ", a_in.size(1), " points and b ", b_in.size(1), "; both clouds need at least one.");
    }
    CudaHost host(a_in);
    const Tensor clouds[2] = {contiguous(a_in), contiguous(b_in)};
    std::vector<Tensor> dist, idx;
    for (int side = 0; side < 2; ++side) {
        const Tensor &queries = clouds[side], &points = clouds[1 - side];
        dist.push_back(new_empty(queries, {queries.size(0), queries.size(1)}));
        idx.push_back(new_empty(queries, {queries.size(0), queries.size(1)}, ScalarType::Long));
        with_type(points, [&](auto zero) {
            using T = decltype(zero);
            auto task = search_task<T>(points, std::nullopt, queries.size(1), 1);
            task.queries = data<T>(queries);
            task.dist2 = out<T>(dist.back());
            task.idx = out<int64_t>(idx.back());
            launch_knn(host, task);
        });
    }
    return {dist[0], dist[1], idx[0], idx[1]};
}

Tensor ball_query(const Tensor& points_in, const Tensor& queries_in, double radius, int64_t num_samples) {
    check_points(points_in, "points");
    check_points(queries_in, "queries");
    check_same(points_in, "points", queries_in, "queries", true);
    if (num_samples < 1) refuse("num_samples=", num_samples, " must be at least 1.");
    CudaHost host(points_in);
    const Tensor points = contiguous(points_in), queries = contiguous(queries_in);
    Tensor idx = new_empty(points, {points.size(0), queries.size(1), num_samples}, ScalarType::Long);
    with_type(points, [&](auto zero) {
        using T = decltype(zero);
        BallTask<T> task{};
        task.points = data<T>(points);
        task.queries = data<T>(queries);
        task.idx = out<int64_t>(idx);
        task.num_clouds = points.size(0);
        task.num_points = static_cast<int32_t>(points.size(1));
        task.num_queries = queries.size(1);
        task.num_samples = num_samples;
        task.radius = static_cast<T>(radius);
        launch_ball_query(host, task);
    });
    return idx;
}

}  // namespace
}  // namespace pcl_clora

STABLE_TORCH_LIBRARY_IMPL(pcl_clora, CUDA, m) {
    m.impl("knn", TORCH_BOX(&pcl_clora::knn));
    m.impl("group_points", TORCH_BOX(&pcl_clora::group_points));
    m.impl("chamfer_distance", TORCH_BOX(&pcl_clora::chamfer_distance));
    m.impl("ball_query", TORCH_BOX(&pcl_clora::ball_query));
}

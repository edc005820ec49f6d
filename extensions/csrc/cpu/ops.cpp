// The ops of the namespace pcl_clora for CPU tensors. Shapes and values are checked here, before any kernel
// runs; results are the same for every number of threads.

#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../common/tensors.h"
#include "kernels.h"

namespace pcl_clora {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using MaybeTensor = std::optional<Tensor>;

template <class T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 4) return isa().f32;
  else return isa().f64;
}

// Calls function(T{}) with T the dtype of the tensor, which was checked.
template <class F>
void with_type(const Tensor& tensor, const F& function) {
  if (tensor.scalar_type() == ScalarType::Float) function(float{});
  else function(double{});
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* out(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Work is counted in looks at a point, of about half a nanosecond. Clouds are not shared out to threads for less
// than it costs to wake one.
constexpr int64_t kWorthAThread = 1 << 15;
constexpr int64_t kQuery = 256;  // looks at a point that a query costs besides those at the points

int64_t looks_of_queries(int64_t queries, int64_t n) { return queries * (n + kQuery); }
int64_t looks_of_samples(int64_t samples, int64_t n) { return samples * (n / 8 + kQuery / 2); }  // no selection

// One thread for some clouds where there are enough clouds, else all threads in one cloud after another.
template <class F>
void for_clouds(int64_t batch, int64_t looks, const F& function) {
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, looks));
  if (batch >= num_threads())
    return parallel(batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) function(b);
    });
  for (int64_t b = 0; b < batch; ++b) function(b);
}

// Contiguous copies of lengths, or N for every cloud.
struct Lengths {
  std::vector<int64_t> of;

  Lengths(const MaybeTensor& lengths, const Tensor& points) : of(points.size(0), points.size(1)) {
    if (!lengths) return;
    check_index(*lengths, "lengths");
    if (lengths->dim() != 1 || lengths->size(0) != points.size(0))
      refuse("lengths has shape ", shape_text(*lengths), "; expected (", points.size(0), ",), one number per cloud.");
    check_same(points, "points", *lengths, "lengths", false);
    const Tensor dense = contiguous(*lengths);
    const int64_t* values = data<int64_t>(dense);
    for (std::size_t b = 0; b < of.size(); ++b) of[b] = values[b];
    is_given_ = !of.empty();
  }

  void check(int64_t num_points) const {
    if (!is_given_) return;
    std::size_t high = 0;
    for (std::size_t b = 1; b < of.size(); ++b)
      if (of[b] > of[high]) high = b;
    const std::size_t low = shortest();
    if (of[low] >= 1 && of[high] <= num_points) return;
    const std::size_t bad = of[low] < 1 ? low : high;
    refuse("lengths[", bad, "] is ", of[bad], "; points holds 1 to ", num_points,
           " points of a cloud. Leave out clouds without points.");
  }
  void check_fits(int64_t value, const char* name) const {
    if (!is_given_ || value <= of[shortest()]) return;
    refuse(name, "=", value, " is more than the shortest cloud has (lengths[", shortest(), "] is ",
           of[shortest()], "); lower ", name, ", or leave that cloud out.");
  }
  void check_start_fits(int64_t start_index) const {
    if (!is_given_ || start_index < of[shortest()]) return;
    refuse("start_index=", start_index, " is not an index into the shortest cloud (lengths[", shortest(), "] is ",
           of[shortest()], "); lower it, or leave that cloud out.");
  }

 private:
  std::size_t shortest() const {
    std::size_t low = 0;
    for (std::size_t b = 1; b < of.size(); ++b)
      if (of[b] < of[low]) low = b;
    return low;
  }
  bool is_given_ = false;
};

template <class T>
void refuse_non_finite(const T* points, const char* name, int64_t rows, const std::vector<int64_t>& lengths) {
  const int64_t batch = static_cast<int64_t>(lengths.size());
  std::vector<int64_t> found(batch);
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, rows));
  parallel(batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      found[b] = kernels<T>().find_non_finite(points + b * rows * 3, lengths[b] * 3);
  });
  for (int64_t b = 0; b < batch; ++b) {
    if (found[b] < 0) continue;
    const T value = points[b * rows * 3 + found[b]];
    const char* text = value != value ? "nan" : value > 0 ? "inf" : "-inf";
    refuse(name, "[", b, ", ", found[b] / 3, ", ", found[b] % 3, "] is ", text,
           "; distances to it mean nothing. Remove non-finite points when reading the cloud.");
  }
}

template <class T>
void refuse_non_finite(const T* points, const char* name, const Tensor& tensor) {
  refuse_non_finite(points, name, tensor.size(1), std::vector<int64_t>(tensor.size(0), tensor.size(1)));
}

void refuse_out_of_range(const int64_t* idx, int64_t count, int64_t num_points) {
  if (count == 0) return;
  int64_t low = idx[0], high = idx[0];
  for (int64_t i = 1; i < count; ++i) {
    low = std::min(low, idx[i]);
    high = std::max(high, idx[i]);
  }
  if (low < 0 || high >= num_points)
    refuse("idx holds ", low < 0 ? low : high, ", which is not an index into ", num_points,
           " points; indices go from 0 to the number of points - 1 within each cloud.");
}

Tensor farthest_point_sample(
    const Tensor& points_in, int64_t num_samples, int64_t start_index, bool skip_origin,
    const MaybeTensor& lengths_in) {
  check_points(points_in, "points");
  check_count(num_samples, "num_samples", points_in.size(1));
  check_start(start_index, points_in.size(1));
  const Tensor points = contiguous(points_in);
  const int64_t batch = points.size(0), n = points.size(1);
  const Lengths lengths(lengths_in, points);
  lengths.check(n);
  lengths.check_fits(num_samples, "num_samples");
  lengths.check_start_fits(start_index);
  Tensor idx = new_empty(points, {batch, num_samples}, ScalarType::Long);
  with_type(points, [&](auto zero) {
    using T = decltype(zero);
    const T* cloud = data<T>(points);
    int64_t* to = out<int64_t>(idx);
    refuse_non_finite(cloud, "points", n, lengths.of);
    for_clouds(batch, looks_of_samples(num_samples, n), [&](int64_t b) {
      kernels<T>().farthest_points(
          cloud + b * n * 3, lengths.of[b], num_samples, start_index, skip_origin, to + b * num_samples);
    });
  });
  return idx;
}

std::tuple<Tensor, Tensor> knn(
    const Tensor& points_in, const Tensor& queries_in, int64_t k, const MaybeTensor& lengths_in) {
  check_points(points_in, "points");
  check_points(queries_in, "queries");
  check_same(points_in, "points", queries_in, "queries", true);
  check_count(k, "k", points_in.size(1));
  const Tensor points = contiguous(points_in), queries = contiguous(queries_in);
  const int64_t batch = points.size(0), n = points.size(1), m = queries.size(1);
  const Lengths lengths(lengths_in, points);
  lengths.check(n);
  lengths.check_fits(k, "k");
  Tensor dist2 = new_empty(points, {batch, m, k});
  Tensor idx = new_empty(points, {batch, m, k}, ScalarType::Long);
  with_type(points, [&](auto zero) {
    using T = decltype(zero);
    const T *cloud = data<T>(points), *query = data<T>(queries);
    refuse_non_finite(cloud, "points", n, lengths.of);
    refuse_non_finite(query, "queries", queries);
    T* to = out<T>(dist2);
    int64_t* to_idx = out<int64_t>(idx);
    for_clouds(batch, looks_of_queries(m, n), [&](int64_t b) {
      kernels<T>().knn(
          cloud + b * n * 3, lengths.of[b], query + b * m * 3, m, k, to + b * m * k, to_idx + b * m * k);
    });
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
  const Tensor points = contiguous(points_in);
  const int64_t batch = points.size(0), n = points.size(1), g = num_groups, k = group_size;
  const Lengths lengths(lengths_in, points);
  lengths.check(n);
  lengths.check_fits(g, "num_groups");
  lengths.check_fits(k, "group_size");
  lengths.check_start_fits(start_index);
  Tensor center = new_empty(points, {batch, g, 3});
  Tensor neighborhood = new_empty(points, {batch, g, k, 3});
  Tensor idx = new_empty(points, {batch, g, k}, ScalarType::Long);
  Tensor center_idx = new_empty(points, {batch, g}, ScalarType::Long);
  with_type(points, [&](auto zero) {
    using T = decltype(zero);
    const T* cloud = data<T>(points);
    refuse_non_finite(cloud, "points", n, lengths.of);
    T *to_center = out<T>(center), *to_neighborhood = out<T>(neighborhood);
    int64_t *to_idx = out<int64_t>(idx), *to_center_idx = out<int64_t>(center_idx);
    for_clouds(batch, looks_of_queries(g, n), [&](int64_t b) {
      kernels<T>().group(
          cloud + b * n * 3, lengths.of[b], g, k, start_index, skip_origin, to_center + b * g * 3,
          to_neighborhood + b * g * k * 3, to_idx + b * g * k, to_center_idx + b * g);
    });
  });
  return {center, neighborhood, idx, center_idx};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_distance(const Tensor& a_in, const Tensor& b_in) {
  check_points(a_in, "a");
  check_points(b_in, "b");
  check_same(a_in, "a", b_in, "b", true);
  const int64_t batch = a_in.size(0), n = a_in.size(1), m = b_in.size(1);
  if (n == 0 || m == 0) refuse("a has ", n, " points and b ", m, "; both clouds need at least one.");
  const Tensor a = contiguous(a_in), b = contiguous(b_in);
  Tensor dist_a = new_empty(a, {batch, n}), dist_b = new_empty(a, {batch, m});
  Tensor idx_a = new_empty(a, {batch, n}, ScalarType::Long), idx_b = new_empty(a, {batch, m}, ScalarType::Long);
  with_type(a, [&](auto zero) {
    using T = decltype(zero);
    const T *from_a = data<T>(a), *from_b = data<T>(b);
    refuse_non_finite(from_a, "a", a);
    refuse_non_finite(from_b, "b", b);
    T *to_a = out<T>(dist_a), *to_b = out<T>(dist_b);
    int64_t *to_idx_a = out<int64_t>(idx_a), *to_idx_b = out<int64_t>(idx_b);
    for_clouds(batch, looks_of_queries(n, m) + looks_of_queries(m, n), [&](int64_t i) {
      const T *cloud_a = from_a + i * n * 3, *cloud_b = from_b + i * m * 3;
      kernels<T>().knn(cloud_b, m, cloud_a, n, 1, to_a + i * n, to_idx_a + i * n);
      kernels<T>().knn(cloud_a, n, cloud_b, m, 1, to_b + i * m, to_idx_b + i * m);
    });
  });
  return {dist_a, dist_b, idx_a, idx_b};
}

Tensor ball_query(const Tensor& points_in, const Tensor& queries_in, double radius, int64_t num_samples) {
  check_points(points_in, "points");
  check_points(queries_in, "queries");
  check_same(points_in, "points", queries_in, "queries", true);
  if (num_samples < 1) refuse("num_samples=", num_samples, " must be at least 1.");
  const Tensor points = contiguous(points_in), queries = contiguous(queries_in);
  const int64_t batch = points.size(0), n = points.size(1), m = queries.size(1);
  if (n == 0 && batch * m > 0) refuse("points holds clouds of 0 points; a ball query needs at least one.");
  Tensor idx = new_empty(points, {batch, m, num_samples}, ScalarType::Long);
  with_type(points, [&](auto zero) {
    using T = decltype(zero);
    const T *cloud = data<T>(points), *query = data<T>(queries);
    refuse_non_finite(cloud, "points", points);
    refuse_non_finite(query, "queries", queries);
    int64_t* to = out<int64_t>(idx);
    const T r = static_cast<T>(radius);
    for_clouds(batch, looks_of_queries(m, n), [&](int64_t b) {
      kernels<T>().ball(
          cloud + b * n * 3, n, query + b * m * 3, m, r * r, num_samples, to + b * m * num_samples);
    });
  });
  return idx;
}

// The sizes of idx behind the batch axis, as one number, and the shape of what is picked with it.
int64_t picked_per_cloud(const Tensor& idx) {
  int64_t count = 1;
  for (int64_t i = 1; i < idx.dim(); ++i) count *= idx.size(i);
  return count;
}

Tensor gather_points(const Tensor& points_in, const Tensor& idx_in) {
  check_rows(points_in, "points", 3, 0);
  check_real(points_in, "points");
  check_index(idx_in, "idx");
  check_same(points_in, "points", idx_in, "idx", false);
  const Tensor points = contiguous(points_in), idx = contiguous(idx_in);
  const int64_t n = points.size(1), channels = points.size(2), each = picked_per_cloud(idx);
  const int64_t count = points.size(0) * each;
  const int64_t* from = data<int64_t>(idx);
  refuse_out_of_range(from, count, n);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < idx.dim(); ++i) shape.push_back(idx.size(i));
  shape.push_back(channels);
  Tensor picked = new_empty(points, shape);
  with_type(points, [&](auto zero) {
    using T = decltype(zero);
    const T* rows = data<T>(points);
    T* to = out<T>(picked);
    parallel(count, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, channels)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* row = rows + (i / each * n + from[i]) * channels;
        for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = row[c];
      }
    });
  });
  return picked;
}

// Adds rows of grad to the points they came from, in the order of idx. Threads share out clouds, or the points
// of one cloud: no two of them add to the same row, so the order of every sum is that of one thread.
template <class T>
void scatter(
    const T* grad, const int64_t* idx, const T* weight, int64_t batch, int64_t each, int64_t per_grad,
    int64_t channels, int64_t n, T* total) {
  const auto add = [&](int64_t b, int64_t begin, int64_t end) {
    kernels<T>().scatter_add(
        grad + b * (each / per_grad) * channels, idx + b * each, weight == nullptr ? nullptr : weight + b * each,
        each, per_grad, channels, begin, end, total + b * n * channels);
  };
  const int64_t threads = num_threads();
  if (batch >= threads || each * channels < (1 << 15))
    return for_clouds(batch, each * channels, [&](int64_t b) { add(b, 0, n); });
  for (int64_t b = 0; b < batch; ++b)
    parallel(n, (n + threads - 1) / threads, [&](int64_t begin, int64_t end) { add(b, begin, end); });
}

Tensor gather_points_backward(const Tensor& grad_in, const Tensor& idx_in, int64_t num_points) {
  check_index(idx_in, "idx");
  check_real(grad_in, "grad");
  check_same(grad_in, "grad", idx_in, "idx", false);
  if (num_points < 0) refuse("num_points=", num_points, " must not be negative.");
  bool fits = grad_in.dim() == idx_in.dim() + 1;
  for (int64_t i = 0; fits && i < idx_in.dim(); ++i) fits = grad_in.size(i) == idx_in.size(i);
  if (!fits)
    refuse("grad has shape ", shape_text(grad_in), " and idx ", shape_text(idx_in), "; grad is idx with channels.");
  const Tensor grad = contiguous(grad_in), idx = contiguous(idx_in);
  const int64_t batch = grad.size(0), channels = grad.size(grad.dim() - 1), each = picked_per_cloud(idx);
  refuse_out_of_range(data<int64_t>(idx), batch * each, num_points);
  Tensor total = new_zeros(grad, {batch, num_points, channels});
  with_type(grad, [&](auto zero) {
    using T = decltype(zero);
    scatter<T>(
        data<T>(grad), data<int64_t>(idx), nullptr, batch, each, 1, channels, num_points, out<T>(total));
  });
  return total;
}

void check_interpolation(const Tensor& rows, const char* name, const Tensor& idx, const Tensor& weight) {
  check_rows(rows, name, 3, 0);
  check_real(rows, name);
  check_index(idx, "idx");
  check_rows(idx, "idx", 3, 3);
  check_rows(weight, "weight", 3, 3);
  check_same(rows, name, idx, "idx", false);
  check_same(rows, name, weight, "weight", true);
  if (idx.size(1) != weight.size(1))
    refuse("idx has shape ", shape_text(idx), " and weight ", shape_text(weight), "; both must be (B, N, 3).");
}

Tensor three_interpolate(const Tensor& features_in, const Tensor& idx_in, const Tensor& weight_in) {
  check_interpolation(features_in, "features", idx_in, weight_in);
  const Tensor features = contiguous(features_in), idx = contiguous(idx_in), weight = contiguous(weight_in);
  const int64_t batch = features.size(0), m = features.size(1), channels = features.size(2), n = idx.size(1);
  refuse_out_of_range(data<int64_t>(idx), batch * n * 3, m);
  Tensor blended = new_empty(features, {batch, n, channels});
  with_type(features, [&](auto zero) {
    using T = decltype(zero);
    const T *from = data<T>(features), *share = data<T>(weight);
    const int64_t* which = data<int64_t>(idx);
    T* to = out<T>(blended);
    const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, channels));
    parallel(batch * n, grain, [&](int64_t begin, int64_t end) {
      while (begin < end) {  // a piece may cover several clouds
        const int64_t b = begin / n, stop = std::min(end, (b + 1) * n);
        kernels<T>().interpolate(
            from + b * m * channels, which + b * n * 3, share + b * n * 3, begin - b * n, stop - b * n, channels,
            to + b * n * channels);
        begin = stop;
      }
    });
  });
  return blended;
}

Tensor three_interpolate_backward(
    const Tensor& grad_in, const Tensor& idx_in, const Tensor& weight_in, int64_t num_points) {
  check_interpolation(grad_in, "grad", idx_in, weight_in);
  if (num_points < 0) refuse("num_points=", num_points, " must not be negative.");
  if (grad_in.size(1) != idx_in.size(1))
    refuse("grad has shape ", shape_text(grad_in), " and idx ", shape_text(idx_in), "; both need the same N.");
  const Tensor grad = contiguous(grad_in), idx = contiguous(idx_in), weight = contiguous(weight_in);
  const int64_t batch = grad.size(0), n = grad.size(1), channels = grad.size(2);
  refuse_out_of_range(data<int64_t>(idx), batch * n * 3, num_points);
  Tensor total = new_zeros(grad, {batch, num_points, channels});
  with_type(grad, [&](auto zero) {
    using T = decltype(zero);
    scatter<T>(
        data<T>(grad), data<int64_t>(idx), data<T>(weight), batch, n * 3, 3, channels, num_points, out<T>(total));
  });
  return total;
}

}  // namespace
}  // namespace pcl_clora

STABLE_TORCH_LIBRARY_IMPL(pcl_clora, CPU, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&pcl_clora::farthest_point_sample));
  m.impl("knn", TORCH_BOX(&pcl_clora::knn));
  m.impl("group_points", TORCH_BOX(&pcl_clora::group_points));
  m.impl("chamfer_distance", TORCH_BOX(&pcl_clora::chamfer_distance));
  m.impl("ball_query", TORCH_BOX(&pcl_clora::ball_query));
  m.impl("gather_points", TORCH_BOX(&pcl_clora::gather_points));
  m.impl("gather_points_backward", TORCH_BOX(&pcl_clora::gather_points_backward));
  m.impl("three_interpolate", TORCH_BOX(&pcl_clora::three_interpolate));
  m.impl("three_interpolate_backward", TORCH_BOX(&pcl_clora::three_interpolate_backward));
}

// What one instruction set offers: plain functions on raw memory, one cloud at a time.
//
// Clouds are (n, 3) row by row without gaps, finite, 1 <= n < 2^31. Counts and indices were checked by the
// caller. A function may use several threads through `run_parallel`, which is serial where it is called from
// within a parallel part.
#pragma once

#include <cstdint>

namespace pcl_clora {

using Body = void (*)(int64_t begin, int64_t end, void* context);

// Runs body over pieces of [0, count) in the threads that torch.set_num_threads allows.
void run_parallel(int64_t count, int64_t grain, Body body, void* context);

// How many threads run_parallel would use here.
int num_threads();

template <class F>
void parallel(int64_t count, int64_t grain, const F& function) {
  run_parallel(
      count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&function)));
}

template <class T>
struct Kernels {
  // The first position that is not finite, or -1.
  int64_t (*find_non_finite)(const T* values, int64_t count);

  void (*farthest_points)(
      const T* cloud, int64_t n, int64_t num_samples, int64_t start, bool skip_origin, int64_t* idx);

  // dist2 may be null.
  void (*knn)(
      const T* cloud, int64_t n, const T* queries, int64_t num_queries, int64_t k, T* dist2, int64_t* idx);

  void (*group)(
      const T* cloud, int64_t n, int64_t num_groups, int64_t group_size, int64_t start, bool skip_origin,
      T* center, T* neighborhood, int64_t* idx, int64_t* center_idx);

  void (*ball)(
      const T* cloud, int64_t n, const T* queries, int64_t num_queries, T radius2, int64_t num_samples,
      int64_t* idx);

  // Blend three rows of (?, channels) features for each target in [begin, end).
  void (*interpolate)(
      const T* features, const int64_t* idx, const T* weight, int64_t begin, int64_t end, int64_t channels,
      T* out);

  // Add weight * grad of every source to rows [row_begin, row_end) of total, sources in order; a weight of null
  // is 1. Source i reads row i / per_grad of grad.
  void (*scatter_add)(
      const T* grad, const int64_t* idx, const T* weight, int64_t num_sources, int64_t per_grad,
      int64_t channels, int64_t row_begin, int64_t row_end, T* total);
};

struct Isa {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

// The instruction set in use: the best of this processor, or the one named by PCL_CLORA_ISA.
const Isa& isa();

extern const Isa kBaseline;
#if defined(__x86_64__)
extern const Isa kAvx2;
extern const Isa kAvx512;
#endif

}  // namespace pcl_clora

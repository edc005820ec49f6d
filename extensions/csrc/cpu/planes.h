// A cloud as three coordinate planes, for loops over all of its points.
#pragma once

#include "array.h"
#include "kernels.h"
#include "simd.h"

namespace PCL_ISA {

constexpr int kColumns = 64;     // running minima that bound the k-th smallest distance, for k <= 64
constexpr int64_t kChunk = 128;  // points, a multiple of every vector and of kColumns

// The lanes behind the last point hold NaN: every comparison with a distance to them is false, and min and
// max(a, b) with such a distance as a return b.
template <class T>
struct Planes {
  Array<T> memory;
  T *x = nullptr, *y = nullptr, *z = nullptr;
  int64_t n = 0, padded = 0;

  void fill(const T* cloud, int64_t num_points) {
    n = num_points;
    padded = (n + kChunk - 1) / kChunk * kChunk;
    const int64_t step = apart(padded);
    memory.resize(3 * step);
    x = memory.get();
    y = x + step;
    z = y + step;
    for (int64_t i = 0; i < n; ++i) {
      x[i] = cloud[3 * i];
      y[i] = cloud[3 * i + 1];
      z[i] = cloud[3 * i + 2];
    }
    for (int64_t i = n; i < padded; ++i) x[i] = y[i] = z[i] = std::numeric_limits<T>::quiet_NaN();
  }
};

}  // namespace PCL_ISA

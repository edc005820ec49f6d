// Kernels without geometry: blending and adding rows of features, and looking for what is not finite.
#pragma once

#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace PCL_ISA {

template <class T>
static int64_t find_non_finite(const T* values, int64_t count) {
  using F = typename SimdOf<T>::F;
  constexpr int64_t kBlock = 64 * F::W;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    auto even = F::set(0), odd = even;  // x - x is 0, or NaN where x is not finite
    int64_t i = begin;
    for (; i + 2 * F::W <= end; i += 2 * F::W) {
      const auto a = F::loadu(values + i), b = F::loadu(values + i + F::W);
      even = F::add(even, F::sub(a, a));
      odd = F::add(odd, F::sub(b, b));
    }
    T rest = 0;
    for (; i < end; ++i) rest += values[i] - values[i];
    const auto zero = F::add(F::add(even, odd), F::set(rest));
    if (F::bits(F::eq(zero, zero)) == (uint64_t{1} << F::W) - 1) continue;
    for (i = begin; i < end; ++i)
      if (!std::isfinite(values[i])) return i;
  }
  return -1;
}

template <class T>
static void interpolate(
    const T* features, const int64_t* idx, const T* weight, int64_t begin, int64_t end, int64_t channels,
    T* out) {
  for (int64_t n = begin; n < end; ++n) {
    const T *a = features + idx[3 * n] * channels, *b = features + idx[3 * n + 1] * channels,
            *c = features + idx[3 * n + 2] * channels;
    const T u = weight[3 * n], v = weight[3 * n + 1], w = weight[3 * n + 2];
    T* __restrict row = out + n * channels;
    for (int64_t i = 0; i < channels; ++i) row[i] = (u * a[i] + v * b[i]) + w * c[i];
  }
}

template <class T>
static void scatter_add(
    const T* grad, const int64_t* idx, const T* weight, int64_t num_sources, int64_t per_grad,
    int64_t channels, int64_t row_begin, int64_t row_end, T* total) {
  for (int64_t i = 0; i < num_sources; ++i) {
    const int64_t row = idx[i];
    if (row < row_begin || row >= row_end) continue;
    const T* from = grad + i / per_grad * channels;
    T* __restrict to = total + row * channels;
    if (weight == nullptr) {
      for (int64_t c = 0; c < channels; ++c) to[c] += from[c];
    } else {
      const T w = weight[i];
      for (int64_t c = 0; c < channels; ++c) to[c] += w * from[c];
    }
  }
}

}  // namespace PCL_ISA

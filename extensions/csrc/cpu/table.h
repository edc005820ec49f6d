// The kernels of one instruction set, as the table that dispatch.cpp chooses from.
#pragma once

#include "ball.h"
#include "features.h"
#include "knn.h"

namespace PCL_ISA {

template <class T>
static constexpr Kernels<T> kernels() {
  return {&find_non_finite<T>, &farthest_points<T>, &knn<T>,        &group<T>,
          &ball<T>,            &interpolate<T>,     &scatter_add<T>};
}

}  // namespace PCL_ISA

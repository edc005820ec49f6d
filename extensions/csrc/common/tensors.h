// Checks of shape and dtype that every kernel needs so that a raw torch.ops call cannot crash. The Python
// functions in pcl_clora.ops check the same first, with longer texts.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "refuse.h"

namespace pcl_clora {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(tensor.size(i));
  }
  return text + ")";
}

inline bool is_real(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double;
}

inline void check_rows(const Tensor& tensor, const char* name, int64_t dim, int64_t channels) {
  if (tensor.dim() != dim || (channels > 0 && tensor.size(dim - 1) != channels))
    refuse(name, " has shape ", shape_text(tensor), "; expected ", dim, " axes",
           channels > 0 ? ", the last of size 3." : ".");
}

inline void check_real(const Tensor& tensor, const char* name) {
  if (!is_real(tensor)) refuse(name, " has a dtype that is neither float32 nor float64; convert with .float().");
}

inline void check_points(const Tensor& tensor, const char* name) {
  check_rows(tensor, name, 3, 3);
  check_real(tensor, name);
  if (tensor.size(1) > std::numeric_limits<int32_t>::max())
    refuse(name, " holds ", tensor.size(1), " points per cloud; at most 2^31 - 1 are supported, split the cloud.");
}

inline void check_index(const Tensor& tensor, const char* name) {
  if (tensor.scalar_type() != ScalarType::Long)
    refuse(name, " is not int64; convert indices with .long().");
}

inline void check_same(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name, bool dtype) {
  if (a.dim() == 0 || b.dim() == 0) refuse(a_name, " and ", b_name, " need a batch axis.");
  if (a.size(0) != b.size(0))
    refuse(a_name, " holds ", a.size(0), " clouds and ", b_name, " ", b.size(0), "; both need the same batch size.");
  if (dtype && a.scalar_type() != b.scalar_type())
    refuse(a_name, " and ", b_name, " have different dtypes; convert one of them.");
  if (a.is_cpu() != b.is_cpu() || a.get_device_index() != b.get_device_index())
    refuse(a_name, " and ", b_name, " are on different devices; move one with .to().");
}

inline void check_count(int64_t value, const char* name, int64_t num_points) {
  if (value < 1) refuse(name, "=", value, " must be at least 1.");
  if (value > num_points)
    refuse(name, "=", value, " is more than the cloud has (", num_points, " points); lower ", name, ".");
}

inline void check_start(int64_t start_index, int64_t num_points) {
  if (start_index < 0 || start_index >= num_points)
    refuse("start_index=", start_index, " is not an index into ", num_points, " points; pass 0 to ",
           num_points - 1, ".");
}

}  // namespace pcl_clora

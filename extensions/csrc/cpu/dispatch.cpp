// Which instruction set runs, and in how many threads.

#include <cstdlib>
#include <string>

#include <torch/csrc/stable/ops.h>

#include "../common/refuse.h"
#include "kernels.h"

namespace pcl_clora {

void run_parallel(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  if (count <= grain || torch::stable::get_num_threads() <= 1) return body(0, count, context);
  torch::stable::parallel_for(
      0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#endif

const Isa& choose() {
  const char* named = std::getenv("PCL_CLORA_ISA");
  const std::string name = named == nullptr ? "" : named;
  if (name == kBaseline.name) return kBaseline;
#if defined(__x86_64__)
  if (name.empty()) return has_avx512() ? kAvx512 : has_avx2() ? kAvx2 : kBaseline;
  if (name == kAvx2.name && has_avx2()) return kAvx2;
  if (name == kAvx512.name && has_avx512()) return kAvx512;
  refuse("PCL_CLORA_ISA=", name, " is not an instruction set of this processor; unset it, or use baseline",
         has_avx2() ? ", avx2" : "", has_avx512() ? ", avx512." : ".");
#else
  if (name.empty()) return kBaseline;
  refuse("PCL_CLORA_ISA=", name, " is not an instruction set of this processor; unset it, or use baseline.");
#endif
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

}  // namespace pcl_clora

// For Python: the name of the instruction set in use, or what is wrong with PCL_CLORA_ISA.
extern "C" __attribute__((visibility("default"))) const char* pcl_clora_ops_isa() {
  try {
    return pcl_clora::isa().name;
  } catch (const pcl_clora::Refusal& error) {
    static const std::string text = error.what();
    return text.c_str();
  }
}

// Compiled with the flags of this instruction set; see setup.py.
#define PCL_ISA pcl::isa_avx2
#include "table.h"

namespace pcl {
const Isa kAvx2 = {"avx2", isa_avx2::kernels<float>(), isa_avx2::kernels<double>()};
}

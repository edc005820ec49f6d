// Compiled with the flags of this instruction set; see setup.py.
#define PCL_ISA pcl_clora::isa_avx2
#include "table.h"

namespace pcl_clora {
const Isa kAvx2 = {"avx2", isa_avx2::kernels<float>(), isa_avx2::kernels<double>()};
}

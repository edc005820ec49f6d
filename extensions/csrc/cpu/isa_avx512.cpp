// Compiled with the flags of this instruction set; see setup.py.
#define PCL_ISA pcl_clora::isa_avx512
#include "table.h"

namespace pcl_clora {
const Isa kAvx512 = {"avx512", isa_avx512::kernels<float>(), isa_avx512::kernels<double>()};
}

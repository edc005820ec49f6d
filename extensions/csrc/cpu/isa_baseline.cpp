// Compiled with the flags of this instruction set; see setup.py.
#define PCL_ISA pcl_clora::isa_baseline
#include "table.h"

namespace pcl_clora {
const Isa kBaseline = {"baseline", isa_baseline::kernels<float>(), isa_baseline::kernels<double>()};
}

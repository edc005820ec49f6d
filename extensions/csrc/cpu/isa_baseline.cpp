// Compiled with the flags of this instruction set; see setup.py.
#define PCL_ISA pcl::isa_baseline
#include "table.h"

namespace pcl {
const Isa kBaseline = {"baseline", isa_baseline::kernels<float>(), isa_baseline::kernels<double>()};
}

// What the launchers of all ops share. A launcher chooses kernels and grids for a host: `CudaHost` (host.cuh) on a
// device, the emulation's host in the tests, so that the tests run the same choices. A host offers
//
//   limits()                                        what is worth which kernel (below)
//   launch(kernel, grid, threads, task)             one struct is the whole argument list of every kernel
//   launch_cooperative(kernel, grid, threads, task) the same with all blocks resident, so that the grid can meet
//   resident_blocks(kernel, threads)                how many blocks that can be; 0 without cooperative launches
//   scratch<T>(count)                               memory that lives as long as the host
//   sort(idx, clouds, positions)                    Sorted: each cloud's row in ascending order, stably
//
// The thresholds follow from the sizes of registers and warps; they were chosen without measuring on a device.
#pragma once
#include "common.cuh"

namespace pcl_clora {

struct Limits {
    int64_t register_points = INT64_MAX;  // larger clouds stream their distances through global memory
    int64_t thread_queries = 4096;        // from here on a thread per query fills a device, below a warp per query
    int64_t max_blocks = 0x7fffffff;      // in one launch; kernels loop over what is left
    int64_t max_cloud_rows = 65535;       // in the second axis of a grid
};

struct Sorted {
    const int64_t* targets;
    const int64_t* order;
};

inline int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

template <class Host>
dim3 grid_of(const Host& host, int64_t blocks) {
    const int64_t most = host.limits().max_blocks;
    return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

}  // namespace pcl_clora

#include "emulated_host.h"
// After the emulation:
#include "gather_launch.cuh"

#include <string>

template <class T>
static pcl_clora::GatherTask<T> gather_task(const emulation::Call& call) {
    pcl_clora::GatherTask<T> task{};
    task.rows = static_cast<const T*>(call.buffers[0]);
    task.idx = static_cast<const int64_t*>(call.buffers[1]);
    task.num_clouds = call.ints[0];
    task.num_rows = call.ints[1];
    task.num_picks = call.ints[2];
    task.channels = call.ints[3];
    return task;
}

EMULATED_OP(gather_points) {
    auto task = gather_task<T>(call);
    task.out = static_cast<T*>(call.buffers[2]);
    pcl_clora::launch_gather<false>(host, task);
}

EMULATED_OP(three_interpolate) {
    auto task = gather_task<T>(call);
    task.weight = static_cast<const T*>(call.buffers[2]);
    task.out = static_cast<T*>(call.buffers[3]);
    pcl_clora::launch_gather<true>(host, task);
}

template <class T>
static void scatter(emulation::Host& host, const emulation::Call& call, int64_t corners) {
    pcl_clora::ScatterTask<T> task{};
    task.grad = static_cast<const T*>(call.buffers[0]);
    task.weight = corners == 1 ? nullptr : static_cast<const T*>(call.buffers[2]);
    task.out = static_cast<T*>(call.buffers[corners == 1 ? 2 : 3]);
    task.num_clouds = call.ints[0];
    task.num_rows = call.ints[1];
    task.num_positions = call.ints[2] * corners;
    task.channels = call.ints[3];
    task.corners = corners;
    pcl_clora::launch_scatter(host, task, static_cast<const int64_t*>(call.buffers[1]));
}

EMULATED_OP(gather_points_backward) { scatter<T>(host, call, 1); }
EMULATED_OP(three_interpolate_backward) { scatter<T>(host, call, 3); }

static std::string last_error;

void emulation::keep_error(const char* text) { last_error = text; }
extern "C" const char* emulated_error() { return last_error.c_str(); }

// What all kernels share: arithmetic that no compiler contracts, the two orders of candidates, reductions of a warp.
//
// The kernels are plain CUDA C++. Without nvcc they run under the emulation header of the tests, which must be
// included first and stands for the CUDA runtime.
#pragma once
#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif
#include <cmath>
#include <cstdint>

namespace pcl_clora {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int32_t kNoIndex = 0x7fffffff;  // comes after every index, so it loses every tie

// One rounding per operation: the intrinsics are never fused into a multiply-add, whatever the compiler's flags say,
// so distances have the bits of the plain-torch reference and ties break alike.
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float subtract(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double subtract(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }

template <class T>
__device__ __forceinline__ T squared_norm(T x, T y, T z) {
    return add(add(multiply(x, x), multiply(y, y)), multiply(z, z));
}

template <class T>
__device__ __forceinline__ T infinity() {
    return static_cast<T>(INFINITY);
}

// The squared distance of a search. NaN counts as infinitely far: every pair of candidates then has an order, so a
// search over a cloud with NaN in it ends with indices in range.
template <class T>
__device__ __forceinline__ T search_dist2(T ax, T ay, T az, T bx, T by, T bz) {
    const T dist2 = squared_norm(subtract(ax, bx), subtract(ay, by), subtract(az, bz));
    return dist2 == dist2 ? dist2 : infinity<T>();
}

// A point of a cloud with the number it is judged by.
template <class T>
struct Candidate {
    T value;
    int32_t index;
};

// Larger first; the lowest index of equals.
template <class T>
__device__ __forceinline__ bool farther(const Candidate<T>& a, const Candidate<T>& b) {
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

// Smaller first; the lowest index of equals.
template <class T>
__device__ __forceinline__ bool closer(const Candidate<T>& a, const Candidate<T>& b) {
    return a.value < b.value || (a.value == b.value && a.index < b.index);
}

template <class T>
__device__ __forceinline__ Candidate<T> from_lane(const Candidate<T>& mine, int lane) {
    return {__shfl_sync(kAllLanes, mine.value, lane), __shfl_sync(kAllLanes, mine.index, lane)};
}

// The farthest candidate of the 32 lanes, known to all of them.
template <class T>
__device__ __forceinline__ Candidate<T> farthest_of_warp(Candidate<T> mine) {
    for (int distance = 16; distance > 0; distance /= 2) {
        const Candidate<T> other = {
            __shfl_xor_sync(kAllLanes, mine.value, distance), __shfl_xor_sync(kAllLanes, mine.index, distance)};
        if (farther(other, mine)) mine = other;
    }
    return mine;
}

// How many points of a cloud exist. A value outside of 1..num_points is cut to it, so that no read leaves the cloud.
__device__ __forceinline__ int32_t cloud_length(const int64_t* lengths, int64_t cloud, int32_t num_points) {
    if (lengths == nullptr) return num_points;
    const int64_t length = lengths[cloud];
    return length < 1 ? 1 : length > num_points ? num_points : static_cast<int32_t>(length);
}

}  // namespace pcl_clora

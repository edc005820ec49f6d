// Exact neighbour searches that keep only what they return: no distance matrix.
//
// knn_warp_kernel: a warp per query keeps a sorted list across its lanes, for any k; also makes the patches of
// group_points. nearest_kernel: a thread per query keeps 1 or 3 neighbours in registers. ball_kernel: a warp per query
// takes hits in the order of the index.
#pragma once
#include "common.cuh"

namespace pcl_clora {

template <class T>
struct KnnTask {
    const T* points;            // (clouds, num_points, 3)
    const int64_t* lengths;     // (clouds) or null
    const T* queries;           // (clouds, num_queries, 3), or null: then
    const int64_t* center_idx;  // (clouds, num_queries), the queries are these points
    T* dist2;                   // (clouds, num_queries, k) or null
    int64_t* idx;               // (clouds, num_queries, k)
    T* center;                  // (clouds, num_queries, 3) or null
    T* neighborhood;            // (clouds, num_queries, k, 3) or null
    int64_t num_clouds;
    int64_t num_queries;
    int64_t k;
    int32_t num_points;
};

// Write neighbour `place` of a query. Where a cloud has fewer points than k, the rest is index 0 at distance inf.
template <class T>
__device__ __forceinline__ void put_neighbor(
    const KnnTask<T>& task, const T* points, int64_t query, int64_t place, Candidate<T> found, const T* at) {
    const int64_t to = query * task.k + place;
    const int64_t index = found.index == kNoIndex ? 0 : found.index;
    task.idx[to] = index;
    if (task.dist2 != nullptr) task.dist2[to] = found.value;
    if (task.neighborhood != nullptr) {
        for (int axis = 0; axis < 3; ++axis) {
            task.neighborhood[3 * to + axis] = subtract(points[3 * index + axis], at[axis]);
        }
    }
}

template <class T, int THREADS, int TILE, int SLOTS>
__global__ void __launch_bounds__(THREADS) knn_warp_kernel(const KnnTask<T> task) {
    constexpr int kWarps = THREADS / 32;
    constexpr int kListed = 32 * SLOTS;  // place p of the list is slot p % SLOTS of lane p / SLOTS
    __shared__ T tile[3 * TILE];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int64_t blocks_per_cloud = (task.num_queries + kWarps - 1) / kWarps;

    for (int64_t block = blockIdx.x; block < task.num_clouds * blocks_per_cloud; block += gridDim.x) {
        const int64_t cloud = block / blocks_per_cloud;
        const int64_t row = block % blocks_per_cloud * kWarps + warp;
        const bool active = row < task.num_queries;  // an idle warp still loads tiles and keeps the barriers
        const int64_t query = cloud * task.num_queries + (active ? row : 0);
        const T* points = task.points + cloud * task.num_points * 3;
        const int32_t length = cloud_length(task.lengths, cloud, task.num_points);
        const T* source = task.queries != nullptr ? task.queries + 3 * query : points + 3 * task.center_idx[query];
        const T at[3] = {source[0], source[1], source[2]};
        if (active && task.center != nullptr && lane < 3) task.center[3 * query + lane] = source[lane];

        // The list holds kListed neighbours. A larger k takes more rounds; each looks behind the last one found.
        Candidate<T> last = {-infinity<T>(), -1};
        for (int64_t done = 0; done < task.k; done += kListed) {
            const int64_t missing = task.k - done;
            const int wanted = missing < kListed ? static_cast<int>(missing) : kListed;
            const int unused = kListed - wanted;  // places in front of the list that beat everything
            Candidate<T> list[SLOTS];
#pragma unroll
            for (int slot = 0; slot < SLOTS; ++slot) {
                list[slot] = {infinity<T>(), kNoIndex};
                if (SLOTS * lane + slot < unused) list[slot] = {-infinity<T>(), -1};
            }
            Candidate<T> worst = {infinity<T>(), kNoIndex};  // what a new neighbour has to beat

            for (int64_t begin = 0; begin < length; begin += TILE) {
                const int count = length - begin < TILE ? static_cast<int>(length - begin) : TILE;
                __syncthreads();  // nobody reads the tile before
                for (int i = thread; i < 3 * count; i += THREADS) tile[i] = points[3 * begin + i];
                __syncthreads();
                if (!active) continue;
                for (int from = 0; from < count; from += 32) {
                    const int i = from + lane;
                    Candidate<T> mine = {infinity<T>(), kNoIndex};
                    if (i < count) {
                        mine.value = search_dist2(at[0], at[1], at[2], tile[3 * i], tile[3 * i + 1], tile[3 * i + 2]);
                        mine.index = static_cast<int32_t>(begin + i);
                    }
                    unsigned votes = __ballot_sync(kAllLanes, closer(mine, worst) && closer(last, mine));
                    while (votes != 0) {
                        const int source_lane = __ffs(votes) - 1;
                        votes &= votes - 1;
                        const Candidate<T> next = {
                            __shfl_sync(kAllLanes, mine.value, source_lane),
                            static_cast<int32_t>(begin + from + source_lane)};
                        if (!closer(next, worst)) continue;  // worst has moved; all lanes agree
                        // Everything behind the place of the new one moves up by one, the last drops out.
                        const Candidate<T> end_of_lane_before = {
                            __shfl_up_sync(kAllLanes, list[SLOTS - 1].value, 1),
                            __shfl_up_sync(kAllLanes, list[SLOTS - 1].index, 1)};
#pragma unroll
                        for (int slot = SLOTS - 1; slot >= 0; --slot) {
                            const Candidate<T> before = slot > 0 ? list[slot > 0 ? slot - 1 : 0] : end_of_lane_before;
                            const bool is_first = slot == 0 && lane == 0;
                            if (closer(next, list[slot])) {
                                list[slot] = is_first || !closer(next, before) ? next : before;
                            }
                        }
                        worst = from_lane(list[SLOTS - 1], 31);
                    }
                }
            }
            if (!active) continue;
#pragma unroll
            for (int slot = 0; slot < SLOTS; ++slot) {
                const int place = SLOTS * lane + slot - unused;
                if (place >= 0) put_neighbor(task, points, query, done + place, list[slot], at);
            }
            last = from_lane(list[SLOTS - 1], 31);
        }
    }
}

// THREADS points form a tile, because every thread loads one.
template <class T, int THREADS, int K>
__global__ void __launch_bounds__(THREADS) nearest_kernel(const KnnTask<T> task) {
    __shared__ T tile[THREADS][3];
    const int thread = threadIdx.x;
    const int64_t blocks_per_cloud = (task.num_queries + THREADS - 1) / THREADS;

    for (int64_t block = blockIdx.x; block < task.num_clouds * blocks_per_cloud; block += gridDim.x) {
        const int64_t cloud = block / blocks_per_cloud;
        const int64_t row = block % blocks_per_cloud * THREADS + thread;
        const bool active = row < task.num_queries;
        const int64_t query = cloud * task.num_queries + (active ? row : 0);
        const T* points = task.points + cloud * task.num_points * 3;
        const int32_t length = cloud_length(task.lengths, cloud, task.num_points);
        const T at[3] = {task.queries[3 * query], task.queries[3 * query + 1], task.queries[3 * query + 2]};
        Candidate<T> list[K];
#pragma unroll
        for (int place = 0; place < K; ++place) list[place] = {infinity<T>(), kNoIndex};

        for (int64_t begin = 0; begin < length; begin += THREADS) {
            const int count = length - begin < THREADS ? static_cast<int>(length - begin) : THREADS;
            __syncthreads();  // nobody reads the tile before
            if (thread < count) {
                for (int axis = 0; axis < 3; ++axis) tile[thread][axis] = points[3 * (begin + thread) + axis];
            }
            __syncthreads();
            for (int i = 0; i < count; ++i) {
                Candidate<T> next = {
                    search_dist2(at[0], at[1], at[2], tile[i][0], tile[i][1], tile[i][2]),
                    static_cast<int32_t>(begin + i)};
                if (!closer(next, list[K - 1])) continue;
#pragma unroll
                for (int place = 0; place < K; ++place) {
                    if (closer(next, list[place])) {
                        const Candidate<T> pushed = list[place];
                        list[place] = next;
                        next = pushed;
                    }
                }
            }
        }
        if (!active) continue;
#pragma unroll
        for (int place = 0; place < K; ++place) put_neighbor(task, points, query, place, list[place], at);
    }
}

template <class T>
struct BallTask {
    const T* points;   // (clouds, num_points, 3)
    const T* queries;  // (clouds, num_queries, 3)
    int64_t* idx;      // (clouds, num_queries, num_samples)
    int64_t num_clouds;
    int64_t num_queries;
    int64_t num_samples;
    int32_t num_points;
    T radius;
};

template <class T, int THREADS>
__global__ void __launch_bounds__(THREADS) ball_kernel(const BallTask<T> task) {
    constexpr int kWarps = THREADS / 32;
    const int lane = threadIdx.x % 32;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    const T radius2 = multiply(task.radius, task.radius);

    for (int64_t query = first; query < task.num_clouds * task.num_queries;
         query += static_cast<int64_t>(gridDim.x) * kWarps) {
        const T* points = task.points + query / task.num_queries * task.num_points * 3;
        const T* at = task.queries + 3 * query;
        const T x = at[0], y = at[1], z = at[2];
        int64_t* idx = task.idx + query * task.num_samples;
        int64_t found = 0, first_hit = 0;
        for (int64_t from = 0; from < task.num_points && found < task.num_samples; from += 32) {
            const int64_t i = from + lane;
            const bool hit =
                i < task.num_points &&
                squared_norm(
                    subtract(x, points[3 * i]), subtract(y, points[3 * i + 1]), subtract(z, points[3 * i + 2])) <
                    radius2;
            const unsigned hits = __ballot_sync(kAllLanes, hit);
            const int64_t place = found + __popc(hits & ((1u << lane) - 1));
            if (hit && place < task.num_samples) idx[place] = i;
            if (found == 0 && hits != 0) first_hit = from + __ffs(hits) - 1;
            found += __popc(hits);
        }
        for (int64_t place = found + lane; place < task.num_samples; place += 32) idx[place] = first_hit;
    }
}

}  // namespace pcl_clora

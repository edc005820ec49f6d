// Farthest point sampling of one cloud.
//
// nearest[i] is the squared distance of point i to its nearest chosen point. The rule of pointnet2_ops marks
// points near the origin with -1, which loses every comparison and survives every minimum.
#pragma once

#include "planes.h"
#include "tree.h"

namespace PCL_ISA {

constexpr double kOriginDist2 = 1e-3;
constexpr double kPointnet2Start = 1e10;

template <class T>
static inline T first_distance(bool skip_origin, T x, T y, T z) {
  if (!skip_origin) return std::numeric_limits<T>::infinity();
  const T norm2 = (x * x + y * y) + z * z;
  return static_cast<double>(norm2) <= kOriginDist2 ? T(-1) : T(kPointnet2Start);
}

// Every step looks at every point.
template <class T>
class DenseSampler {
  using F = typename SimdOf<T>::F;
  using V = typename F::V;
  static constexpr int kVectors = kChunk / F::W;

 public:
  DenseSampler(const Planes<T>& planes, bool skip_origin)
      : planes_(planes), nearest_(planes.padded), largest_(planes.padded / kVectors) {
    for (int64_t i = 0; i < planes.n; ++i)
      nearest_[i] = first_distance(skip_origin, planes.x[i], planes.y[i], planes.z[i]);
    for (int64_t i = planes.n; i < planes.padded; ++i) nearest_[i] = -std::numeric_limits<T>::infinity();
  }

  // Takes point `chosen` and returns the next one. With `row`, also leaves all distances to `chosen` there and
  // their minima by column (position modulo kColumns) in `columns`.
  template <bool WithRow>
  int64_t step(int64_t chosen, T* row, V* columns) {
    constexpr int kAccumulators = kColumns / F::W;
    const T *x = planes_.x, *y = planes_.y, *z = planes_.z;
    const V qx = F::set(x[chosen]), qy = F::set(y[chosen]), qz = F::set(z[chosen]);
    const int64_t chunks = planes_.padded / kChunk;
    V best = F::set(-std::numeric_limits<T>::infinity());
    if constexpr (WithRow)
      for (int i = 0; i < kAccumulators; ++i) columns[i] = F::set(std::numeric_limits<T>::infinity());
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      V even = F::set(-std::numeric_limits<T>::infinity()), odd = even;
      const int64_t begin = chunk * kChunk;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const int64_t i = begin + v * F::W;
        const V d = dist2<F>(x + i, y + i, z + i, qx, qy, qz);
        if constexpr (WithRow) {
          F::store(row + i, d);
          columns[v % kAccumulators] = F::min(d, columns[v % kAccumulators]);
        }
        const V m = F::min(d, F::load(nearest_.get() + i));
        F::store(nearest_.get() + i, m);
        if (v & 1) odd = F::max(odd, m);
        else even = F::max(even, m);
      }
      even = F::max(even, odd);
      F::store(largest_.get() + chunk * F::W, even);
      best = F::max(best, even);
    }
    return find(F::set(F::hmax(best)));
  }

 private:
  int64_t find(V value) const {
    int64_t chunk = 0;
    while (!F::bits(F::eq(F::load(largest_.get() + chunk * F::W), value))) ++chunk;
    for (int64_t i = chunk * kChunk;; i += F::W) {
      const uint32_t found = F::bits(F::eq(F::load(nearest_.get() + i), value));
      if (found) return i + __builtin_ctz(found);
    }
  }

  const Planes<T>& planes_;
  Array<T> nearest_, largest_;
};

// A step looks only into leaves with a point that the chosen one could come closer to.
template <class T>
class TreeSampler {
  using F = typename SimdOf<T>::F;
  using V = typename F::V;

 public:
  TreeSampler(const Tree<T>& tree, const T* cloud, bool skip_origin)
      : tree_(tree),
        cloud_(cloud),
        nearest_(tree.slots + 16),
        leaf_largest_(tree.leaf_boxes.count),
        group_largest_(tree.group_boxes.count),
        leaf_lowest_(tree.leaf_boxes.count),
        group_lowest_(tree.group_boxes.count) {
    const T none = -std::numeric_limits<T>::infinity();
    std::fill(leaf_largest_.get(), leaf_largest_.get() + tree.leaf_boxes.count, none);
    std::fill(group_largest_.get(), group_largest_.get() + tree.group_boxes.count, none);
    std::fill(leaf_lowest_.get(), leaf_lowest_.get() + tree.leaf_boxes.count, kUnknown);
    std::fill(group_lowest_.get(), group_lowest_.get() + tree.group_boxes.count, kUnknown);
    parallel(tree.num_groups, 256, [&](int64_t from, int64_t to) {
      for (int64_t leaf = from * kGroupLeaves; leaf < to * kGroupLeaves; ++leaf) start_leaf(leaf, skip_origin);
    });
    touched_ = tree.slots;
  }

  int64_t step(int64_t chosen) {
    const T* q = cloud_ + 3 * chosen;
    const int64_t groups = tree_.group_boxes.count;
    if (touched_ >= kParallelSlots && num_threads() > 1) {
      const int64_t pieces = groups / kGroupLeaves;
      std::vector<int64_t> touched(pieces);
      parallel(pieces, std::max<int64_t>(1, pieces / 64), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          touched[i] = update(q, i * kGroupLeaves, (i + 1) * kGroupLeaves);
      });
      touched_ = 0;
      for (const int64_t part : touched) touched_ += part;
    } else {
      touched_ = update(q, 0, groups);
    }
    V best = F::set(-std::numeric_limits<T>::infinity());
    for (int64_t group = 0; group < groups; group += F::W)
      best = F::max(best, F::load(group_largest_.get() + group));
    largest_ = F::hmax(best);
    return find(F::set(largest_));
  }

  // Whether every step from here on would return what the last one returned.
  bool is_exhausted() const { return largest_ <= 0; }

 private:
  static constexpr int32_t kUnknown = -1;
  static constexpr int64_t kParallelSlots = 1 << 17;

  void start_leaf(int64_t leaf, bool skip_origin) {
    T largest = -std::numeric_limits<T>::infinity();
    for (int64_t i = tree_.begin[leaf] * int64_t{F::W}; i < tree_.end[leaf] * int64_t{F::W}; ++i) {
      const bool is_point = tree_.id[i] != Tree<T>::kNoPoint;
      nearest_[i] = is_point ? first_distance(skip_origin, tree_.x[i], tree_.y[i], tree_.z[i])
                             : -std::numeric_limits<T>::infinity();
      largest = std::max(largest, nearest_[i]);
    }
    leaf_largest_[leaf] = largest;
    T& of_group = group_largest_[leaf / kGroupLeaves];
    of_group = std::max(of_group, largest);
  }

  // Returns how many slots it looked at.
  int64_t update(const T* q, int64_t begin, int64_t end) {
    const V qx = F::set(q[0]), qy = F::set(q[1]), qz = F::set(q[2]);
    int64_t touched = 0;
    for (int64_t group = begin; group < end; group += F::W) {
      const V near = box_dist2<F>(tree_.group_boxes, group, qx, qy, qz);
      uint32_t within = F::bits(F::lt(near, F::load(group_largest_.get() + group)));
      for (; within; within &= within - 1) touched += update_group(group + __builtin_ctz(within), qx, qy, qz);
    }
    return touched;
  }

  int64_t update_group(int64_t group, V qx, V qy, V qz) {
    int64_t touched = 0;
    V largest = F::set(-std::numeric_limits<T>::infinity());
    for (int64_t leaf = group * kGroupLeaves; leaf < (group + 1) * kGroupLeaves; leaf += F::W) {
      const V near = box_dist2<F>(tree_.leaf_boxes, leaf, qx, qy, qz);
      uint32_t within = F::bits(F::lt(near, F::load(leaf_largest_.get() + leaf)));
      for (; within; within &= within - 1) touched += update_leaf(leaf + __builtin_ctz(within), qx, qy, qz);
      largest = F::max(largest, F::load(leaf_largest_.get() + leaf));
    }
    group_largest_[group] = F::hmax(largest);
    group_lowest_[group] = kUnknown;
    return touched;
  }

  int64_t update_leaf(int64_t leaf, V qx, V qy, V qz) {
    const int64_t begin = tree_.begin[leaf] * int64_t{F::W}, end = tree_.end[leaf] * int64_t{F::W};
    V largest = F::set(-std::numeric_limits<T>::infinity());
    for (int64_t i = begin; i < end; i += F::W) {
      const V d = dist2<F>(tree_.x + i, tree_.y + i, tree_.z + i, qx, qy, qz);
      const V m = F::min(d, F::load(nearest_.get() + i));
      F::store(nearest_.get() + i, m);
      largest = F::max(largest, m);
    }
    leaf_largest_[leaf] = F::hmax(largest);
    leaf_lowest_[leaf] = kUnknown;
    return end - begin;
  }

  // The lowest index with the largest distance. What was found in a leaf or group stays known until the next
  // change there, so that many equal distances do not cost a search of all points at every step.
  int64_t find(V value) {
    int32_t lowest = std::numeric_limits<int32_t>::max();
    for (int64_t group = 0; group < tree_.group_boxes.count; group += F::W) {
      uint32_t equal = F::bits(F::eq(F::load(group_largest_.get() + group), value));
      for (; equal; equal &= equal - 1) {
        const int64_t at = group + __builtin_ctz(equal);
        if (group_lowest_[at] == kUnknown) group_lowest_[at] = find_in_group(at, value);
        lowest = std::min(lowest, group_lowest_[at]);
      }
    }
    return lowest;
  }

  int32_t find_in_group(int64_t group, V value) {
    int32_t lowest = std::numeric_limits<int32_t>::max();
    for (int64_t leaf = group * kGroupLeaves; leaf < (group + 1) * kGroupLeaves; leaf += F::W) {
      uint32_t equal = F::bits(F::eq(F::load(leaf_largest_.get() + leaf), value));
      for (; equal; equal &= equal - 1) {
        const int64_t at = leaf + __builtin_ctz(equal);
        if (leaf_lowest_[at] == kUnknown) leaf_lowest_[at] = find_in_leaf(at, value);
        lowest = std::min(lowest, leaf_lowest_[at]);
      }
    }
    return lowest;
  }

  int32_t find_in_leaf(int64_t leaf, V value) const {
    for (int64_t i = tree_.begin[leaf] * int64_t{F::W};; i += F::W) {
      const uint32_t equal = F::bits(F::eq(F::load(nearest_.get() + i), value));
      if (equal) return tree_.id[i + __builtin_ctz(equal)];  // indices ascend within a leaf
    }
  }

  const Tree<T>& tree_;
  const T* cloud_;
  Array<T> nearest_, leaf_largest_, group_largest_;
  Array<int32_t> leaf_lowest_, group_lowest_;
  int64_t touched_ = 0;
  T largest_ = std::numeric_limits<T>::infinity();
};

// Whether pruning saves more than it costs.
static inline bool sample_by_tree(int64_t n, int64_t num_samples) {
  return n >= 3072 && num_samples >= 8;
}

template <class T>
static void tree_farthest_points(
    const Tree<T>& tree, const T* cloud, int64_t num_samples, int64_t start, bool skip_origin, int64_t* idx) {
  TreeSampler<T> sampler(tree, cloud, skip_origin);
  idx[0] = start;
  for (int64_t i = 1; i < num_samples; ++i)
    idx[i] = i > 1 && sampler.is_exhausted() ? idx[i - 1] : sampler.step(idx[i - 1]);
}

template <class T>
static void farthest_points(
    const T* cloud, int64_t n, int64_t num_samples, int64_t start, bool skip_origin, int64_t* idx) {
  if (sample_by_tree(n, num_samples)) {
    Tree<T> tree;
    tree.build(cloud, n);
    return tree_farthest_points(tree, cloud, num_samples, start, skip_origin, idx);
  }
  Planes<T> planes;
  planes.fill(cloud, n);
  DenseSampler<T> sampler(planes, skip_origin);
  idx[0] = start;
  for (int64_t i = 1; i < num_samples; ++i)
    idx[i] = sampler.template step<false>(idx[i - 1], nullptr, nullptr);
}

}  // namespace PCL_ISA

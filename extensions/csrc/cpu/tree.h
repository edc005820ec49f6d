// A cloud cut into leaves of at most kLeafPoints nearby points, and groups of at most kGroupLeaves leaves, each
// with its bounding box.
//
// The cut is that of a kd-tree: along the widest axis, near the median. Only speed depends on where the cuts
// are: the kernels prune with bounds that hold in floating point too. For a point p inside a
// box and a query q outside, fl(lo - q) <= fl(p - q) because rounding is monotonic, and so are the squares and
// sums that follow in the same order. So box_dist2 <= dist2, exactly, without any tolerance.
#pragma once

#include <algorithm>
#include <vector>

#include "array.h"
#include "kernels.h"
#include "simd.h"

namespace PCL_ISA {

constexpr int64_t kLeafPoints = 64;
constexpr int64_t kGroupLeaves = 16;
constexpr int64_t kGroupPoints = 640;  // a part of the cloud with so many points becomes a group of leaves
constexpr int kMaxDepth = 64;  // behind this only adversarial clouds are left, which are cut as they lie

// Boxes of many nodes, axis by axis, so that one vector operation looks at F::W of them. Boxes that do not
// exist are at infinity.
template <class T>
struct Boxes {
  Array<T> memory;
  T* low[3];
  T* high[3];
  int64_t count = 0;

  void resize(int64_t num) {
    count = (num + kGroupLeaves - 1) / kGroupLeaves * kGroupLeaves;
    memory.resize(6 * count);
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = memory.get() + 2 * axis * count;
      high[axis] = low[axis] + count;
      std::fill(low[axis], high[axis], std::numeric_limits<T>::infinity());
      std::fill(high[axis], high[axis] + count, -std::numeric_limits<T>::infinity());
    }
  }
};

template <class F>
static inline typename F::V box_dist2(
    const Boxes<typename F::T>& boxes, int64_t at, typename F::V qx, typename F::V qy, typename F::V qz) {
  const auto zero = F::set(0);
  const auto axis = [&](int a, typename F::V q) {
    const auto below = F::sub(F::load(boxes.low[a] + at), q), above = F::sub(q, F::load(boxes.high[a] + at));
    return F::max(F::max(below, above), zero);
  };
  const auto dx = axis(0, qx), dy = axis(1, qy), dz = axis(2, qz);
  return F::add(F::add(F::mul(dx, dx), F::mul(dy, dy)), F::mul(dz, dz));
}

template <class T>
class Tree {
  using F = typename SimdOf<T>::F;
  using V = typename F::V;

 public:
  // Points in the order of the leaves; within a leaf indices ascend. Every leaf begins at a multiple of F::W;
  // the lanes behind its last point have NaN as coordinates and kNoPoint as index.
  T *x = nullptr, *y = nullptr, *z = nullptr;
  int32_t* id = nullptr;
  int64_t slots = 0;
  // Leaf l of group g has the number g * kGroupLeaves + l; where a group has fewer leaves the others are empty.
  std::vector<int32_t> begin, end;  // slots of a leaf, in vectors of F::W
  std::vector<int32_t> leaf_lowest, group_lowest;  // indices
  int64_t num_groups = 0;
  Boxes<T> leaf_boxes, group_boxes;

  static constexpr int32_t kNoPoint = std::numeric_limits<int32_t>::max();

  void build(const T* cloud, int64_t n) {
    const int64_t step = apart(n);  // at least n and a vector
    Array<T> memory(6 * step);
    Array<int32_t> ids(2 * step);
    T* const at = memory.get();
    const Points points{{at, at + step, at + 2 * step}, ids.get()};
    const Points spare{{at + 3 * step, at + 4 * step, at + 5 * step}, ids.get() + step};
    parallel(n, 1 << 16, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        points.at[0][i] = cloud[3 * i];
        points.at[1][i] = cloud[3 * i + 1];
        points.at[2][i] = cloud[3 * i + 2];
        points.id[i] = static_cast<int32_t>(i);
      }
    });
    std::vector<Leaf> leaves;
    leaves.reserve(2 * n / kLeafPoints + 4);
    const Cutter cutter{points, spare};
    if (n < kParallelPoints || num_threads() == 1) {
      cutter.cut({0, n, 0, false, false}, 0, leaves, nullptr);
    } else {
      std::vector<Span> spans;
      cutter.cut({0, n, 0, false, false}, n / 32, leaves, &spans);
      std::vector<std::vector<Leaf>> parts(spans.size());
      parallel(static_cast<int64_t>(spans.size()), 1, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) cutter.cut(spans[i], 0, parts[i], nullptr);
      });
      for (const auto& part : parts) leaves.insert(leaves.end(), part.begin(), part.end());
    }
    lay_out(points, leaves);
  }

 private:
  static constexpr int64_t kParallelPoints = 1 << 16;
  static constexpr int64_t kExactPoints = 1024;  // from here on a sample tells where to cut

  struct Points {
    T* at[3];
    int32_t* id;
  };
  struct Leaf {
    int64_t begin, end;
    bool opens_group;
  };
  struct Span {
    int64_t begin, end;
    int depth;
    bool in_group, opens_group;
  };

  // Cuts spans of the points in place; the same places of the spare memory may be used.
  struct Cutter {
    Points points, spare;

    // Cuts a span down to leaves, in order; with `spans`, only down to `share` points, which are then appended
    // to `spans` instead.
    void cut(Span span, int64_t share, std::vector<Leaf>& leaves, std::vector<Span>* spans) const {
      while (true) {
        const int64_t count = span.end - span.begin;
        if (spans != nullptr && count <= share) {
          spans->push_back(span);
          return;
        }
        if (!span.in_group && count <= kGroupPoints) span.in_group = span.opens_group = true;
        int axis = 0;
        T pivot = 0;
        if (count <= kLeafPoints || span.depth >= kMaxDepth || !find_cut(span, axis, pivot)) {
          bool opens = span.opens_group || !span.in_group;
          for (int64_t i = span.begin; i < span.end; i += kLeafPoints, opens = false)
            leaves.push_back({i, std::min(i + kLeafPoints, span.end), opens});
          return;
        }
        ++span.depth;
        Span left = span;
        left.end = span.begin = partition(span, axis, pivot);
        span.opens_group = false;
        cut(left, share, leaves, spans);
      }
    }

    // Points below the pivot to the front, the others behind them, both in the order they had. Where a packed
    // vector is stored, the lanes behind it hold nothing that is still needed.
    int64_t partition(const Span& span, int axis, T pivot) const {
      int64_t low = span.begin, high = span.begin, i = span.begin;
      if constexpr (F::kPacks) {
        const V limit = F::set(pivot);
        for (; i + F::W <= span.end; i += F::W) {
          const auto below = F::lt(F::loadu(points.at[axis] + i), limit);
          const auto above = F::no(below);
          for (int a = 0; a < 3; ++a) {
            const V v = F::loadu(points.at[a] + i);
            F::compress(points.at[a] + low, below, v);
            F::compress(spare.at[a] + high, above, v);
          }
          F::compress_ids(spare.id + high, above, points.id + i);
          F::compress_ids(points.id + low, below, points.id + i);
          const int num_below = __builtin_popcount(F::bits(below));
          low += num_below;
          high += F::W - num_below;
        }
      }
      for (; i < span.end; ++i) {
        const T at[3] = {points.at[0][i], points.at[1][i], points.at[2][i]};
        const int32_t id = points.id[i];
        const bool below = points.at[axis][i] < pivot;
        for (int a = 0; a < 3; ++a) points.at[a][low] = spare.at[a][high] = at[a];
        points.id[low] = spare.id[high] = id;
        low += below;
        high += !below;
      }
      const std::size_t above = static_cast<std::size_t>(high - span.begin);
      for (int a = 0; a < 3; ++a)
        std::memcpy(points.at[a] + low, spare.at[a] + span.begin, above * sizeof(T));
      std::memcpy(points.id + low, spare.id + span.begin, above * sizeof(int32_t));
      return low;
    }

    // An axis and a value that leave points on both sides; false where all points are equal.
    bool find_cut(const Span& span, int& axis, T& pivot) const {
      if (span.end - span.begin > kExactPoints && find_cut_of_sample(span, axis, pivot)) return true;
      T low[3], high[3];
      for (int a = 0; a < 3; ++a) find_range(points.at[a], span, low[a], high[a]);
      axis = high[1] - low[1] > high[0] - low[0] ? 1 : 0;
      if (high[2] - low[2] > high[axis] - low[axis]) axis = 2;
      if (!(high[axis] > low[axis])) return false;
      T sum = 0;
      for (int64_t i = span.begin; i < span.end; ++i) sum += points.at[axis][i] - low[axis];
      pivot = low[axis] + sum / static_cast<T>(span.end - span.begin);
      if (!(pivot > low[axis] && pivot <= high[axis])) pivot = high[axis];  // also where the sum is infinite
      return true;
    }

    static void find_range(const T* values, const Span& span, T& low, T& high) {
      int64_t i = span.begin;
      low = high = values[i];
      if (span.end - i >= F::W) {
        V least = F::loadu(values + i), most = least;
        for (; i + F::W <= span.end; i += F::W) {
          const V v = F::loadu(values + i);
          least = F::min(v, least);
          most = F::max(v, most);
        }
        low = F::hmin(least);
        high = F::hmax(most);
      }
      for (; i < span.end; ++i) {
        low = std::min(low, values[i]);
        high = std::max(high, values[i]);
      }
    }

    // The median of a sample, which no outlier can pull away; false where the sample is copies of one point.
    bool find_cut_of_sample(const Span& span, int& axis, T& pivot) const {
      constexpr int kSample = 64;
      const int64_t step = (span.end - span.begin) / kSample, first = span.begin + step / 2;
      T sample[3][kSample], width[3];
      for (int a = 0; a < 3; ++a) {
        for (int i = 0; i < kSample; ++i) sample[a][i] = points.at[a][first + i * step];
        const auto range = std::minmax_element(sample[a], sample[a] + kSample);
        width[a] = *range.second - *range.first;
      }
      axis = width[1] > width[0] ? 1 : 0;
      if (width[2] > width[axis]) axis = 2;
      if (!(width[axis] > 0)) return false;
      T* values = sample[axis];
      std::nth_element(values, values + kSample / 2, values + kSample);
      pivot = values[kSample / 2];
      if (*std::min_element(values, values + kSample / 2) < pivot) return true;
      // Copies reach down to the smallest value; nothing may be below it, so cut above it.
      T above = std::numeric_limits<T>::infinity();
      for (int i = kSample / 2; i < kSample; ++i)
        if (values[i] > pivot) above = std::min(above, values[i]);
      pivot = above;
      return true;
    }
  };

  void lay_out(const Points& points, const std::vector<Leaf>& leaves) {
    const int64_t num_leaves = static_cast<int64_t>(leaves.size());
    std::vector<int64_t> first;  // leaf of each group
    for (int64_t leaf = 0; leaf < num_leaves; ++leaf)
      if (leaf == 0 || leaves[leaf].opens_group || leaf - first.back() == kGroupLeaves) first.push_back(leaf);
    num_groups = static_cast<int64_t>(first.size());
    first.push_back(num_leaves);
    group_boxes.resize(num_groups);
    // Groups that do not exist have leaves too, so that a search within an infinite bound may look for them.
    leaf_boxes.resize(group_boxes.count * kGroupLeaves);
    begin.assign(leaf_boxes.count, 0);
    end.assign(leaf_boxes.count, 0);
    leaf_lowest.assign(leaf_boxes.count, kNoPoint);
    group_lowest.assign(group_boxes.count, kNoPoint);
    slots = 0;
    for (int64_t group = 0; group < num_groups; ++group)
      for (int64_t leaf = first[group]; leaf < first[group + 1]; ++leaf) {
        const int64_t number = group * kGroupLeaves + leaf - first[group];
        begin[number] = static_cast<int32_t>(slots / F::W);
        slots += (leaves[leaf].end - leaves[leaf].begin + F::W - 1) / F::W * F::W;
        end[number] = static_cast<int32_t>(slots / F::W);
      }
    const int64_t room = apart(slots);  // a whole vector can be read anywhere
    coordinates_.resize(3 * room);
    ids_.resize(room);
    x = coordinates_.get();
    y = x + room;
    z = y + room;
    id = ids_.get();
    parallel(num_groups, 64, [&](int64_t from, int64_t to) {
      for (int64_t group = from; group < to; ++group)
        for (int64_t leaf = first[group]; leaf < first[group + 1]; ++leaf)
          lay_out_leaf(points, leaves[leaf], group, group * kGroupLeaves + leaf - first[group]);
    });
  }

  void lay_out_leaf(const Points& points, const Leaf& leaf, int64_t group, int64_t number) {
    T* const plane[3] = {x, y, z};
    const int64_t slot = begin[number] * int64_t{F::W}, stop = end[number] * int64_t{F::W};
    const int64_t count = leaf.end - leaf.begin;
    std::memcpy(id + slot, points.id + leaf.begin, static_cast<std::size_t>(count) * sizeof(int32_t));
    for (int64_t i = slot + count; i < stop; ++i) id[i] = kNoPoint;
    leaf_lowest[number] = id[slot];
    group_lowest[group] = std::min(group_lowest[group], id[slot]);
    for (int axis = 0; axis < 3; ++axis) {
      V low = F::set(std::numeric_limits<T>::infinity()), high = F::set(-std::numeric_limits<T>::infinity());
      T* to = plane[axis];
      std::memcpy(to + slot, points.at[axis] + leaf.begin, static_cast<std::size_t>(count) * sizeof(T));
      for (int64_t i = slot + count; i < stop; ++i) to[i] = std::numeric_limits<T>::quiet_NaN();
      for (int64_t i = slot; i < stop; i += F::W) {
        low = F::min(F::load(to + i), low);
        high = F::max(F::load(to + i), high);
      }
      leaf_boxes.low[axis][number] = F::hmin(low);
      leaf_boxes.high[axis][number] = F::hmax(high);
      group_boxes.low[axis][group] = std::min(group_boxes.low[axis][group], leaf_boxes.low[axis][number]);
      group_boxes.high[axis][group] = std::max(group_boxes.high[axis][group], leaf_boxes.high[axis][number]);
    }
  }

  Array<T> coordinates_;
  Array<int32_t> ids_;
};

}  // namespace PCL_ISA

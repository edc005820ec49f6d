// A cloud cut into leaves of at most kLeafPoints nearby points, and groups of kGroupLeaves leaves, each with
// its bounding box.
//
// The cut is that of a kd-tree: along the widest axis of a sample, at the sample's median. Only speed depends
// on where the cuts are: the kernels prune with bounds that hold in floating point too. For a point p inside a
// box and a query q outside, fl(lo - q) <= fl(p - q) because rounding is monotonic, and so are the squares and
// sums that follow in the same order. So box_dist2 <= dist2, exactly, without any tolerance.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "simd.h"

namespace PCL_ISA {

constexpr int64_t kLeafPoints = 64;
constexpr int64_t kGroupLeaves = 16;
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

 public:
  // Points in the order of the leaves. Every leaf begins at a multiple of F::W; the lanes behind its last point
  // have NaN as coordinates.
  T *x = nullptr, *y = nullptr, *z = nullptr;
  int32_t* id = nullptr;
  int64_t slots = 0;
  std::vector<int64_t> first;  // leaf -> its first slot, and one more for the end
  int64_t num_leaves = 0, num_groups = 0;
  Boxes<T> leaf_boxes, group_boxes;

  void build(const T* cloud, int64_t n) {
    std::vector<Leaf> leaves;
    leaves.reserve(3 * n / kLeafPoints + 4);
    Array<Record> a(n), b(n);
    parallel(n, 1 << 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        a[i] = {cloud[3 * i], cloud[3 * i + 1], cloud[3 * i + 2], static_cast<Index>(i)};
    });
    const int64_t share = n >= kParallelPoints && num_threads() > 1 ? n / 32 : 0;
    if (share == 0) {
      split({a.get(), b.get(), 0, n, 0}, 0, leaves, nullptr);
    } else {
      std::vector<Span> spans;
      split({a.get(), b.get(), 0, n, 0}, share, leaves, &spans);
      std::vector<std::vector<Leaf>> parts(spans.size());
      parallel(static_cast<int64_t>(spans.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) split(spans[i], 0, parts[i], nullptr);
      });
      for (const auto& part : parts) leaves.insert(leaves.end(), part.begin(), part.end());
    }
    lay_out(leaves);
  }

 private:
  using Index = typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type;
  struct Record {
    T at[3];
    Index id;
  };
  struct Leaf {
    const Record* points;
    int64_t count;
  };
  struct Span {
    Record *from, *spare;  // the records are in `from`; the same places of `spare` are free
    int64_t begin, end;
    int depth;
  };
  static constexpr int64_t kParallelPoints = 1 << 16;

  // Cuts a span down to leaves, in order; with `spans`, only down to `share` points, which are then appended
  // to `spans` instead.
  static void split(Span span, int64_t share, std::vector<Leaf>& leaves, std::vector<Span>* spans) {
    while (true) {
      const int64_t count = span.end - span.begin;
      if (spans != nullptr && count <= std::max(share, kLeafPoints)) {
        spans->push_back(span);
        return;
      }
      int axis = 0;
      T pivot = 0;
      if (count <= kLeafPoints || span.depth >= kMaxDepth || !find_cut(span, axis, pivot)) {
        for (int64_t i = span.begin; i < span.end; i += kLeafPoints)
          leaves.push_back({span.from + i, std::min(kLeafPoints, span.end - i)});
        return;
      }
      const int64_t middle = partition(span, axis, pivot);
      std::swap(span.from, span.spare);
      ++span.depth;
      Span left = span;
      left.end = span.begin = middle;
      split(left, share, leaves, spans);
    }
  }

  // Records below the pivot to the front, the others to the back, in the spare memory. Both places are written
  // for every record, and only one of them counts: nothing to predict.
  static int64_t partition(const Span& span, int axis, T pivot) {
    int64_t low = span.begin, high = span.end - 1;
    for (int64_t i = span.begin; i < span.end; ++i) {
      const Record record = span.from[i];
      span.spare[low] = record;
      span.spare[high] = record;
      const bool below = record.at[axis] < pivot;
      low += below;
      high -= !below;
    }
    return low;
  }

  // An axis and a value that leave points on both sides; false where all points are equal.
  static bool find_cut(const Span& span, int& axis, T& pivot) {
    constexpr int kMost = 64;
    const int64_t count = span.end - span.begin;
    const int sampled = count <= 512 ? 16 : count <= 8192 ? 32 : kMost;
    T sample[3][kMost];
    const int64_t step = count / sampled;
    const Record* from = span.from + span.begin + step / 2;
    for (int i = 0; i < sampled; ++i)
      for (int a = 0; a < 3; ++a) sample[a][i] = from[i * step].at[a];
    T width[3];
    for (int a = 0; a < 3; ++a) {
      T low = sample[a][0], high = low;
      for (int i = 1; i < sampled; ++i) {
        low = std::min(low, sample[a][i]);
        high = std::max(high, sample[a][i]);
      }
      width[a] = high - low;
    }
    axis = width[1] > width[0] ? 1 : 0;
    if (width[2] > width[axis]) axis = 2;
    if (!(width[axis] > 0)) return find_cut_of_rare(span, axis, pivot);
    T* values = sample[axis];
    std::nth_element(values, values + sampled / 2, values + sampled);
    pivot = values[sampled / 2];
    // Where copies reach down to the smallest value, nothing may be below the median: cut above it.
    T lowest = pivot, above = std::numeric_limits<T>::infinity();
    for (int i = 0; i < sampled; ++i) {
      lowest = std::min(lowest, values[i]);
      if (values[i] > pivot) above = std::min(above, values[i]);
    }
    if (lowest == pivot) pivot = above;
    return true;
  }

  // The sample saw copies of one point: look at all points.
  static bool find_cut_of_rare(const Span& span, int& axis, T& pivot) {
    T low[3], high[3];
    for (int a = 0; a < 3; ++a) low[a] = high[a] = span.from[span.begin].at[a];
    for (int64_t i = span.begin; i < span.end; ++i)
      for (int a = 0; a < 3; ++a) {
        low[a] = std::min(low[a], span.from[i].at[a]);
        high[a] = std::max(high[a], span.from[i].at[a]);
      }
    for (axis = 0; axis < 3 && !(high[axis] > low[axis]); ++axis) {
    }
    if (axis == 3) return false;
    for (int a = axis + 1; a < 3; ++a)
      if (high[a] - low[a] > high[axis] - low[axis]) axis = a;
    pivot = low[axis] / 2 + high[axis] / 2;
    if (!(pivot > low[axis]) || pivot > high[axis]) pivot = high[axis];
    return true;
  }

  void lay_out(const std::vector<Leaf>& leaves) {
    num_leaves = static_cast<int64_t>(leaves.size());
    num_groups = (num_leaves + kGroupLeaves - 1) / kGroupLeaves;
    first.resize(num_leaves + 1);
    slots = 0;
    for (int64_t leaf = 0; leaf < num_leaves; ++leaf) {
      first[leaf] = slots;
      slots += (leaves[leaf].count + F::W - 1) / F::W * F::W;
    }
    first[num_leaves] = slots;
    const int64_t room = slots + 16;  // so that a whole vector of ids can be read anywhere
    coordinates_.resize(3 * room);
    ids_.resize(room);
    x = coordinates_.get();
    y = x + room;
    z = y + room;
    id = ids_.get();
    leaf_boxes.resize(num_leaves);
    group_boxes.resize(num_groups);
    parallel(num_groups, 64, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) lay_out_group(leaves, group);
    });
  }

  void lay_out_group(const std::vector<Leaf>& leaves, int64_t group) {
    T* const plane[3] = {x, y, z};
    const int64_t last = std::min(num_leaves, (group + 1) * kGroupLeaves);
    for (int64_t leaf = group * kGroupLeaves; leaf < last; ++leaf) {
      const Leaf& points = leaves[leaf];
      const int64_t slot = first[leaf];
      for (int64_t i = 0; i < points.count; ++i) id[slot + i] = static_cast<int32_t>(points.points[i].id);
      for (int64_t i = slot + points.count; i < first[leaf + 1]; ++i)
        id[i] = std::numeric_limits<int32_t>::max();
      for (int axis = 0; axis < 3; ++axis) {
        T low = std::numeric_limits<T>::infinity(), high = -low;
        for (int64_t i = 0; i < points.count; ++i) {
          const T value = points.points[i].at[axis];
          plane[axis][slot + i] = value;
          low = value < low ? value : low;
          high = value > high ? value : high;
        }
        for (int64_t i = slot + points.count; i < first[leaf + 1]; ++i)
          plane[axis][i] = std::numeric_limits<T>::quiet_NaN();
        leaf_boxes.low[axis][leaf] = low;
        leaf_boxes.high[axis][leaf] = high;
        group_boxes.low[axis][group] = std::min(group_boxes.low[axis][group], low);
        group_boxes.high[axis][group] = std::max(group_boxes.high[axis][group], high);
      }
    }
  }

  Array<T> coordinates_;
  Array<int32_t> ids_;
};

}  // namespace PCL_ISA

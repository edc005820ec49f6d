// The k nearest points of queries, and what is built on it: patches and ball queries.
//
// A search has two halves: a bound that at least k points keep, then all points within the bound, sorted. The
// bound may be as loose as it likes; the result is the same.
#pragma once

#include "fps.h"
#include "planes.h"
#include "select.h"
#include "tree.h"

namespace PCL_ISA {

// The k-th best pair so far, or a distance that k points keep, with any index.
template <class T>
struct Bound {
  T dist2;
  int32_t id = std::numeric_limits<int32_t>::max();

  // Of boxes in reach, those at the distance of the bound that hold only higher indices are not. Without this,
  // many copies of a point would all be looked at for each query.
  template <class F>
  uint32_t reachable(typename F::V near, const int32_t* lowest) const {
    uint32_t boxes = F::bits(F::le(near, F::set(dist2)));
    if (__builtin_expect(id != std::numeric_limits<int32_t>::max(), 0))
      for (uint32_t ties = F::bits(F::eq(near, F::set(dist2))); ties; ties &= ties - 1)
        if (lowest[__builtin_ctz(ties)] > id) boxes &= ~(ties & -ties);
    return boxes;
  }
};

// Candidates of one query, cut back to the k best when they get many. Whoever adds some calls `is_full`
// first, and `cut` if so, and keeps the count in a variable of its own, which stays in a register.
template <class T>
class Candidates {
  using F = typename SimdOf<T>::F;
  using Key = typename KeyOf<T>::Key;

 public:
  explicit Candidates(int64_t k)
      : k_(k), room_(4 * k + 256), dist2_(room_ + kMargin), id_(room_ + kMargin), keys_(room_ + kMargin) {}

  T* dist2() const { return dist2_.get(); }
  int32_t* id() const { return id_.get(); }
  bool is_full(int64_t count) const { return __builtin_expect(count > room_, 0); }

  // Keeps the k nearest of `count` candidates, in no order, and lowers the bound.
  void cut(int64_t& count, Bound<T>& bound, const T* row = nullptr) {
    pack(count, row);
    Key* const keys = keys_.get();
    std::nth_element(keys, keys + k_ - 1, keys + count);
    count = k_;
    bound = {key_dist2<T>(keys[k_ - 1]), key_id(keys[k_ - 1])};
    for (int64_t i = 0; i < k_; ++i) {
      dist2_[i] = key_dist2<T>(keys[i]);
      id_[i] = key_id(keys[i]);
    }
  }

  // Writes the k nearest of them; dist2 may be null. At least k candidates were within every bound. With `row`,
  // the distance of a candidate is there at its index.
  void finish(int64_t count, const T* row, T* dist2, int64_t* idx) {
#if defined(__AVX512F__)
    if constexpr (F::W == 16)
      if (k_ > 4 && k_ <= 32 && count <= 512) {
        pack(count, row);
        sort_smallest32(keys_.get(), count);
        return write_keys(dist2, idx);
      }
#endif
    if (row != nullptr)
      for (int64_t i = 0; i < count; ++i) dist2_[i] = row[id_[i]];
    if (count > kFewPairs && k_ <= kColumns) count = drop_far(count);
    if (count > kFewPairs) {
      Bound<T> bound{};
      cut(count, bound);
      if (count > kFewPairs) {
        std::sort(keys_.get(), keys_.get() + k_);
        return write_keys(dist2, idx);
      }
    }
    T sorted[kFewPairs];
    int32_t sorted_id[kFewPairs];
    sort_few<F>(dist2_.get(), id_.get(), count, sorted, sorted_id);
    for (int64_t i = 0; i < k_; ++i) idx[i] = sorted_id[i];
    if (dist2 != nullptr) std::memcpy(dist2, sorted, static_cast<std::size_t>(k_) * sizeof(T));
  }

 private:
  static constexpr int64_t kMargin = kColumns + kLeafPoints + 64;

  void pack(int64_t count, const T* row) {
    if (row == nullptr)
      for (int64_t i = 0; i < count; ++i) keys_[i] = make_key(dist2_[i], id_[i]);
    else
      for (int64_t i = 0; i < count; ++i) keys_[i] = make_key(row[id_[i]], id_[i]);
  }
  void write_keys(T* dist2, int64_t* idx) const {
    for (int64_t i = 0; i < k_; ++i) idx[i] = key_id(keys_[i]);
    if (dist2 != nullptr)
      for (int64_t i = 0; i < k_; ++i) dist2[i] = key_dist2<T>(keys_[i]);
  }

  // Leaves out those that a tighter bound rules out, and returns how many there are then.
  int64_t drop_far(int64_t count) {
    typename F::V columns[kColumns / F::W];
    const auto none = F::set(std::numeric_limits<T>::infinity());
    for (auto& column : columns) column = none;
    for (int64_t i = count; i < count + kColumns; ++i) dist2_[i] = std::numeric_limits<T>::quiet_NaN();
    for (int64_t i = 0; i < count; i += kColumns)
      for (int v = 0; v < kColumns / F::W; ++v)
        columns[v] = F::min(F::load(dist2_.get() + i + v * F::W), columns[v]);
    const auto limit = F::set(bound_of_columns<F>(columns, k_));
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += F::W) {
      auto d = F::load(dist2_.get() + i);
      const auto within = F::le(d, limit);
      F::compress(dist2_.get() + kept, within, d);
      F::compress_ids(id_.get() + kept, within, id_.get() + i);
      kept += __builtin_popcount(F::bits(within));
    }
    return kept;
  }

  int64_t k_, room_;
  Array<T> dist2_;
  Array<int32_t> id_;
  Array<Key> keys_;
};

// Searches that look at every point.
template <class T>
class DenseSearch {
  using F = typename SimdOf<T>::F;
  using V = typename F::V;
  static constexpr int kAccumulators = kColumns / F::W;

 public:
  DenseSearch(const Planes<T>& planes, int64_t k)
      : planes_(planes), k_(k), row_(planes.padded), candidates_(k) {}

  T* row() { return row_.get(); }

  void find(const T* query, T* dist2_out, int64_t* idx) {
    const V qx = F::set(query[0]), qy = F::set(query[1]), qz = F::set(query[2]);
    V columns[kAccumulators];
    for (int a = 0; a < kAccumulators; ++a) columns[a] = F::set(std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < planes_.padded; i += kColumns)
#pragma GCC unroll 4
      for (int a = 0; a < kAccumulators; ++a) {
        const int64_t at = i + a * F::W;
        const V d = dist2<F>(planes_.x + at, planes_.y + at, planes_.z + at, qx, qy, qz);
        F::store(row_.get() + at, d);
        columns[a] = F::min(d, columns[a]);
      }
    V found[kAccumulators];  // a copy, so that the loop keeps its own in registers
    for (int a = 0; a < kAccumulators; ++a) found[a] = columns[a];
    find_in_row(found, dist2_out, idx);
  }

  // As find, where the distances are in row() already. columns: their minima by position modulo kColumns.
  void find_in_row(const V* columns, T* dist2_out, int64_t* idx) {
    Bound<T> bound{k_ <= kColumns ? bound_of_columns<F>(columns, k_) : std::numeric_limits<T>::infinity()};
    const T* row = row_.get();
    int32_t* const id = candidates_.id();
    int64_t count = 0;
    V limit = F::set(bound.dist2);
    for (int64_t begin = 0; begin < planes_.padded; begin += kColumns) {
      if (candidates_.is_full(count)) {
        candidates_.cut(count, bound, row);
        limit = F::set(bound.dist2);
      }
      count = add_within(begin, limit, id, count);
    }
    candidates_.finish(count, row, dist2_out, idx);
  }

 private:
  static constexpr int kFew = 4;

  // Adds the positions in row()[begin..begin + kColumns) of distances up to `limit`, and returns how many there
  // are then. Few positions are written, whether there are as many or not: where they lie cannot be foreseen,
  // and a branch for each would cost more than the search.
  int64_t add_within(int64_t begin, V limit, int32_t* id, int64_t count) {
    uint64_t within = 0;
    for (int a = 0; a < kAccumulators; ++a) {
      const uint64_t bits = F::bits(F::le(F::load(row_.get() + begin + a * F::W), limit));
      within |= bits << (a * F::W);
    }
    const int num = __builtin_popcountll(within);
    int32_t* const to = id + count;
    const auto write = [&](int at) {
      to[at] = static_cast<int32_t>(begin) + __builtin_ctzll(within | uint64_t{1} << 63);  // any, of none
      within &= within - 1;
    };
    for (int at = 0; at < kFew; ++at) write(at);
    if (__builtin_expect(num > kFew, 0))
      for (int at = kFew; at < num; ++at) write(at);
    return count + num;
  }

  const Planes<T>& planes_;
  int64_t k_;
  Array<T> row_;
  Candidates<T> candidates_;
};

// Searches that look only into leaves that reach within the bound.
template <class T>
class TreeSearch {
  using F = typename SimdOf<T>::F;
  using V = typename F::V;
  static constexpr int kAccumulators = kColumns / F::W;

 public:
  TreeSearch(const Tree<T>& tree, int64_t k) : tree_(tree), k_(k), candidates_(k) {}

  void find(const T* query, T* dist2_out, int64_t* idx) {
    const V qx = F::set(query[0]), qy = F::set(query[1]), qz = F::set(query[2]);
    const int64_t home = nearest_leaf(qx, qy, qz);
    Bound<T> bound{bound_around(home, qx, qy, qz)};
    int64_t count = 0;
    for (int64_t group = 0; group < tree_.group_boxes.count; group += F::W) {
      const V near = box_dist2<F>(tree_.group_boxes, group, qx, qy, qz);
      uint32_t groups = bound.template reachable<F>(near, tree_.group_lowest.data() + group);
      for (; groups; groups &= groups - 1)
        count = collect(group + __builtin_ctz(groups), qx, qy, qz, count, bound);
    }
    candidates_.finish(count, nullptr, dist2_out, idx);
  }

 private:
  // The leaf whose box is nearest; the first of those that hold the query.
  int64_t nearest_leaf(V qx, V qy, V qz) const {
    int64_t nearest = 0;
    T best = std::numeric_limits<T>::infinity();
    for (int64_t group = 0; group < tree_.group_boxes.count; group += F::W) {
      const V near = box_dist2<F>(tree_.group_boxes, group, qx, qy, qz);
      uint32_t closer = F::bits(F::lt(near, F::set(best)));
      for (; closer; closer &= closer - 1) {
        const int64_t first = (group + __builtin_ctz(closer)) * kGroupLeaves;
        for (int64_t leaf = first; leaf < first + kGroupLeaves; leaf += F::W) {
          const V of_leaf = box_dist2<F>(tree_.leaf_boxes, leaf, qx, qy, qz);
          const T least = F::hmin(of_leaf);
          if (!(least < best)) continue;
          best = least;
          nearest = leaf + __builtin_ctz(F::bits(F::eq(of_leaf, F::set(least))));
          if (best == 0) return nearest;
        }
      }
    }
    return nearest;
  }

  // A distance that at least k points keep: the k-th smallest around a leaf.
  T bound_around(int64_t home, V qx, V qy, V qz) {
    const int64_t want = (k_ <= 4 ? k_ : 4 * k_) + F::W;  // more make a tighter bound
    int64_t begin = tree_.begin[home] * int64_t{F::W}, end = tree_.end[home] * int64_t{F::W};
    while (end - begin < want && (begin > 0 || end < tree_.slots)) {
      begin = std::max<int64_t>(0, begin - F::W);
      end = std::min<int64_t>(tree_.slots, end + F::W);
    }
    const V far = F::set(std::numeric_limits<T>::infinity());
    if (k_ > kColumns) {
      T* const all = candidates_.dist2();  // has room for more than 4 k
      T* last = all;
      for (int64_t i = begin; i < end; i += F::W, last += F::W)
        F::storeu(last, F::min(dist2<F>(tree_.x + i, tree_.y + i, tree_.z + i, qx, qy, qz), far));
      if (last - all < k_) return std::numeric_limits<T>::infinity();
      std::nth_element(all, all + k_ - 1, last);
      return all[k_ - 1];
    }
    V columns[kAccumulators];
    for (int a = 0; a < kAccumulators; ++a) columns[a] = far;
    int a = 0;
    for (int64_t i = begin; i < end; i += F::W) {
      columns[a] = F::min(dist2<F>(tree_.x + i, tree_.y + i, tree_.z + i, qx, qy, qz), columns[a]);
      a = (a + 1) % kAccumulators;
    }
    return bound_of_columns<F>(columns, k_);
  }

  // Adds the points of a group that are within the bound, and returns how many candidates there are then.
  int64_t collect(int64_t group, V qx, V qy, V qz, int64_t count, Bound<T>& bound) {
    T* const dist2_to = candidates_.dist2();
    int32_t* const id_to = candidates_.id();
    const T *x = tree_.x, *y = tree_.y, *z = tree_.z;
    const int32_t* const id = tree_.id;
    for (int64_t leaf = group * kGroupLeaves; leaf < (group + 1) * kGroupLeaves; leaf += F::W) {
      const V near = box_dist2<F>(tree_.leaf_boxes, leaf, qx, qy, qz);
      uint32_t leaves = bound.template reachable<F>(near, tree_.leaf_lowest.data() + leaf);
      for (; leaves; leaves &= leaves - 1) {
        const int64_t at = leaf + __builtin_ctz(leaves);
        if (candidates_.is_full(count)) candidates_.cut(count, bound);
        const V limit = F::set(bound.dist2);
        for (int64_t i = tree_.begin[at] * int64_t{F::W}; i < tree_.end[at] * int64_t{F::W}; i += F::W) {
          const V d = dist2<F>(x + i, y + i, z + i, qx, qy, qz);
          const auto within = F::le(d, limit);
          F::compress(dist2_to + count, within, d);
          F::compress_ids(id_to + count, within, id + i);
          count += __builtin_popcount(F::bits(within));
        }
      }
    }
    return count;
  }

  const Tree<T>& tree_;
  int64_t k_;
  Candidates<T> candidates_;
};

// Whether building a tree for so many queries pays: it costs as much as 40 looks at every point, and a query of
// it as much as a look at 1200 points, or 1800 for many neighbours. Measured with k = 3 and k = 32.
static inline bool search_by_tree(int64_t n, int64_t num_queries, int64_t k) {
  const int64_t of_query = k <= 4 ? 1200 : 1800;
  return n > of_query && num_queries * (n - of_query) > 40 * n;
}

// Searches in one cloud, the queries shared out to threads.
template <class Search, class Index, class T>
static void search_all(
    const Index& index, const T* queries, int64_t num_queries, int64_t k, int64_t grain, T* dist2,
    int64_t* idx) {
  parallel(num_queries, grain, [&](int64_t begin, int64_t end) {
    Search search(index, k);
    for (int64_t i = begin; i < end; ++i)
      search.find(queries + 3 * i, dist2 == nullptr ? nullptr : dist2 + i * k, idx + i * k);
  });
}

template <class T>
static void knn(
    const T* cloud, int64_t n, const T* queries, int64_t num_queries, int64_t k, T* dist2, int64_t* idx) {
  if (search_by_tree(n, num_queries, k)) {
    Tree<T> tree;
    tree.build(cloud, n);
    return search_all<TreeSearch<T>>(tree, queries, num_queries, k, 256, dist2, idx);
  }
  Planes<T> planes;
  planes.fill(cloud, n);
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 18) / n);
  search_all<DenseSearch<T>>(planes, queries, num_queries, k, grain, dist2, idx);
}

// Neighbours minus their centre.
template <class T>
static void gather_patches(
    const T* cloud, const T* center, const int64_t* idx, int64_t begin, int64_t end, int64_t k, T* out) {
  for (int64_t g = begin; g < end; ++g) {
    const T cx = center[3 * g], cy = center[3 * g + 1], cz = center[3 * g + 2];
    for (int64_t i = g * k; i < (g + 1) * k; ++i) {
      const T* point = cloud + 3 * idx[i];
      out[3 * i] = point[0] - cx;
      out[3 * i + 1] = point[1] - cy;
      out[3 * i + 2] = point[2] - cz;
    }
  }
}

template <class T>
static void group(
    const T* cloud, int64_t n, int64_t num_groups, int64_t group_size, int64_t start, bool skip_origin,
    T* center, T* neighborhood, int64_t* idx, int64_t* center_idx) {
  const bool all = num_groups == n;
  const auto copy_centers = [&] {
    for (int64_t g = 0; g < num_groups; ++g)
      for (int axis = 0; axis < 3; ++axis) center[3 * g + axis] = cloud[3 * center_idx[g] + axis];
  };
  if (all)
    for (int64_t g = 0; g < n; ++g) center_idx[g] = g;
  if (search_by_tree(n, num_groups, group_size)) {
    Tree<T> tree;
    tree.build(cloud, n);
    if (!all) tree_farthest_points(tree, cloud, num_groups, start, skip_origin, center_idx);
    copy_centers();
    search_all<TreeSearch<T>>(tree, center, num_groups, group_size, 256, static_cast<T*>(nullptr), idx);
    return gather_patches(cloud, center, idx, 0, num_groups, group_size, neighborhood);
  }
  Planes<T> planes;
  planes.fill(cloud, n);
  if (all) {
    copy_centers();
    const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 18) / n);
    search_all<DenseSearch<T>>(planes, center, num_groups, group_size, grain, static_cast<T*>(nullptr), idx);
    return gather_patches(cloud, center, idx, 0, num_groups, group_size, neighborhood);
  }
  // The distances that choose the next centre are those in which the neighbours of this one are found.
  DenseSampler<T> sampler(planes, skip_origin);
  DenseSearch<T> search(planes, group_size);
  typename SimdOf<T>::F::V columns[kColumns / SimdOf<T>::F::W];
  int64_t chosen = start;
  for (int64_t g = 0; g < num_groups; ++g) {
    center_idx[g] = chosen;
    chosen = sampler.template step<true>(chosen, search.row(), columns);
    search.find_in_row(columns, nullptr, idx + g * group_size);
  }
  copy_centers();
  gather_patches(cloud, center, idx, 0, num_groups, group_size, neighborhood);
}

}  // namespace PCL_ISA

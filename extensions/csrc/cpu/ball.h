// The first points, by index, within a radius of each query.
#pragma once

#include "knn.h"

namespace PCL_ISA {

constexpr int64_t kBallScan = 4096;  // points looked at in order before the tree is asked

template <class T>
class BallSearch {
  using F = typename SimdOf<T>::F;
  using V = typename F::V;

 public:
  BallSearch(const Planes<T>& planes, const Tree<T>* tree, T radius2, int64_t num_samples)
      : planes_(planes), tree_(tree), radius2_(radius2), num_samples_(num_samples) {}

  void find(const T* query, int64_t* idx) {
    const V qx = F::set(query[0]), qy = F::set(query[1]), qz = F::set(query[2]), limit = F::set(radius2_);
    const int64_t scanned = tree_ == nullptr ? planes_.padded : std::min(planes_.padded, kBallScan);
    int64_t found = 0;
    for (int64_t i = 0; i < scanned && found < num_samples_; i += F::W) {
      const V d = dist2<F>(planes_.x + i, planes_.y + i, planes_.z + i, qx, qy, qz);
      uint32_t within = F::bits(F::lt(d, limit));
      for (; within && found < num_samples_; within &= within - 1) idx[found++] = i + __builtin_ctz(within);
    }
    if (found < num_samples_ && scanned < planes_.padded) found = find_behind(scanned, found, qx, qy, qz, idx);
    const int64_t filling = found > 0 ? idx[0] : 0;
    for (int64_t i = found; i < num_samples_; ++i) idx[i] = filling;
  }

 private:
  // Continues with the points from index `from` on, by leaves.
  int64_t find_behind(int64_t from, int64_t found, V qx, V qy, V qz, int64_t* idx) {
    const V limit = F::set(radius2_);
    hits_.clear();
    for (int64_t group = 0; group < tree_->group_boxes.count; group += F::W) {
      const V near = box_dist2<F>(tree_->group_boxes, group, qx, qy, qz);
      uint32_t groups = F::bits(F::lt(near, limit));
      for (; groups; groups &= groups - 1) {
        const int64_t first = (group + __builtin_ctz(groups)) * kGroupLeaves;
        for (int64_t leaf = first; leaf < first + kGroupLeaves; leaf += F::W) {
          uint32_t leaves = F::bits(F::lt(box_dist2<F>(tree_->leaf_boxes, leaf, qx, qy, qz), limit));
          for (; leaves; leaves &= leaves - 1) search_leaf(leaf + __builtin_ctz(leaves), from, qx, qy, qz);
        }
      }
    }
    const int64_t wanted = std::min<int64_t>(num_samples_ - found, static_cast<int64_t>(hits_.size()));
    std::partial_sort(hits_.begin(), hits_.begin() + wanted, hits_.end());
    for (int64_t i = 0; i < wanted; ++i) idx[found + i] = hits_[i];
    return found + wanted;
  }

  void search_leaf(int64_t leaf, int64_t from, V qx, V qy, V qz) {
    for (int64_t i = tree_->begin[leaf] * int64_t{F::W}; i < tree_->end[leaf] * int64_t{F::W}; i += F::W) {
      const V d = dist2<F>(tree_->x + i, tree_->y + i, tree_->z + i, qx, qy, qz);
      uint32_t within = F::bits(F::lt(d, F::set(radius2_)));
      for (; within; within &= within - 1) {
        const int32_t id = tree_->id[i + __builtin_ctz(within)];
        if (id >= from) hits_.push_back(id);
      }
    }
  }

  const Planes<T>& planes_;
  const Tree<T>* tree_;
  T radius2_;
  int64_t num_samples_;
  std::vector<int32_t> hits_;
};

template <class T>
static void ball(
    const T* cloud, int64_t n, const T* queries, int64_t num_queries, T radius2, int64_t num_samples,
    int64_t* idx) {
  Planes<T> planes;
  planes.fill(cloud, n);
  Tree<T> tree;
  const bool with_tree = n > 2 * kBallScan && num_queries >= 64;
  if (with_tree) tree.build(cloud, n);
  parallel(num_queries, 64, [&](int64_t begin, int64_t end) {
    BallSearch<T> search(planes, with_tree ? &tree : nullptr, radius2, num_samples);
    for (int64_t i = begin; i < end; ++i) search.find(queries + 3 * i, idx + i * num_samples);
  });
}

}  // namespace PCL_ISA

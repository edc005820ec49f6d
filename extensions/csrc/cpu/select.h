// Choosing and sorting the k smallest of some (distance, index) pairs.
//
// A pair is one integer: the bits of a distance >= 0 order as the distance does, and stand above the index.
// No two keys are equal, so the order is the same whatever algorithm finds it.
#pragma once

#include <algorithm>

#include "planes.h"
#include "simd.h"

namespace PCL_ISA {

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using Key = uint64_t;
  using Bits = uint32_t;
  static constexpr int kShift = 32;
};
template <>
struct KeyOf<double> {
  using Key = unsigned __int128;
  using Bits = uint64_t;
  static constexpr int kShift = 64;
};

template <class T>
static inline typename KeyOf<T>::Key make_key(T dist2, int32_t id) {
  typename KeyOf<T>::Bits bits;
  std::memcpy(&bits, &dist2, sizeof bits);
  return static_cast<typename KeyOf<T>::Key>(bits) << KeyOf<T>::kShift | static_cast<uint32_t>(id);
}

template <class T>
static inline T key_dist2(typename KeyOf<T>::Key key) {
  const auto bits = static_cast<typename KeyOf<T>::Bits>(key >> KeyOf<T>::kShift);
  T dist2;
  std::memcpy(&dist2, &bits, sizeof dist2);
  return dist2;
}

template <class Key>
static inline int32_t key_id(Key key) {
  return static_cast<int32_t>(static_cast<uint32_t>(key));
}

#if defined(__AVX512F__)

// Bitonic networks on registers. lanes(...) says which lanes keep the larger value.

static inline __m512i exchange(__m512i v, __m512i partner, __mmask8 larger) {
  const __m512i other = _mm512_permutexvar_epi64(partner, v);
  return _mm512_mask_max_epu64(_mm512_min_epu64(v, other), larger, v, other);
}

struct Sort64 {
  const __m512i by1 = _mm512_setr_epi64(1, 0, 3, 2, 5, 4, 7, 6);
  const __m512i by2 = _mm512_setr_epi64(2, 3, 0, 1, 6, 7, 4, 5);
  const __m512i by4 = _mm512_setr_epi64(4, 5, 6, 7, 0, 1, 2, 3);
  const __m512i flip4 = _mm512_setr_epi64(3, 2, 1, 0, 7, 6, 5, 4);
  const __m512i flip8 = _mm512_setr_epi64(7, 6, 5, 4, 3, 2, 1, 0);

  __m512i reverse(__m512i v) const { return _mm512_permutexvar_epi64(flip8, v); }
  __m512i sort8(__m512i v) const {
    v = exchange(v, by1, 0xAA);
    v = exchange(v, flip4, 0xCC);
    v = exchange(v, by1, 0xAA);
    v = exchange(v, flip8, 0xF0);
    v = exchange(v, by2, 0xCC);
    return exchange(v, by1, 0xAA);
  }
  __m512i merge8(__m512i v) const {
    v = exchange(v, by4, 0xF0);
    v = exchange(v, by2, 0xCC);
    return exchange(v, by1, 0xAA);
  }
  static void order(__m512i& a, __m512i& b) {
    const __m512i low = _mm512_min_epu64(a, b);
    b = _mm512_max_epu64(a, b);
    a = low;
  }
  // Two ascending halves of v[0..2N) become one ascending run.
  template <int N>
  void merge(__m512i* v) const {
    for (int i = 0; i < N; ++i) {
      const __m512i other = reverse(v[2 * N - 1 - i]), low = _mm512_min_epu64(v[i], other);
      v[2 * N - 1 - i] = reverse(_mm512_max_epu64(v[i], other));
      v[i] = low;
    }
    finish<N>(v);
    finish<N>(v + N);
  }
  // v[0..N) is bitonic and becomes ascending.
  template <int N>
  void finish(__m512i* v) const {
    for (int step = N / 2; step >= 1; step /= 2)
      for (int from = 0; from < N; from += 2 * step)
        for (int i = from; i < from + step; ++i) order(v[i], v[i + step]);
    for (int i = 0; i < N; ++i) v[i] = merge8(v[i]);
  }
  void sort32(__m512i* v) const {
    for (int i = 0; i < 4; ++i) v[i] = sort8(v[i]);
    merge<1>(v);
    merge<1>(v + 2);
    merge<2>(v);
  }
  // Sorts 64 keys to two ascending runs of 32. First down the columns of 8 vectors, which costs a minimum and a
  // maximum for two vectors; a transpose makes 8 ascending vectors of the columns.
  void sort32_twice(__m512i* v) const {
    static constexpr int kPairs[19][2] = {
        {0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {1, 2}, {5, 6},
        {0, 4}, {3, 7}, {1, 5}, {2, 6}, {1, 4}, {3, 6}, {2, 4}, {3, 5}, {3, 4}};
#pragma GCC unroll 19
    for (const auto& pair : kPairs) order(v[pair[0]], v[pair[1]]);
    transpose(v);
    for (int i = 0; i < 8; i += 2) merge<1>(v + i);
    merge<2>(v);
    merge<2>(v + 4);
  }
  static void transpose(__m512i* v) {
    __m512i two[8], four[8];
    for (int i = 0; i < 8; i += 2) {
      two[i] = _mm512_unpacklo_epi64(v[i], v[i + 1]);
      two[i + 1] = _mm512_unpackhi_epi64(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
      for (int j = 0; j < 2; ++j) {
        four[i + j] = _mm512_shuffle_i64x2(two[i + j], two[i + j + 2], 0x88);
        four[i + j + 2] = _mm512_shuffle_i64x2(two[i + j], two[i + j + 2], 0xDD);
      }
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm512_shuffle_i64x2(four[i], four[i + 4], 0x88);
      v[i + 4] = _mm512_shuffle_i64x2(four[i], four[i + 4], 0xDD);
    }
  }
  // a[0..4) keeps the 32 smallest of the ascending runs a and b, ascending.
  void keep32(__m512i* a, const __m512i* b) const {
    for (int i = 0; i < 4; ++i) a[i] = _mm512_min_epu64(a[i], reverse(b[3 - i]));
    finish<4>(a);
  }
};

// The 32 smallest of count keys, ascending, to the front. Up to 31 keys behind the last one are overwritten.
static inline void sort_smallest32(uint64_t* keys, int64_t count) {
  const Sort64 net;
  const int64_t padded = (count + 31) / 32 * 32;
  for (int64_t i = count; i < padded; ++i) keys[i] = ~uint64_t{0};
  __m512i best[4], next[8];
  const auto load = [&](__m512i* v, int64_t from, int num) {
    for (int i = 0; i < num; ++i) v[i] = _mm512_loadu_si512(keys + from + 8 * i);
  };
  int64_t from = 0;
  if (padded % 64 != 0) {
    load(best, 0, 4);
    net.sort32(best);
    from = 32;
  } else {
    load(next, 0, 8);
    net.sort32_twice(next);
    net.keep32(next, next + 4);
    for (int i = 0; i < 4; ++i) best[i] = next[i];
    from = 64;
  }
  for (; from < padded; from += 64) {
    load(next, from, 8);
    net.sort32_twice(next);
    net.keep32(best, next);
    net.keep32(best, next + 4);
  }
  for (int i = 0; i < 4; ++i) _mm512_storeu_si512(keys + 8 * i, best[i]);
}

static inline __m512 exchange(__m512 v, __m512i partner, __mmask16 larger) {
  const __m512 other = _mm512_permutexvar_ps(partner, v);
  return _mm512_mask_max_ps(_mm512_min_ps(v, other), larger, v, other);
}

// The k-th smallest of 64 numbers, 1 <= k <= 64.
static inline float kth_of_columns(const __m512* columns, int64_t k) {
  const __m512i by1 = _mm512_setr_epi32(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  const __m512i by2 = _mm512_setr_epi32(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  const __m512i by4 = _mm512_setr_epi32(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  const __m512i by8 = _mm512_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i flip4 = _mm512_setr_epi32(3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12);
  const __m512i flip8 = _mm512_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8);
  const __m512i flip16 = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512 v[4] = {columns[0], columns[1], columns[2], columns[3]};
  for (__m512& lane : v) {
    lane = exchange(lane, by1, 0xAAAA);
    lane = exchange(lane, flip4, 0xCCCC);
    lane = exchange(lane, by1, 0xAAAA);
    lane = exchange(lane, flip8, 0xF0F0);
    lane = exchange(lane, by2, 0xCCCC);
    lane = exchange(lane, by1, 0xAAAA);
    lane = exchange(lane, flip16, 0xFF00);
    lane = exchange(lane, by4, 0xF0F0);
    lane = exchange(lane, by2, 0xCCCC);
    lane = exchange(lane, by1, 0xAAAA);
  }
  const auto finish = [&](__m512 lane) {
    lane = exchange(lane, by8, 0xFF00);
    lane = exchange(lane, by4, 0xF0F0);
    lane = exchange(lane, by2, 0xCCCC);
    return exchange(lane, by1, 0xAAAA);
  };
  for (int i = 0; i < 4; i += 2) {
    const __m512 other = _mm512_permutexvar_ps(flip16, v[i + 1]), own = v[i];
    v[i] = finish(_mm512_min_ps(own, other));
    v[i + 1] = finish(_mm512_max_ps(own, other));
  }
  const __m512 r2 = _mm512_permutexvar_ps(flip16, v[2]), r3 = _mm512_permutexvar_ps(flip16, v[3]);
  const __m512 low0 = _mm512_min_ps(v[0], r3), low1 = _mm512_min_ps(v[1], r2);
  if (k == 32) return _mm512_reduce_max_ps(_mm512_max_ps(low0, low1));
  alignas(64) float part[32];
  const bool lower = k <= 32;
  _mm512_store_ps(part, lower ? low0 : _mm512_max_ps(v[0], r3));
  _mm512_store_ps(part + 16, lower ? low1 : _mm512_max_ps(v[1], r2));
  const int64_t at = (lower ? k : k - 32) - 1;
  std::nth_element(part, part + at, part + 32);
  return part[at];
}

#endif

// How many of d[0..count) are less than each of d[begin..begin + Vectors * F::W). What lies behind the last one is
// read and counted too, and means nothing.
template <class F, int Vectors>
static inline void count_less(const typename F::T* d, int64_t count, int64_t begin, typename F::N* less) {
  typename F::V own[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    own[v] = F::load(d + begin + v * F::W);
    less[v] = typename F::N{};
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; ++i) {
    const auto other = F::set(d[i]);
    for (int v = 0; v < Vectors; ++v) less[v] = F::count(less[v], F::lt(other, own[v]));
  }
}

// The k-th smallest of some of the columns, k <= kColumns; a bound for that of all of them.
template <class F>
static inline typename F::T bound_of_columns(const typename F::V* all_columns, int64_t k) {
  using T = typename F::T;
#if defined(__AVX512F__)
  if constexpr (F::W == 16)
    if (4 * k > kColumns) return kth_of_columns(all_columns, k);
#endif
  int num = kColumns / F::W;
  typename F::V columns[kColumns / F::W];
  for (int i = 0; i < num; ++i) columns[i] = all_columns[i];
  const auto fold = [&] {
    num /= 2;
    for (int i = 0; i < num; ++i) columns[i] = F::min(columns[i], columns[i + num]);
  };
  if (k == 1) {
    while (num > 1) fold();
    return F::hmin(columns[0]);
  }
  while (num > 1 && num * F::W >= 4 * k) fold();
  alignas(64) T all[kColumns];
  for (int i = 0; i < num; ++i) F::store(all + i * F::W, columns[i]);
  constexpr int kAtOnce = 2;
  auto best = F::set(0);
  if (num == 1) {
    typename F::N less[1];
    count_less<F, 1>(all, F::W, 0, less);
    return F::hmax(F::select(F::below(less[0], k), columns[0], best));
  }
  for (int i = 0; i < num; i += kAtOnce) {
    typename F::N less[kAtOnce];
    count_less<F, kAtOnce>(all, num * F::W, i * F::W, less);
    for (int v = 0; v < kAtOnce; ++v)
      best = F::max(best, F::select(F::below(less[v], k), columns[i + v], F::set(0)));
  }
  return F::hmax(best);
}

constexpr int64_t kFewPairs = 128;  // so many are sorted by counting

// Sorts pairs by distance, then by index; count <= kFewPairs. Vectors behind the last pair may be read. Where a
// pair belongs is the number of those that are less, so there is nothing to foresee.
template <class F>
static inline void sort_few(
    const typename F::T* d, const int32_t* id, int64_t count, typename F::T* sorted, int32_t* sorted_id) {
  alignas(64) typename F::I place[kFewPairs + 64];
  constexpr int kAtOnce = F::W == 16 ? 2 : 3;
  for (int64_t begin = 0; begin < count; begin += kAtOnce * F::W) {
    typename F::N less[kAtOnce];
    count_less<F, kAtOnce>(d, count, begin, less);
    for (int v = 0; v < kAtOnce; ++v) F::store_counts(place + begin + v * F::W, less[v]);
  }
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = place[i];
    sum += at;
    sorted[at] = d[i];
    sorted_id[at] = id[i];
  }
  if (__builtin_expect(sum == count * (count - 1) / 2, 1)) return;
  // Equal distances were given the same place; those of an index are less than those of a higher one.
  uint8_t taken[kFewPairs] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = place[i];
    int64_t at = first + taken[first]++;
    sorted[at] = d[i];
    for (; at > first && sorted_id[at - 1] > id[i]; --at) sorted_id[at] = sorted_id[at - 1];
    sorted_id[at] = id[i];
  }
}

}  // namespace PCL_ISA

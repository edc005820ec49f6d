// Vectors of one instruction set. This file is compiled once per instruction set, and the compiler's own
// macros say which one it is; everything lives in the namespace PCL_ISA of that compilation.
//
// F32 and F64 offer the same static functions. Every one is a single rounding or none, so all instruction
// sets give the same bits. min(a, b) and max(a, b) return b where a is NaN, as the x86 instructions do.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace PCL_ISA {

#if defined(__AVX512F__)

struct F32 {
  using T = float;
  using V = __m512;
  using M = __mmask16;
  using I = int32_t;
  using N = __m512i;
  static constexpr int W = 16;
  static constexpr bool kPacks = true;  // compress is one instruction or two
  static V load(const T* p) { return _mm512_load_ps(p); }
  static V loadu(const T* p) { return _mm512_loadu_ps(p); }
  static void store(T* p, V v) { _mm512_store_ps(p, v); }
  static void storeu(T* p, V v) { _mm512_storeu_ps(p, v); }
  static V set(T s) { return _mm512_set1_ps(s); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static M lt(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static M le(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static M eq(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static M no(M m) { return static_cast<M>(~m); }
  static uint32_t bits(M m) { return m; }
  static V select(M m, V yes, V no) { return _mm512_mask_mov_ps(no, m, yes); }
  // Counters, one for each lane: one more where m is set; which are below a limit.
  static N count(N n, M m) { return _mm512_mask_sub_epi32(n, m, n, _mm512_set1_epi32(-1)); }
  static M below(N n, I limit) { return _mm512_cmplt_epi32_mask(n, _mm512_set1_epi32(limit)); }
  static void store_counts(I* p, N n) { _mm512_store_si512(p, n); }
  static T hmax(V v) { return _mm512_reduce_max_ps(v); }
  static T hmin(V v) { return _mm512_reduce_min_ps(v); }
  // Stores the chosen lanes side by side; the lanes behind them are overwritten with anything.
  static void compress(T* p, M m, V v) { _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m, v)); }
  static void compress_ids(int32_t* p, M m, const int32_t* ids) {
    _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(m, _mm512_loadu_si512(ids)));
  }
};

struct F64 {
  using T = double;
  using V = __m512d;
  using M = __mmask8;
  using I = int64_t;
  using N = __m512i;
  static constexpr int W = 8;
  static constexpr bool kPacks = true;
  static V load(const T* p) { return _mm512_load_pd(p); }
  static V loadu(const T* p) { return _mm512_loadu_pd(p); }
  static void store(T* p, V v) { _mm512_store_pd(p, v); }
  static void storeu(T* p, V v) { _mm512_storeu_pd(p, v); }
  static V set(T s) { return _mm512_set1_pd(s); }
  static V add(V a, V b) { return _mm512_add_pd(a, b); }
  static V sub(V a, V b) { return _mm512_sub_pd(a, b); }
  static V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  static V min(V a, V b) { return _mm512_min_pd(a, b); }
  static V max(V a, V b) { return _mm512_max_pd(a, b); }
  static M lt(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
  static M le(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ); }
  static M eq(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
  static M no(M m) { return static_cast<M>(~m); }
  static uint32_t bits(M m) { return m; }
  static V select(M m, V yes, V no) { return _mm512_mask_mov_pd(no, m, yes); }
  static N count(N n, M m) { return _mm512_mask_sub_epi64(n, m, n, _mm512_set1_epi64(-1)); }
  static M below(N n, I limit) { return _mm512_cmplt_epi64_mask(n, _mm512_set1_epi64(limit)); }
  static void store_counts(I* p, N n) { _mm512_store_si512(p, n); }
  static T hmax(V v) { return _mm512_reduce_max_pd(v); }
  static T hmin(V v) { return _mm512_reduce_min_pd(v); }
  static void compress(T* p, M m, V v) { _mm512_storeu_pd(p, _mm512_maskz_compress_pd(m, v)); }
  static void compress_ids(int32_t* p, M m, const int32_t* ids) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ids));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_maskz_compress_epi32(m, v));
  }
};

#else

#if defined(__AVX2__)

// For every set of lanes, which lanes a left-packing permutation takes.
struct PackTable {
  alignas(32) int32_t of8[256][8];
  alignas(32) int32_t of4[16][8];
  constexpr PackTable() : of8(), of4() {
    for (int set = 0; set < 256; ++set) {
      int n = 0;
      for (int lane = 0; lane < 8; ++lane)
        if (set >> lane & 1) of8[set][n++] = lane;
    }
    for (int set = 0; set < 16; ++set) {
      int n = 0;
      for (int lane = 0; lane < 4; ++lane)
        if (set >> lane & 1) {
          of4[set][n++] = 2 * lane;
          of4[set][n++] = 2 * lane + 1;
        }
    }
  }
};
static constexpr PackTable kPack;

struct F32 {
  using T = float;
  using V = __m256;
  using M = __m256;
  using I = int32_t;
  using N = __m256i;
  static constexpr int W = 8;
  static constexpr bool kPacks = true;
  static V load(const T* p) { return _mm256_load_ps(p); }
  static V loadu(const T* p) { return _mm256_loadu_ps(p); }
  static void store(T* p, V v) { _mm256_store_ps(p, v); }
  static void storeu(T* p, V v) { _mm256_storeu_ps(p, v); }
  static V set(T s) { return _mm256_set1_ps(s); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static M lt(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static M le(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
  static M eq(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static M no(M m) { return _mm256_xor_ps(m, _mm256_castsi256_ps(_mm256_set1_epi32(-1))); }
  static uint32_t bits(M m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }
  static V select(M m, V yes, V no) { return _mm256_blendv_ps(no, yes, m); }
  static N count(N n, M m) { return _mm256_sub_epi32(n, _mm256_castps_si256(m)); }
  static M below(N n, I limit) { return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(limit), n)); }
  static void store_counts(I* p, N n) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), n); }
  static void compress(T* p, M m, V v) {
    const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(kPack.of8[bits(m)]));
    _mm256_storeu_ps(p, _mm256_permutevar8x32_ps(v, order));
  }
  static void compress_ids(int32_t* p, M m, const int32_t* ids) {
    const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(kPack.of8[bits(m)]));
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ids));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(v, order));
  }
  static T hmax(V v) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps(h, h, 1)));
  }
  static T hmin(V v) {
    __m128 h = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_min_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_min_ss(h, _mm_shuffle_ps(h, h, 1)));
  }
};

struct F64 {
  using T = double;
  using V = __m256d;
  using M = __m256d;
  using I = int64_t;
  using N = __m256i;
  static constexpr int W = 4;
  static constexpr bool kPacks = true;
  static V load(const T* p) { return _mm256_load_pd(p); }
  static V loadu(const T* p) { return _mm256_loadu_pd(p); }
  static void store(T* p, V v) { _mm256_store_pd(p, v); }
  static void storeu(T* p, V v) { _mm256_storeu_pd(p, v); }
  static V set(T s) { return _mm256_set1_pd(s); }
  static V add(V a, V b) { return _mm256_add_pd(a, b); }
  static V sub(V a, V b) { return _mm256_sub_pd(a, b); }
  static V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  static V min(V a, V b) { return _mm256_min_pd(a, b); }
  static V max(V a, V b) { return _mm256_max_pd(a, b); }
  static M lt(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
  static M le(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_LE_OQ); }
  static M eq(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
  static M no(M m) { return _mm256_xor_pd(m, _mm256_castsi256_pd(_mm256_set1_epi32(-1))); }
  static uint32_t bits(M m) { return static_cast<uint32_t>(_mm256_movemask_pd(m)); }
  static V select(M m, V yes, V no) { return _mm256_blendv_pd(no, yes, m); }
  static N count(N n, M m) { return _mm256_sub_epi64(n, _mm256_castpd_si256(m)); }
  static M below(N n, I limit) { return _mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_set1_epi64x(limit), n)); }
  static void store_counts(I* p, N n) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), n); }
  static void compress(T* p, M m, V v) {
    const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(kPack.of4[bits(m)]));
    const __m256 packed = _mm256_permutevar8x32_ps(_mm256_castpd_ps(v), order);
    _mm256_storeu_pd(p, _mm256_castps_pd(packed));
  }
  static void compress_ids(int32_t* p, M m, const int32_t* ids) {
    const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(kPack.of8[bits(m)]));
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(ids));
    const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(v), order);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static T hmax(V v) {
    const __m128d h = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_max_sd(h, _mm_unpackhi_pd(h, h)));
  }
  static T hmin(V v) {
    const __m128d h = _mm_min_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_min_sd(h, _mm_unpackhi_pd(h, h)));
  }
};

#else

// 16 bytes without a name for an instruction set: SSE2 on x86-64, NEON on ARM, plain code elsewhere.
template <class Number, class Integer, int Lanes>
struct Baseline {
  using T = Number;
  typedef Number V __attribute__((vector_size(16)));
  typedef Integer M __attribute__((vector_size(16)));
  using I = Integer;
  using N = M;
  static constexpr int W = Lanes;
  static constexpr bool kPacks = false;
  static V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static V loadu(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, V v) { *reinterpret_cast<V*>(p) = v; }
  static void storeu(T* p, V v) { std::memcpy(p, &v, sizeof v); }
  static V set(T s) { return s - V{}; }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static M lt(V a, V b) { return a < b; }
  static M le(V a, V b) { return a <= b; }
  static M eq(V a, V b) { return a == b; }
  static M no(M m) { return ~m; }
  static V select(M m, V yes, V no) { return m ? yes : no; }
  static N count(N n, M m) { return n - m; }
  static M below(N n, I limit) { return n < limit; }
  static void store_counts(I* p, N n) { *reinterpret_cast<N*>(p) = n; }
#if defined(__SSE2__)
  static V min(V a, V b) {
    if constexpr (Lanes == 4) return _mm_min_ps(a, b);
    else return _mm_min_pd(a, b);
  }
  static V max(V a, V b) {
    if constexpr (Lanes == 4) return _mm_max_ps(a, b);
    else return _mm_max_pd(a, b);
  }
  static uint32_t bits(M m) {
    if constexpr (Lanes == 4) return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(m)));
    else return static_cast<uint32_t>(_mm_movemask_pd(reinterpret_cast<__m128d>(m)));
  }
#else
  static V min(V a, V b) { return a < b ? a : b; }
  static V max(V a, V b) { return a > b ? a : b; }
  static uint32_t bits(M m) {
    uint32_t set = 0;
    for (int lane = 0; lane < W; ++lane) set |= (m[lane] ? 1u : 0u) << lane;
    return set;
  }
#endif
  static void compress(T* p, M m, V v) {
    for (uint32_t set = bits(m); set; set &= set - 1) *p++ = v[__builtin_ctz(set)];
  }
  static void compress_ids(int32_t* p, M m, const int32_t* ids) {
    for (uint32_t set = bits(m); set; set &= set - 1) *p++ = ids[__builtin_ctz(set)];
  }
  static T hmax(V v) {
    T best = v[0];
    for (int lane = 1; lane < W; ++lane) best = v[lane] > best ? v[lane] : best;
    return best;
  }
  static T hmin(V v) {
    T best = v[0];
    for (int lane = 1; lane < W; ++lane) best = v[lane] < best ? v[lane] : best;
    return best;
  }
};
using F32 = Baseline<float, int32_t, 4>;
using F64 = Baseline<double, int64_t, 2>;

#endif
#endif

template <class T>
struct SimdOf;
template <>
struct SimdOf<float> {
  using F = F32;
};
template <>
struct SimdOf<double> {
  using F = F64;
};

// ((dx * dx + dy * dy) + dz * dz), the one formula of every backend. The build forbids contraction.
template <class F>
static inline typename F::V dist2(
    const typename F::T* x, const typename F::T* y, const typename F::T* z, typename F::V qx,
    typename F::V qy, typename F::V qz) {
  const auto dx = F::sub(F::load(x), qx), dy = F::sub(F::load(y), qy), dz = F::sub(F::load(z), qz);
  return F::add(F::add(F::mul(dx, dx), F::mul(dy, dy)), F::mul(dz, dz));
}

}  // namespace PCL_ISA

// Arrays of the kernels: 64-byte aligned, not initialised, given back at the end of a call.
#pragma once

#include "memory.h"

namespace PCL_ISA {

// How far apart arrays of n numbers that are used together should lie: at multiples of 4096 bytes they would
// compete for the same lines of the cache.
static inline int64_t apart(int64_t n) { return (n + 1023) / 1024 * 1024 + 80; }

template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t size) { resize(size); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { give_memory(data_, bytes_); }

  // Keeps nothing of what was there.
  void resize(int64_t size) {
    give_memory(data_, bytes_);
    data_ = nullptr;
    bytes_ = (static_cast<std::size_t>(size) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(take_memory(bytes_));
  }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace PCL_ISA

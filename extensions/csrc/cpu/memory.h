// Memory of the kernels: 64-byte aligned, not initialised, given back at the end of a call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace PCL_ISA {

template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t size) { resize(size); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { std::free(data_); }

  // Keeps nothing of what was there, unless the memory is already large enough.
  void resize(int64_t size) {
    if (size <= size_) return;
    std::free(data_);
    size_ = 0;
    const std::size_t bytes = (static_cast<std::size_t>(size) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = size;
  }
  void swap(Array& other) {
    T* data = data_;
    data_ = other.data_;
    other.data_ = data;
    const int64_t size = size_;
    size_ = other.size_;
    other.size_ = size;
  }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace PCL_ISA

// The memory that threads keep between calls, and large pages for large clouds.

#include "memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pcl_clora {
namespace {

constexpr std::size_t kKeptBytes = std::size_t{8} << 20;  // per thread
constexpr int kKeptBlocks = 16;
constexpr std::size_t kLargePage = std::size_t{2} << 20;

struct Kept {
  void* memory[kKeptBlocks];
  std::size_t bytes[kKeptBlocks];
  int count = 0;
  std::size_t total = 0;

  ~Kept() {
    for (int i = 0; i < count; ++i) std::free(memory[i]);
  }
};

thread_local Kept kept;

void* allocate(std::size_t bytes) {
  const bool is_large = bytes >= 2 * kLargePage;
  const std::size_t alignment = is_large ? kLargePage : 64;
  void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (is_large) madvise(memory, bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  return memory;
}

// Sizes in steps of an eighth, so that clouds of about one size share memory.
std::size_t rounded(std::size_t bytes) {
  std::size_t step = 64;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

void forget(int at) {
  kept.total -= kept.bytes[at];
  --kept.count;
  for (int i = at; i < kept.count; ++i) {
    kept.memory[i] = kept.memory[i + 1];
    kept.bytes[i] = kept.bytes[i + 1];
  }
}

}  // namespace

void* take_memory(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  bytes = rounded(bytes);
  for (int i = kept.count - 1; i >= 0; --i) {
    if (kept.bytes[i] != bytes) continue;
    void* memory = kept.memory[i];
    forget(i);
    return memory;
  }
  return allocate(bytes);
}

void give_memory(void* memory, std::size_t bytes) {
  if (memory == nullptr) return;
  bytes = rounded(bytes);
  if (bytes > kKeptBytes) return std::free(memory);
  while (kept.count == kKeptBlocks || kept.total + bytes > kKeptBytes) {
    std::free(kept.memory[0]);
    forget(0);
  }
  kept.memory[kept.count] = memory;
  kept.bytes[kept.count] = bytes;
  kept.total += bytes;
  ++kept.count;
}

}  // namespace pcl_clora

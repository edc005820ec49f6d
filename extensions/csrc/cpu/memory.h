// Memory of the kernels, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pcl_clora {

// A thread keeps some of the memory that its calls gave back: the pages of fresh memory cost as much as the work
// on a cloud of some thousand points. Throws std::bad_alloc.
void* take_memory(std::size_t bytes);
void give_memory(void* memory, std::size_t bytes);

}  // namespace pcl_clora

// How a kernel says no.
#pragma once

#include <sstream>
#include <stdexcept>

namespace pcl {

// Python sees a RuntimeError whose text starts with "ValueError: "; pcl_clora.ops turns it into a ValueError.
// STD_TORCH_CHECK would put the name of the C++ function and file before the text.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  text << "ValueError: ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

}  // namespace pcl

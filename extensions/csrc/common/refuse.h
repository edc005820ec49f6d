// How a kernel says no.
#pragma once

#include <sstream>
#include <stdexcept>

namespace pcl_clora {

// Some releases of torch turn every exception into Python's RuntimeError, others each kind of the standard library
// into the Python exception that is nearest. A runtime_error becomes a RuntimeError under both.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Python sees a RuntimeError whose text starts with "ValueError: "; pcl_clora.ops turns it into a ValueError.
// STD_TORCH_CHECK would put the name of the C++ function and file before the text.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  text << "ValueError: ";
  (text << ... << parts);
  throw Refusal(text.str());
}

}  // namespace pcl_clora

// The host of the launchers (launch.cuh) on a CUDA device, by the CUDA runtime and torch's stable C interface.
#pragma once
#include <cuda_runtime.h>

#include <array>
#include <optional>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../common/tensors.h"
#include "launch.cuh"

// A CPU build of torch has no such function; weak, so that the library loads beside it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace pcl_clora {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline void check_cuda(cudaError_t error, const char* what) {
    if (error != cudaSuccess) cudaGetLastError();  // else the next launch would report it again
    STD_TORCH_CHECK(error == cudaSuccess, what, " failed: ", cudaGetErrorString(error));
}

// Makes the device of a tensor current while it lives, and launches on the stream that is current there.
class CudaHost {
  public:
    explicit CudaHost(const Tensor& on) : like_(on), guard_(device_of(on)) {
        const int device = on.get_device_index();
        STD_TORCH_CHECK(
            aoti_torch_get_current_cuda_stream != nullptr,
            "this build of torch has no CUDA; move the tensors to the CPU, or install a CUDA build of torch.");
        void* stream = nullptr;
        STD_TORCH_CHECK(
            aoti_torch_get_current_cuda_stream(device, &stream) == 0, "the current stream of cuda:", device,
            " could not be had.");
        stream_ = static_cast<cudaStream_t>(stream);
        // The runtime linked into this library is not torch's: tell it too.
        check_cuda(cudaSetDevice(device), "cudaSetDevice");
    }
    CudaHost(const CudaHost&) = delete;

    Limits limits() const { return {}; }

    template <class Task>
    void launch(void (*kernel)(Task), dim3 grid, dim3 threads, const Task& task) {
        kernel<<<grid, threads, 0, stream_>>>(task);
        check_cuda(cudaGetLastError(), "launching a kernel");
    }

    template <class Task>
    void launch_cooperative(void (*kernel)(Task), dim3 grid, dim3 threads, const Task& task) {
        Task copy = task;
        void* arguments[] = {&copy};
        check_cuda(
            cudaLaunchCooperativeKernel(reinterpret_cast<void*>(kernel), grid, threads, arguments, 0, stream_),
            "launching a cooperative kernel");
    }

    template <class Task>
    int64_t resident_blocks(void (*kernel)(Task), int threads) const {
        int device = 0, processors = 0, cooperative = 0, each = 0;
        check_cuda(cudaGetDevice(&device), "cudaGetDevice");
        check_cuda(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device), "reading the device");
        check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "reading the device");
        check_cuda(
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, reinterpret_cast<void*>(kernel), threads, 0),
            "reading the occupancy");
        return cooperative != 0 ? int64_t{processors} * each : 0;
    }

    template <class T>
    T* scratch(int64_t count) {
        owned_.push_back(new_empty(like_, {count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte));
        return static_cast<T*>(owned_.back().mutable_data_ptr());
    }

    // torch's own sort. Its stable-API function asks for a later torch than this library does.
    Sorted sort(const Tensor& idx, int64_t clouds, int64_t positions) {
        const Tensor rows = torch::stable::view(idx, {clouds, positions});
        std::array<StableIValue, 4> stack{
            torch::stable::detail::from(rows), torch::stable::detail::from(std::optional<bool>(true)),
            torch::stable::detail::from(int64_t{1}), torch::stable::detail::from(false)};
        STD_TORCH_CHECK(
            torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION) == 0, "sorting failed.");
        owned_.push_back(torch::stable::detail::to<Tensor>(stack[0]));
        owned_.push_back(torch::stable::detail::to<Tensor>(stack[1]));
        const auto data = [](const Tensor& tensor) { return static_cast<const int64_t*>(tensor.const_data_ptr()); };
        return {data(owned_[owned_.size() - 2]), data(owned_.back())};
    }

  private:
    static int32_t device_of(const Tensor& tensor) {
        STD_TORCH_CHECK(tensor.is_cuda(), "this kernel needs CUDA tensors; move them with .to(\"cuda\").");
        return tensor.get_device_index();
    }

    Tensor like_;
    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_ = nullptr;
    std::vector<Tensor> owned_;  // torch reuses their memory only behind the work on this stream
};

// Calls function(T{}) with T the dtype of the tensor, which was checked.
template <class Function>
void with_type(const Tensor& tensor, const Function& function) {
    if (tensor.scalar_type() == ScalarType::Float) {
        function(float{});
    } else {
        function(double{});
    }
}

template <class T>
const T* data(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* out(const Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

// Lengths as the kernels want them. Their values are not looked at: that would wait for the device.
inline MaybeTensor checked_lengths(const MaybeTensor& lengths, const Tensor& points) {
    if (!lengths) return lengths;
    check_index(*lengths, "lengths");
    if (lengths->dim() != 1 || lengths->size(0) != points.size(0)) {
        refuse(
            "lengths has shape ", shape_text(*lengths), "; expected (", points.size(0),
            ",), one number per cloud.");
    }
    check_same(points, "points", *lengths, "lengths", false);
    return contiguous(*lengths);
}

template <class T>
const T* data(const MaybeTensor& tensor) {
    return tensor ? data<T>(*tensor) : nullptr;
}

}  // namespace pcl_clora

"""The CUDA kernels of the ops, run on the CPU without a change: see `emulated` and cuda_emulation.h."""

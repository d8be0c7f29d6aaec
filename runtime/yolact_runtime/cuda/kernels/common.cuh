// Shared by all kernels. Compiles with NVRTC for compute capability 5.0 and later, and in the tests with g++
// (CUDA_ON_CPU), where a header of the tests provides the CUDA language.
#pragma once

#ifdef CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cuda_fp16.h>
// Dynamic shared memory as an array: DYNAMIC_SHARED(float, rows);
#define DYNAMIC_SHARED(type, name)                                      \
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[]; \
    type *name = reinterpret_cast<type *>(dynamic_shared_bytes)
#endif

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }

// False for infinities and NaN.
__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) <= 3.402823466e38f; }

// Whether the bit of a class is set: bit i of words[b] is that of class 32 b + i.
__device__ __forceinline__ bool is_wanted(const unsigned *words, int cls) { return words[cls / 32] >> cls % 32 & 1; }

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, step));
    }
    return value;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(kFullWarp, value, step);
    }
    return value;
}

// Sum over the lanes up to and including this one.
template <typename T>
__device__ __forceinline__ T warp_inclusive_sum(T value) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
        const T before = __shfl_up_sync(kFullWarp, value, step);
        if (lane >= step) value += before;
    }
    return value;
}

// Sum over the threads before this one, and over the whole block (THREADS x 1 x 1). All threads must call it, and
// may call it again immediately.
template <int THREADS>
__device__ __forceinline__ int block_exclusive_sum(int value, int &total) {
    static_assert(THREADS % kWarpSize == 0 && THREADS <= 1024, "whole warps");
    constexpr int kWarps = THREADS / kWarpSize;
    __shared__ int sums[kWarps];
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const int inclusive = warp_inclusive_sum(value);
    if (lane == kWarpSize - 1) sums[warp] = inclusive;
    __syncthreads();
    const int mine = lane < kWarps ? sums[lane] : 0;
    const int scanned = warp_inclusive_sum(mine);
    const int before = __shfl_sync(kFullWarp, scanned - mine, warp);
    total = __shfl_sync(kFullWarp, scanned, kWarpSize - 1);
    __syncthreads();
    return before + inclusive - value;
}

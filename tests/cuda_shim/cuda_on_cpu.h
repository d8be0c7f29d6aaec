// The part of the CUDA language that the kernels use, for g++. Names and meanings are CUDA's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// Blocks run one after the other, so a function's static variable is its block's.
#define __shared__ static
#define DYNAMIC_SHARED(type, name)                                                                \
    type *name = reinterpret_cast<type *>(                                                        \
        (reinterpret_cast<uintptr_t>(::cuda_on_cpu::block->shared.data()) + 15) & ~uintptr_t(15))

#define threadIdx (::cuda_on_cpu::current->index)
#define blockIdx (::cuda_on_cpu::block->block_index)
#define blockDim (::cuda_on_cpu::block->block_size)
#define gridDim (::cuda_on_cpu::block->grid_size)

// ---- barriers and warp operations ----

#define CUDA_ON_CPU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_ON_CPU_SITE) { cuda_on_cpu::barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_SITE) {
    cuda_on_cpu::warp_operation(cuda_on_cpu::Operation::kSync, mask, 0, 0, file, line);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::warp_operation(cuda_on_cpu::Operation::kBallot, mask, predicate != 0, 0, file, line);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}

namespace cuda_on_cpu {

template <typename T>
T shuffle(unsigned mask, T value, int source, const char *file, int line) {
    static_assert(sizeof(T) <= 8, "as in CUDA");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = warp_operation(Operation::kShuffle, mask, bits, source, file, line);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

inline int lane() { return current->number % 32; }

}  // namespace cuda_on_cpu

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_SITE) {
    const int first = cuda_on_cpu::lane() & ~(width - 1);
    return cuda_on_cpu::shuffle(mask, value, first + (source & (width - 1)), file, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_SITE) {
    const int lane = cuda_on_cpu::lane(), first = lane & ~(width - 1), source = lane - int(delta);
    return cuda_on_cpu::shuffle(mask, value, source < first ? lane : source, file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_SITE) {
    const int lane = cuda_on_cpu::lane(), last = lane | (width - 1), source = lane + int(delta);
    return cuda_on_cpu::shuffle(mask, value, source > last ? lane : source, file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CUDA_ON_CPU_SITE) {
    const int lane = cuda_on_cpu::lane(), last = lane | (width - 1), source = lane ^ lane_mask;
    return cuda_on_cpu::shuffle(mask, value, source > last ? lane : source, file, line);
}

// ---- integers ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// ---- atomics: threads only change places at barriers and warp operations ----

template <typename T, typename Function>
T cuda_on_cpu_replace(T *address, Function function) {
    const T old = *address;
    *address = function(old);
    return old;
}
template <typename T>
T atomicAdd(T *address, T value) {
    return cuda_on_cpu_replace(address, [=](T old) { return T(old + value); });
}
template <typename T>
T atomicMax(T *address, T value) {
    return cuda_on_cpu_replace(address, [=](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T *address, T value) {
    return cuda_on_cpu_replace(address, [=](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T *address, T value) {
    return cuda_on_cpu_replace(address, [=](T old) { return T(old | value); });
}
template <typename T>
T atomicExch(T *address, T value) {
    return cuda_on_cpu_replace(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T *address, T compare, T value) {
    return cuda_on_cpu_replace(address, [=](T old) { return old == compare ? value : old; });
}

// ---- floats ----

template <typename T>
T __ldg(const T *address) {
    return *address;
}
template <typename To, typename From>
To cuda_on_cpu_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}
inline unsigned __float_as_uint(float x) { return cuda_on_cpu_bits<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu_bits<float>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu_bits<float>(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __float2int_ru(float x) { return int(ceilf(x)); }
inline int __float2int_rz(float x) { return int(x); }

struct __half {
    _Float16 value;
};
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }
inline __half __float2half(float x) { return __float2half_rn(x); }

// ---- vectors ----

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(4) __half2 { __half x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }

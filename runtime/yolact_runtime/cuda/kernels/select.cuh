// Selection of the largest keys by a block, without sorting the rest.
//
// A key is a value followed by the complement of a position. So keys are unique, and of equal values the one at the
// lower position has the larger key. Values are below 2^30, like the bits of floats from 0 to 1: the first digit of
// a key then is seven bits of the exponent and one of the mantissa, which spreads scores well.
#pragma once

#include "common.cuh"

constexpr int kValueShift = 34;

__device__ __forceinline__ unsigned long long join_key(unsigned value, int position) {
    return static_cast<unsigned long long>(value) << kValueShift | ~static_cast<unsigned>(position);
}
__device__ __forceinline__ unsigned key_value(unsigned long long key) {
    return static_cast<unsigned>(key >> kValueShift);
}
__device__ __forceinline__ int key_position(unsigned long long key) {
    return static_cast<int>(~static_cast<unsigned>(key));
}

// The threshold that exactly `number` of the unique keys key(0) .. key(count - 1) reach, for 1 <= number <= count.
// Works digit by digit from the top: a histogram in shared memory shows the digit of the last selected key. Ends when
// all keys with the digits so far are selected. All threads of the block (THREADS x 1 x 1) must call it; all get the
// result.
template <int THREADS, typename Key>
__device__ __forceinline__ unsigned long long radix_select(int count, int number, Key key) {
    constexpr int kBits = 8;
    constexpr int kBins = 1 << kBits;
    constexpr int kBinsOfLane = kBins / kWarpSize;
    __shared__ int histogram[kBins];
    __shared__ int found[3];  // the digit, how many keys have larger ones, how many have it
    unsigned long long prefix = 0;
    for (int shift = 64 - kBits; shift >= 0; shift -= kBits) {
        for (int bin = threadIdx.x; bin < kBins; bin += THREADS) histogram[bin] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += THREADS) {
            // The digits above this one; at the top there are none, and no shift by 64.
            const unsigned long long digits = key(i) >> shift;
            if (digits >> kBits == prefix) atomicAdd(&histogram[digits & (kBins - 1)], 1);
        }
        __syncthreads();
        if (threadIdx.x < kWarpSize) {
            const int top = kBins - 1 - threadIdx.x * kBinsOfLane;  // the first lane has the largest digits
            int sum = 0;
#pragma unroll
            for (int j = 0; j < kBinsOfLane; ++j) sum += histogram[top - j];
            const int through = warp_inclusive_sum(sum);
            int above = through - sum;
            if (above < number && number <= through) {
                int digit = top;
                while (above + histogram[digit] < number) above += histogram[digit--];
                found[0] = digit;
                found[1] = above;
                found[2] = histogram[digit];
            }
        }
        __syncthreads();
        prefix = prefix << kBits | static_cast<unsigned>(found[0]);
        number -= found[1];
        if (found[2] == number) return prefix << shift;
    }
    return prefix;
}

// How many of the keys are larger.
__device__ __forceinline__ int rank_among(const unsigned long long *keys, int count, unsigned long long key) {
    int rank = 0;
#pragma unroll 4
    for (int i = 0; i < count; ++i) rank += keys[i] > key;
    return rank;
}

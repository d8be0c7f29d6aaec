// Images to the network's input: resized with exactly the result of cv2.resize (INTER_LINEAR, uint8), then normalised
// unless the output is uint8.
#include "common.cuh"

constexpr int kTileColumns = 32;
constexpr int kTileRows = 8;

// The two source pixels of a target pixel along one axis, and their weights in 2048ths.
struct Tap {
    int low, high, weight_low, weight_high;
};

// OpenCV's arithmetic: positions in double, rounded to float, and weights in 2048ths. Beyond the outermost column,
// that column is used alone; beyond the outermost row, the row is blended with itself, which rounds twice.
__device__ Tap tap(int target, int targets, int sources, bool column) {
    const double scale = 1.0 / (double(targets) / double(sources));
    const float place = float(__dadd_rn(__dmul_rn(target + 0.5, scale), -0.5));
    int low = int(floorf(place));
    float weight = place - float(low);
    if (column && (low < 0 || low >= sources - 1)) weight = 0.0f;
    return {min(max(low, 0), sources - 1), min(max(low + 1, 0), sources - 1),
            __float2int_rn((1.0f - weight) * 2048.0f), __float2int_rn(weight * 2048.0f)};
}

__device__ __forceinline__ int blend(int above, int below, Tap rows) {
    return ((rows.weight_low * above >> 16) + (rows.weight_high * below >> 16) + 2) >> 2;
}

// pixels: BGR bytes of all images, row by row without gaps; table (N, 3): offset in bytes, height and width of each
// image. Target: (N, rows, columns, 3) BGR for uint8, else (x - mean) / std as (N, 3, rows, columns) RGB.
// Grid: tiles across, tiles down, images.
template <typename T>
__global__ void __launch_bounds__(kTileColumns *kTileRows)
    resize(const unsigned char *pixels, const long long *table, int rows, int columns, float mean_b, float mean_g,
           float mean_r, float std_b, float std_g, float std_r, T *target) {
    __shared__ Tap taps[kTileColumns + kTileRows];
    const long long *image = table + 3 * blockIdx.z;
    const int height = int(image[1]), width = int(image[2]);
    const int left = blockIdx.x * kTileColumns, top = blockIdx.y * kTileRows;
    const int thread = threadIdx.y * kTileColumns + threadIdx.x;
    // Double precision is slow on most GPUs, so a block computes each position once.
    if (thread < kTileColumns) {
        taps[thread] = tap(left + thread, columns, width, true);
    } else if (thread < kTileColumns + kTileRows) {
        taps[thread] = tap(top + thread - kTileColumns, rows, height, false);
    }
    __syncthreads();
    const int x = left + threadIdx.x, y = top + threadIdx.y;
    if (x >= columns || y >= rows) return;
    const Tap across = taps[threadIdx.x], down = taps[kTileColumns + threadIdx.y];
    const unsigned char *source = pixels + image[0];
    const unsigned char *above = source + size_t(down.low) * width * 3;
    const unsigned char *below = source + size_t(down.high) * width * 3;
    int values[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        const int low = 3 * across.low + c, high = 3 * across.high + c;
        values[c] = blend((above[low] * across.weight_low + above[high] * across.weight_high) >> 4,
                          (below[low] * across.weight_low + below[high] * across.weight_high) >> 4, down);
    }
    const size_t place = size_t(y) * columns + x, plane = size_t(rows) * columns;
    if constexpr (sizeof(T) == 1) {
        T *bytes = target + (blockIdx.z * plane + place) * 3;
#pragma unroll
        for (int c = 0; c < 3; ++c) bytes[c] = T(values[c]);
    } else {
        T *planes = target + blockIdx.z * 3 * plane + place;
        planes[0] = from_float<T>((float(values[2]) - mean_r) / std_r);
        planes[plane] = from_float<T>((float(values[1]) - mean_g) / std_g);
        planes[2 * plane] = from_float<T>((float(values[0]) - mean_b) / std_b);
    }
}

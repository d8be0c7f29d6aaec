// How many detections a result can show: the others need no mask.
#include "common.cuh"

// visible (N,): for each image the number of first rows that contain all visible ones. A row is visible if its
// class is wanted, its numbers are finite and its score exceeds limits[0], up to limits[1] rows. mask_boxes (N, K, 4):
// the boxes of these first rows, NaN for those that are not visible, which thereby get no mask. Grid: images; a warp
// each.
__global__ void __launch_bounds__(kWarpSize)
    count_visible(const float *boxes, const float *coefficients, const float *scores, const float *mask_scores,
                  const int *count, const int *classes, const unsigned *wanted, const float *limits, int detections,
                  int depth, int known, int *visible, float *mask_boxes) {
    const int image = blockIdx.x;
    const float threshold = limits[0];
    const int most = int(limits[1]), live = min(count[image], detections);
    int before = 0, stop = 0;
    for (int first = 0; first < live && before < most; first += kWarpSize) {
        const int row = first + int(threadIdx.x);
        const size_t place = size_t(image) * detections + row;
        // A class beyond those known has no bit; the host refuses it.
        bool good = row < live && unsigned(classes[place]) < unsigned(known) && is_wanted(wanted, classes[place]) &&
                    scores[place] > threshold && is_finite(scores[place]) && is_finite(mask_scores[place]);
        for (int i = 0; good && i < 4; ++i) good = is_finite(boxes[place * 4 + i]);
        for (int i = 0; good && i < depth; ++i) good = is_finite(coefficients[place * depth + i]);
        for (int i = 0; row < live && i < 4; ++i) {
            mask_boxes[place * 4 + i] = good ? boxes[place * 4 + i] : __uint_as_float(0x7fffffffu);
        }
        const int together = before + warp_inclusive_sum(int(good));
        if (good && together <= most) stop = row + 1;
        before = __shfl_sync(kFullWarp, together, kWarpSize - 1);
    }
    stop = int(warp_max(float(stop)));
    if (threadIdx.x == 0) visible[image] = stop;
}

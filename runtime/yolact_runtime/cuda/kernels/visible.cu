// Which detections anybody wants to see: the others need no mask.
#include "common.cuh"

// wanted (N,): of each image as many rows, from the first on, as hold all that are asked for: those whose numbers
// are finite and whose score exceeds limits[0], but no more than limits[1] of them. Grid: images; a warp each.
__global__ void __launch_bounds__(kWarpSize)
    count_wanted(const float *boxes, const float *coefficients, const float *scores, const float *mask_scores,
                 const int *count, const float *limits, int detections, int depth, int *wanted) {
    const int image = blockIdx.x;
    const float threshold = limits[0];
    const int most = int(limits[1]), live = min(count[image], detections);
    int before = 0, stop = 0;
    for (int first = 0; first < live && before < most; first += kWarpSize) {
        const int row = first + int(threadIdx.x);
        const size_t place = size_t(image) * detections + row;
        bool good = row < live && scores[place] > threshold && is_finite(scores[place]) &&
                    is_finite(mask_scores[place]);
        for (int i = 0; good && i < 4; ++i) good = is_finite(boxes[place * 4 + i]);
        for (int i = 0; good && i < depth; ++i) good = is_finite(coefficients[place * depth + i]);
        const int together = before + warp_inclusive_sum(int(good));
        if (good && together <= most) stop = row + 1;
        before = __shfl_sync(kFullWarp, together, kWarpSize - 1);
    }
    stop = int(warp_max(float(stop)));
    if (threadIdx.x == 0) wanted[image] = stop;
}

// Raw heads to detections: box decoding and fast NMS (YOLACT, Sec. 5), in four launches. plans/detection.py plans
// them; docs/kernels.md explains the division.
//
// Equal inputs give bit-identical outputs: atomics only count, and results are sorted by unique keys.
#include "select.cuh"

constexpr float kCentreVariance = 0.1f;
constexpr float kSizeVariance = 0.2f;

constexpr int kFilterThreads = 256;
constexpr int kFilterRows = 4;     // priors of a warp, so that a block's priors fill one 32-bit word
constexpr int kFilterColumns = 3;  // logits of a prior that a lane loads at once
constexpr int kListThreads = 1024;
constexpr int kNmsThreads = 256;
constexpr int kNmsCache = 3072;  // scores of a class kept in shared memory
constexpr int kBestThreads = 1024;
constexpr int kBestCache = 8192;

// Corners x1 y1 x2 y2 of a prior (cx cy w h) moved by its offsets.
template <typename Loc>
__device__ __forceinline__ float4 decode_box(const Loc *offsets, float4 prior) {
    const float width = prior.z * expf(to_float(offsets[2]) * kSizeVariance);
    const float height = prior.w * expf(to_float(offsets[3]) * kSizeVariance);
    const float x = prior.x + to_float(offsets[0]) * kCentreVariance * prior.z - width / 2;
    const float y = prior.y + to_float(offsets[1]) * kCentreVariance * prior.w - height / 2;
    return make_float4(x, y, x + width, y + height);
}

__device__ __forceinline__ bool is_finite(float4 box) {
    return is_finite(box.x) && is_finite(box.y) && is_finite(box.z) && is_finite(box.w);
}

// The softmax of one logit, from its row's maximum (x) and sum of powers (y).
__device__ __forceinline__ float softmax(float logit, float2 normaliser) {
    return expf(logit - normaliser.x) / normaliser.y;
}

// Whether two boxes overlap by more than the threshold; never where their union has no area.
__device__ __forceinline__ bool overlap(float4 a, float4 b, float threshold) {
    const float width = fmaxf(fminf(a.z, b.z) - fmaxf(a.x, b.x), 0.0f);
    const float height = fmaxf(fminf(a.w, b.w) - fmaxf(a.y, b.y), 0.0f);
    const float intersection = width * height;
    if (!(intersection > 0.0f)) return false;
    const float areas = (a.z - a.x) * (a.w - a.y) + (b.z - b.x) * (b.w - b.y);
    const float area = areas - intersection;
    return area > 0.0f && intersection / area > threshold;
}

// One pass over the logits. A warp computes the best foreground score of kFilterRows priors, and the box if the
// score exceeds the threshold. Bit i of words[b] is set if prior 32 b + i is a candidate; only candidates get
// normalisers and boxes. NaN fails each comparison, so a row with a NaN is no candidate.
template <typename Loc, typename Logit>
__global__ __launch_bounds__(kFilterThreads) void filter_scores(
    const Loc *__restrict__ loc,         // (N, P, 4)
    const Logit *__restrict__ logits,    // (N, P, C+1), background first
    const float4 *__restrict__ priors,   // (P)
    int prior_count, int logit_count, float score_threshold,
    unsigned *__restrict__ words,        // (N, ceil(P / 32))
    float2 *__restrict__ normalisers,    // (N, P)
    float4 *__restrict__ boxes) {        // (N, P)
    static_assert(kFilterThreads / kWarpSize * kFilterRows == 32, "a block's priors are the bits of a word");
    __shared__ unsigned warp_bits[kFilterThreads / kWarpSize];
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const int first = blockIdx.x * 32 + warp * kFilterRows;
    const float infinity = __uint_as_float(0x7f800000u);
    const size_t image = size_t(blockIdx.y) * prior_count;
    // exp(best - background) bounds the best score from above, so most priors need no softmax.
    const float margin = logf(fmaxf(score_threshold, 1e-30f)) - 1e-3f;

    float2 normaliser = make_float2(0.0f, 0.0f);  // lane r's is of the warp's prior r
    bool takes_part = false;
    if (first < prior_count) {
        float best[kFilterRows], background[kFilterRows];
        const Logit *rows[kFilterRows];
#pragma unroll
        for (int r = 0; r < kFilterRows; ++r) {
            // Past the end, load the last prior, so that no load waits for a branch.
            rows[r] = logits + (image + min(first + r, prior_count - 1)) * logit_count;
            best[r] = background[r] = -infinity;
        }
        for (int start = lane; start < logit_count; start += kFilterColumns * kWarpSize) {
            float values[kFilterRows][kFilterColumns];
#pragma unroll
            for (int r = 0; r < kFilterRows; ++r) {
#pragma unroll
                for (int j = 0; j < kFilterColumns; ++j) {
                    const int column = start + j * kWarpSize;
                    values[r][j] = column < logit_count ? to_float(rows[r][column]) : -infinity;
                }
            }
#pragma unroll
            for (int r = 0; r < kFilterRows; ++r) {
#pragma unroll
                for (int j = 0; j < kFilterColumns; ++j) {
                    if (start + j == 0) {
                        background[r] = values[r][j];
                    } else {
                        best[r] = fmaxf(best[r], values[r][j]);
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kFilterRows; ++r) {
            best[r] = warp_max(best[r]);
            background[r] = __shfl_sync(kFullWarp, background[r], 0);
            if (first + r < prior_count && best[r] - background[r] >= margin) {
                const float most = fmaxf(best[r], background[r]);
                float sum = 0.0f;
                for (int column = lane; column < logit_count; column += kWarpSize) {
                    sum += expf(to_float(rows[r][column]) - most);
                }
                const float2 both = make_float2(most, warp_sum(sum));
                if (lane == r && softmax(best[r], both) > score_threshold) {
                    normaliser = both;
                    takes_part = true;
                }
            }
        }
    }
    if (takes_part) {
        const size_t prior = image + first + lane;
        const float4 box = decode_box(loc + prior * 4, priors[first + lane]);
        takes_part = is_finite(box);
        boxes[prior] = box;
        normalisers[prior] = normaliser;
    }
    const unsigned bits = __ballot_sync(kFullWarp, takes_part);
    if (lane == 0) warp_bits[warp] = bits;
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned word = 0;
#pragma unroll
        for (int w = 0; w < kFilterThreads / kWarpSize; ++w) word |= warp_bits[w] << w * kFilterRows;
        words[size_t(blockIdx.y) * gridDim.x + blockIdx.x] = word;
    }
}

// The priors whose bits are set, in order. One block per image.
__global__ __launch_bounds__(kListThreads) void list_candidates(
    const unsigned *__restrict__ words,  // (N, W)
    int prior_count, int word_count,
    int *__restrict__ candidates,        // (N, P)
    int *__restrict__ candidate_counts) {  // (N)
    const unsigned *mine = words + size_t(blockIdx.x) * word_count;
    int *out = candidates + size_t(blockIdx.x) * prior_count;
    int written = 0;
    for (int start = 0; start < word_count; start += kListThreads) {
        const int position = start + threadIdx.x;
        unsigned word = position < word_count ? mine[position] : 0;
        int total;
        int slot = written + block_exclusive_sum<kListThreads>(__popc(word), total);
        for (; word; word &= word - 1) out[slot++] = position * 32 + __ffs(word) - 1;
        written += total;
    }
    if (threadIdx.x == 0) candidate_counts[blockIdx.x] = written;
}

// Fast NMS of one class of one image: removes a box if a better one of the class's best `top_k` overlaps it, even
// one that is itself removed. Writes the rest best first, as keys: the score's bits plus one, zero past the end.
template <typename Logit>
__device__ __forceinline__ void keep_of_class(
    const Logit *__restrict__ logits,         // (N, P, C+1)
    const float2 *__restrict__ normalisers,   // (N, P)
    const float4 *__restrict__ boxes,         // (N, P)
    const int *__restrict__ candidates,       // (N, P)
    const int *__restrict__ candidate_counts,  // (N)
    int prior_count, int logit_count, int top_k, int per_class, float iou_threshold,
    unsigned *__restrict__ kept_keys,         // (N, C, per_class)
    int *__restrict__ kept_priors) {          // (N, C, per_class), only where the key is not zero
    __shared__ unsigned cache[kNmsCache];
    __shared__ int taken;
    DYNAMIC_SHARED(float4, sorted_boxes);  // (top_k), then three more arrays of top_k
    unsigned long long *chosen = reinterpret_cast<unsigned long long *>(sorted_boxes + top_k);
    unsigned *sorted_keys = reinterpret_cast<unsigned *>(chosen + top_k);
    int *sorted_priors = reinterpret_cast<int *>(sorted_keys + top_k);

    const size_t image = size_t(blockIdx.y) * prior_count;
    const int *list = candidates + image;
    const int count = candidate_counts[blockIdx.y];
    const int column = blockIdx.x + 1;
    const auto score_bits = [&](int i) {
        const size_t prior = image + list[i];
        return __float_as_uint(softmax(to_float(logits[prior * logit_count + column]), normalisers[prior]));
    };
    for (int i = threadIdx.x; i < min(count, kNmsCache); i += kNmsThreads) cache[i] = score_bits(i);
    if (threadIdx.x == 0) taken = 0;
    __syncthreads();
    // Equal scores are ordered by prior, that is, by position in the list.
    const auto key = [&](int i) { return join_key(i < kNmsCache ? cache[i] : score_bits(i), i); };
    const unsigned long long cut = count > top_k ? radix_select<kNmsThreads>(count, top_k, key) : 0;
    for (int i = threadIdx.x; i < count; i += kNmsThreads) {
        const unsigned long long mine = key(i);
        if (mine >= cut) chosen[atomicAdd(&taken, 1)] = mine;
    }
    __syncthreads();

    const int rows = taken;
    for (int i = threadIdx.x; i < rows; i += kNmsThreads) {
        const int rank = rank_among(chosen, rows, chosen[i]);
        const int prior = list[key_position(chosen[i])];
        sorted_keys[rank] = key_value(chosen[i]);
        sorted_priors[rank] = prior;
        sorted_boxes[rank] = boxes[image + prior];
    }
    __syncthreads();

    // A warp compares one row with 32 better ones at a time. It stores no matrix and stops at the first overlap.
    const int lane = threadIdx.x % kWarpSize;
    for (int row = threadIdx.x / kWarpSize; row < rows; row += kNmsThreads / kWarpSize) {
        const float4 box = sorted_boxes[row];
        bool goes = false;
        for (int start = 0; start < row && !goes; start += kWarpSize) {
            const int better = start + lane;
            goes = __any_sync(kFullWarp, better < row && overlap(sorted_boxes[better], box, iou_threshold));
        }
        if (goes && lane == 0) sorted_priors[row] = -1;
    }
    __syncthreads();

    const size_t out = (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * per_class;
    int written = 0;
    for (int start = 0; start < rows; start += kNmsThreads) {
        const int row = start + threadIdx.x;
        const bool stays = row < rows && sorted_priors[row] >= 0;
        int total;
        const int slot = written + block_exclusive_sum<kNmsThreads>(stays, total);
        if (stays && slot < per_class) {
            kept_keys[out + slot] = sorted_keys[row] + 1;
            kept_priors[out + slot] = sorted_priors[row];
        }
        written += total;
    }
    for (int slot = written + threadIdx.x; slot < per_class; slot += kNmsThreads) kept_keys[out + slot] = 0;
}

template <typename Logit>
__global__ __launch_bounds__(kNmsThreads) void class_nms(
    const Logit *__restrict__ logits, const float2 *__restrict__ normalisers, const float4 *__restrict__ boxes,
    const int *__restrict__ candidates, const int *__restrict__ candidate_counts,
    int prior_count, int logit_count, int top_k, int per_class, float iou_threshold,
    unsigned *__restrict__ kept_keys, int *__restrict__ kept_priors) {
    keep_of_class(logits, normalisers, boxes, candidates, candidate_counts, prior_count, logit_count, top_k,
                  per_class, iou_threshold, kept_keys, kept_priors);
}

// The same, and nothing of classes that are not wanted.
template <typename Logit>
__global__ __launch_bounds__(kNmsThreads) void wanted_class_nms(
    const Logit *__restrict__ logits, const float2 *__restrict__ normalisers, const float4 *__restrict__ boxes,
    const int *__restrict__ candidates, const int *__restrict__ candidate_counts,
    const unsigned *__restrict__ wanted,  // (ceil(C / 32)), a bit for each class
    int prior_count, int logit_count, int top_k, int per_class, float iou_threshold,
    unsigned *__restrict__ kept_keys, int *__restrict__ kept_priors) {
    if (is_wanted(wanted, blockIdx.x)) {
        keep_of_class(logits, normalisers, boxes, candidates, candidate_counts, prior_count, logit_count, top_k,
                      per_class, iou_threshold, kept_keys, kept_priors);
        return;
    }
    unsigned *keys = kept_keys + (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * per_class;
    for (int slot = threadIdx.x; slot < per_class; slot += kNmsThreads) keys[slot] = 0;
}

// The best detections of all classes of an image, with their boxes and coefficients. One block per image.
template <typename Coefficient>
__global__ __launch_bounds__(kBestThreads) void keep_best(
    const unsigned *__restrict__ kept_keys,          // (N, C, per_class)
    const int *__restrict__ kept_priors,             // (N, C, per_class)
    const float4 *__restrict__ boxes,                // (N, P)
    const Coefficient *__restrict__ coefficients,    // (N, P, M)
    int prior_count, int class_count, int per_class, int coefficient_count, int limit,
    int *__restrict__ count,                         // (N)
    float4 *__restrict__ out_boxes,                  // (N, limit)
    float *__restrict__ out_scores,                  // (N, limit)
    int *__restrict__ out_classes,                   // (N, limit)
    float *__restrict__ out_coefficients) {          // (N, limit, M)
    __shared__ unsigned cache[kBestCache];
    __shared__ int taken;
    DYNAMIC_SHARED(unsigned long long, chosen);  // (limit), then the priors of the sorted rows
    int *sorted_priors = reinterpret_cast<int *>(chosen + limit);

    const int entries = class_count * per_class;
    const unsigned *keys = kept_keys + size_t(blockIdx.x) * entries;
    for (int i = threadIdx.x; i < min(entries, kBestCache); i += kBestThreads) cache[i] = keys[i];
    if (threadIdx.x == 0) taken = 0;
    __syncthreads();
    // Positions are ordered by class and then, for equal scores, by prior: that decides ties.
    const auto key = [&](int i) { return join_key(i < kBestCache ? cache[i] : keys[i], i); };
    const unsigned long long cut = entries > limit ? radix_select<kBestThreads>(entries, limit, key) : 0;
    for (int i = threadIdx.x; i < entries; i += kBestThreads) {
        const unsigned long long mine = key(i);
        if (mine >= cut && key_value(mine)) chosen[atomicAdd(&taken, 1)] = mine;
    }
    __syncthreads();

    const int rows = taken;
    const size_t out = size_t(blockIdx.x) * limit;
    const size_t image = size_t(blockIdx.x) * prior_count;
    for (int i = threadIdx.x; i < limit; i += kBestThreads) {
        if (i < rows) {
            const int rank = rank_among(chosen, rows, chosen[i]);
            const int position = key_position(chosen[i]);
            const int prior = kept_priors[size_t(blockIdx.x) * entries + position];
            sorted_priors[rank] = prior;
            out_boxes[out + rank] = boxes[image + prior];
            out_scores[out + rank] = __uint_as_float(key_value(chosen[i]) - 1);
            out_classes[out + rank] = position / per_class;
        } else {
            out_boxes[out + i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            out_scores[out + i] = 0.0f;
            out_classes[out + i] = 0;
        }
    }
    if (threadIdx.x == 0) count[blockIdx.x] = rows;
    __syncthreads();
    for (int i = threadIdx.x; i < limit * coefficient_count; i += kBestThreads) {
        const int row = i / coefficient_count;
        const size_t from = row < rows ? (image + sorted_priors[row]) * coefficient_count + i % coefficient_count : 0;
        out_coefficients[out * coefficient_count + i] = row < rows ? to_float(coefficients[from]) : 0.0f;
    }
}

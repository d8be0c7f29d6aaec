// Detections and prototypes to masks: sigmoid(P c) inside each box at prototype size (YOLACT, Sec. 3.3), bits at image
// size, and the edges of COCO's run-length encoding (RLE), which are the pixels where its runs start and end.
//
// Bits: word w of column x of a mask holds rows 32 w .. 32 w + 31 of that column, the lowest bit first. The words of
// a row of words are neighbours, so that a warp, whose threads have one column each, reads and writes contiguously.
#include "common.cuh"

constexpr int kTileColumns = 32;
constexpr int kTileRows = 8;
constexpr int kGroup = 16;  // detections that a block assembles
constexpr int kEdgeThreads = 256;

// Columns x0 .. x1 - 1 and rows y0 .. y1 - 1.
struct Rectangle {
    int x0, y0, x1, y1;
    __device__ bool empty() const { return x1 <= x0 || y1 <= y0; }
};

__device__ __forceinline__ int bound(float value, int size) {
    return int(ceilf(fminf(fmaxf(value, 0.0f), float(size))));
}

// The prototype cells that a box (relative x1 y1 x2 y2, in any order) keeps: those it covers and one more on each
// side. Rounds at each step like NumPy; a box with NaN keeps none.
__device__ Rectangle crop(const float *box, int rows, int columns) {
    const float xa = __fmul_rn(box[0], float(columns)), xb = __fmul_rn(box[2], float(columns));
    const float ya = __fmul_rn(box[1], float(rows)), yb = __fmul_rn(box[3], float(rows));
    if (xa != xa || xb != xb || ya != ya || yb != yb) return {0, 0, 0, 0};
    return {bound(__fsub_rn(fminf(xa, xb), 1.0f), columns), bound(__fsub_rn(fminf(ya, yb), 1.0f), rows),
            bound(__fadd_rn(fmaxf(xa, xb), 1.0f), columns), bound(__fadd_rn(fmaxf(ya, yb), 1.0f), rows)};
}

// The pixels of one axis that depend on the cells first .. stop - 1, and up to two more on each side.
__device__ __forceinline__ void seen(int first, int stop, int cells, int pixels, int &low, int &high) {
    low = max((2 * first - 1) * pixels / (2 * cells) - 1, 0);
    high = min((2 * stop + 1) * pixels / (2 * cells) + 1, pixels);
}

// The part of an image where a mask with these cells can be set.
__device__ Rectangle region_of(Rectangle cells, int rows, int columns, int height, int width) {
    Rectangle region = {0, 0, 0, 0};
    if (cells.empty()) return region;
    seen(cells.x0, cells.x1, columns, width, region.x0, region.x1);
    seen(cells.y0, cells.y1, rows, height, region.y0, region.y1);
    return region;
}

// Loads 16 bytes at once if the vectors of all cells are aligned to 16 bytes.
template <typename T, int M>
__device__ __forceinline__ void load_vector(const T *from, float (&to)[M]) {
    constexpr int kStep = M * sizeof(T) % 16 == 0 ? 16 / sizeof(T) : 1;
    struct __align__(kStep * sizeof(T)) Vector {
        T values[kStep];
    };
#pragma unroll
    for (int i = 0; i < M; i += kStep) {
        const Vector vector = *reinterpret_cast<const Vector *>(from + i);
#pragma unroll
        for (int j = 0; j < kStep; ++j) to[i + j] = to_float(vector.values[j]);
    }
}

// masks (N, K, rows, columns): sigmoid(prototypes . coefficients), 0 outside the boxes and past `count`; with
// fill = 0 these are not written. A thread keeps the prototypes of its cell for all detections of its group.
// Grid: tiles of cells, groups of detections, images.
template <typename T, int M>
__global__ void __launch_bounds__(kTileColumns *kTileRows)
    assemble_masks(const float *boxes, const float *coefficients, const int *count, const T *prototypes,
                   int detections, int rows, int columns, int fill, float *masks) {
    __align__(16) __shared__ float vectors[kGroup][M];
    __shared__ Rectangle crops[kGroup];
    const int image = blockIdx.z;
    const int first = blockIdx.y * kGroup;
    const int stop = min(first + kGroup, detections);
    const int live = min(count[image], detections);
    if (first >= live && !fill) return;
    const int thread = threadIdx.y * kTileColumns + threadIdx.x;
    for (int i = thread; i < (stop - first) * M; i += kTileColumns * kTileRows) {
        vectors[i / M][i % M] = coefficients[size_t(image * detections + first) * M + i];
    }
    if (thread < stop - first) {
        const int row = first + thread;
        crops[thread] = row < live ? crop(boxes + size_t(image * detections + row) * 4, rows, columns)
                                   : Rectangle{0, 0, 0, 0};
    }
    __syncthreads();

    const int across = (columns + kTileColumns - 1) / kTileColumns;
    const int left = blockIdx.x % across * kTileColumns, top = blockIdx.x / across * kTileRows;
    const int x = left + threadIdx.x, y = top + threadIdx.y;
    if (x >= columns || y >= rows) return;
    const size_t cell = size_t(y) * columns + x, cells = size_t(rows) * columns;
    float *target = masks + size_t(image * detections + first) * cells + cell;
    bool loaded = false;
    float prototype[M];
    for (int i = 0; i < stop - first; ++i, target += cells) {
        const Rectangle kept = crops[i];
        if (kept.x0 < left + kTileColumns && left < kept.x1 && kept.y0 < top + kTileRows && top < kept.y1) {
            if (!loaded) load_vector<T, M>(prototypes + (image * cells + cell) * M, prototype);
            loaded = true;
            float logit = 0.0f;
#pragma unroll
            for (int m = 0; m < M; ++m) logit = fmaf(prototype[m], vectors[i][m], logit);
            const bool inside = x >= kept.x0 && x < kept.x1 && y >= kept.y0 && y < kept.y1;
            if (inside || fill) *target = inside ? 1.0f / (1.0f + expf(-logit)) : 0.0f;
        } else if (fill) {
            *target = 0.0f;
        }
    }
}

// One mask at prototype size, with zeros outside the cells that its box keeps.
struct Cells {
    const float *values;
    Rectangle kept;
    int rows, columns;

    __device__ __forceinline__ float at(int row, int column) const {
        const bool inside = row >= kept.y0 && row < kept.y1 && column >= kept.x0 && column < kept.x1;
        return inside ? values[row * columns + column] : 0.0f;
    }
    // Interpolates between two columns. Between equal values the result is exactly that value.
    __device__ __forceinline__ float between(int row, int low, int high, float weight) const {
        const float value = at(row, low);
        return fmaf(at(row, high) - value, weight, value);
    }
};

// Bits of pixel column x, rows 32 w .. 32 w + 31, of a mask at image size: bilinear, half-pixel centres, > 0.5. The
// position of a pixel among the cells, ((2 p + 1) cells - pixels) / (2 pixels), is computed with integers.
__device__ unsigned bits_of_word(const Cells &cells, int x, int w, int height, int width) {
    const int place = max((2 * x + 1) * cells.columns - width, 0);
    const int low = place / (2 * width);
    const int high = min(low + 1, cells.columns - 1);
    const float across = float(place - low * 2 * width) / float(2 * width);

    const int unit = 2 * height;
    int rest = (2 * 32 * w + 1) * cells.rows - height;  // negative above the centre of the first cell
    int row = rest > 0 ? rest / unit : 0;
    rest -= row * unit;
    const int last = cells.rows - 1;
    const float scale = 1.0f / float(unit);
    float above = cells.between(row, low, high, across);
    float below = cells.between(min(row + 1, last), low, high, across);
    const int stop = min(height - 32 * w, 32);
    unsigned bits = 0;
    for (int i = 0; i < stop; ++i) {
        const float value = fmaf(below - above, float(max(rest, 0)) * scale, above);
        bits |= unsigned(value > 0.5f) << i;
        rest += 2 * cells.rows;
        if (rest >= unit) {
            const int steps = rest / unit;
            rest -= steps * unit;
            row += steps;
            above = steps == 1 ? below : cells.between(min(row, last), low, high, across);
            below = cells.between(min(row + 1, last), low, high, across);
        }
    }
    return bits;
}

// bits (N, K, words, stride) of each mask at the size of its image; sizes (N, 2): height, width. With fill = 0, only
// words in the region of the mask are written. Grid: any number of blocks, which share the tiles of a mask;
// detections; images.
__global__ void __launch_bounds__(kTileColumns *kTileRows)
    mask_bits(const float *boxes, const int *count, const int *sizes, const float *masks, int detections, int rows,
              int columns, int words, int stride, int fill, unsigned *bits) {
    const int image = blockIdx.z, detection = blockIdx.y;
    const bool live = detection < count[image];
    if (!live && !fill) return;
    const size_t number = size_t(image) * detections + detection;
    const int height = min(sizes[2 * image], 32 * words), width = min(sizes[2 * image + 1], stride);
    Cells cells = {masks + number * rows * columns, {0, 0, 0, 0}, rows, columns};
    if (live) cells.kept = crop(boxes + number * 4, rows, columns);
    const Rectangle region = region_of(cells.kept, rows, columns, height, width);
    unsigned *target = bits + number * words * stride;
    // In words downwards and tiles of columns across.
    const int first_word = fill ? 0 : region.y0 / 32, stop_word = fill ? words : (region.y1 + 31) / 32;
    const int first_tile = fill ? 0 : region.x0 / kTileColumns;
    const int across = ((fill ? stride : region.x1) + kTileColumns - 1) / kTileColumns - first_tile;
    const int down = (stop_word - first_word + kTileRows - 1) / kTileRows;
    for (int tile = blockIdx.x; tile < across * down; tile += gridDim.x) {
        const int x = (first_tile + tile % across) * kTileColumns + threadIdx.x;
        const int w = first_word + tile / across * kTileRows + threadIdx.y;
        if (w >= stop_word || x >= stride) continue;
        const bool inside =
            x >= region.x0 && x < region.x1 && 32 * w < region.y1 && 32 * w + 32 > region.y0;
        if (inside) {
            target[w * stride + x] = bits_of_word(cells, x, w, height, width);
        } else if (fill) {
            target[w * stride + x] = 0;
        }
    }
}

// The bits of one mask, of which only its region was written.
struct Bits {
    const unsigned *words;
    Rectangle region;
    int height, stride;

    __device__ __forceinline__ unsigned word(int w, int x) const {
        const bool inside = x >= region.x0 && x < region.x1 && 32 * w < region.y1 && 32 * w + 32 > region.y0;
        return inside ? words[w * stride + x] : 0;
    }

    // The pixels of column x, counted down the columns of the image, that differ from the pixel before them.
    // Returns their number and writes them to `target` unless it is null. The column after the region counts as
    // well: a run may end at its top.
    __device__ int edges(int x, int *target) const {
        const int last = (height - 1) / 32;
        // Whether the column before ends with a set pixel.
        unsigned before = word(last, x - 1) >> (height - 1) % 32 & 1;
        int number = 0;
        for (int w = before ? 0 : region.y0 / 32; w <= min(region.y1 / 32, last); ++w) {
            const unsigned here = word(w, x);
            unsigned changes = here ^ (here << 1 | before);
            before = here >> 31;
            if (height - 32 * w < 32) changes &= (1u << (height - 32 * w)) - 1;
            if (target) {
                for (unsigned left = changes; left; left &= left - 1) {
                    *target++ = x * height + 32 * w + __ffs(int(left)) - 1;
                }
            }
            number += __popc(changes);
        }
        return number;
    }
};

__device__ __forceinline__ Bits bits_of_mask(const float *boxes, const int *count, const int *sizes,
                                             const unsigned *bits, int detections, int rows, int columns,
                                             int words, int stride) {
    const int image = blockIdx.y, detection = blockIdx.x;
    const size_t number = size_t(image) * detections + detection;
    const int height = min(sizes[2 * image], 32 * words), width = min(sizes[2 * image + 1], stride);
    const bool live = detection < count[image];
    const Rectangle kept = live ? crop(boxes + number * 4, rows, columns) : Rectangle{0, 0, 0, 0};
    return {bits + number * words * stride, region_of(kept, rows, columns, height, width), height, stride};
}

// regions (N, K, 4): x, y, width, height of the part of the image where each mask can be set; totals (N, K): its
// number of edges. Grid: detections, images.
__global__ void __launch_bounds__(kEdgeThreads)
    count_edges(const float *boxes, const int *count, const int *sizes, const unsigned *bits, int detections,
                int rows, int columns, int words, int stride, int *regions, int *totals) {
    const Bits mask = bits_of_mask(boxes, count, sizes, bits, detections, rows, columns, words, stride);
    const Rectangle region = mask.region;
    int mine = 0;
    if (!region.empty()) {
        for (int x = region.x0 + int(threadIdx.x); x <= region.x1; x += kEdgeThreads) mine += mask.edges(x, nullptr);
    }
    int total;
    block_exclusive_sum<kEdgeThreads>(mine, total);
    if (threadIdx.x == 0) {
        const int number = blockIdx.y * detections + blockIdx.x;
        totals[number] = total;
        int *target = regions + number * 4;
        target[0] = region.x0;
        target[1] = region.y0;
        target[2] = region.x1 - region.x0;
        target[3] = region.y1 - region.y0;
    }
}

// offsets (N, K + 1): where the edges of each mask start among those of its image, then their total number.
// edges (N, capacity): ascending within a mask; a mask whose edges do not all fit is left out. Grid: detections,
// images.
__global__ void __launch_bounds__(kEdgeThreads)
    write_edges(const float *boxes, const int *count, const int *sizes, const unsigned *bits, const int *totals,
                int detections, int rows, int columns, int words, int stride, int capacity, int *offsets,
                int *edges) {
    const int image = blockIdx.y, detection = blockIdx.x;
    const Bits mask = bits_of_mask(boxes, count, sizes, bits, detections, rows, columns, words, stride);
    const int *sums = totals + image * detections;
    int before = 0, start;
    for (int i = threadIdx.x; i < detection; i += kEdgeThreads) before += sums[i];
    block_exclusive_sum<kEdgeThreads>(before, start);
    const int stop = start + sums[detection];
    if (threadIdx.x == 0) {
        int *target = offsets + image * (detections + 1) + detection;
        target[0] = start;
        if (detection == detections - 1) target[1] = stop;
    }
    if (stop > capacity || stop == start) return;
    int *target = edges + size_t(image) * capacity + start;
    for (int left = mask.region.x0; left <= mask.region.x1; left += kEdgeThreads) {
        const int x = left + threadIdx.x;
        const bool mine = x <= mask.region.x1;
        int together;
        const int place = block_exclusive_sum<kEdgeThreads>(mine ? mask.edges(x, nullptr) : 0, together);
        if (mine) mask.edges(x, target + place);
        target += together;
    }
}

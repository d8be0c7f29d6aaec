// Runs the blocks of a launch one after the other, the threads of each as fibers that meet at barriers and
// warp operations. What CUDA leaves undefined there is an error here.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "fiber.h"

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace cuda_on_cpu {

// As tests/cuda_on_cpu.py lays it out for ctypes.
struct Request {
    unsigned grid[3];
    unsigned block[3];
    unsigned shared_bytes;
    const char *skipped_file;  // the barrier at this place does nothing
    int skipped_line;
    int order;  // 0 forward, 1 reversed, else the seed of a random one
    int argument_count;
    void **arguments;   // the address of each
    const char *kinds;  // one letter each: b buffer, i int32, f float32
    char *error;
    int error_bytes;
};

inline const char *base_name(const char *file) {
    const char *slash = strrchr(file, '/');
    return slash ? slash + 1 : file;
}

enum class State { kReady, kAtBarrier, kAtWarp, kDone };
enum class Operation { kSync, kShuffle, kBallot };

struct Thread {
    Context context;
    dim3 index;
    int number = 0;
    State state = State::kReady;
    // Where and at what the thread waits.
    const char *file = "";
    int line = 0;
    Operation operation = Operation::kSync;
    unsigned mask = 0;
    int source_lane = 0;
    uint64_t value = 0;
    uint64_t result = 0;

    std::string where() const {
        return std::string(state == State::kAtBarrier ? "barrier " : "warp operation ") + base_name(file) + ":" +
               std::to_string(line);
    }
};

struct Block {
    std::vector<Thread> threads;
    std::vector<char> shared;
    dim3 grid_size, block_size, block_index;
    int at_barrier = 0;
    const char *skipped_file = "";
    int skipped_line = 0;
    Context scheduler;
    void (*body)(void *) = nullptr;
    void *body_data = nullptr;
    std::string error;
};

inline Block *block = nullptr;
inline Thread *current = nullptr;

inline void wait() { Context::change(current->context, block->scheduler); }

inline void entry() {
    try {
        block->body(block->body_data);
    } catch (const std::exception &problem) {
        if (block->error.empty()) block->error = problem.what();
    }
    current->state = State::kDone;
    wait();
}

inline void barrier(const char *file, int line) {
    if (line == block->skipped_line && strcmp(base_name(file), block->skipped_file) == 0) return;
    Thread &me = *current;
    me.state = State::kAtBarrier;
    me.file = file;
    me.line = line;
    if (++block->at_barrier == static_cast<int>(block->threads.size())) {
        block->at_barrier = 0;
        for (const Thread &other : block->threads) {
            if (other.line != line || strcmp(other.file, file) != 0) {
                throw std::runtime_error("threads of a block wait at different barriers: " + me.where() + ", " +
                                         other.where());
            }
        }
        for (Thread &other : block->threads) other.state = State::kReady;
    }
    wait();
}

// The lanes of `mask` meet; each gets its result of the operation.
inline uint64_t warp_operation(Operation operation, unsigned mask, uint64_t value, int source_lane,
                               const char *file, int line) {
    Thread &me = *current;
    Thread *lanes = &block->threads[me.number / 32 * 32];
    me.file = file;
    me.line = line;
    me.operation = operation;
    me.mask = mask;
    me.value = value;
    me.source_lane = source_lane;
    me.state = State::kAtWarp;
    if (!(mask >> me.number % 32 & 1)) throw std::runtime_error("a lane is not in its own mask at " + me.where());
    bool all = true;
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        if (lanes[lane].state == State::kDone) {
            throw std::runtime_error("a lane of the mask has returned before " + me.where());
        }
        all = all && lanes[lane].state == State::kAtWarp;
    }
    if (all) {
        uint64_t ballot = 0;
        for (int lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            const Thread &other = lanes[lane];
            if (other.mask != mask || other.operation != operation || other.line != line) {
                throw std::runtime_error("lanes of a warp wait at different operations: " + me.where() + ", " +
                                         other.where());
            }
            ballot |= uint64_t(other.value != 0) << lane;
        }
        for (int lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            Thread &other = lanes[lane];
            if (operation == Operation::kShuffle && !(mask >> other.source_lane & 1)) {
                throw std::runtime_error("a shuffle reads a lane outside its mask at " + me.where());
            }
            other.result = operation == Operation::kShuffle ? lanes[other.source_lane].value : ballot;
            other.state = State::kReady;
        }
    }
    wait();
    return me.result;
}

// Numbers 0 .. count-1 forward, reversed, or in an order that `order` seeds.
inline std::vector<int> permutation(int count, int order) {
    std::vector<int> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0);
    if (order == 1) std::reverse(numbers.begin(), numbers.end());
    uint64_t random = order;
    for (int i = count - 1; order > 1 && i > 0; --i) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        std::swap(numbers[i], numbers[(random >> 33) % (i + 1)]);
    }
    return numbers;
}

// Runs all threads of the current block to their end.
inline void run_block(const std::vector<int> &warps, const std::vector<int> &lanes, const Stacks &stacks) {
    const dim3 size = block->block_size;
    for (int number = 0; number < static_cast<int>(block->threads.size()); ++number) {
        Thread &thread = block->threads[number];
        thread.number = number;
        thread.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
        thread.state = State::kReady;
        thread.context.prepare(entry, stacks[number], Stacks::kBytes);
    }
    block->at_barrier = 0;
    std::fill(block->shared.begin(), block->shared.end(), char(0xff));
    // Each warp runs as far as it can before the next: a missing barrier between two of them then shows.
    for (bool progress = true; progress;) {
        progress = false;
        for (size_t turn = 0; turn < warps.size();) {
            bool moved = false;
            for (int lane : lanes) {
                current = &block->threads[warps[turn] * 32 + lane];
                if (current->state != State::kReady) continue;
                Context::change(block->scheduler, current->context);
                if (!block->error.empty()) return;
                moved = progress = true;
            }
            if (!moved) ++turn;
        }
    }
    int done = 0;
    const Thread *stuck = nullptr;
    for (const Thread &thread : block->threads) {
        if (thread.state == State::kDone) ++done;
        else stuck = &thread;
    }
    if (stuck) {
        block->error = "deadlock in block " + std::to_string(block->block_index.x) + ": " + std::to_string(done) +
                       " threads returned while thread " + std::to_string(stuck->number) + " waits at " +
                       stuck->where();
    }
}

template <typename Parameter>
constexpr char kKind = std::is_pointer_v<Parameter> ? 'b'
                       : std::is_same_v<Parameter, float> ? 'f'
                       : std::is_integral_v<Parameter> && sizeof(Parameter) == 4 ? 'i'
                                                                                 : '?';

// One letter for each parameter of a kernel, as in a request.
template <typename... Parameters>
const char *kinds(void (*)(Parameters...)) {
    static const char letters[] = {kKind<Parameters>..., '\0'};
    return letters;
}

template <typename Parameter>
Parameter argument(const Request &request, int index) {
    const char kind = request.kinds[index];
    const char expected = kKind<Parameter>;
    if (kind != expected) {
        throw std::runtime_error("argument " + std::to_string(index) + " is of kind " + kind + ", the kernel takes " +
                                 expected);
    }
    Parameter value;
    memcpy(&value, request.arguments[index], sizeof(value));
    return value;
}

template <typename... Parameters, size_t... I>
void call_blocks(void (*kernel)(Parameters...), const Request &request, std::index_sequence<I...>) {
    if (request.argument_count != static_cast<int>(sizeof...(Parameters))) {
        throw std::runtime_error("the plan gives " + std::to_string(request.argument_count) +
                                 " arguments, the kernel takes " + std::to_string(sizeof...(Parameters)));
    }
    auto body = [kernel, arguments = std::make_tuple(argument<Parameters>(request, I)...)] {
        kernel(std::get<I>(arguments)...);
    };
    const int count = request.block[0] * request.block[1] * request.block[2];
    const Stacks stacks(count);
    if (!stacks.sound()) throw std::runtime_error("no memory for the threads' stacks");
    Block state;
    state.threads.resize(count);
    state.shared.resize(request.shared_bytes + 16);
    state.grid_size = {request.grid[0], request.grid[1], request.grid[2]};
    state.block_size = {request.block[0], request.block[1], request.block[2]};
    state.skipped_file = request.skipped_file;
    state.skipped_line = request.skipped_line;
    state.body = [](void *data) { (*static_cast<decltype(body) *>(data))(); };
    state.body_data = &body;
    block = &state;
    const std::vector<int> warps = permutation(count / 32, request.order), lanes = permutation(32, request.order);
    const unsigned blocks = request.grid[0] * request.grid[1] * request.grid[2];
    for (unsigned i = 0; i < blocks && state.error.empty(); ++i) {
        const unsigned number = request.order == 1 ? blocks - 1 - i : i;
        const unsigned row = number / request.grid[0];
        state.block_index = {number % request.grid[0], row % request.grid[1], row / request.grid[1]};
        run_block(warps, lanes, stacks);
    }
    block = nullptr;
    if (!state.error.empty()) throw std::runtime_error(state.error);
}

// 0, or 1 with the reason in request.error.
template <typename... Parameters>
int launch(void (*kernel)(Parameters...), const Request &request) {
    try {
        call_blocks(kernel, request, std::index_sequence_for<Parameters...>());
        return 0;
    } catch (const std::exception &problem) {
        snprintf(request.error, request.error_bytes, "%s", problem.what());
        return 1;
    }
}

}  // namespace cuda_on_cpu

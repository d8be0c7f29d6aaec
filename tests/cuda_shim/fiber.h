// A thread of a block as a fiber: its own stack, switched by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

#if defined(__x86_64__)

extern "C" void cuda_on_cpu_switch(void **save, void *load) __asm__("cuda_on_cpu_switch");
__asm__(R"(
    .text
    .p2align 4
    .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");

class Context {
public:
    // Makes a context that calls `entry`, which must never return, on the given stack.
    void prepare(void (*entry)(), char *stack, size_t bytes) {
        void **top = reinterpret_cast<void **>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15));
        *--top = nullptr;  // where entry would return to; also aligns its frame
        *--top = reinterpret_cast<void *>(entry);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        pointer_ = top;
    }
    static void change(Context &from, Context &to) { cuda_on_cpu_switch(&from.pointer_, to.pointer_); }

private:
    void *pointer_ = nullptr;
};

#else



class Context {
public:
    void prepare(void (*entry)(), char *stack, size_t bytes) {
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack;
        context_.uc_stack.ss_size = bytes;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
    }
    static void change(Context &from, Context &to) { swapcontext(&from.context_, &to.context_); }

private:
    ucontext_t context_;
};

#endif

// One stack for each thread of a block; pages are only taken when touched.
class Stacks {
public:
    static constexpr size_t kBytes = 64 * 1024;
    explicit Stacks(size_t count) : bytes_(count * kBytes) {
        memory_ = static_cast<char *>(
            mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    ~Stacks() {
        if (sound()) munmap(memory_, bytes_);
    }
    Stacks(const Stacks &) = delete;
    Stacks &operator=(const Stacks &) = delete;
    bool sound() const { return memory_ != MAP_FAILED; }
    char *operator[](size_t index) const { return memory_ + index * kBytes; }

private:
    size_t bytes_;
    char *memory_;
};

}  // namespace cuda_on_cpu

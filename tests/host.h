// Replacements for what only a GPU has, so that CUDA kernels compile for the host with g++ -std=c++17.
//
// Blocks run one after another, so shared memory is static. The threads of a block run one after another too, in a plain
// loop where the kernel has no barrier. Where it has one, each thread is a fiber with its own stack, and all of them
// reach the barrier before any continues.

#pragma once
#ifndef GPUCNN_ON_HOST
#define GPUCNN_ON_HOST
#endif

#include <math.h>  // C++'s, with overloads for float, which the kernels expect of exp(x)
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

using std::max;
using std::min;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __constant__ static const
#ifdef __ELF__  // one section for all shared memory, so that each block can be given garbage there
#define __shared__ static __attribute__((section("kernel_shared")))
extern "C" __attribute__((weak, visibility("hidden"))) char __start_kernel_shared[], __stop_kernel_shared[];
#else
#define __shared__ static
#endif
#define __syncthreads() host::wait_in_line(__LINE__)

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

constexpr size_t STACK = 64 << 10;  // bytes for one thread, taken from the machine only where they are touched

struct Fiber {
    jmp_buf at;    // where it continues
    int line = 0;  // of the barrier it waits in; 0 where its kernel has returned
    dim3 index = {};
    std::unique_ptr<char[]> stack{new char[STACK]};
};

static std::vector<std::unique_ptr<Fiber>> fibers;  // created once, then reused by every block
static Fiber* current;
static jmp_buf scheduler;
static void (*body)(void**);
static void** arguments;
static char message[200];

// Leave this fiber until the scheduler comes back to it. A fiber is entered once by setcontext and from then on by
// longjmp alone, which makes no system call. The compiler must not know what happens meanwhile, hence noipa.
__attribute__((noipa)) static void wait_in_line(int line) {
    current->line = line;
    if (!_setjmp(current->at)) _longjmp(scheduler, 1);
}

__attribute__((noipa)) static void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.index;
    if (!_setjmp(scheduler)) _longjmp(fiber.at, 1);
}

static void live() {
    for (wait_in_line(0);; wait_in_line(0)) body(arguments);
}

__attribute__((noipa)) static void make_fiber() {
    fibers.push_back(std::make_unique<Fiber>());
    current = fibers.back().get();
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = current->stack.get();
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    if (!_setjmp(scheduler)) setcontext(&context);
}

inline void set_thread(dim3& index, unsigned number) {
    index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
}

// Run all threads of a block from barrier to barrier; returns false where they do not meet.
inline bool run_in_step(unsigned threads) {
#ifdef __ELF__
    if (__start_kernel_shared) memset(__start_kernel_shared, 0xff, __stop_kernel_shared - __start_kernel_shared);  // NaN
#endif
    for (;;) {
        unsigned waiting = 0;
        int first = 0, other = 0;
        for (unsigned t = 0; t < threads; t++) {
            resume(*fibers[t]);
            const int line = fibers[t]->line;
            if (!line) continue;
            waiting++;
            if (!first) first = line;
            if (line != first) other = line;
        }
        if (!waiting) return true;
        if (waiting == threads && !other) continue;
        int length = snprintf(message, sizeof message, "block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
        if (waiting < threads)
            snprintf(message + length, sizeof message - length,
                     "%u threads wait in the barrier of line %d, %u have returned without it", waiting, first,
                     threads - waiting);
        else
            snprintf(message + length, sizeof message - length,
                     "threads wait in different barriers, of lines %d and %d", first, other);
        fibers.clear();  // they would continue in the middle of this kernel
        return false;
    }
}

template <typename... Parameters, size_t... I>
inline void call(void (*kernel)(Parameters...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<Parameters*>(args[I])...);
}

template <typename... Parameters>
inline void call(void (*kernel)(Parameters...), void** args) {
    call(kernel, args, std::index_sequence_for<Parameters...>());
}

// Run a kernel over a grid; returns what went wrong, or nothing.
template <auto kernel>
const char* launch(const unsigned* grid, const unsigned* block, void** args, bool has_barrier) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const unsigned threads = block[0] * block[1] * block[2];
    body = [](void** args) { call(kernel, args); };
    arguments = args;
    while (has_barrier && fibers.size() < threads) make_fiber();
    for (unsigned t = 0; has_barrier && t < threads; t++) set_thread(fibers[t]->index, t);
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) {
                if (has_barrier && !run_in_step(threads)) return message;
                for (unsigned t = 0; !has_barrier && t < threads; t++) {
                    set_thread(threadIdx, t);
                    call(kernel, args);
                }
            }
    return nullptr;
}

}  // namespace host

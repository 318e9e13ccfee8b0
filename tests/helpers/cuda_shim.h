// Enough of CUDA for g++ to run the package's kernels on a CPU (emulated_cuda.py): each thread of a block is a fiber of
// its own stack, and fibers change at barriers, votes and shuffles only. Threads run in ascending or descending order, so
// that a missing barrier gives different results. Shared memory begins as NaNs. What a GPU would not forgive fails: a load
// that is not aligned, a barrier, vote or shuffle that some never reach, more shared memory than was asked for. Include
// before the source.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __device__ static inline
#define __global__
#define __launch_bounds__(...)
#define __shared__ thread_local  // a block at a time on a thread of the CPU

static void fail(const char* reason);

struct int2 { int x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { int x, y; };
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
static inline int __ffs(unsigned bits) { return __builtin_ffs(bits); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float rsqrtf(float value) { return 1 / std::sqrt(value); }
template <typename T> static inline T __ldg(const T* from) {
    if ((uintptr_t)from % alignof(T)) fail("a load is not aligned");
    return *from;
}

static inline float half_to_float(unsigned short half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    float value = exponent == 31 ? (mantissa ? NAN : INFINITY)
                                 : std::ldexp(float(exponent ? mantissa + 1024 : mantissa), (exponent ? exponent : 1) - 25);
    return half & 0x8000 ? -value : value;
}

static inline unsigned short float_to_half(float value) {  // to the nearest, ties to even
    const unsigned sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (std::isnan(value)) return sign | 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    const int exponent = size < std::ldexp(1.0f, -14) ? -14 : std::ilogb(size);
    return sign | (((exponent + 14) << 10) + (int)std::nearbyint(std::ldexp(size, 10 - exponent)));
}

alignas(16) thread_local float4 staged[48 * 1024 / 16];

struct Meeting {  // of a warp or a block: the last to come lets all go on
    int members = 0, come = 0, times = 0;
};
struct Fiber {
    ucontext_t birth;
    jmp_buf place;  // jumps cost no system call, changing contexts does
    std::vector<char> stack;
    bool born, done;
    Meeting* at;
    int since;
};

static thread_local dim3 blockIdx, blockDim, threadIdx;
static thread_local jmp_buf scheduler;
static thread_local std::vector<Fiber> fibers;
static thread_local int running;
static thread_local Meeting block, warps[32];
static thread_local uint32_t said[32][2][32];
static thread_local void (*body)();
static thread_local const char* failure;

static void fail(const char* reason) {
    failure = reason;
    _longjmp(scheduler, 1);
}

static void pause() {
    if (!_setjmp(fibers[running].place)) _longjmp(scheduler, 1);
}

static void meet(Meeting& here) {
    Fiber& me = fibers[running];
    me.at = &here;
    me.since = here.times;
    if (++here.come == here.members) {
        here.come = 0;
        ++here.times;
    }
    while (here.times == me.since) pause();
}

static void __syncthreads() { meet(block); }

// What every lane of this warp says, lane by lane. Two places in turn: the fast may speak again while the slow still read.
static const uint32_t* exchange(unsigned mask, uint32_t value) {
    if (mask != ~0u) fail("only whole warps vote");
    const int warp = running / 32, turn = warps[warp].times % 2;
    said[warp][turn][running % 32] = value;
    meet(warps[warp]);
    return said[warp][turn];
}

static inline unsigned __ballot_sync(unsigned mask, bool vote) {
    const uint32_t* all = exchange(mask, vote);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= all[lane] << lane;
    return bits;
}

static inline float __shfl_xor_sync(unsigned mask, float value, int far) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = exchange(mask, bits)[running % 32 ^ far];
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned long long __shfl_xor_sync(unsigned mask, unsigned long long value, int far) {
    const unsigned long long low = exchange(mask, (uint32_t)value)[running % 32 ^ far];
    return (unsigned long long)exchange(mask, value >> 32)[running % 32 ^ far] << 32 | low;
}

static void life() {
    for (;; pause()) {
        body();
        fibers[running].done = true;
    }
}

static void resume(Fiber& fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber.born) _longjmp(fiber.place, 1);
    fiber.born = true;
    fiber.stack.resize(64 * 1024);
    getcontext(&fiber.birth);
    fiber.birth.uc_stack.ss_sp = fiber.stack.data();
    fiber.birth.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.birth, life, 0);
    setcontext(&fiber.birth);
}

static void run_block(int threads, bool descending) {
    std::memset(staged, 0xff, sizeof staged);
    if (fibers.size() != (size_t)threads) fibers = std::vector<Fiber>(threads);
    block = {threads, 0, 0};
    for (auto& warp : warps) warp = {32, 0, 0};
    for (auto& fiber : fibers) {
        fiber.done = false;
        fiber.at = nullptr;
    }
    for (int left = threads; left && !failure;) {
        bool moved = false;
        for (int i = 0; i < threads && !failure; ++i) {
            running = descending ? threads - 1 - i : i;
            Fiber& fiber = fibers[running];
            if (fiber.done || (fiber.at && fiber.at->times == fiber.since)) continue;
            threadIdx = {running, 0};
            resume(fiber);
            moved = true;
            left -= fiber.done;
        }
        if (!moved) failure = "threads wait for others that never come";
    }
}

// As cuLaunchKernel: `arguments` point at the values, in order.
template <typename... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}
template <typename... A>
static void call(void (*kernel)(A...), void** arguments) { call(kernel, arguments, std::index_sequence_for<A...>()); }

// Nothing, or what went wrong. The blocks are run in turn, as a GPU may.
static const char* launch(void (*start)(), dim3 grid, int threads, int shared, bool descending) {
    body = start;
    if (failure) fibers.clear();  // they stopped half-way
    failure = nullptr;
    blockDim = {threads, 1};
    for (int y = 0; y < grid.y; ++y)
        for (int x = 0; x < grid.x && !failure; ++x) {
            blockIdx = {x, y};
            run_block(threads, descending);
            for (size_t i = shared / 4; i < sizeof staged / 4 && !failure; ++i)
                if (((uint32_t*)staged)[i] != ~0u) failure = "more shared memory was written than asked for";
        }
    return failure;
}

// A kernel, which may be a template's instance, under a name for others to call.
#define EMULATED(name, ...)                                                                                          \
    static void** arguments_of_##name;                                                                               \
    extern "C" const char* emulate_##name(int x, int y, int threads, int shared, int descending, void** arguments) { \
        arguments_of_##name = arguments;                                                                             \
        return launch([] { call(__VA_ARGS__, arguments_of_##name); }, {x, y}, threads, shared, descending);          \
    }

// Runs CUDA kernels on the CPU, so that their logic is tested where there is no GPU. It stands in for the toolkit's header of
// the same name: put this folder first on the include path of g++ (x86-64 or ARM Linux, C++17, -U_FORTIFY_SOURCE).
//
// A block runs on one thread of the operating system and every CUDA thread of it is a fiber, which gives way at barriers,
// at warp-wide operations and in __nanosleep. `__shared__` is thread-local, so `workers` blocks run at once, as on a GPU:
// what they tell each other through memory is really concurrent. Shown are wrong results, wrong indices, hangs, and missing
// barriers where the order tried makes them matter (`seed`: which fiber goes first, which warps run ahead); not shown are weak
// memory, a missing __syncwarp inside a warp, limits of launches, and speed.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#include <ucontext.h>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct EmulatedIndex {
  unsigned x = 0, y = 0, z = 0;
};
inline thread_local EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr int kWarp = 32, kWarps = 32;
constexpr size_t kStack = 64 * 1024;
constexpr long kHang = 2'000'000;  // rounds over all fibers of a block

struct Fiber {
  jmp_buf resume;
  bool started = false, done = false;
};

struct Block {
  const std::function<void()>* body;
  std::vector<Fiber> fibers;
  std::unique_ptr<char[]> stacks;  // untouched until used: 1024 of them, of which most stay nearly empty
  jmp_buf scheduler;
  unsigned current = 0;
  unsigned arrived = 0, barrier = 0;                                // of __syncthreads
  unsigned warp_arrived[kWarps] = {}, exchange[kWarps] = {};        // of warp-wide operations
  uint64_t values[kWarps][2][kWarp] = {};                           // of this exchange and, still being read, the one before
};
inline thread_local Block* block = nullptr;
inline thread_local std::vector<char> dynamic_shared_memory;

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(dynamic_shared_memory.data());
}

// _setjmp and _longjmp between stacks made by makecontext: swapcontext would do, but makes two system calls a time.
__attribute__((noinline)) inline void give_way() {
  volatile unsigned me = block->current;
  if (_setjmp(block->fibers[me].resume) == 0) _longjmp(block->scheduler, 1);
  threadIdx.x = me;
}

inline void fiber_main() {
  (*block->body)();
  block->fibers[block->current].done = true;
  _longjmp(block->scheduler, 1);
}

__attribute__((noinline)) inline void run_or_start(unsigned index) {
  block->current = threadIdx.x = index;
  if (_setjmp(block->scheduler) != 0) return;
  Fiber& fiber = block->fibers[index];
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = block->stacks.get() + index * kStack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  setcontext(&context);
}

inline void run_block(unsigned threads, unsigned seed) {
  block->arrived = 0;
  std::memset(block->warp_arrived, 0, sizeof(block->warp_arrived));
  for (Fiber& fiber : block->fibers) fiber.started = fiber.done = false;
  std::mt19937 random(seed + 7919 * blockIdx.x);
  const unsigned first = seed ? random() % threads : 0;
  unsigned left = threads, resting = 0;  // one bit per warp: some run ahead of others for a while, as they do on a GPU
  for (long round = 0; left > 0; ++round) {
    if (round > kHang) {
      std::fprintf(stderr, "emulator: block %u of %u hangs\n", blockIdx.x, gridDim.x);
      std::abort();
    }
    if (round % 64 == 0) std::this_thread::yield();
    if (seed && round % 8 == 0) resting = random();
    for (unsigned step = 0; step < threads; ++step) {
      const unsigned index = seed % 2 ? threads - 1 - (step + first) % threads : (step + first) % threads;
      if (block->fibers[index].done || (resting >> index / kWarp & 1)) continue;
      run_or_start(index);
      left -= block->fibers[index].done;
    }
  }
}

// kernel<<<grid, threads, shared>>>, to its end. `body` calls the kernel.
inline void launch(
    unsigned grid, unsigned threads, const std::function<void()>& body, unsigned seed, unsigned workers, size_t shared = 0) {
  std::atomic<unsigned> next{0};
  const auto work = [&] {
    Block mine;
    block = &mine;
    mine.body = &body;
    mine.fibers.resize(threads);
    mine.stacks.reset(new char[threads * kStack]);
    dynamic_shared_memory.assign(shared, char(0xab));
    blockDim.x = threads;
    gridDim.x = grid;
    for (unsigned index; (index = next++) < grid;) {
      blockIdx.x = index;
      run_block(threads, seed);
    }
  };
  std::vector<std::thread> crew;
  for (unsigned i = 0; i < workers && i < grid; ++i) crew.emplace_back(work);
  for (std::thread& worker : crew) worker.join();
}

// Every lane gives a value and gets those of all 32.
inline const uint64_t* exchanged(uint64_t value) {
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, mine = block->exchange[warp];
  uint64_t* const values = block->values[warp][mine % 2];
  values[lane] = value;
  if (++block->warp_arrived[warp] == kWarp) {
    block->warp_arrived[warp] = 0;
    ++block->exchange[warp];
  } else {
    while (block->exchange[warp] == mine) give_way();
  }
  return values;
}
template <typename T>
T shuffled(T value, unsigned from) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  bits = exchanged(bits)[from % kWarp];
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace emulator

inline void __syncthreads() {
  const unsigned mine = emulator::block->barrier;
  if (++emulator::block->arrived == blockDim.x) {
    emulator::block->arrived = 0;
    ++emulator::block->barrier;
  } else {
    while (emulator::block->barrier == mine) emulator::give_way();
  }
}
inline void __syncwarp(unsigned = ~0u) { emulator::exchanged(0); }
inline void __nanosleep(unsigned) { emulator::give_way(); }

inline unsigned __ballot_sync(unsigned, bool vote) {
  const uint64_t* const votes = emulator::exchanged(vote);
  unsigned result = 0;
  for (int lane = 0; lane < emulator::kWarp; ++lane) result |= static_cast<unsigned>(votes[lane]) << lane;
  return result;
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulator::shuffled(value, lane);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::shuffled(value, threadIdx.x ^ mask);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned distance) {
  const unsigned lane = threadIdx.x % emulator::kWarp;
  return emulator::shuffled(value, lane >= distance ? lane - distance : lane);
}

template <typename T>
T atomicAdd(T* at, std::common_type_t<T> value) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
template <typename T>
T atomicOr(T* at, std::common_type_t<T> value) {
  return __atomic_fetch_or(at, value, __ATOMIC_SEQ_CST);
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }

// The launches of csrc/cuda/nms.cu and csrc/cuda/soft_nms.cu on the emulator, to be called from Python.
#include "cuda_runtime.h"
#include "csrc/cuda/nms.cuh"
#include "csrc/cuda/nms_order.cuh"
#include "csrc/cuda/soft_nms.cuh"

using namespace fastnas;
using namespace fastnas::cuda;

// by_score [images, count]: given with `sorted`, and then ranks and row_classes too where there are classes; else made here.
extern "C" void emulated_nms(
    const float* boxes, const float* scores, const int64_t* classes, int64_t images, int64_t count, double iou_threshold,
    bool filtered, float least, int64_t most, bool sorted, int64_t* by_score, int64_t* ranks, int64_t* row_classes,
    int64_t* indices, int64_t* counts, unsigned seed, unsigned workers) {
  const int64_t total = images * count, tiles = tile_count(count);
  std::vector<Corners<float>> corners(total);
  std::vector<uint64_t> published(images * tiles * kPublishedWords, 0xababababababababull);
  unsigned long long ticket = 99;
  std::vector<uint8_t> candidates(total, 1), kept(total, 1);
  const NmsInput<float, float> input{boxes, scores, classes, filtered, least};
  const NmsProgress progress{published.data(), &ticket};
  bool* const takes_part = reinterpret_cast<bool*>(candidates.data());
  bool* const flags = reinterpret_cast<bool*>(kept.data());
  if (sorted) {
    const auto kernel = [&] {
      gather_rows<float, float>(
          input, images, count, by_score, classes ? ranks : nullptr, corners.data(), takes_part, progress);
    };
    emulator::launch(3, kGatherThreads, kernel, seed, workers);
  } else {
    const int size = next_power_of_two(count);
    const auto kernel = [&] {
      order_small<float, float>(
          input, static_cast<int>(count), size, by_score, corners.data(), row_classes, ranks, takes_part, progress);
    };
    emulator::launch(images, smaller(larger(size / 2, 64), kSmallSort / 2), kernel, seed, workers);
  }
  const NmsRows<float> rows{
      corners.data(), classes ? row_classes : nullptr, classes ? ranks : nullptr, takes_part, images, count};
  const auto decide_all = [&] { decide<float>(rows, floor_to<float>(iou_threshold), progress, flags); };
  emulator::launch(images * tiles, kDecideThreads, decide_all, seed, workers);
  const auto collect_all = [&] { collect(flags, by_score, count, most, indices, counts); };
  emulator::launch(images, kCollectThreads, collect_all, seed, workers);
}

extern "C" void emulated_collect(
    const bool* kept, const int64_t* by_score, int64_t images, int64_t count, int64_t most, int64_t* indices, int64_t* counts,
    unsigned seed) {
  const auto kernel = [&] { collect(kept, by_score, count, most, indices, counts); };
  emulator::launch(images, kCollectThreads, kernel, seed, 1);
}

extern "C" int64_t emulated_soft_nms(
    const float* boxes, const float* scores, const int64_t* classes, int64_t count, bool gaussian, double iou_threshold,
    double sigma, float least, int64_t most, bool shared, int64_t* indices, float* rescored, float* decays, unsigned threads,
    unsigned seed) {
  int64_t chosen = -1;
  const size_t bytes = count * SoftState::bytes_per_box(classes != nullptr);
  std::vector<float4> global(bytes / sizeof(float4) + 1);
  const SoftInput input{
      boxes, scores, classes, count, {floor_to<float>(iou_threshold), static_cast<float>(1 / sigma)}, least, most};
  const SoftOutput output{indices, rescored, decays, &chosen};
  void* const memory = shared ? nullptr : global.data();
  const auto kernel = [&] { gaussian ? soft_nms<true>(input, memory, output) : soft_nms<false>(input, memory, output); };
  emulator::launch(1, threads, kernel, seed, 1, bytes);
  return chosen;
}

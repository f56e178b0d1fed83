// Every operator of fastnas on one screen. Kernels register themselves per device beside their code
// (csrc/cpu/*.cpp, csrc/cuda/*.cu); shapes for tracing and gradients in fastnas/ops/*.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastnas, m) {
  // boxes [N, 4] as (x1, y1, x2, y2), scores [N], idxs [N] int64 -> kept indices, int64, best score first.
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");

  // features: one [N, C, H_l, W_l] per level, boxes [K, 5] as (image, x1, y1, x2, y2) in image pixels -> [K, C, ph, pw].
  // scales: feature cells per image pixel, one per level. A box belongs to level
  // floor(canonical_level + log2(sqrt(area) / canonical_size) + 1e-6), clamped to the levels given.
  m.def(
      "roi_align(Tensor[] features, Tensor boxes, int pooled_height, int pooled_width, float[] scales, "
      "int sampling_ratio, bool aligned, float canonical_size, float canonical_level) -> Tensor");

  // grad [K, C, ph, pw] -> one [batch, C, heights[l], widths[l]] per level, channels-last where channels_last[l] is set.
  // deterministic: the same bits every time, without atomics; the CPU always does so.
  m.def(
      "roi_align_backward(Tensor grad, Tensor boxes, int batch, int[] heights, int[] widths, bool[] channels_last, "
      "float[] scales, int sampling_ratio, bool aligned, float canonical_size, float canonical_level, "
      "bool deterministic) -> Tensor[]");

  // inputs: two or three [N, C, h, w] of the node's size [H, W] or one level from it, weights [inputs] (method "sum": none)
  // -> [N, C, H, W]. method: fast, softmax, sum; activation: none, relu, silu; padding of the pooling: same, symmetric.
  m.def(
      "weighted_fusion(Tensor[] inputs, Tensor? weights, int[] size, str method, str activation, str padding, float eps) "
      "-> Tensor");

  // grad [N, C, H, W] -> gradients of the inputs, then, unless the method is "sum", of the weights.
  m.def(
      "weighted_fusion_backward(Tensor grad, Tensor[] inputs, Tensor? weights, int[] size, str method, str activation, "
      "str padding, float eps) -> Tensor[]");
}

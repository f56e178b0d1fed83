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

  // boxes [N, 4] or [images, N, 4], scores and idxs [N] or [images, N] -> indices [max_output] or [images, max_output], int64,
  // -1 after the last kept box, and how many were kept, [] or [images] int64, on the device of the boxes.
  m.def(
      "nms_padded(Tensor boxes, Tensor scores, float iou_threshold, int max_output, Tensor? idxs=None, "
      "float? score_threshold=None) -> (Tensor, Tensor)");

  // boxes [N, 4], scores [N], idxs [N] -> indices [K] int64, rescored [K] in the type of the scores, best first, and
  // decay [K], fp32 or fp64: rescored = scores[indices] * decay.
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, bool gaussian, float iou_threshold, float sigma, float score_threshold, "
      "int max_output, Tensor? idxs=None) -> (Tensor, Tensor, Tensor)");

  // weights: one [O, I, kh, kw] per convolution, all of one type; gains: none, or [O] numbers for each; scales: one number each
  // -> (each weight with filters of zero mean and unit variance, times gain * scale, as `dtype` and channels-last where
  //    channels_last[l] is set; stats [3, sum of O] fp32 or fp64: mean, rstd, pull, see csrc/standardize_weight.h).
  // unbiased = False: biased variance + eps inside the root (timm); True: unbiased deviation + eps (the paper).
  m.def(
      "standardize_weights(Tensor[] weights, Tensor[] gains, float[] scales, bool[] channels_last, float eps, bool unbiased, "
      "ScalarType dtype) -> (Tensor[], Tensor)");

  // grads: one per weight, any layout; first_rows[l]: where layer l begins in stats -> (gradients of weights, of gains).
  m.def(
      "standardize_weights_backward(Tensor[] grads, Tensor[] weights, Tensor[] gains, float[] scales, Tensor stats, "
      "int[] first_rows) -> (Tensor[], Tensor[])");

  // act(GroupNorm(input) * weight + bias + residual): input [N, C, H, W], weight and bias [C], residual [N, C, H, W],
  // activation none, relu or silu -> [N, C, H, W] in input's type and layout, mean and rstd [N, groups] in fp32 (fp64 for fp64).
  m.def(
      "group_norm_act(Tensor input, int groups, Tensor? weight, Tensor? bias, float eps, str activation, "
      "Tensor? residual) -> (Tensor, Tensor, Tensor)");

  // wanted: of input, weight, bias, residual -> their gradients, [0] for those not wanted.
  m.def(
      "group_norm_act_backward(Tensor grad, Tensor input, Tensor mean, Tensor rstd, int groups, Tensor? weight, "
      "Tensor? bias, str activation, Tensor? residual, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)");

  // act(BatchNorm(input) * weight + bias + residual): input and residual [N, C, H, W], weight and bias [C], mean and var [C] or
  // none for those of the batch; activation none, relu, relu6 or silu -> [N, C, H, W] in input's type and layout, and in fp32 (fp64
  // for fp64) mean and rstd [C] as used, unbiased variance [C] of the batch ([0] where it was given).
  m.def(
      "batch_norm_act(Tensor input, Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, float eps, str activation, "
      "Tensor? residual) -> (Tensor, Tensor, Tensor, Tensor)");

  // The same with given statistics, written over input.
  m.def(
      "batch_norm_act_(Tensor(a!) input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, str activation, "
      "Tensor? residual) -> ()");

  // third: behind an activation with a residual, the residual (silu) or the result (relu, relu6). frozen: mean and rstd were given.
  // wanted: of input, weight, bias, residual -> their gradients, [0] for those not wanted; the residual's in the type of third.
  m.def(
      "batch_norm_act_backward(Tensor grad, Tensor input, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, bool frozen, "
      "str activation, Tensor? third, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)");

  // input [N, C, H, W], weight [C, 1, kh, kw], bias [C], stride (y, x), padding (top, bottom, left, right) -> [N, C, H', W'] in
  // input's type and layout; the types of weight and bias may differ from it.
  m.def("depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor");

  // wanted: of input, weight, bias -> their gradients, [0] for those not wanted; the last two in the type of weight.
  m.def(
      "depthwise_conv2d_backward(Tensor grad, Tensor input, Tensor weight, int[] stride, int[] padding, bool[] wanted) "
      "-> (Tensor, Tensor, Tensor)");
}

// The loops of the forward pass of GroupNorm and batch norm (see norm_job.h).
#include "norm_kernels.h"

namespace fastnas {
namespace {

template <Activation kAct, typename S, typename R>
FASTNAS_INLINE void apply_with(const NormJob<S, R>& job) {
  return job.third ? apply_rows<kAct, true>(job) : apply_rows<kAct, false>(job);
}
template <typename S, typename R>
FASTNAS_INLINE void norm_apply_body(const NormJob<S, R>& job) {
  switch (job.activation) {
    case Activation::kNone: return apply_with<Activation::kNone>(job);
    case Activation::kRelu: return apply_with<Activation::kRelu>(job);
    case Activation::kSilu: return apply_with<Activation::kSilu>(job);
    case Activation::kRelu6: return apply_with<Activation::kRelu6>(job);
  }
}

}  // namespace

FASTNAS_COMPILE_FOR_NORM_TYPES(norm_moments)
FASTNAS_COMPILE_FOR_NORM_TYPES(norm_apply)

}  // namespace fastnas

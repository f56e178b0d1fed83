// The loops of the backward pass of GroupNorm and batch norm (see norm_job.h).
#include "norm_kernels.h"

namespace fastnas {
namespace {

// Calls body(third) with the kind of the third map as a compile-time constant. Only relu and relu6 can read the result instead of
// z, and only relu6 has to.
template <Activation kAct, typename S, typename R, typename Body>
FASTNAS_INLINE void with_third(const NormJob<S, R>& job, Body&& body) {
  constexpr bool kResult = (kAct == Activation::kRelu || kAct == Activation::kRelu6) && std::is_same_v<S, R>;
  if constexpr (kResult) {
    if (job.third_kind == Third::kResult) return body(std::integral_constant<Third, Third::kResult>{});
  }
  if constexpr (kAct != Activation::kNone && kAct != Activation::kRelu6) {  // without one dz does not depend on the residual
    if (job.third_kind == Third::kResidual) return body(std::integral_constant<Third, Third::kResidual>{});
  }
  body(std::integral_constant<Third, Third::kNone>{});
}

template <Activation kAct, typename S, typename R>
FASTNAS_INLINE void gradient_sums_with(const NormJob<S, R>& job) {
  with_third<kAct>(job, [&](auto third) FASTNAS_LAMBDA_INLINE { gradient_sum_rows<kAct, third()>(job); });
}
template <typename S, typename R>
FASTNAS_INLINE void norm_gradient_sums_body(const NormJob<S, R>& job) {
  switch (job.activation) {
    case Activation::kNone: return gradient_sums_with<Activation::kNone>(job);
    case Activation::kRelu: return gradient_sums_with<Activation::kRelu>(job);
    case Activation::kSilu: return gradient_sums_with<Activation::kSilu>(job);
    case Activation::kRelu6: return gradient_sums_with<Activation::kRelu6>(job);
  }
}

template <Activation kAct, typename S, typename R>
FASTNAS_INLINE void gradients_with(const NormJob<S, R>& job) {
  with_third<kAct>(job, [&](auto third) FASTNAS_LAMBDA_INLINE {
    if constexpr (third() != Third::kNone) {
      if (job.residual_grad && job.out) return gradient_rows<kAct, third(), true, true>(job);
      if (job.residual_grad) return gradient_rows<kAct, third(), false, true>(job);
    }
    gradient_rows<kAct, third(), true, false>(job);
  });
}
template <typename S, typename R>
FASTNAS_INLINE void norm_gradients_body(const NormJob<S, R>& job) {
  switch (job.activation) {
    case Activation::kNone: return gradients_with<Activation::kNone>(job);
    case Activation::kRelu: return gradients_with<Activation::kRelu>(job);
    case Activation::kSilu: return gradients_with<Activation::kSilu>(job);
    case Activation::kRelu6: return gradients_with<Activation::kRelu6>(job);
  }
}

}  // namespace

FASTNAS_COMPILE_FOR_NORM_TYPES(norm_gradient_sums)
FASTNAS_COMPILE_FOR_NORM_TYPES(norm_gradients)

}  // namespace fastnas

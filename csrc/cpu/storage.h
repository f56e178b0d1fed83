// From torch's type of a tensor to the C++ type of its elements on the CPU.
#pragma once

#include "../tensor.h"
#include "vector.h"

namespace fastnas {

// Calls body(S{}) with the storage type; the element types of fastnas share their bits with torch's.
template <typename Body>
void with_storage(ScalarType type, const char* name, Body&& body) {
  switch (type) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::BFloat16: return body(BFloat16{});
    case ScalarType::Half: return body(Float16{});
    default: check(false, name, ": expected fp32, fp64, fp16 or bf16, got ", type_name(type));
  }
}

}  // namespace fastnas

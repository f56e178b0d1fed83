// One way to refuse an argument: a message that names the argument, what was expected and what was got.
// Exceptions leave the kernels through torch's dispatcher and arrive in Python as RuntimeError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fastnas {

template <typename... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (__builtin_expect(ok, 1)) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace fastnas

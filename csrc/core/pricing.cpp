// fastnas._core: prices of encoded blueprints without Python in the loop. No tensors, so pybind11 and not torch's ABI.
//
// A space describes its blueprints as words over a few symbols (genes) and its prices as a weighted automaton: a transition
// costs what the blueprint grows by (milliseconds, parameters, MACs). The price of a word is the sum along its walk: one
// table look-up a gene, in tables of some 10 KB that stay near the processor.
//
// Blocks whose price nobody knows have a random 64-bit mark instead. What a transition adds and a later one takes away again
// cancels out, in the marks as in the prices; a word whose marks do not add up to 0 holds an unknown block and has no price.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

using Genes = py::array_t<uint8_t, py::array::c_style>;
using Numbers = py::array_t<double, py::array::c_style | py::array::forcecast>;
using States = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Marks = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;
using Flags = py::array_t<bool, py::array::c_style | py::array::forcecast>;

class Automaton {
 public:
  // next: [states, symbols], -1 where there is no such transition; cost: [states, symbols, values], of which the first has
  // marks: [states, symbols]; accepts: [states]. A walk begins in state 0. Gene `end` ends a word; it must stop in a state
  // that accepts.
  Automaton(const States& next, const Numbers& cost, const Marks& marks, const Flags& accepts, int end) : end_(end) {
    const auto fits = [&](const py::array& array) { return array.shape(0) == next.shape(0) && array.shape(1) == next.shape(1); };
    if (next.ndim() != 2 || cost.ndim() != 3 || marks.ndim() != 2 || !fits(cost) || !fits(marks)) {
      throw std::invalid_argument("next, cost, marks: expected [states, symbols], [states, symbols, values], [states, symbols]");
    }
    states_ = next.shape(0);
    symbols_ = next.shape(1);
    values_ = cost.shape(2);
    if (states_ < 1 || values_ < 1 || accepts.ndim() != 1 || accepts.shape(0) != states_) {
      throw std::invalid_argument("accepts: expected one flag for each of " + std::to_string(states_) + " states");
    }
    next_.assign(next.data(), next.data() + next.size());
    cost_.assign(cost.data(), cost.data() + cost.size());
    marks_.assign(marks.data(), marks.data() + marks.size());
    accepts_.assign(accepts.data(), accepts.data() + states_);
    for (const int32_t state : next_) {
      if (state < -1 || state >= states_) throw std::invalid_argument("next: no state " + std::to_string(state));
    }
  }

  // genes: [words, width] -> [words, values]. All NaN for what is no word; the first is NaN where a block is unknown.
  Numbers walk(const Genes& genes) const {
    if (genes.ndim() != 2) throw_dimensions("[words, width]", genes);
    const int64_t words = genes.shape(0), width = genes.shape(1);
    Numbers result({words, values_});
    const uint8_t* word = genes.data();
    double* out = result.mutable_data();
    {
      py::gil_scoped_release unlocked;
      for (int64_t w = 0; w < words; ++w) sum(word + w * width, width, values_, out + w * values_);
    }
    return result;
  }

  // One word of `width` genes -> its first value, by the shortest way from Python.
  double first(const Genes& genes) const {
    if (genes.ndim() != 1) throw_dimensions("[width]", genes);
    double value = 0;
    sum(genes.data(), genes.shape(0), 1, &value);
    return value;
  }

 private:
  static void throw_dimensions(const char* expected, const Genes& genes) {
    throw std::invalid_argument(std::string("genes: expected ") + expected + ", got " + std::to_string(genes.ndim()) + " dimensions");
  }

  void sum(const uint8_t* word, int64_t width, int64_t values, double* out) const {
    for (int64_t v = 0; v < values; ++v) out[v] = 0;
    int64_t state = 0;
    uint64_t mark = 0;
    for (int64_t at = 0; at < width && word[at] != end_; ++at) {
      const int64_t edge = word[at] < symbols_ ? state * symbols_ + word[at] : -1;
      state = edge < 0 ? -1 : next_[edge];
      if (state < 0) break;
      mark += marks_[edge];
      const double* cost = cost_.data() + edge * values_;
      for (int64_t v = 0; v < values; ++v) out[v] += cost[v];
    }
    const bool is_word = state >= 0 && accepts_[state];
    if (mark != 0) out[0] = std::numeric_limits<double>::quiet_NaN();
    for (int64_t v = 0; v < values && !is_word; ++v) out[v] = std::numeric_limits<double>::quiet_NaN();
  }

  int64_t states_, symbols_, values_;
  int end_;
  std::vector<int32_t> next_;
  std::vector<double> cost_;
  std::vector<uint64_t> marks_;
  std::vector<uint8_t> accepts_;
};

// values: [words, n], most: [n] -> which words keep every limit. A limit of infinity keeps all; NaN keeps none.
py::array_t<bool> within(const Numbers& values, const Numbers& most) {
  if (values.ndim() != 2 || most.ndim() != 1 || most.shape(0) != values.shape(1)) {
    throw std::invalid_argument("values, most: expected [words, n] and [n]");
  }
  const int64_t words = values.shape(0), count = values.shape(1);
  py::array_t<bool> result(words);
  const double* value = values.data();
  const double* limit = most.data();
  bool* out = result.mutable_data();
  py::gil_scoped_release unlocked;
  for (int64_t w = 0; w < words; ++w) {
    bool keeps = true;
    for (int64_t v = 0; v < count; ++v) keeps &= value[w * count + v] <= limit[v];
    out[w] = keeps;
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native pricing of encoded blueprints; used through fastnas.latency.batch.";
  py::class_<Automaton>(m, "Automaton")
      .def(py::init<const States&, const Numbers&, const Marks&, const Flags&, int>(), py::arg("next"), py::arg("cost"),
           py::arg("marks"), py::arg("accepts"), py::arg("end"))
      .def("walk", &Automaton::walk, py::arg("genes"))
      .def("first", &Automaton::first, py::arg("genes"));
  m.def("within", &within, py::arg("values"), py::arg("most"));
}

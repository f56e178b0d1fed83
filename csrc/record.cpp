// One line of text in each library that says how it was built; setup.py writes it, fastnas.ops.build_info() reads it.
#ifndef FASTNAS_BUILD_RECORD
#define FASTNAS_BUILD_RECORD "unknown"
#endif

extern "C" {
__attribute__((visibility("default"))) extern const char fastnas_build_record[];
const char fastnas_build_record[] = "fastnas-build-record:" FASTNAS_BUILD_RECORD;
}

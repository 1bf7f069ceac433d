// SSE2 on x86-64, NEON on arm64: what every processor of its kind has.
#define MINIDL_LEVEL baseline
#define MINIDL_BYTES 16
#include "level.hpp"

minidl::Level minidl::baseline_level() { return make_level("baseline"); }

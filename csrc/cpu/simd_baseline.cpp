#include "simd.hpp"

#define MINIDL_LEVEL baseline
#define MINIDL_BYTES 16
#include "microkernel.hpp"

minidl::Level minidl::baseline_level() { return {"baseline", &table<float>, &table<double>}; }

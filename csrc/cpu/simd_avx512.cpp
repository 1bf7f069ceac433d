#include "simd.hpp"

#if defined(__AVX512F__) // the flags that setup.py gives to this file alone, on x86-64
#define MINIDL_LEVEL avx512
#define MINIDL_BYTES 64
#include "microkernel.hpp"

minidl::Level minidl::avx512_level() { return {"avx512", &table<float>, &table<double>}; }
#else
minidl::Level minidl::avx512_level() { return {"avx512", nullptr, nullptr}; }
#endif

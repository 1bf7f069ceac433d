#include "simd.hpp"

#if defined(__AVX2__) && defined(__FMA__) // the flags that setup.py gives to this file alone, on x86-64
#define MINIDL_LEVEL avx2
#define MINIDL_BYTES 32
#include "microkernel.hpp"

minidl::Level minidl::avx2_level() { return {"avx2", &table<float>, &table<double>}; }
#else
minidl::Level minidl::avx2_level() { return {"avx2", nullptr, nullptr}; }
#endif

#include "kernels.hpp"

#if defined(__AVX2__) // the flags that setup.py gives to this file alone, on x86-64
#define MINIDL_LEVEL avx2
#define MINIDL_BYTES 32
#include "level.hpp"

minidl::Level minidl::avx2_level() { return make_level("avx2"); }
#else
minidl::Level minidl::avx2_level() { return {"avx2", nullptr, nullptr}; }
#endif

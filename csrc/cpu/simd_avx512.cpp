#include "kernels.hpp"

#if defined(__AVX512F__) // the flags that setup.py gives to this file alone, on x86-64
#define MINIDL_LEVEL avx512
#define MINIDL_BYTES 64
#include "level.hpp"

minidl::Level minidl::avx512_level() { return make_level("avx512"); }
#else
minidl::Level minidl::avx512_level() { return {"avx512", nullptr, nullptr}; }
#endif

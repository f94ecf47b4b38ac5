// What CuPy's own kernels need beyond tests/host.h, which follows, to be compiled for the host.

#pragma once
#include <cuda_fp16.h>
#include <vector_types.h>

#define __CUDACC_VER_MAJOR__ 13  // asked for by CuPy's header of half precision
#define assert(condition)
#define __noinline__
#define __syncwarp(...)
#undef __global__  // CUDA's headers define these for compilers that know of no GPU; host.h says what they mean here
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __constant__
#undef __shared__
#define dim3 host_dim3  // host.h has one that is not a class

#include "../host.h"

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

template <typename To, typename From>
inline To same_bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from);
    memcpy(&to, &from, sizeof to);
    return to;
}

inline double __longlong_as_double(long long x) { return same_bits<double>(x); }
inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }

template <typename T>
inline T __ldg(const T* from) {
    return *from;
}
template <typename T, typename U>
inline T atomicAdd(T* to, U value) {
    const T before = *to;
    *to = before + (T)value;
    return before;
}
template <typename T, typename U, typename V>
inline T atomicCAS(T* to, U expected, V value) {
    const T before = *to;
    if (before == (T)expected) *to = value;
    return before;
}

// What all kernels share. Two numbers come from the compiler's options:
//
//   BITS   of an element: 16, 32 or 64
//   WIDTH  elements per vector access: 16 bytes' worth, or 1 where the arrays do not allow it
//
// `scalar_t` is the type of an array's elements, `accum_t` that of computation, parameters and statistics: float for
// half precision. No kernel uses atomics, so every run gives the same bits. The same source compiles for the host, where
// tests/host.h replaces what only a GPU has.

#if BITS == 64
typedef double scalar_t;
typedef double accum_t;
#elif BITS == 32
typedef float scalar_t;
typedef float accum_t;
#else
#ifdef GPUCNN_ON_HOST
typedef _Float16 scalar_t;
#else
struct scalar_t {  // IEEE half precision with two instructions, so that no header of the CUDA toolkit is needed
    unsigned short bits;
    scalar_t() = default;
    __device__ scalar_t(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    __device__ operator float() const {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
};
#endif
typedef float accum_t;
#endif

#define THREADS 256  // per block, as gpucnn/backends/cupy/kernels.py launches them

#define NEGATIVE_INFINITY ((accum_t)log(0.0))  // NVRTC does not define INFINITY

// WIDTH neighbouring elements, loaded and stored with one instruction.
struct alignas(sizeof(scalar_t) * WIDTH) Pack {
    scalar_t at[WIDTH];
};

__device__ inline Pack load(const scalar_t* from) { return *reinterpret_cast<const Pack*>(from); }
__device__ inline void store(scalar_t* to, const Pack& pack) { *reinterpret_cast<Pack*>(to) = pack; }

// Return sums as elements.
__device__ inline Pack rounded(const accum_t* sums) {
    Pack pack;
    for (int k = 0; k < WIDTH; k++) pack.at[k] = (scalar_t)sums[k];
    return pack;
}

// Return max(value, 0) with `relu`, else the value; a NaN stays.
__device__ inline accum_t clamped(accum_t value, int relu) { return relu && value < 0 ? (accum_t)0 : value; }

// The geometry of a sliding window: size of image, output and kernel, strides, padding at the top and left, dilation.
#define GEOMETRY \
    int H, int W, int C, int OH, int OW, int KH, int KW, int SH, int SW, int PT, int PL, int DH, int DW

// A grid-stride loop: the elements i of `count` that this thread processes.
#define GRID_STRIDE(i, count) \
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < (count); i += gridDim.x * blockDim.x

// The rows of a matrix (rows, C) that this thread processes, always in the same channels: threadIdx.x indexes packs of
// channels (tiles of them blockIdx.y), threadIdx.y and blockIdx.x rows.
#define CHANNEL ((blockIdx.y * blockDim.x + threadIdx.x) * WIDTH)
#define ROW_STRIDE(row, rows) \
    long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < (rows); row += gridDim.x * blockDim.y

// Return whether a window starts `offset` before an element along one axis, and its position in the output.
__device__ inline bool window_at(int offset, int stride, int positions, int& position) {
    position = offset / stride;
    return offset >= 0 && offset % stride == 0 && position < positions;
}

// Return the sum over the threads of one threadIdx.x, in a fixed order; `shared` holds a number for each thread. The
// result is valid for threadIdx.y = 0. Every thread of the block must call this.
__device__ inline double block_sum(double value, double* shared) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    shared[thread] = value;
    __syncthreads();
    for (int rows = blockDim.y; rows > 1;) {
        const int half = (rows + 1) / 2;
        if ((int)threadIdx.y + half < rows) shared[thread] += shared[thread + half * blockDim.x];
        __syncthreads();
        rows = half;
    }
    const double sum = shared[threadIdx.x];
    __syncthreads();
    return sum;
}

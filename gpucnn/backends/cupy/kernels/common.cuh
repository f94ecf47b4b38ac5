// What all kernels share. Two numbers come from the compiler's options:
//
//   BITS   of an element: 16, 32 or 64
//   WIDTH  elements that a thread moves at once: 16 bytes' worth, or 1 where the arrays do not allow it
//
// `real` is the type of an array's elements, `work` the type to compute in and that of parameters and statistics: half
// precision computes in float and keeps its parameters in float. No kernel adds with atomics, so every run gives the
// same bits. The same text compiles for the host, where tests/host.h stands in for what only a GPU has.

#if BITS == 64
typedef double real;
typedef double work;
#elif BITS == 32
typedef float real;
typedef float work;
#else
#ifdef GPUCNN_ON_HOST
typedef _Float16 real;
#else
struct real {  // IEEE half precision by two instructions, so that no header of the CUDA toolkit is needed
    unsigned short bits;
    real() = default;
    __device__ real(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    __device__ operator float() const {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
};
#endif
typedef float work;
#endif

#define THREADS 256  // of a block, as gpucnn/backends/cupy/kernels.py launches them

#define NOTHING ((work)log(0.0))  // −∞, which every number is larger than; NVRTC knows no INFINITY

// WIDTH neighbouring elements, loaded and stored by one instruction.
struct alignas(sizeof(real) * WIDTH) Pack {
    real at[WIDTH];
};

__device__ inline Pack load(const real* from) { return *reinterpret_cast<const Pack*>(from); }
__device__ inline void store(real* to, const Pack& pack) { *reinterpret_cast<Pack*>(to) = pack; }

// How a window slides over an image: the image's size, the output's, the kernel's, strides, padding at the top and left,
// dilation.
#define GEOMETRY \
    int H, int W, int C, int OH, int OW, int KH, int KW, int SH, int SW, int PT, int PL, int DH, int DW

// The elements i that this thread takes of `count`: it strides over them with all other threads.
#define MY_ELEMENTS(i, count) \
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < (count); i += gridDim.x * blockDim.x

// The rows that this thread takes of a matrix (rows, C), always at the same channels: threadIdx.x goes over packs of
// channels (tiles of them over blockIdx.y), threadIdx.y and blockIdx.x over rows.
#define MY_CHANNEL ((blockIdx.y * blockDim.x + threadIdx.x) * WIDTH)
#define MY_ROWS(row, rows) \
    long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < (rows); row += gridDim.x * blockDim.y

// Tell whether a window begins `offset` before an element along one side, and at which position of the output.
__device__ inline bool window_at(int offset, int stride, int positions, int& position) {
    position = offset / stride;
    return offset >= 0 && offset % stride == 0 && position < positions;
}

// Return a + b over the threads of one threadIdx.x, in a fixed order; `shared` holds a number for every thread. The sum
// reaches threadIdx.y = 0. Every thread of the block must come here.
__device__ inline double add_up(double value, double* shared) {
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

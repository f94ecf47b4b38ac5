// Convolutions with one group per channel: F/C filters per channel, weight (KH, KW, 1, F). They are not a matrix
// product, so each thread sums its own windows.

extern "C" __global__ void depthwise(const scalar_t* x, const scalar_t* weight, const accum_t* bias, scalar_t* y,
                                     unsigned rows, int F, int relu, GEOMETRY) {
    for (GRID_STRIDE(i, rows * F)) {
        const int f = i % F, ow = i / F % OW, oh = i / F / OW % OH;
        const scalar_t* image = x + (size_t)(i / F / OW / OH) * H * W * C + f / (F / C);
        accum_t sum = 0;
        for (int ki = 0; ki < KH; ki++) {
            const int h = oh * SH - PT + ki * DH;
            if (h < 0 || h >= H) continue;
            for (int kj = 0; kj < KW; kj++) {
                const int w = ow * SW - PL + kj * DW;
                if (w < 0 || w >= W) continue;
                sum += (accum_t)image[((size_t)h * W + w) * C] * (accum_t)weight[(ki * KW + kj) * F + f];
            }
        }
        if (bias) sum += bias[f];
        y[i] = (scalar_t)clamped(sum, relu);
    }
}

extern "C" __global__ void depthwise_input_gradient(const scalar_t* dy, const scalar_t* weight, scalar_t* dx,
                                                    unsigned pixels, int F, GEOMETRY) {
    const int filters = F / C;  // of one channel
    for (GRID_STRIDE(i, pixels * C)) {
        const int c = i % C, w = i / C % W, h = i / C / W % H;
        const scalar_t* image = dy + (size_t)(i / C / W / H) * OH * OW * F;
        accum_t sum = 0;
        for (int ki = 0; ki < KH; ki++) {
            int oh, ow;
            if (!window_at(h + PT - ki * DH, SH, OH, oh)) continue;
            for (int kj = 0; kj < KW; kj++) {
                if (!window_at(w + PL - kj * DW, SW, OW, ow)) continue;
                for (int f = c * filters; f < (c + 1) * filters; f++)
                    sum += (accum_t)image[((size_t)oh * OW + ow) * F + f] * (accum_t)weight[(ki * KW + kj) * F + f];
            }
        }
        dx[i] = (scalar_t)sum;
    }
}

// Sum x·dy over some of the rows for one element of the kernel, blockIdx.z: partial (parts, KH·KW·F), to be summed by
// `channel_totals`. Launched as for MY_ROWS over the F filters.
extern "C" __global__ void depthwise_weight_gradient(const scalar_t* x, const scalar_t* dy, accum_t* partial,
                                                     long long rows, int F, GEOMETRY) {
    __shared__ double shared[THREADS];
    const int f = CHANNEL, ki = blockIdx.z / KW, kj = blockIdx.z % KW;
    accum_t sum = 0;
    for (ROW_STRIDE(row, rows)) {
        const int ow = row % OW, oh = row / OW % OH;
        const int h = oh * SH - PT + ki * DH, w = ow * SW - PL + kj * DW;
        if (f < F && h >= 0 && h < H && w >= 0 && w < W) {
            const size_t pixel = ((size_t)(row / OW / OH) * H + h) * W + w;
            sum += (accum_t)x[pixel * C + f / (F / C)] * (accum_t)dy[(size_t)row * F + f];
        }
    }
    const double total = block_sum(sum, shared);
    if (threadIdx.y == 0 && f < F) partial[((size_t)blockIdx.x * KH * KW + blockIdx.z) * F + f] = (accum_t)total;
}

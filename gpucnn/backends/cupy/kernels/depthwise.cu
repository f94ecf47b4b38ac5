// Convolutions with a group for each channel: F/C filters a channel, weight (KH, KW, 1, F). There is no product to be
// made of them, so each thread adds up its windows itself.

extern "C" __global__ void depthwise(const real* x, const real* weight, const work* bias, real* y, unsigned rows, int F,
                                     int relu, GEOMETRY) {
    for (MY_ELEMENTS(i, rows * F)) {
        const int f = i % F, ow = i / F % OW, oh = i / F / OW % OH;
        const real* image = x + (size_t)(i / F / OW / OH) * H * W * C + f / (F / C);
        work sum = 0;
        for (int ki = 0; ki < KH; ki++) {
            const int h = oh * SH - PT + ki * DH;
            if (h < 0 || h >= H) continue;
            for (int kj = 0; kj < KW; kj++) {
                const int w = ow * SW - PL + kj * DW;
                if (w < 0 || w >= W) continue;
                sum += (work)image[((size_t)h * W + w) * C] * (work)weight[(ki * KW + kj) * F + f];
            }
        }
        if (bias) sum += bias[f];
        y[i] = (real)(relu && sum < 0 ? (work)0 : sum);
    }
}

extern "C" __global__ void depthwise_input_gradient(const real* dy, const real* weight, real* dx, unsigned pixels, int F,
                                                    GEOMETRY) {
    const int filters = F / C;  // of one channel
    for (MY_ELEMENTS(i, pixels * C)) {
        const int c = i % C, w = i / C % W, h = i / C / W % H;
        const real* image = dy + (size_t)(i / C / W / H) * OH * OW * F;
        work sum = 0;
        for (int ki = 0; ki < KH; ki++) {
            int oh, ow;
            if (!window_at(h + PT - ki * DH, SH, OH, oh)) continue;
            for (int kj = 0; kj < KW; kj++) {
                if (!window_at(w + PL - kj * DW, SW, OW, ow)) continue;
                for (int f = c * filters; f < (c + 1) * filters; f++)
                    sum += (work)image[((size_t)oh * OW + ow) * F + f] * (work)weight[(ki * KW + kj) * F + f];
            }
        }
        dx[i] = (real)sum;
    }
}

// Sum x·dy over some of the rows for one element of the kernel, blockIdx.z: partial (parts, KH·KW·F), to be added up by
// `channel_totals`. Launched as for MY_ROWS over the F filters.
extern "C" __global__ void depthwise_weight_gradient(const real* x, const real* dy, work* partial, long long rows, int F,
                                                     GEOMETRY) {
    __shared__ double shared[256];
    const int f = MY_CHANNEL, ki = blockIdx.z / KW, kj = blockIdx.z % KW;
    work sum = 0;
    for (MY_ROWS(row, rows)) {
        const int ow = row % OW, oh = row / OW % OH;
        const int h = oh * SH - PT + ki * DH, w = ow * SW - PL + kj * DW;
        if (f < F && h >= 0 && h < H && w >= 0 && w < W) {
            const size_t pixel = ((size_t)(row / OW / OH) * H + h) * W + w;
            sum += (work)x[pixel * C + f / (F / C)] * (work)dy[(size_t)row * F + f];
        }
    }
    const double total = add_up(sum, shared);
    if (threadIdx.y == 0 && f < F) partial[((size_t)blockIdx.x * KH * KW + blockIdx.z) * F + f] = (work)total;
}

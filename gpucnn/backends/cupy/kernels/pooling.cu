// Poolings, forward and backward. A thread computes one pack of channels of one output, or in the backward pass of one
// input, where it gathers from the windows that contain it.

#define NO_WINNER 255  // the switch of a window whose maximum a ReLU clamped

// y (N, OH, OW, C) and the switches (Zeiler & Fergus): the index of the maximum in each window. Of equal elements the
// first wins, NaN propagates, and padding is −∞.
extern "C" __global__ void max_pool(const scalar_t* x, scalar_t* y, unsigned char* switches, unsigned rows, int relu,
                                    GEOMETRY) {
    const unsigned packs = C / WIDTH;
    for (GRID_STRIDE(i, rows * packs)) {
        const int channel = i % packs * WIDTH;
        const int ow = i / packs % OW, oh = i / packs / OW % OH;
        const scalar_t* image = x + (size_t)(i / packs / OW / OH) * H * W * C + channel;
        accum_t best[WIDTH];
        int winner[WIDTH];
        for (int k = 0; k < WIDTH; k++) best[k] = NEGATIVE_INFINITY, winner[k] = 0;
        for (int ki = 0; ki < KH; ki++) {
            const int h = oh * SH - PT + ki * DH;
            if (h < 0 || h >= H) continue;
            for (int kj = 0; kj < KW; kj++) {
                const int w = ow * SW - PL + kj * DW;
                if (w < 0 || w >= W) continue;
                const Pack pack = load(image + ((size_t)h * W + w) * C);
                for (int k = 0; k < WIDTH; k++) {
                    const accum_t value = (accum_t)pack.at[k];
                    if (value > best[k]) best[k] = value, winner[k] = ki * KW + kj;
                    if (value != value) best[k] = value;
                }
            }
        }
        Pack pack;
        for (int k = 0; k < WIDTH; k++) {
            if (relu && !(best[k] > 0)) winner[k] = NO_WINNER;
            if (relu && best[k] < 0) best[k] = 0;
            pack.at[k] = (scalar_t)best[k];
            switches[(size_t)i * WIDTH + k] = (unsigned char)winner[k];
        }
        store(y + (size_t)i * WIDTH, pack);
    }
}

extern "C" __global__ void max_pool_gradient(const scalar_t* dy, const unsigned char* switches, scalar_t* dx,
                                             unsigned pixels, GEOMETRY) {
    const unsigned packs = C / WIDTH;
    for (GRID_STRIDE(i, pixels * packs)) {
        const int channel = i % packs * WIDTH;
        const int w = i / packs % W, h = i / packs / W % H;
        const size_t first_row = (size_t)(i / packs / W / H) * OH * OW;
        accum_t sum[WIDTH] = {};
        for (int ki = 0; ki < KH; ki++) {
            int oh, ow;
            if (!window_at(h + PT - ki * DH, SH, OH, oh)) continue;
            for (int kj = 0; kj < KW; kj++) {
                if (!window_at(w + PL - kj * DW, SW, OW, ow)) continue;
                const size_t place = (first_row + (size_t)oh * OW + ow) * C + channel;
                const Pack pack = load(dy + place);
                for (int k = 0; k < WIDTH; k++)
                    if (switches[place + k] == ki * KW + kj) sum[k] += (accum_t)pack.at[k];
            }
        }
        store(dx + (size_t)i * WIDTH, rounded(sum));
    }
}

// The number of elements of a window inside the image, along one axis.
__device__ inline int inside(int position, int stride, int padding, int elements, int dilation, int size) {
    int count = 0;
    for (int k = 0; k < elements; k++) {
        const int at = position * stride - padding + k * dilation;
        count += at >= 0 && at < size;
    }
    return count;
}

extern "C" __global__ void average_pool(const scalar_t* x, scalar_t* y, unsigned rows, GEOMETRY) {
    const unsigned packs = C / WIDTH;
    for (GRID_STRIDE(i, rows * packs)) {
        const int channel = i % packs * WIDTH;
        const int ow = i / packs % OW, oh = i / packs / OW % OH;
        const scalar_t* image = x + (size_t)(i / packs / OW / OH) * H * W * C + channel;
        accum_t sum[WIDTH] = {};
        int count = 0;
        for (int ki = 0; ki < KH; ki++) {
            const int h = oh * SH - PT + ki * DH;
            if (h < 0 || h >= H) continue;
            for (int kj = 0; kj < KW; kj++) {
                const int w = ow * SW - PL + kj * DW;
                if (w < 0 || w >= W) continue;
                count++;
                const Pack pack = load(image + ((size_t)h * W + w) * C);
                for (int k = 0; k < WIDTH; k++) sum[k] += (accum_t)pack.at[k];
            }
        }
        for (int k = 0; k < WIDTH; k++) sum[k] /= (accum_t)count;
        store(y + (size_t)i * WIDTH, rounded(sum));
    }
}

extern "C" __global__ void average_pool_gradient(const scalar_t* dy, scalar_t* dx, unsigned pixels, GEOMETRY) {
    const unsigned packs = C / WIDTH;
    for (GRID_STRIDE(i, pixels * packs)) {
        const int channel = i % packs * WIDTH;
        const int w = i / packs % W, h = i / packs / W % H;
        const size_t first_row = (size_t)(i / packs / W / H) * OH * OW;
        accum_t sum[WIDTH] = {};
        for (int ki = 0; ki < KH; ki++) {
            int oh, ow;
            if (!window_at(h + PT - ki * DH, SH, OH, oh)) continue;
            for (int kj = 0; kj < KW; kj++) {
                if (!window_at(w + PL - kj * DW, SW, OW, ow)) continue;
                const int count = inside(oh, SH, PT, KH, DH, H) * inside(ow, SW, PL, KW, DW, W);
                const Pack pack = load(dy + (first_row + (size_t)oh * OW + ow) * C + channel);
                for (int k = 0; k < WIDTH; k++) sum[k] += (accum_t)pack.at[k] / (accum_t)count;
            }
        }
        store(dx + (size_t)i * WIDTH, rounded(sum));
    }
}

// Poolings, forward and backward. A thread takes one pack of channels of one output, or of one input on the way back,
// where it gathers from the windows that saw it.

#define CUT_OFF 255  // the winner of a window whose largest element a ReLU cut off

// y (N, OH, OW, C) and the number of the winning element of each window. Of equal elements the first wins, a NaN is
// passed on, and what lies outside the image is −∞.
extern "C" __global__ void max_pool(const real* x, real* y, unsigned char* winners, unsigned rows, int relu, GEOMETRY) {
    const unsigned packs = C / WIDTH;
    for (MY_ELEMENTS(i, rows * packs)) {
        const int channel = i % packs * WIDTH;
        const int ow = i / packs % OW, oh = i / packs / OW % OH;
        const real* image = x + (size_t)(i / packs / OW / OH) * H * W * C + channel;
        work best[WIDTH];
        int winner[WIDTH];
        for (int k = 0; k < WIDTH; k++) best[k] = NOTHING, winner[k] = 0;
        for (int ki = 0; ki < KH; ki++) {
            const int h = oh * SH - PT + ki * DH;
            if (h < 0 || h >= H) continue;
            for (int kj = 0; kj < KW; kj++) {
                const int w = ow * SW - PL + kj * DW;
                if (w < 0 || w >= W) continue;
                const Pack pack = load(image + ((size_t)h * W + w) * C);
                for (int k = 0; k < WIDTH; k++) {
                    const work value = (work)pack.at[k];
                    if (value > best[k]) best[k] = value, winner[k] = ki * KW + kj;
                    if (value != value) best[k] = value;
                }
            }
        }
        Pack pack;
        for (int k = 0; k < WIDTH; k++) {
            if (relu && !(best[k] > 0)) winner[k] = CUT_OFF;
            if (relu && best[k] < 0) best[k] = 0;
            pack.at[k] = (real)best[k];
            winners[(size_t)i * WIDTH + k] = (unsigned char)winner[k];
        }
        store(y + (size_t)i * WIDTH, pack);
    }
}

extern "C" __global__ void max_pool_gradient(const real* dy, const unsigned char* winners, real* dx, unsigned pixels,
                                             GEOMETRY) {
    const unsigned packs = C / WIDTH;
    for (MY_ELEMENTS(i, pixels * packs)) {
        const int channel = i % packs * WIDTH;
        const int w = i / packs % W, h = i / packs / W % H;
        const size_t first_row = (size_t)(i / packs / W / H) * OH * OW;
        work sum[WIDTH] = {};
        for (int ki = 0; ki < KH; ki++) {
            int oh, ow;
            if (!window_at(h + PT - ki * DH, SH, OH, oh)) continue;
            for (int kj = 0; kj < KW; kj++) {
                if (!window_at(w + PL - kj * DW, SW, OW, ow)) continue;
                const size_t place = (first_row + (size_t)oh * OW + ow) * C + channel;
                const Pack pack = load(dy + place);
                for (int k = 0; k < WIDTH; k++)
                    if (winners[place + k] == ki * KW + kj) sum[k] += (work)pack.at[k];
            }
        }
        Pack pack;
        for (int k = 0; k < WIDTH; k++) pack.at[k] = (real)sum[k];
        store(dx + (size_t)i * WIDTH, pack);
    }
}

// The number of elements of a window that lie inside the image, along one side.
__device__ inline int inside(int position, int stride, int padding, int elements, int dilation, int size) {
    int count = 0;
    for (int k = 0; k < elements; k++) {
        const int at = position * stride - padding + k * dilation;
        count += at >= 0 && at < size;
    }
    return count;
}

extern "C" __global__ void average_pool(const real* x, real* y, unsigned rows, GEOMETRY) {
    const unsigned packs = C / WIDTH;
    for (MY_ELEMENTS(i, rows * packs)) {
        const int channel = i % packs * WIDTH;
        const int ow = i / packs % OW, oh = i / packs / OW % OH;
        const real* image = x + (size_t)(i / packs / OW / OH) * H * W * C + channel;
        work sum[WIDTH] = {};
        int count = 0;
        for (int ki = 0; ki < KH; ki++) {
            const int h = oh * SH - PT + ki * DH;
            if (h < 0 || h >= H) continue;
            for (int kj = 0; kj < KW; kj++) {
                const int w = ow * SW - PL + kj * DW;
                if (w < 0 || w >= W) continue;
                count++;
                const Pack pack = load(image + ((size_t)h * W + w) * C);
                for (int k = 0; k < WIDTH; k++) sum[k] += (work)pack.at[k];
            }
        }
        Pack pack;
        for (int k = 0; k < WIDTH; k++) pack.at[k] = (real)(sum[k] / (work)count);
        store(y + (size_t)i * WIDTH, pack);
    }
}

extern "C" __global__ void average_pool_gradient(const real* dy, real* dx, unsigned pixels, GEOMETRY) {
    const unsigned packs = C / WIDTH;
    for (MY_ELEMENTS(i, pixels * packs)) {
        const int channel = i % packs * WIDTH;
        const int w = i / packs % W, h = i / packs / W % H;
        const size_t first_row = (size_t)(i / packs / W / H) * OH * OW;
        work sum[WIDTH] = {};
        for (int ki = 0; ki < KH; ki++) {
            int oh, ow;
            if (!window_at(h + PT - ki * DH, SH, OH, oh)) continue;
            for (int kj = 0; kj < KW; kj++) {
                if (!window_at(w + PL - kj * DW, SW, OW, ow)) continue;
                const int count = inside(oh, SH, PT, KH, DH, H) * inside(ow, SW, PL, KW, DW, W);
                const Pack pack = load(dy + (first_row + (size_t)oh * OW + ow) * C + channel);
                for (int k = 0; k < WIDTH; k++) sum[k] += (work)pack.at[k] / (work)count;
            }
        }
        Pack pack;
        for (int k = 0; k < WIDTH; k++) pack.at[k] = (real)sum[k];
        store(dx + (size_t)i * WIDTH, pack);
    }
}

// Per-channel operations on a matrix (rows, C): sums over the rows in two stages, batch normalisation, bias.
//
// First stage: each block sums some of the rows in `accum_t`, each thread a few of them, and writes one line of partial
// sums (parts, …, C). Second stage: the lines are summed in double precision, in order. Threads of a warp read
// neighbouring channels throughout.

// Write WIDTH sums of each threadIdx.x over the block's rows to `to`, this thread's position in a line.
__device__ inline void write_partial(const accum_t* sums, accum_t* to, bool valid, double* shared) {
    for (int k = 0; k < WIDTH; k++) {
        const double total = block_sum(sums[k], shared);
        if (valid && threadIdx.y == 0) to[k] = (accum_t)total;
    }
}

// Return the sum of a column of partial sums to the threads with threadIdx.y = 0.
__device__ inline double column_total(const accum_t* partial, int parts, int width, int column, double* shared) {
    double sum = 0;
    if (column < width)
        for (int part = threadIdx.y; part < parts; part += blockDim.y) sum += partial[(size_t)part * width + column];
    return block_sum(sum, shared);
}

extern "C" __global__ void channel_totals(const accum_t* partial, accum_t* totals, int parts, int width) {
    __shared__ double shared[THREADS];
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const double total = column_total(partial, parts, width, column, shared);
    if (threadIdx.y == 0 && column < width) totals[column] = (accum_t)total;
}

extern "C" __global__ void channel_sums(const scalar_t* x, accum_t* partial, long long rows, int C) {
    __shared__ double shared[THREADS];
    const int channel = CHANNEL;
    accum_t sum[WIDTH] = {};
    for (ROW_STRIDE(row, rows))
        if (channel < C) {
            const Pack pack = load(x + row * C + channel);
            for (int k = 0; k < WIDTH; k++) sum[k] += (accum_t)pack.at[k];
        }
    write_partial(sum, partial + (size_t)blockIdx.x * C + channel, channel < C, shared);
}

// Sums of x − x₀ and of its square, (parts, 2, C), where x₀ is the channel's first element: numbers far from 0 keep
// their precision.
extern "C" __global__ void batch_norm_sums(const scalar_t* x, accum_t* partial, long long rows, int C) {
    __shared__ double shared[THREADS];
    const int channel = CHANNEL;
    accum_t sum[WIDTH] = {}, squares[WIDTH] = {};
    for (ROW_STRIDE(row, rows))
        if (channel < C) {
            const Pack pack = load(x + row * C + channel), first = load(x + channel);
            for (int k = 0; k < WIDTH; k++) {
                const accum_t value = (accum_t)pack.at[k] - (accum_t)first.at[k];
                sum[k] += value;
                squares[k] += value * value;
            }
        }
    accum_t* line = partial + (size_t)blockIdx.x * 2 * C + channel;
    write_partial(sum, line, channel < C, shared);
    write_partial(squares, line + C, channel < C, shared);
}

extern "C" __global__ void batch_norm_statistics(const accum_t* partial, const scalar_t* x, accum_t* mean,
                                                 accum_t* variance, int parts, long long rows, int C) {
    __shared__ double shared[THREADS];
    const int channel = blockIdx.x * blockDim.x + threadIdx.x;
    const double sum = column_total(partial, parts, 2 * C, channel < C ? channel : 2 * C, shared);
    const double squares = column_total(partial, parts, 2 * C, channel < C ? C + channel : 2 * C, shared);
    if (threadIdx.y == 0 && channel < C) {
        const double shifted = sum / rows, spread = squares / rows - shifted * shifted;
        mean[channel] = (accum_t)((accum_t)x[channel] + shifted);
        variance[channel] = (accum_t)(spread > 0 || spread != spread ? spread : 0.0);
    }
}

extern "C" __global__ void batch_norm(const scalar_t* x, const accum_t* mean, const accum_t* variance,
                                      const accum_t* scale, const accum_t* shift, scalar_t* y, long long rows, int C,
                                      double epsilon, int relu) {
    const int channel = CHANNEL;
    if (channel >= C) return;
    accum_t centre[WIDTH], factor[WIDTH], offset[WIDTH];
    for (int k = 0; k < WIDTH; k++) {
        centre[k] = mean[channel + k];
        factor[k] = scale[channel + k] / sqrt(variance[channel + k] + (accum_t)epsilon);
        offset[k] = shift[channel + k];
    }
    for (ROW_STRIDE(row, rows)) {
        Pack pack = load(x + row * C + channel);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t value = ((accum_t)pack.at[k] - centre[k]) * factor[k] + offset[k];
            pack.at[k] = (scalar_t)clamped(value, relu);
        }
        store(y + row * C + channel, pack);
    }
}

// Sums of dy and of dy·x̂ (parts, 2, C), x̂ the normalised x. With `relu`, dy counts where y was positive; y is
// recomputed rather than read.
extern "C" __global__ void batch_norm_gradient_sums(const scalar_t* dy, const scalar_t* x, const accum_t* mean,
                                                    const accum_t* variance, const accum_t* scale, const accum_t* shift,
                                                    accum_t* partial, long long rows, int C, double epsilon, int relu) {
    __shared__ double shared[THREADS];
    const int channel = CHANNEL;
    accum_t sum[WIDTH] = {}, products[WIDTH] = {}, centre[WIDTH], root[WIDTH], factor[WIDTH], offset[WIDTH];
    for (int k = 0; k < WIDTH; k++) {
        const int c = channel < C ? channel + k : 0;
        centre[k] = mean[c], root[k] = 1 / sqrt(variance[c] + (accum_t)epsilon);
        factor[k] = scale[c] / sqrt(variance[c] + (accum_t)epsilon), offset[k] = shift[c];
    }
    for (ROW_STRIDE(row, rows))
        if (channel < C) {
            const Pack gradients = load(dy + row * C + channel), pack = load(x + row * C + channel);
            for (int k = 0; k < WIDTH; k++) {
                const accum_t centred = (accum_t)pack.at[k] - centre[k];
                const bool counts = !relu || centred * factor[k] + offset[k] > 0;
                const accum_t gradient = counts ? (accum_t)gradients.at[k] : (accum_t)0;
                sum[k] += gradient;
                products[k] += gradient * (centred * root[k]);
            }
        }
    accum_t* line = partial + (size_t)blockIdx.x * 2 * C + channel;
    write_partial(sum, line, channel < C, shared);
    write_partial(products, line + C, channel < C, shared);
}

// dx from dy and the totals (2, C) of the sums above, dshift and dscale.
extern "C" __global__ void batch_norm_input_gradient(const scalar_t* dy, const scalar_t* x, const accum_t* mean,
                                                     const accum_t* variance, const accum_t* scale,
                                                     const accum_t* shift, const accum_t* totals, scalar_t* dx,
                                                     long long rows, int C, double epsilon, int relu) {
    const int channel = CHANNEL;
    if (channel >= C) return;
    accum_t centre[WIDTH], root[WIDTH], factor[WIDTH], offset[WIDTH], mean_dy[WIDTH], mean_product[WIDTH];
    for (int k = 0; k < WIDTH; k++) {
        const int c = channel + k;
        centre[k] = mean[c], root[k] = 1 / sqrt(variance[c] + (accum_t)epsilon);
        factor[k] = scale[c] / sqrt(variance[c] + (accum_t)epsilon), offset[k] = shift[c];
        mean_dy[k] = totals[c] / (accum_t)rows, mean_product[k] = totals[C + c] / (accum_t)rows;
    }
    for (ROW_STRIDE(row, rows)) {
        Pack pack = load(dy + row * C + channel);
        const Pack inputs = load(x + row * C + channel);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t centred = (accum_t)inputs.at[k] - centre[k];
            const bool counts = !relu || centred * factor[k] + offset[k] > 0;
            const accum_t gradient = counts ? (accum_t)pack.at[k] : (accum_t)0;
            pack.at[k] = (scalar_t)(factor[k] * (gradient - mean_dy[k] - centred * root[k] * mean_product[k]));
        }
        store(dx + row * C + channel, pack);
    }
}

extern "C" __global__ void scale_and_shift(const scalar_t* x, const accum_t* scale, const accum_t* shift, scalar_t* y,
                                           long long rows, int C, int relu) {
    const int channel = CHANNEL;
    if (channel >= C) return;
    accum_t factor[WIDTH], offset[WIDTH];
    for (int k = 0; k < WIDTH; k++) factor[k] = scale[channel + k], offset[k] = shift[channel + k];
    for (ROW_STRIDE(row, rows)) {
        Pack pack = load(x + row * C + channel);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t value = (accum_t)pack.at[k] * factor[k] + offset[k];
            pack.at[k] = (scalar_t)clamped(value, relu);
        }
        store(y + row * C + channel, pack);
    }
}

// Add a bias to a product y, in place.
extern "C" __global__ void add_bias(scalar_t* y, const accum_t* bias, long long rows, int C, int relu) {
    const int channel = CHANNEL;
    if (channel >= C) return;
    accum_t offset[WIDTH];
    for (int k = 0; k < WIDTH; k++) offset[k] = bias ? bias[channel + k] : (accum_t)0;
    for (ROW_STRIDE(row, rows)) {
        Pack pack = load(y + row * C + channel);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t value = (accum_t)pack.at[k] + offset[k];
            pack.at[k] = (scalar_t)clamped(value, relu);
        }
        store(y + row * C + channel, pack);
    }
}

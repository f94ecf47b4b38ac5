// What is done channel by channel to a matrix (rows, C): sums over the rows in two stages, batch normalisation, bias.
//
// First stage: each block adds up some of the rows in `work` precision, one thread for few of them, and writes one line
// of partial sums (parts, …, C). Second stage: the lines are added up in double precision, in order. Threads of a warp
// read neighbouring channels throughout.

// Write WIDTH sums of each threadIdx.x over the block's rows to `to`, this thread's place in a line.
__device__ inline void write_partial(const work* sums, work* to, bool mine, double* shared) {
    for (int k = 0; k < WIDTH; k++) {
        const double total = add_up(sums[k], shared);
        if (mine && threadIdx.y == 0) to[k] = (work)total;
    }
}

// Return the sum of a column of partial sums to the threads with threadIdx.y = 0.
__device__ inline double column_total(const work* partial, int parts, int width, int column, double* shared) {
    double sum = 0;
    if (column < width)
        for (int part = threadIdx.y; part < parts; part += blockDim.y) sum += partial[(size_t)part * width + column];
    return add_up(sum, shared);
}

extern "C" __global__ void channel_totals(const work* partial, work* totals, int parts, int width) {
    __shared__ double shared[THREADS];
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const double total = column_total(partial, parts, width, column, shared);
    if (threadIdx.y == 0 && column < width) totals[column] = (work)total;
}

extern "C" __global__ void channel_sums(const real* x, work* partial, long long rows, int C) {
    __shared__ double shared[THREADS];
    const int channel = MY_CHANNEL;
    work sum[WIDTH] = {};
    for (MY_ROWS(row, rows))
        if (channel < C) {
            const Pack pack = load(x + row * C + channel);
            for (int k = 0; k < WIDTH; k++) sum[k] += (work)pack.at[k];
        }
    write_partial(sum, partial + (size_t)blockIdx.x * C + channel, channel < C, shared);
}

// Sums of x − x₀ and of its square, (parts, 2, C), where x₀ is the channel's first element: numbers that lie far from 0
// keep their digits.
extern "C" __global__ void batch_norm_sums(const real* x, work* partial, long long rows, int C) {
    __shared__ double shared[THREADS];
    const int channel = MY_CHANNEL;
    work sum[WIDTH] = {}, squares[WIDTH] = {};
    for (MY_ROWS(row, rows))
        if (channel < C) {
            const Pack pack = load(x + row * C + channel), first = load(x + channel);
            for (int k = 0; k < WIDTH; k++) {
                const work value = (work)pack.at[k] - (work)first.at[k];
                sum[k] += value;
                squares[k] += value * value;
            }
        }
    work* line = partial + (size_t)blockIdx.x * 2 * C + channel;
    write_partial(sum, line, channel < C, shared);
    write_partial(squares, line + C, channel < C, shared);
}

extern "C" __global__ void batch_norm_statistics(const work* partial, const real* x, work* mean, work* variance,
                                                 int parts, long long rows, int C) {
    __shared__ double shared[THREADS];
    const int channel = blockIdx.x * blockDim.x + threadIdx.x;
    const double sum = column_total(partial, parts, 2 * C, channel < C ? channel : 2 * C, shared);
    const double squares = column_total(partial, parts, 2 * C, channel < C ? C + channel : 2 * C, shared);
    if (threadIdx.y == 0 && channel < C) {
        const double shifted = sum / rows, spread = squares / rows - shifted * shifted;
        mean[channel] = (work)((work)x[channel] + shifted);
        variance[channel] = (work)(spread > 0 || spread != spread ? spread : 0.0);
    }
}

extern "C" __global__ void batch_norm(const real* x, const work* mean, const work* variance, const work* scale,
                                      const work* shift, real* y, long long rows, int C, double epsilon, int relu) {
    const int channel = MY_CHANNEL;
    if (channel >= C) return;
    work centre[WIDTH], factor[WIDTH], offset[WIDTH];
    for (int k = 0; k < WIDTH; k++) {
        centre[k] = mean[channel + k];
        factor[k] = scale[channel + k] / sqrt(variance[channel + k] + (work)epsilon);
        offset[k] = shift[channel + k];
    }
    for (MY_ROWS(row, rows)) {
        Pack pack = load(x + row * C + channel);
        for (int k = 0; k < WIDTH; k++) {
            const work value = ((work)pack.at[k] - centre[k]) * factor[k] + offset[k];
            pack.at[k] = (real)(relu && value < 0 ? (work)0 : value);
        }
        store(y + row * C + channel, pack);
    }
}

// Sums of dy and of dy·x̂ (parts, 2, C), x̂ the normalised x. With `relu`, dy counts where y was positive, and y is
// computed again rather than read.
extern "C" __global__ void batch_norm_gradient_sums(const real* dy, const real* x, const work* mean,
                                                    const work* variance, const work* scale, const work* shift,
                                                    work* partial, long long rows, int C, double epsilon, int relu) {
    __shared__ double shared[THREADS];
    const int channel = MY_CHANNEL;
    work sum[WIDTH] = {}, products[WIDTH] = {}, centre[WIDTH], root[WIDTH], factor[WIDTH], offset[WIDTH];
    for (int k = 0; k < WIDTH; k++) {
        const int c = channel < C ? channel + k : 0;
        centre[k] = mean[c], root[k] = 1 / sqrt(variance[c] + (work)epsilon);
        factor[k] = scale[c] / sqrt(variance[c] + (work)epsilon), offset[k] = shift[c];
    }
    for (MY_ROWS(row, rows))
        if (channel < C) {
            const Pack gradients = load(dy + row * C + channel), pack = load(x + row * C + channel);
            for (int k = 0; k < WIDTH; k++) {
                const work centred = (work)pack.at[k] - centre[k];
                const bool counts = !relu || centred * factor[k] + offset[k] > 0;
                const work gradient = counts ? (work)gradients.at[k] : (work)0;
                sum[k] += gradient;
                products[k] += gradient * (centred * root[k]);
            }
        }
    work* line = partial + (size_t)blockIdx.x * 2 * C + channel;
    write_partial(sum, line, channel < C, shared);
    write_partial(products, line + C, channel < C, shared);
}

// dx from dy and the totals (2, C) of the sums above, dshift and dscale.
extern "C" __global__ void batch_norm_input_gradient(const real* dy, const real* x, const work* mean,
                                                     const work* variance, const work* scale, const work* shift,
                                                     const work* totals, real* dx, long long rows, int C,
                                                     double epsilon, int relu) {
    const int channel = MY_CHANNEL;
    if (channel >= C) return;
    work centre[WIDTH], root[WIDTH], factor[WIDTH], offset[WIDTH], mean_dy[WIDTH], mean_product[WIDTH];
    for (int k = 0; k < WIDTH; k++) {
        const int c = channel + k;
        centre[k] = mean[c], root[k] = 1 / sqrt(variance[c] + (work)epsilon);
        factor[k] = scale[c] / sqrt(variance[c] + (work)epsilon), offset[k] = shift[c];
        mean_dy[k] = totals[c] / (work)rows, mean_product[k] = totals[C + c] / (work)rows;
    }
    for (MY_ROWS(row, rows)) {
        Pack pack = load(dy + row * C + channel);
        const Pack inputs = load(x + row * C + channel);
        for (int k = 0; k < WIDTH; k++) {
            const work centred = (work)inputs.at[k] - centre[k];
            const bool counts = !relu || centred * factor[k] + offset[k] > 0;
            const work gradient = counts ? (work)pack.at[k] : (work)0;
            pack.at[k] = (real)(factor[k] * (gradient - mean_dy[k] - centred * root[k] * mean_product[k]));
        }
        store(dx + row * C + channel, pack);
    }
}

extern "C" __global__ void scale_and_shift(const real* x, const work* scale, const work* shift, real* y, long long rows,
                                           int C, int relu) {
    const int channel = MY_CHANNEL;
    if (channel >= C) return;
    work factor[WIDTH], offset[WIDTH];
    for (int k = 0; k < WIDTH; k++) factor[k] = scale[channel + k], offset[k] = shift[channel + k];
    for (MY_ROWS(row, rows)) {
        Pack pack = load(x + row * C + channel);
        for (int k = 0; k < WIDTH; k++) {
            const work value = (work)pack.at[k] * factor[k] + offset[k];
            pack.at[k] = (real)(relu && value < 0 ? (work)0 : value);
        }
        store(y + row * C + channel, pack);
    }
}

// Add a bias to what a product left in y, in place.
extern "C" __global__ void add_bias(real* y, const work* bias, long long rows, int C, int relu) {
    const int channel = MY_CHANNEL;
    if (channel >= C) return;
    work offset[WIDTH];
    for (int k = 0; k < WIDTH; k++) offset[k] = bias ? bias[channel + k] : (work)0;
    for (MY_ROWS(row, rows)) {
        Pack pack = load(y + row * C + channel);
        for (int k = 0; k < WIDTH; k++) {
            const work value = (work)pack.at[k] + offset[k];
            pack.at[k] = (real)(relu && value < 0 ? (work)0 : value);
        }
        store(y + row * C + channel, pack);
    }
}

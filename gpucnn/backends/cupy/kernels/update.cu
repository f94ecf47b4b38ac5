// The optimizers' updates of one flat buffer. What changes from step to step, the learning rate and the step number, is
// read from GPU memory, so that a captured step can be replayed.

extern "C" __global__ void sgd_update(scalar_t* values, const scalar_t* gradients, scalar_t* velocity,
                                      const double* learning_rate, unsigned count, double momentum, double weight_decay,
                                      int nesterov) {
    const accum_t rate = (accum_t)*learning_rate;
    for (GRID_STRIDE(i, count)) {
        Pack value = load(values + (size_t)i * WIDTH);
        const Pack gradient = load(gradients + (size_t)i * WIDTH);
        Pack speed = velocity ? load(velocity + (size_t)i * WIDTH) : Pack();
        for (int k = 0; k < WIDTH; k++) {
            accum_t step = (accum_t)gradient.at[k] + (accum_t)weight_decay * (accum_t)value.at[k];
            if (velocity) {
                const accum_t moved = (accum_t)momentum * (accum_t)speed.at[k] + step;
                speed.at[k] = (scalar_t)moved;
                step = nesterov ? step + (accum_t)momentum * moved : moved;
            }
            value.at[k] = (scalar_t)((accum_t)value.at[k] - rate * step);
        }
        store(values + (size_t)i * WIDTH, value);
        if (velocity) store(velocity + (size_t)i * WIDTH, speed);
    }
}

extern "C" __global__ void adam_update(scalar_t* values, const scalar_t* gradients, scalar_t* mean, scalar_t* square,
                                       const double* learning_rate, const long long* step, unsigned count, double beta1,
                                       double beta2, double epsilon, double weight_decay, int decoupled) {
    const accum_t rate = (accum_t)*learning_rate;
    const accum_t unbias1 = (accum_t)(1 - pow(beta1, (double)*step));
    const accum_t unbias2 = (accum_t)(1 - pow(beta2, (double)*step));
    const accum_t decay = decoupled ? rate * (accum_t)weight_decay : 0, pull = decoupled ? 0 : (accum_t)weight_decay;
    for (GRID_STRIDE(i, count)) {
        Pack value = load(values + (size_t)i * WIDTH), first = load(mean + (size_t)i * WIDTH);
        Pack second = load(square + (size_t)i * WIDTH);
        const Pack gradients_here = load(gradients + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t gradient = (accum_t)gradients_here.at[k] + pull * (accum_t)value.at[k];
            const accum_t m = (accum_t)beta1 * (accum_t)first.at[k] + (accum_t)(1 - beta1) * gradient;
            const accum_t v = (accum_t)beta2 * (accum_t)second.at[k] + (accum_t)(1 - beta2) * gradient * gradient;
            first.at[k] = (scalar_t)m, second.at[k] = (scalar_t)v;
            const accum_t kept = (accum_t)value.at[k] * (1 - decay);
            value.at[k] = (scalar_t)(kept - rate * (m / unbias1) / (sqrt(v / unbias2) + (accum_t)epsilon));
        }
        store(values + (size_t)i * WIDTH, value);
        store(mean + (size_t)i * WIDTH, first);
        store(square + (size_t)i * WIDTH, second);
    }
}

extern "C" __global__ void lerp(scalar_t* target, const scalar_t* source, unsigned count, double weight) {
    for (GRID_STRIDE(i, count)) {
        Pack to = load(target + (size_t)i * WIDTH);
        const Pack from = load(source + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t difference = (accum_t)from.at[k] - (accum_t)to.at[k];
            to.at[k] = weight < 0.5 ? (scalar_t)((accum_t)to.at[k] + (accum_t)weight * difference)
                                    : (scalar_t)((accum_t)from.at[k] - (accum_t)(1 - weight) * difference);
        }
        store(target + (size_t)i * WIDTH, to);
    }
}

// Partial sums of squares, one per block, whose threads are along the second axis.
extern "C" __global__ void squares(const scalar_t* x, double* partial, unsigned count) {
    __shared__ double shared[THREADS];
    double sum = 0;
    for (unsigned i = blockIdx.x * blockDim.y + threadIdx.y; i < count; i += gridDim.x * blockDim.y)
        sum += (double)(accum_t)x[i] * (double)(accum_t)x[i];
    sum = block_sum(sum, shared);
    if (threadIdx.y == 0) partial[blockIdx.x] = sum;
}

// The factor that limits the norm of a vector, whose square is the sum of the parts.
extern "C" __global__ void clip_factor(const double* partial, accum_t* factor, unsigned parts, double limit) {
    __shared__ double shared[THREADS];
    double sum = 0;
    for (unsigned part = threadIdx.y; part < parts; part += blockDim.y) sum += partial[part];
    sum = block_sum(sum, shared);
    const double norm = sqrt(sum);
    if (threadIdx.y == 0) *factor = (accum_t)(limit / (norm > limit || norm != norm ? norm : limit));
}

extern "C" __global__ void multiply(scalar_t* x, const accum_t* factor, unsigned count) {
    for (GRID_STRIDE(i, count)) {
        Pack pack = load(x + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) pack.at[k] = (scalar_t)((accum_t)pack.at[k] * *factor);
        store(x + (size_t)i * WIDTH, pack);
    }
}

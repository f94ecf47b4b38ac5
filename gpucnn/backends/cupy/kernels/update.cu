// The optimizers' updates of one flat buffer. What changes from step to step, the learning rate and the number of the
// step, is read from the GPU's memory, so that a captured step can be repeated.

extern "C" __global__ void sgd_update(real* values, const real* gradients, real* velocity, const double* learning_rate,
                                      unsigned count, double momentum, double weight_decay, int nesterov) {
    const work rate = (work)*learning_rate;
    for (MY_ELEMENTS(i, count)) {
        Pack value = load(values + (size_t)i * WIDTH);
        const Pack gradient = load(gradients + (size_t)i * WIDTH);
        Pack speed = velocity ? load(velocity + (size_t)i * WIDTH) : Pack();
        for (int k = 0; k < WIDTH; k++) {
            work step = (work)gradient.at[k] + (work)weight_decay * (work)value.at[k];
            if (velocity) {
                const work moved = (work)momentum * (work)speed.at[k] + step;
                speed.at[k] = (real)moved;
                step = nesterov ? step + (work)momentum * moved : moved;
            }
            value.at[k] = (real)((work)value.at[k] - rate * step);
        }
        store(values + (size_t)i * WIDTH, value);
        if (velocity) store(velocity + (size_t)i * WIDTH, speed);
    }
}

extern "C" __global__ void adam_update(real* values, const real* gradients, real* mean, real* square,
                                       const double* learning_rate, const long long* step, unsigned count, double beta1,
                                       double beta2, double epsilon, double weight_decay, int decoupled) {
    const work rate = (work)*learning_rate;
    const work unbias1 = (work)(1 - pow(beta1, (double)*step)), unbias2 = (work)(1 - pow(beta2, (double)*step));
    const work decay = decoupled ? rate * (work)weight_decay : 0, pull = decoupled ? 0 : (work)weight_decay;
    for (MY_ELEMENTS(i, count)) {
        Pack value = load(values + (size_t)i * WIDTH), first = load(mean + (size_t)i * WIDTH);
        Pack second = load(square + (size_t)i * WIDTH);
        const Pack gradients_here = load(gradients + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const work gradient = (work)gradients_here.at[k] + pull * (work)value.at[k];
            const work m = (work)beta1 * (work)first.at[k] + (work)(1 - beta1) * gradient;
            const work v = (work)beta2 * (work)second.at[k] + (work)(1 - beta2) * gradient * gradient;
            first.at[k] = (real)m, second.at[k] = (real)v;
            const work kept = (work)value.at[k] * (1 - decay);
            value.at[k] = (real)(kept - rate * (m / unbias1) / (sqrt(v / unbias2) + (work)epsilon));
        }
        store(values + (size_t)i * WIDTH, value);
        store(mean + (size_t)i * WIDTH, first);
        store(square + (size_t)i * WIDTH, second);
    }
}

extern "C" __global__ void lerp(real* target, const real* source, unsigned count, double weight) {
    for (MY_ELEMENTS(i, count)) {
        Pack to = load(target + (size_t)i * WIDTH);
        const Pack from = load(source + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const work difference = (work)from.at[k] - (work)to.at[k];
            to.at[k] = weight < 0.5 ? (real)((work)to.at[k] + (work)weight * difference)
                                    : (real)((work)from.at[k] - (work)(1 - weight) * difference);
        }
        store(target + (size_t)i * WIDTH, to);
    }
}

// Sums of squares, a part for each block; its threads stand along the second side.
extern "C" __global__ void squares(const real* x, double* partial, unsigned count) {
    __shared__ double shared[THREADS];
    double sum = 0;
    for (unsigned i = blockIdx.x * blockDim.y + threadIdx.y; i < count; i += gridDim.x * blockDim.y)
        sum += (double)(work)x[i] * (double)(work)x[i];
    sum = add_up(sum, shared);
    if (threadIdx.y == 0) partial[blockIdx.x] = sum;
}

// What a vector is multiplied by so that its norm, whose square is the sum of the parts, is at most the limit.
extern "C" __global__ void factor_to_limit(const double* partial, work* factor, unsigned parts, double limit) {
    __shared__ double shared[THREADS];
    double sum = 0;
    for (unsigned part = threadIdx.y; part < parts; part += blockDim.y) sum += partial[part];
    sum = add_up(sum, shared);
    const double norm = sqrt(sum);
    if (threadIdx.y == 0) *factor = (work)(limit / (norm > limit || norm != norm ? norm : limit));
}

extern "C" __global__ void multiply(real* x, const work* factor, unsigned count) {
    for (MY_ELEMENTS(i, count)) {
        Pack pack = load(x + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) pack.at[k] = (real)((work)pack.at[k] * *factor);
        store(x + (size_t)i * WIDTH, pack);
    }
}

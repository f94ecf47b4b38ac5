// Elementwise functions. `count` is the number of packs.

extern "C" __global__ void relu(const scalar_t* x, scalar_t* y, unsigned count) {
    for (GRID_STRIDE(i, count)) {
        Pack pack = load(x + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++)
            if ((accum_t)pack.at[k] < 0) pack.at[k] = (scalar_t)0;
        store(y + (size_t)i * WIDTH, pack);
    }
}

extern "C" __global__ void relu_gradient(const scalar_t* dy, const scalar_t* y, scalar_t* dx, unsigned count) {
    for (GRID_STRIDE(i, count)) {
        Pack pack = load(dy + (size_t)i * WIDTH);
        const Pack outputs = load(y + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++)
            if (!((accum_t)outputs.at[k] > 0)) pack.at[k] = (scalar_t)0;
        store(dx + (size_t)i * WIDTH, pack);
    }
}

extern "C" __global__ void add(const scalar_t* a, const scalar_t* b, scalar_t* y, unsigned count, int relu) {
    for (GRID_STRIDE(i, count)) {
        Pack pack = load(a + (size_t)i * WIDTH);
        const Pack other = load(b + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t sum = (accum_t)pack.at[k] + (accum_t)other.at[k];
            pack.at[k] = (scalar_t)clamped(sum, relu);
        }
        store(y + (size_t)i * WIDTH, pack);
    }
}

// Φ(x), the normal distribution function.
__device__ inline accum_t normal_cdf(accum_t x) {
    return (accum_t)0.5 * erf(x * (accum_t)0.70710678118654752440) + (accum_t)0.5;
}

// x·Φ(x).
extern "C" __global__ void gelu(const scalar_t* x, scalar_t* y, unsigned count) {
    for (GRID_STRIDE(i, count)) {
        Pack pack = load(x + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t value = (accum_t)pack.at[k];
            pack.at[k] = (scalar_t)(value * normal_cdf(value));
        }
        store(y + (size_t)i * WIDTH, pack);
    }
}

// dy·(Φ(x) + x·φ(x)), φ the normal density.
extern "C" __global__ void gelu_gradient(const scalar_t* dy, const scalar_t* x, scalar_t* dx, unsigned count) {
    for (GRID_STRIDE(i, count)) {
        Pack pack = load(dy + (size_t)i * WIDTH);
        const Pack inputs = load(x + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const accum_t value = (accum_t)inputs.at[k];
            const accum_t cdf = normal_cdf(value);
            const accum_t pdf = (accum_t)0.39894228040143267794 * exp((accum_t)-0.5 * value * value);
            pack.at[k] = (scalar_t)((accum_t)pack.at[k] * (cdf + value * pdf));
        }
        store(dx + (size_t)i * WIDTH, pack);
    }
}

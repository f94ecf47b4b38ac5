// Functions of single elements. `count` is that of packs.

extern "C" __global__ void relu(const real* x, real* y, unsigned count) {
    for (MY_ELEMENTS(i, count)) {
        Pack pack = load(x + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++)
            if ((work)pack.at[k] < 0) pack.at[k] = (real)0;
        store(y + (size_t)i * WIDTH, pack);
    }
}

extern "C" __global__ void relu_gradient(const real* dy, const real* y, real* dx, unsigned count) {
    for (MY_ELEMENTS(i, count)) {
        Pack pack = load(dy + (size_t)i * WIDTH);
        const Pack outputs = load(y + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++)
            if (!((work)outputs.at[k] > 0)) pack.at[k] = (real)0;
        store(dx + (size_t)i * WIDTH, pack);
    }
}

extern "C" __global__ void add(const real* a, const real* b, real* y, unsigned count, int relu) {
    for (MY_ELEMENTS(i, count)) {
        Pack pack = load(a + (size_t)i * WIDTH);
        const Pack other = load(b + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const work sum = (work)pack.at[k] + (work)other.at[k];
            pack.at[k] = (real)(relu && sum < 0 ? (work)0 : sum);
        }
        store(y + (size_t)i * WIDTH, pack);
    }
}

// x·Φ(x), Φ the normal distribution.
extern "C" __global__ void gelu(const real* x, real* y, unsigned count) {
    for (MY_ELEMENTS(i, count)) {
        Pack pack = load(x + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const work value = (work)pack.at[k];
            pack.at[k] = (real)(value * ((work)0.5 * erf(value * (work)0.70710678118654752440) + (work)0.5));
        }
        store(y + (size_t)i * WIDTH, pack);
    }
}

// dy·(Φ(x) + x·φ(x)), φ the normal density.
extern "C" __global__ void gelu_gradient(const real* dy, const real* x, real* dx, unsigned count) {
    for (MY_ELEMENTS(i, count)) {
        Pack pack = load(dy + (size_t)i * WIDTH);
        const Pack inputs = load(x + (size_t)i * WIDTH);
        for (int k = 0; k < WIDTH; k++) {
            const work value = (work)inputs.at[k];
            const work share = (work)0.5 * erf(value * (work)0.70710678118654752440) + (work)0.5;
            const work density = (work)0.39894228040143267794 * exp((work)-0.5 * value * value);
            pack.at[k] = (real)((work)pack.at[k] * (share + value * density));
        }
        store(dx + (size_t)i * WIDTH, pack);
    }
}

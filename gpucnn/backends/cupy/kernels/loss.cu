// Softmax and its cross-entropy over matrices (N, K). threadIdx.y indexes the classes of a row, threadIdx.x and
// blockIdx.x the rows, so that `block_sum` sums a row.

#define ROW (blockIdx.x * blockDim.x + threadIdx.x)
#define CLASSES(k) unsigned k = threadIdx.y; k < K; k += blockDim.y

// The maximum of this thread's row: each thread takes it from the partial maxima of the row's threads.
__device__ inline accum_t row_max(const scalar_t* row, unsigned K, bool valid, accum_t* shared) {
    accum_t maximum = NEGATIVE_INFINITY;
    if (valid)
        for (CLASSES(k)) maximum = (accum_t)row[k] > maximum ? (accum_t)row[k] : maximum;
    shared[threadIdx.y * blockDim.x + threadIdx.x] = maximum;
    __syncthreads();
    for (unsigned t = 0; t < blockDim.y; t++) {
        const accum_t other = shared[t * blockDim.x + threadIdx.x];
        maximum = other > maximum ? other : maximum;
    }
    __syncthreads();
    return maximum;
}

// The sum of exp(logit − maximum) of this thread's row.
__device__ inline double row_exp_sum(const scalar_t* row, unsigned K, bool valid, accum_t maximum, double* shared) {
    double sum = 0;
    if (valid)
        for (CLASSES(k)) sum += exp((accum_t)row[k] - maximum);
    return block_sum(sum, shared);
}

extern "C" __global__ void softmax(const scalar_t* logits, scalar_t* y, unsigned N, unsigned K) {
    __shared__ double shared[THREADS];
    __shared__ accum_t found[THREADS];
    const unsigned n = ROW;
    const bool valid = n < N;
    const scalar_t* row = logits + (size_t)(valid ? n : 0) * K;
    const accum_t maximum = row_max(row, K, valid, found);
    const accum_t total = (accum_t)row_exp_sum(row, K, valid, maximum, shared);
    if (valid)
        for (CLASSES(k)) y[(size_t)n * K + k] = (scalar_t)(exp((accum_t)row[k] - maximum) / total);
}

// The cross-entropy of each row (N,), and the gradient of its mean over N rows.
extern "C" __global__ void softmax_cross_entropy(const scalar_t* logits, const scalar_t* targets, double* losses,
                                                 scalar_t* dlogits, unsigned N, unsigned K) {
    __shared__ double shared[THREADS];
    __shared__ accum_t found[THREADS];
    const unsigned n = ROW;
    const bool valid = n < N;
    const scalar_t *row = logits + (size_t)(valid ? n : 0) * K, *target = targets + (size_t)(valid ? n : 0) * K;
    const accum_t maximum = row_max(row, K, valid, found);
    const accum_t log_total = (accum_t)log(row_exp_sum(row, K, valid, maximum, shared));
    double loss = 0, weight = 0;
    if (valid)
        for (CLASSES(k)) {
            loss -= (accum_t)target[k] * ((accum_t)row[k] - maximum - log_total);
            weight += (accum_t)target[k];
        }
    loss = block_sum(loss, shared);
    weight = block_sum(weight, shared);
    if (valid && threadIdx.y == 0) losses[n] = loss;
    if (valid)
        for (CLASSES(k)) {
            const accum_t probability = exp((accum_t)row[k] - maximum - log_total);
            dlogits[(size_t)n * K + k] = (scalar_t)((probability * (accum_t)weight - (accum_t)target[k]) / (accum_t)N);
        }
}

// The mean of N numbers, by one block in a fixed order.
extern "C" __global__ void mean(const double* numbers, accum_t* result, unsigned N) {
    __shared__ double shared[THREADS];
    double sum = 0;
    for (unsigned n = threadIdx.y; n < N; n += blockDim.y) sum += numbers[n];
    sum = block_sum(sum, shared);
    if (threadIdx.y == 0) *result = (accum_t)(sum / N);
}

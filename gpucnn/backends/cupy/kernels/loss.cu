// Softmax and its cross-entropy over matrices (N, K). threadIdx.y goes over the classes of one row, threadIdx.x and
// blockIdx.x over rows, so that `add_up` adds up a row.

#define MY_ROW (blockIdx.x * blockDim.x + threadIdx.x)
#define MY_CLASSES(k) unsigned k = threadIdx.y; k < K; k += blockDim.y

// The largest number of this thread's row: each thread finds it for itself in what the row's threads found.
__device__ inline work row_largest(const real* row, unsigned K, bool mine, work* shared) {
    work largest = NOTHING;
    if (mine)
        for (MY_CLASSES(k)) largest = (work)row[k] > largest ? (work)row[k] : largest;
    shared[threadIdx.y * blockDim.x + threadIdx.x] = largest;
    __syncthreads();
    for (unsigned t = 0; t < blockDim.y; t++) {
        const work other = shared[t * blockDim.x + threadIdx.x];
        largest = other > largest ? other : largest;
    }
    __syncthreads();
    return largest;
}

// The sum of exp(logit − largest) of this thread's row.
__device__ inline double row_powers(const real* row, unsigned K, bool mine, work largest, double* shared) {
    double sum = 0;
    if (mine)
        for (MY_CLASSES(k)) sum += exp((work)row[k] - largest);
    return add_up(sum, shared);
}

extern "C" __global__ void softmax(const real* logits, real* y, unsigned N, unsigned K) {
    __shared__ double shared[THREADS];
    __shared__ work found[THREADS];
    const unsigned n = MY_ROW;
    const bool mine = n < N;
    const real* row = logits + (size_t)(mine ? n : 0) * K;
    const work largest = row_largest(row, K, mine, found);
    const work total = (work)row_powers(row, K, mine, largest, shared);
    if (mine)
        for (MY_CLASSES(k)) y[(size_t)n * K + k] = (real)(exp((work)row[k] - largest) / total);
}

// The cross-entropy of each row (N,) and its gradient, which is that of the mean over N rows.
extern "C" __global__ void softmax_cross_entropy(const real* logits, const real* targets, double* losses, real* dlogits,
                                                 unsigned N, unsigned K) {
    __shared__ double shared[THREADS];
    __shared__ work found[THREADS];
    const unsigned n = MY_ROW;
    const bool mine = n < N;
    const real *row = logits + (size_t)(mine ? n : 0) * K, *goal = targets + (size_t)(mine ? n : 0) * K;
    const work largest = row_largest(row, K, mine, found);
    const work log_total = (work)log(row_powers(row, K, mine, largest, shared));
    double loss = 0, weight = 0;
    if (mine)
        for (MY_CLASSES(k)) {
            loss -= (work)goal[k] * ((work)row[k] - largest - log_total);
            weight += (work)goal[k];
        }
    loss = add_up(loss, shared);
    weight = add_up(weight, shared);
    if (mine && threadIdx.y == 0) losses[n] = loss;
    if (mine)
        for (MY_CLASSES(k)) {
            const work probability = exp((work)row[k] - largest - log_total);
            dlogits[(size_t)n * K + k] = (real)((probability * (work)weight - (work)goal[k]) / (work)N);
        }
}

// The mean of N numbers, by one block in a fixed order.
extern "C" __global__ void mean(const double* numbers, work* result, unsigned N) {
    __shared__ double shared[THREADS];
    double sum = 0;
    for (unsigned n = threadIdx.y; n < N; n += blockDim.y) sum += numbers[n];
    sum = add_up(sum, shared);
    if (threadIdx.y == 0) *result = (work)(sum / N);
}

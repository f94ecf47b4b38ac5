// Batches gathered from a data set of bytes that stays on the GPU; pixels 0 … 255 become 0 … 1.

// Samples picked by number; `size` is that of one sample.
extern "C" __global__ void gather_bytes(const unsigned char* images, const long long* picked, real* x, unsigned count,
                                        unsigned size) {
    for (MY_ELEMENTS(i, count)) {
        const unsigned char pixel = images[(size_t)picked[i / size] * size + i % size];
        x[i] = (real)((work)pixel / (work)255);
    }
}

// A place beside the image folded back into it, as a mirror at each edge shows it.
__device__ inline int reflected(int at, int size) { return size - 1 - abs(size - 1 - abs(at)); }

// Images (P, H, W, C) picked by number and placed, see gpucnn/backends/placement.py: for each of the N images how far it
// is moved, whether it is mirrored, and where a square of `hole` pixels is painted with `fill`.
extern "C" __global__ void gather_images(const unsigned char* images, const long long* picked, const int* down,
                                         const int* right, const int* flip, const int* hole_top, const int* hole_left,
                                         real* x, unsigned count, int H, int W, int C, int hole, int fill) {
    for (MY_ELEMENTS(i, count)) {
        const int c = i % C, column = i / C % W, row = i / C / W % H;
        const unsigned n = i / C / W / H;
        int h = row, w = flip && flip[n] ? W - 1 - column : column;
        if (down) h = reflected(h - down[n], H), w = reflected(w - right[n], W);
        int pixel = images[(((size_t)picked[n] * H + h) * W + w) * C + c];
        if (hole) {
            const int below = row - hole_top[n], beside = column - hole_left[n];
            if (below >= 0 && below < hole && beside >= 0 && beside < hole) pixel = fill;
        }
        x[i] = (real)((work)pixel / (work)255);
    }
}

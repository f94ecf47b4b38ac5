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
// is moved in a frame of OH × OW, whether it is mirrored, and where a square of `hole` pixels is painted with `fill`.
// What comes in beside an image has the value `beside`, or is the image reflected if that is negative.
extern "C" __global__ void gather_images(const unsigned char* images, const long long* picked, const int* down,
                                         const int* right, const int* flip, const int* hole_top, const int* hole_left,
                                         real* x, unsigned count, int H, int W, int C, int OH, int OW, int beside,
                                         int hole, int fill) {
    for (MY_ELEMENTS(i, count)) {
        const int c = i % C, column = i / C % OW, row = i / C / OW % OH;
        const unsigned n = i / C / OW / OH;
        int h = row, w = flip && flip[n] ? OW - 1 - column : column;
        if (down) h -= down[n], w -= right[n];
        if (down && beside < 0) h = reflected(h, H), w = reflected(w, W);
        int pixel = beside;
        if (h >= 0 && h < H && w >= 0 && w < W) pixel = images[(((size_t)picked[n] * H + h) * W + w) * C + c];
        if (hole) {
            const int below = row - hole_top[n], beyond = column - hole_left[n];
            if (below >= 0 && below < hole && beyond >= 0 && beyond < hole) pixel = fill;
        }
        x[i] = (real)((work)pixel / (work)255);
    }
}

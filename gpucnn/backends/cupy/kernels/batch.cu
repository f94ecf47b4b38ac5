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

// The pixel (h, w) of an image (H, W, C) turned about its centre, by integers alone, as `turned` says in
// gpucnn/backends/image_transform.py: places have 15 bits behind the point, of which 8 make the weights of four pixels.
__device__ inline int turned(const unsigned char* image, int h, int w, int c, int H, int W, int C, int cosine, int sine,
                             int around) {
    const int down = 2 * h - (H - 1), across = 2 * w - (W - 1);
    const int row = cosine * down + sine * across + (H - 1) * 16384 + 64;
    const int column = cosine * across - sine * down + (W - 1) * 16384 + 64;
    const int top = row >> 15, left = column >> 15, lower = row >> 7 & 255, righter = column >> 7 & 255;
    int total = 32768;
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) {
            const bool inside = top + i >= 0 && top + i < H && left + j >= 0 && left + j < W;
            const int pixel = inside ? image[((top + i) * W + left + j) * C + c] : around;
            total += (i ? lower : 256 - lower) * (j ? righter : 256 - righter) * pixel;
        }
    return total >> 16;
}

// Images (P, H, W, C) picked by number and placed, see gpucnn/backends/image_transform.py: for each of the N images how it is
// turned, how far it is moved in a frame of OH × OW, whether it is mirrored, and where a square of `hole` pixels is
// painted with `fill`. What a turn lets in has the value `around`; what comes in beside an image has the value `beside`,
// or is the image reflected if that is negative.
extern "C" __global__ void gather_images(const unsigned char* images, const long long* picked, const int* cosine,
                                         const int* sine, const int* down, const int* right, const int* flip,
                                         const int* hole_top, const int* hole_left, real* x, unsigned count, int H,
                                         int W, int C, int OH, int OW, int around, int beside, int hole, int fill) {
    for (MY_ELEMENTS(i, count)) {
        const int c = i % C, column = i / C % OW, row = i / C / OW % OH;
        const unsigned n = i / C / OW / OH;
        const unsigned char* image = images + (size_t)picked[n] * H * W * C;
        int h = row, w = flip && flip[n] ? OW - 1 - column : column;
        if (down) h -= down[n], w -= right[n];
        if (down && beside < 0) h = reflected(h, H), w = reflected(w, W);
        int pixel = beside;
        if (h >= 0 && h < H && w >= 0 && w < W)
            pixel = cosine ? turned(image, h, w, c, H, W, C, cosine[n], sine[n], around) : image[(h * W + w) * C + c];
        if (hole) {
            const int below = row - hole_top[n], beyond = column - hole_left[n];
            if (below >= 0 && below < hole && beyond >= 0 && beyond < hole) pixel = fill;
        }
        x[i] = (real)((work)pixel / (work)255);
    }
}

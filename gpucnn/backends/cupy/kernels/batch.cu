// Batches gathered from a data set of uint8 on the GPU; pixels 0 … 255 become 0 … 1.

// Samples at `indices`; `size` is that of one sample.
extern "C" __global__ void gather_bytes(const unsigned char* images, const long long* indices, scalar_t* x,
                                        unsigned count, unsigned size) {
    for (GRID_STRIDE(i, count)) {
        const unsigned char pixel = images[(size_t)indices[i / size] * size + i % size];
        x[i] = (scalar_t)((accum_t)pixel / (accum_t)255);
    }
}

// An index outside the image, reflected at its edges.
__device__ inline int reflected(int index, int size) { return size - 1 - abs(size - 1 - abs(index)); }

// The pixel (h, w) of an image (H, W, C) rotated about its centre, in integers, as `rotate` in
// gpucnn/backends/image_transform.py: coordinates have 15 fractional bits, of which 8 make the weights of four pixels.
__device__ inline int rotated(const unsigned char* image, int h, int w, int c, int H, int W, int C, int cosine,
                              int sine, int rotation_fill) {
    const int y = 2 * h - (H - 1), x = 2 * w - (W - 1);
    const int row = cosine * y + sine * x + (H - 1) * 16384 + 64;
    const int column = cosine * x - sine * y + (W - 1) * 16384 + 64;
    const int top = row >> 15, left = column >> 15;
    const int row_weight = row >> 7 & 255, column_weight = column >> 7 & 255;
    int total = 32768;
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) {
            const bool inside = top + i >= 0 && top + i < H && left + j >= 0 && left + j < W;
            const int pixel = inside ? image[((top + i) * W + left + j) * C + c] : rotation_fill;
            total += (i ? row_weight : 256 - row_weight) * (j ? column_weight : 256 - column_weight) * pixel;
        }
    return total >> 16;
}

// Images (P, H, W, C) at `indices`, transformed, see gpucnn/backends/image_transform.py: each image is rotated, shifted
// in a frame of OH × OW, flipped, and a square of `cutout` pixels is filled with `cutout_fill`. Pixels from outside are
// `rotation_fill` after a rotation; after a shift they are `border`, or the reflected image if that is negative.
extern "C" __global__ void gather_images(const unsigned char* images, const long long* indices, const int* cosine,
                                         const int* sine, const int* shift_y, const int* shift_x, const int* flip,
                                         const int* cutout_top, const int* cutout_left, scalar_t* x, unsigned count,
                                         int H, int W, int C, int OH, int OW, int rotation_fill, int border, int cutout,
                                         int cutout_fill) {
    for (GRID_STRIDE(i, count)) {
        const int c = i % C, column = i / C % OW, row = i / C / OW % OH;
        const unsigned n = i / C / OW / OH;
        const unsigned char* image = images + (size_t)indices[n] * H * W * C;
        int h = row, w = flip && flip[n] ? OW - 1 - column : column;
        if (shift_y) h -= shift_y[n], w -= shift_x[n];
        if (shift_y && border < 0) h = reflected(h, H), w = reflected(w, W);
        int pixel = border;
        if (h >= 0 && h < H && w >= 0 && w < W)
            pixel = cosine ? rotated(image, h, w, c, H, W, C, cosine[n], sine[n], rotation_fill)
                           : image[(h * W + w) * C + c];
        if (cutout) {
            const int cutout_row = row - cutout_top[n], cutout_column = column - cutout_left[n];
            const bool inside = cutout_row >= 0 && cutout_row < cutout && cutout_column >= 0 && cutout_column < cutout;
            if (inside) pixel = cutout_fill;
        }
        x[i] = (scalar_t)((accum_t)pixel / (accum_t)255);
    }
}

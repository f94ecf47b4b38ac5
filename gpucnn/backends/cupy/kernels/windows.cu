// Windows to rows and back: the copies around the products of a convolution.

// Copy each window to a row: x (N, H, W, C) → columns (N·OH·OW, groups, KH, KW, C/groups), zeros outside the image.
// A thread copies one pack of channels of all elements of a window, so that it computes the window's position once.
extern "C" __global__ void im2col(const scalar_t* x, scalar_t* columns, unsigned rows, int groups, GEOMETRY) {
    const unsigned packs = C / WIDTH;
    const int width = C / groups;
    for (GRID_STRIDE(i, rows * packs)) {
        const unsigned row = i / packs;
        const int channel = i % packs * WIDTH, group = channel / width;
        const int ow = row % OW, oh = row / OW % OH;
        const scalar_t* image = x + (size_t)(row / OW / OH) * H * W * C + channel;
        scalar_t* column = columns + ((size_t)row * groups + group) * KH * KW * width + channel % width;
        for (int ki = 0; ki < KH; ki++)
            for (int kj = 0; kj < KW; kj++, column += width) {
                const int h = oh * SH - PT + ki * DH, w = ow * SW - PL + kj * DW;
                const bool inside = h >= 0 && h < H && w >= 0 && w < W;
                store(column, inside ? load(image + ((size_t)h * W + w) * C) : Pack());
            }
    }
}

// Add windows back to the image, the transpose of im2col: columns → dx (N, H, W, C). A thread gathers the contributions
// to one pack of one pixel, in the order of the kernel's elements.
extern "C" __global__ void col2im(const scalar_t* columns, scalar_t* dx, unsigned pixels, int groups, GEOMETRY) {
    const unsigned packs = C / WIDTH;
    const int width = C / groups;
    for (GRID_STRIDE(i, pixels * packs)) {
        const unsigned pixel = i / packs;
        const int channel = i % packs * WIDTH, group = channel / width;
        const int w = pixel % W, h = pixel / W % H;
        const size_t first_row = (size_t)(pixel / W / H) * OH * OW;
        accum_t sum[WIDTH] = {};
        for (int ki = 0; ki < KH; ki++) {
            int oh, ow;
            if (!window_at(h + PT - ki * DH, SH, OH, oh)) continue;
            for (int kj = 0; kj < KW; kj++) {
                if (!window_at(w + PL - kj * DW, SW, OW, ow)) continue;
                const size_t row = first_row + (size_t)oh * OW + ow;
                const size_t place = ((row * groups + group) * KH + ki) * KW + kj;
                const Pack pack = load(columns + place * width + channel % width);
                for (int k = 0; k < WIDTH; k++) sum[k] += (accum_t)pack.at[k];
            }
        }
        store(dx + (size_t)i * WIDTH, rounded(sum));
    }
}

// Philox4x32-10, the same bits as gpucnn/backends/philox.py, where its source is named.

typedef unsigned long long word64;

// Words start … start + count − 1 of the stream (key, counter). `replays`, if given, is the number of replays of a
// captured step, each of which advances the counter by `stride`. A thread computes a block of four words.
extern "C" __global__ void random_bits(unsigned* words, word64 key, word64 counter, const word64* replays,
                                       word64 stride, word64 start, unsigned count) {
    if (replays) counter += *replays * stride;
    const unsigned skipped = start % 4, blocks = (skipped + count + 3) / 4;
    for (GRID_STRIDE(i, blocks)) {
        const word64 number = start / 4 + i;
        unsigned c0 = (unsigned)number, c1 = (unsigned)(number >> 32);
        unsigned c2 = (unsigned)counter, c3 = (unsigned)(counter >> 32);
        unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
        for (int round = 0; round < 10; round++) {
            const word64 product0 = (word64)c0 * 0xD2511F53u, product1 = (word64)c2 * 0xCD9E8D57u;
            c0 = (unsigned)(product1 >> 32) ^ c1 ^ k0;
            c1 = (unsigned)product1;
            c2 = (unsigned)(product0 >> 32) ^ c3 ^ k1;
            c3 = (unsigned)product0;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        const unsigned block[4] = {c0, c1, c2, c3};
        for (unsigned j = 0; j < 4; j++) {
            const unsigned place = i * 4 + j - skipped;  // wraps around below 0, and is not smaller than count then
            if (place < count) words[place] = block[j];
        }
    }
}

"""Philox4x32-10: random words as a pure function of a key and a counter, in plain integer arithmetic.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A block of four 32-bit
counter words passes through ten rounds of multiply, exchange and key addition; neighbouring counters give unrelated
words. There is no state to share between threads or devices, so every backend draws the same bits.
"""

from typing import Any

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
KEY_STEP_0, KEY_STEP_1 = 0x9E3779B9, 0xBB67AE85  # the golden ratio and √3 − 1, in 32 bits
MASK = 0xFFFFFFFF
ROUNDS = 10
BLOCKS_PER_PASS = 8192  # their four words, 64 bits each, stay in a core's second-level cache


def philox4x32(xp: Any, key: int, counter: int, count: int, start: int = 0) -> Any:
    """Return the words start … start + count − 1 of the stream (key, counter), uint32 (count,).

    Word i is word i mod 4 of block i // 4; the block's number is the low half of the 128-bit Philox counter and
    `counter` the high half, so a stream holds 2^64 blocks before it repeats.
    """
    first, skipped = divmod(start, 4)
    blocks = -(-(skipped + count) // 4)
    words = xp.empty((blocks, 4), dtype=xp.uint32)
    for at in range(0, blocks, BLOCKS_PER_PASS):
        part = words[at : at + BLOCKS_PER_PASS]
        number = xp.arange(first + at, first + at + part.shape[0], dtype=xp.uint64)
        high = xp.full_like(number, counter & MASK), xp.full_like(number, counter >> 32 & MASK)
        block = (number & MASK, number >> 32, *high)
        for place, word in enumerate(philox_rounds(block, (key & MASK, key >> 32 & MASK))):
            part[:, place] = word
    return words.reshape(-1)[skipped : skipped + count]


def philox_rounds(block: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Encrypt counter words; all are 32-bit numbers held in uint64, so that a product keeps its high half."""
    c0, c1, c2, c3 = block
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & MASK, (product0 >> 32) ^ c3 ^ k1, product0 & MASK
        k0, k1 = (k0 + KEY_STEP_0) & MASK, (k1 + KEY_STEP_1) & MASK
    return c0, c1, c2, c3

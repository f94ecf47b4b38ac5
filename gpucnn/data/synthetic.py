"""Synthetic handwriting-like digits, for training where no data set is available.

Every variant of a digit (`VARIANTS`) is a few strokes through control points; each image jitters the points, draws a
smooth curve through them, warps, slants and rotates it, fits it into MNIST's 20x20 box with its centre of mass in the
middle of 28x28, and draws the ink as a row of Gaussian dabs. A dab is the product of a row and a column profile, so the
ink of an image is one small matrix product.

`networks.lenet` trained on 20,000 of them for five epochs, and on nothing else, classifies 95.7, 95.6 and 95.7 % of the
10,000 MNIST test digits correctly (seeds 0 to 2).

The variants were designed by hand, and misclassified MNIST training digits showed which ones were missing; no pixel,
statistic or learned weight of a real data set is used.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from gpucnn.core import checks

IMAGE_SIZE = 28
INK_BOX = 20.0  # px: the box MNIST fits a digit into before it centres it
CHUNK = 500  # images drawn at a time; with 80 dabs per image the largest array is about 9 MB
DABS = 80  # dabs of ink per image: less than one pixel apart even on the longest digit, an 8


class Variant(NamedTuple):
    """A variant of a digit.

    `frequency` is its relative frequency among the variants of its digit (any unit). `strokes` holds points "x,y"
    with x to the right and y down, the digit about 100 high; ";" begins a new stroke. Inside a stroke the
    curve is smooth, so a corner is where one stroke ends and the next begins; a point written twice is one
    point and moves as one.
    """

    digit: int
    name: str
    frequency: float
    strokes: str


VARIANTS = (
    Variant(0, "oval", 3, "38,2 18,12 6,45 14,82 36,99 58,84 68,48 58,14 36,1"),
    Variant(0, "narrow", 2, "30,1 16,22 12,55 20,90 34,99 46,80 50,45 42,12 28,2"),
    Variant(0, "wide", 2, "40,8 12,20 2,52 16,88 46,95 74,76 80,42 62,12 38,9"),
    Variant(0, "open top", 1, "24,6 8,30 6,65 24,97 50,92 64,58 56,18 36,2"),
    Variant(0, "overlapping end", 2, "52,12 34,0 12,18 4,55 20,94 44,96 64,66 60,22 38,2 24,10"),
    Variant(0, "curl inside", 1, "60,6 30,8 6,45 10,85 34,99 62,70 70,30 56,4 40,14"),
    Variant(0, "round", 3, "44,4 14,14 2,46 16,82 48,90 80,74 88,40 70,10 40,2"),
    Variant(0, "end hanging in", 1, "70,22 52,2 20,12 4,48 18,86 50,90 76,66 74,30 50,10 30,20"),
    Variant(0, "tilted wide", 2, "62,8 22,26 2,62 20,84 58,74 92,40 90,14 58,8"),
    Variant(0, "tail above", 1, "62,0 40,4 10,30 4,64 24,96 54,84 70,50 56,20 28,16"),
    Variant(1, "straight", 6, "30,0 30,50 30,100"),
    Variant(1, "leaning", 4, "58,0 32,50 8,100"),
    Variant(1, "bowed", 2, "36,0 28,40 32,100"),
    Variant(1, "flag", 1, "14,22 34,0; 34,0 32,50 32,100"),
    Variant(1, "flag and foot", 1, "12,20 32,0; 32,0 32,50 32,100; 8,100 56,99"),
    Variant(1, "small flag", 1, "22,18 36,0; 36,0 34,50 32,100"),
    Variant(1, "long flag, wide foot", 1, "4,28 36,0; 36,0 34,50 32,100; 2,98 66,96"),
    Variant(2, "flat base", 3, "8,24 22,4 46,2 60,20 52,46 30,74 6,98; 6,98 36,97 68,96"),
    Variant(2, "loop", 3, "8,22 24,3 48,4 58,24 46,56 24,86 8,94 4,84 16,78 34,88 52,97 72,92"),
    Variant(2, "wave base", 2, "10,26 26,4 50,6 56,28 38,62 8,92; 8,92 24,84 44,96 70,90"),
    Variant(2, "hooked start", 2, "14,34 8,18 28,2 54,8 56,36 34,68 8,96; 8,96 36,94 66,98"),
    Variant(2, "angular", 1, "6,10 32,4 54,8 50,30 30,62 4,96; 4,96 36,94 70,92"),
    Variant(2, "wide loop", 1, "4,20 30,2 60,10 58,40 34,76 10,92 2,80 16,70 38,80 60,94 84,84"),
    Variant(2, "big loop, falling base", 2, "10,14 32,0 56,14 50,44 30,74 8,86 2,70 20,60 42,74 62,100"),
    Variant(2, "like a z", 1, "6,8 28,4 50,4; 50,4 30,44 4,86; 4,86 30,84 66,88"),
    Variant(2, "thin hook", 1, "6,18 20,6 36,10 34,40 20,84; 20,84 40,84 76,80"),
    Variant(2, "ring base", 1, "2,22 30,0 64,14 60,46 36,76 12,88 4,76 18,66 34,80 40,92 62,90 80,84"),
    Variant(2, "swan", 2, "8,16 26,2 44,14 42,44 28,74 6,92; 6,92 24,80 44,90 76,96"),
    Variant(3, "round", 3, "8,14 28,1 52,8 54,28 28,46; 28,46 58,54 62,78 38,99 6,88"),
    Variant(3, "waist loop", 2, "10,12 34,0 54,16 42,40 22,50 26,42 50,50 60,74 40,98 6,90"),
    Variant(3, "flat top", 1, "8,4 32,4 58,4; 58,4 28,42; 28,42 56,50 60,76 40,98 6,92"),
    Variant(3, "heavy belly", 2, "14,8 32,1 46,10 44,28 26,42; 26,42 58,48 66,74 40,98 2,88"),
    Variant(3, "heavy head", 1, "4,16 30,0 58,12 52,40 26,54; 26,54 50,58 52,80 32,98 8,92"),
    Variant(3, "zorro", 2, "6,8 32,6 58,4; 58,4 40,24 22,42; 22,42 46,44 52,66 36,90 4,98"),
    Variant(3, "slack", 1, "10,16 32,2 50,16 34,42 44,52 52,74 32,96 4,92"),
    Variant(3, "wide", 2, "4,16 34,2 62,14 50,36 26,46; 26,46 62,50 72,70 46,88 2,86"),
    Variant(3, "ring at the start", 1, "14,26 8,12 34,0 52,14 28,44; 28,44 58,56 58,80 34,98 6,84"),
    Variant(3, "small steps", 1, "14,8 38,0 48,16 30,34; 30,34 48,44 46,66 34,88 10,100"),
    Variant(3, "curled foot", 1, "10,12 36,0 54,18 28,44; 28,44 60,56 60,88 30,98 6,86 20,72"),
    Variant(4, "open", 3, "14,4 10,28 6,54; 6,54 36,54 68,48; 60,2 54,50 50,100"),
    Variant(4, "open, cupped", 3, "12,4 6,36 14,56 40,56 60,44; 60,2 56,50 52,100"),
    Variant(4, "closed", 2, "48,0 24,32 2,64; 2,64 36,64 72,62; 48,0 47,50 46,100"),
    Variant(4, "short bar", 2, "8,8 4,34 10,52 30,54 56,46; 58,8 52,50 46,100"),
    Variant(4, "wide cup", 2, "8,10 4,40 14,62 44,60 70,50; 76,0 70,50 66,96"),
    Variant(4, "short stem", 1, "20,0 8,34 4,64; 4,64 34,64 64,60; 60,20 56,60 54,98"),
    Variant(4, "one stroke", 1, "16,6 4,46 16,54 40,44 60,6; 60,6 52,50 46,100"),
    Variant(4, "loop in the corner", 1, "20,6 8,44 2,58 14,56 40,48 72,46; 56,10 50,54 46,100"),
    Variant(5, "separate bar", 2, "14,4 10,42; 10,42 34,36 58,50 58,80 34,99 6,90; 14,4 38,4 64,2"),
    Variant(5, "one stroke", 3, "66,4 42,4 20,6; 20,6 14,44; 14,44 40,40 58,58 52,88 28,98 4,90"),
    Variant(5, "like an s", 2, "64,4 34,6 16,26 36,46 56,66 44,94 8,94"),
    Variant(5, "long bar", 1, "84,0 52,4 24,8; 24,8 16,38; 16,38 40,44 50,66 36,92 2,96"),
    Variant(5, "flat, long bar", 2, "96,2 66,8 30,14; 30,14 22,44; 22,44 48,42 58,60 38,82 0,90"),
    Variant(5, "square belly", 1, "58,4 34,4 8,4; 8,4 6,28 6,46; 6,46 44,40 60,60 50,90 8,94"),
    Variant(5, "belly curling in", 1, "60,2 36,6 16,8; 16,8 10,44; 10,44 40,36 62,60 48,94 16,92 8,74"),
    Variant(5, "bar above", 1, "20,12 14,44; 14,44 36,42 50,66 36,94 4,92; 20,8 44,4 76,0"),
    Variant(5, "slack", 1, "70,2 44,4 24,14 22,36 40,54 44,76 28,96 4,92"),
    Variant(6, "hook", 3, "48,0 20,28 6,68 20,97 46,94 56,72 40,54 16,64 8,78"),
    Variant(6, "straight stem", 2, "40,0 22,32 8,66 12,92 34,98 48,80 40,62 20,66 10,80"),
    Variant(6, "large loop", 2, "50,4 20,20 4,58 18,96 52,94 62,64 42,44 16,52 6,66"),
    Variant(6, "small loop", 1, "46,0 18,34 4,76 22,98 46,90 42,72 22,72 12,86"),
    Variant(6, "wide low loop", 2, "40,0 14,28 2,66 24,90 62,86 74,62 52,48 24,62 14,80"),
    Variant(6, "round back", 2, "58,8 38,0 12,26 4,66 22,97 52,88 54,62 34,54 14,66"),
    Variant(6, "leaning, flat", 1, "60,0 28,36 4,70 16,92 52,86 66,64 46,56 20,70 12,84"),
    Variant(6, "like a cursive le", 1, "20,0 4,50 12,88 50,96 74,76 58,56 32,70 36,94"),
    Variant(7, "plain", 4, "6,8 32,7 60,6; 60,6 40,50 24,100"),
    Variant(7, "serif", 2, "6,24 8,8; 8,8 34,8 62,6; 62,6 44,48 30,100"),
    Variant(7, "crossbar", 3, "6,8 32,7 60,6; 60,6 40,50 26,100; 18,54 40,50 60,48"),
    Variant(7, "round corner", 3, "4,14 24,6 50,4 58,16 44,50 28,100"),
    Variant(7, "crossbar, leaning", 1, "10,14 36,8 74,4; 74,4 46,46 22,100; 28,50 48,50 72,46"),
    Variant(7, "deep serif", 1, "4,34 8,8; 8,8 30,12 56,6; 56,6 50,50 46,100"),
    Variant(7, "bow", 1, "2,20 30,4 62,10 54,40 30,76 10,100"),
    Variant(8, "figure from top right", 3, "58,14 36,0 14,16 26,42 50,62 50,90 26,99 8,82 20,56 46,36 58,12"),
    Variant(8, "two rings", 2, "34,46 14,28 18,6 36,0 52,12 50,32 34,46 14,60 10,86 34,99 56,86 54,62 34,46"),
    Variant(8, "open top", 2, "60,10 36,2 18,18 32,44 52,68 42,96 18,94 14,72 36,46 66,4"),
    Variant(8, "narrow", 2, "44,8 30,0 18,14 28,44 40,74 32,98 16,94 14,72 28,46 42,20 44,6"),
    Variant(8, "crossed ends", 3, "70,4 46,26 22,52 8,80 20,98 40,86 40,62 20,38 16,16 34,4 72,12"),
    Variant(8, "small foot", 2, "66,20 40,2 10,12 18,36 40,54 44,80 30,98 14,88 22,66 44,44 70,18"),
    Variant(8, "open right", 2, "66,6 36,2 12,18 26,40 46,56 44,86 22,98 8,84 20,60 46,42 74,24"),
    Variant(8, "leaning thin", 2, "62,4 40,12 34,36 38,54 30,88 12,98 6,84 22,58 46,34 60,16 62,4"),
    Variant(8, "broad", 1, "56,14 30,2 6,16 22,40 54,52 68,74 42,96 8,88 4,66 30,48 54,34 58,12"),
    Variant(8, "heart top", 1, "36,16 18,2 6,16 30,42 54,70 42,96 18,94 12,72 34,46 60,18 52,2 36,16"),
    Variant(8, "s and slash", 2, "64,14 44,2 16,18 28,40 50,60 42,90 14,98 8,82 30,56 70,8"),
    Variant(8, "tall tails", 1, "84,0 50,30 28,60 6,88 18,100 34,84 36,60 26,34 38,12 88,10"),
    Variant(8, "large foot", 1, "50,8 30,0 16,14 28,34 58,56 64,84 34,100 4,86 10,58 36,36 50,8"),
    Variant(9, "straight tail", 3, "58,10 34,2 10,22 16,46 40,46 58,12; 58,12 56,50 52,100"),
    Variant(9, "curved tail", 2, "58,16 34,2 10,20 18,46 42,44 58,16; 58,16 60,60 46,94 14,92"),
    Variant(9, "one curve", 2, "50,34 24,48 8,28 26,4 50,6 56,34 48,66 36,100"),
    Variant(9, "leaning", 2, "56,14 36,4 12,26 16,46 34,44 56,14; 56,14 40,56 26,100"),
    Variant(9, "open top", 2, "14,10 6,36 20,52 42,44 58,8; 58,8 54,50 46,100"),
    Variant(9, "open side", 2, "56,14 30,6 8,28 24,44 50,36 62,14; 62,14 54,50 38,100"),
    Variant(9, "large loop", 2, "60,30 40,2 8,14 4,46 30,60 60,30; 60,30 58,64 54,100"),
    Variant(9, "flat loop, slanted tail", 2, "62,8 34,4 4,24 14,40 44,32 62,8; 62,8 46,50 26,100"),
    Variant(9, "hooked", 1, "56,18 36,2 12,18 18,42 44,42 56,18; 56,18 58,60 52,88 34,98 12,84"),
    Variant(9, "gap at the top", 2, "54,4 28,4 8,26 24,44 52,30 60,18; 60,18 52,60 36,100"),
    Variant(9, "squeezed loop, long tail", 1, "60,6 32,10 6,28 22,36 60,6; 60,6 48,50 30,100"),
)


class VariantArrays(NamedTuple):
    """All variants as arrays (V variants, K points, S dabs).

    Shapes
        points     (V, K, 2)     control points, height about -1..1, padded with zeros
        jitter  (V, K)        the amount of jitter of a point: largest at the free end of a stroke
        curve      (V, 2S, K)    times points: where each of S pieces of the curve begins, then where they end
        frequency  (V,)          sums to 1 over the variants of each digit
    """

    points: np.ndarray
    jitter: np.ndarray
    curve: np.ndarray
    frequency: np.ndarray


def catmull_rom(count: int, position: np.ndarray) -> np.ndarray:
    """Weights of `count` control points in the smooth curve through them, at `position` in 0..count - 1.

    Shapes
        position (P,) -> (P, count)

    Source: E. Catmull and R. Rom, 1974. A missing neighbour beyond either end is the end mirrored.
    """
    span = np.minimum(position.astype(int), count - 2)
    t = position - span
    basis = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1
    )
    padded = np.zeros((len(position), count + 2))
    padded[np.arange(len(position))[:, None], span[:, None] + np.arange(4)] = basis
    weights = padded[:, 1:-1].copy()
    weights[:, 0] += 2 * padded[:, 0]
    weights[:, 1] -= padded[:, 0]
    weights[:, -1] += 2 * padded[:, -1]
    weights[:, -2] -= padded[:, -1]
    return weights


def split_strokes(variant: Variant) -> tuple[np.ndarray, list[list[int]]]:
    """Read a variant's distinct points (K, 2), half its height being 1, and its strokes as point indices."""
    strokes = [stroke.split() for stroke in variant.strokes.split(";")]
    order = list(dict.fromkeys(point for stroke in strokes for point in stroke))
    points = np.array([point.split(",") for point in order], dtype=float)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    return (points - middle) / 50, [[order.index(point) for point in stroke] for stroke in strokes]


def curve_weights(points: np.ndarray, strokes: list[list[int]]) -> np.ndarray:
    """The matrix that turns a variant's control points into its curve.

    Shapes
        points (K, 2) -> (2S, K)   S beginnings of pieces, then their S ends
    """
    chords = [np.cumsum([0.0, *np.hypot(*np.diff(points[stroke], axis=0).T)]) for stroke in strokes]
    lengths = np.cumsum([0.0, *(chord[-1] for chord in chords)])
    cuts = np.rint(lengths / lengths[-1] * DABS).astype(int)  # in proportion to the length of each stroke
    begins, stops = [], []
    for stroke, chord, dabs in zip(strokes, chords, np.diff(cuts), strict=True):
        position = np.interp(np.linspace(0, chord[-1], dabs + 1), chord, np.arange(len(stroke)))
        weights = catmull_rom(len(stroke), position) @ np.eye(len(points))[stroke]
        begins.append(weights[:-1])
        stops.append(weights[1:])
    return np.concatenate(begins + stops)


@cache
def variant_arrays() -> VariantArrays:
    """Return `VARIANTS` as arrays, computed once."""
    count, max_points = len(VARIANTS), max(len(split_strokes(variant)[0]) for variant in VARIANTS)
    points, jitter = np.zeros((count, max_points, 2)), np.ones((count, max_points))
    curve = np.zeros((count, 2 * DABS, max_points))
    for row, variant in enumerate(VARIANTS):
        own, strokes = split_strokes(variant)
        points[row, : len(own)] = own
        curve[row, :, : len(own)] = curve_weights(own, strokes)
        tips = np.bincount([stroke[end] for stroke in strokes for end in (0, -1)], minlength=max_points)
        jitter[row, tips == 1] = 1.8  # a tip that no other stroke shares
    digit = np.array([variant.digit for variant in VARIANTS])
    frequency = np.array([variant.frequency for variant in VARIANTS], dtype=float)
    frequency /= np.bincount(digit, frequency)[digit]
    return VariantArrays(points.astype(np.float32), jitter.astype(np.float32), curve.astype(np.float32), frequency)


def normal(rng: Generator, scale: float, *shape: int) -> np.ndarray:
    """Gaussian float32 noise of standard deviation `scale`, clipped at 2.5 of them, so that digits stay legible."""
    return scale * np.clip(rng.standard_normal(shape, dtype=np.float32), -2.5, 2.5)


def uniform(rng: Generator, low: float, high: float, *shape: int) -> np.ndarray:
    """Uniform float32 noise between `low` and `high`."""
    return low + (high - low) * rng.random(shape, dtype=np.float32)


def trace(labels: np.ndarray, rng: Generator) -> np.ndarray:
    """Choose a variant for each label and draw it through jittered control points.

    Shapes
        labels (n,) -> (n, 2S, 2)
    """
    variants = variant_arrays()
    n = len(labels)
    # Each digit's shares sum to 1 and the digits stand in order, so label + chance is a place in the sum.
    choice = np.searchsorted(np.cumsum(variants.frequency).round(9), labels + uniform(rng, 0, 1, n), side="right")
    points = variants.points[choice]
    sloppiness = uniform(rng, 0.04, 0.13, n, 1, 1)
    points = points + sloppiness * variants.jitter[choice, :, None] * normal(rng, 1, *points.shape)
    return variants.curve[choice] @ points


def warp(curve: np.ndarray, rng: Generator) -> np.ndarray:
    """Displace every point of a curve by a smooth random field: three slow waves in each direction.

    Shapes
        curve (n, 2S, 2) -> (n, 2S, 2)
    """
    n = len(curve)
    for _ in range(3):
        wave = curve @ normal(rng, 1.6, n, 2, 1) + uniform(rng, 0, 2 * math.pi, n, 1, 1)
        curve = curve + np.sin(wave) * normal(rng, 0.12, n, 1, 2)
    return curve


def slant(curve: np.ndarray, rng: Generator) -> np.ndarray:
    """Slant, rotate and stretch every curve.

    Shapes
        curve (n, 2S, 2) -> (n, 2S, 2)
    """
    n = len(curve)
    lean = normal(rng, 0.28, n) - 0.12  # most people lean to the right, and y points down
    angle, width = normal(rng, 0.12, n), np.exp(normal(rng, 0.2, n))
    x, y = curve[..., 0] * width[:, None] + curve[..., 1] * lean[:, None], curve[..., 1]
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)


def place(curve: np.ndarray, half_width: np.ndarray, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fit every digit into the ink box and its centre of mass near the middle of the image.

    Shapes
        curve (n, 2S, 2), half_width (n,) -> middle (n, S, 2) and length (n, S) of each piece, in pixels
    """
    n = len(curve)
    extent = (curve.max(axis=1) - curve.min(axis=1)).max(axis=1)
    scale = (INK_BOX - 2 * half_width) / extent * (1 + normal(rng, 0.03, n))
    begin, end = np.split(curve * scale[:, None, None], 2, axis=1)
    middle = (begin + end) / 2
    length = np.sqrt(np.square(end - begin).sum(axis=-1))
    mass = (middle * length[:, :, None]).sum(axis=1) / length.sum(axis=1)[:, None]
    return middle - mass[:, None] + (IMAGE_SIZE - 1) / 2 + normal(rng, 0.4, n, 1, 2), length


def draw(middle: np.ndarray, length: np.ndarray, half_width: np.ndarray, rng: Generator) -> np.ndarray:
    """Lay down ink along every curve: a Gaussian dab for each piece, saturated at black.

    Shapes
        middle (n, S, 2), length (n, S), half_width (n,) -> (n, 28, 28) in 0..1
    """
    n, dabs = length.shape
    blur = np.minimum(uniform(rng, 0.4, 0.75, n, 1), 0.6 * half_width[:, None])
    along = np.linspace(0, 2 * math.pi, dabs, dtype=np.float32)
    swell = np.sin(along * uniform(rng, 0.5, 2, n, 1) + uniform(rng, 0, 2 * math.pi, n, 1))
    pressure = 1 + normal(rng, 0.08, n, 1) * swell
    # Along a straight line the dabs add up to dose * exp(-distance² / 2 blur²); the ink, 1 - exp(-that), is
    # one half at the wanted half width.
    dose = math.log(2) * np.exp(np.square(half_width[:, None] * pressure / blur) / 2)
    dose = dose * length / (blur * math.sqrt(2 * math.pi))
    pixel = np.arange(IMAGE_SIZE, dtype=np.float32)
    profile = np.exp(-np.square((middle[..., None] - pixel) / blur[:, :, None, None]) / 2)
    columns, rows = profile[:, :, 0], profile[:, :, 1]
    ink = (rows * dose[:, :, None]).transpose(0, 2, 1) @ columns
    grain = 1 + normal(rng, 0.15, *ink.shape)  # rough paper; mostly visible at the edges
    return 1 - np.exp(-ink * grain)


def draw_digits(labels: np.ndarray, rng: Generator) -> np.ndarray:
    """Draw one chunk.

    Shapes
        labels (n,) -> (n, 28, 28, 1) uint8
    """
    # Pixels; thick pens are rarer than thin ones.
    half_width = 0.8 + 1.7 * uniform(rng, 0, 1, len(labels)) ** 1.6
    curve = slant(warp(trace(labels, rng), rng), rng)
    ink = draw(*place(curve, half_width, rng), half_width, rng)
    return np.rint(255 * ink).astype(np.uint8)[..., None]


def synthetic_digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Generate `n` handwriting-like digits, white on black like MNIST, balanced over the classes, in shuffled order.

    Shapes
        images (n, 28, 28, 1) uint8, labels (n,) int64

    The same `n` and `seed` give the same images on one machine; another processor may round a pixel differently by
    one.

    Raises
        ConfigurationError: `n` is not a positive integer, or `seed` not an integer of at least 0.
    """
    n = checks.integer(n, "synthetic_digits: n", minimum=1)
    seed = checks.integer(seed, "synthetic_digits: seed", minimum=0)
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n, dtype=np.int64) % 10)
    images = np.empty((n, IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
    for start in range(0, n, CHUNK):  # in chunks, to limit memory
        images[start : start + CHUNK] = draw_digits(labels[start : start + CHUNK], rng)
    return images, labels

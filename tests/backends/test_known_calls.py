"""The closed list of what is captured: each entry replays the same bits; what is not on it falls back with a reason."""

from pathlib import Path

import numpy as np
import pytest

from gpucnn.backends import get_backend
from gpucnn.backends.numpy import arena, known_calls, workspace
from gpucnn.backends.numpy.tracer import Tracer

ENGINE = get_backend("numpy")


def numbers(seed):
    return np.random.default_rng(seed).normal(size=(6, 4, 5)).astype(np.float32)


def rows(x):
    return x.reshape(len(x), -1)


def captured(function):
    return Tracer(arena.Arena(), workspace.detach).capture(function, numbers(0))


def in_place(change):
    def function(x):
        y = x * 1
        change(y, x)
        return y

    return function


# every function of the list, called in ways that a layer would; some in several
CALLS = {
    "reductions": [
        *(
            lambda x, f=f: f(x, axis=1) + f(x, 1, keepdims=True)[:, 0]
            for f in (np.sum, np.prod, np.mean, np.std, np.var)
        ),
        *(lambda x, f=f: f(x, axis=1) for f in (np.max, np.min, np.amax, np.amin, np.any, np.all, np.ptp, np.median)),
        *(lambda x, f=f: f(x, axis=1) for f in (np.nansum, np.nanmean, np.nanmax, np.nanmin, np.nanstd, np.nanvar)),
        *(lambda x, f=f: f(x, axis=2) + 0 * x[:, :, 0] for f in (np.count_nonzero, np.argmax, np.argmin)),
        *(lambda x, f=f: f(x, axis=1) for f in (np.cumsum, np.cumprod)),
        lambda x: np.average(x, axis=0, weights=np.abs(x)),
        lambda x: np.trace(x) + np.linalg.norm(x, axis=0)[0] + np.linalg.norm(x),
    ],
    "products": [
        lambda x: np.dot(rows(x), rows(x).T) + np.inner(rows(x), rows(x)) + np.vdot(x, x),
        lambda x: np.outer(x[0, 0], x[1, 1]) + np.tensordot(x, x, 3) + np.kron(x[0, :1, :1], x[1, :1, :1])[0],
        lambda x: np.einsum("nhw,nhv->wv", x, x) + np.convolve(x[0, 0], x[1, 0], "same")[:, None],
        lambda x: np.cross(x[..., :3], x[..., 2:]) + np.correlate(x[0, 0], x[0, 1], "same")[:3],
    ],
    "choices": [
        lambda x: np.where(x > 0, x, 0.1 * x) + np.choose((x > 0).astype(int), [x, -x]) + np.clip(x, -0.5, x[0]),
        lambda x: np.select([x > 1, x < -1], [x * 2, x * 3], x) + np.searchsorted(np.sort(x[0, 0]), x),
        lambda x: np.take(x, x.argmax(axis=0)[0] % 4, axis=1) + np.interp(x[:, 0], [-1, 0, 1], [0, 1, 3])[:, None],
        lambda x: np.take_along_axis(x, np.argsort(x, axis=1), axis=1) + np.digitize(x, [-1.0, 0, 1]),
        lambda x: np.sort(x, axis=1) + np.partition(x, 2, axis=1)[:, 2:3] + np.argpartition(x, 2, axis=1)[:, 2:3],
    ],
    "joins": [
        lambda x: np.concatenate([x, x * 2]) + np.vstack([x, x]) + np.stack([x, x]).reshape(12, 4, 5),
        lambda x: (
            np.hstack([x, x])[:, :4] + np.dstack([x, x])[..., :5] + np.column_stack([x[0, :, 0], x[1, :, 0]]).sum()
        ),
    ],
    "elementwise": [
        lambda x: np.round(x, 1) + np.around(x) + np.real(x) + np.imag(x + 1j) + np.angle(x) + np.copy(x),
        lambda x: np.isclose(x, x * 1.000001) + np.full_like(x, x[0, 0, 0]) + np.sinc(x) + np.i0(x) + np.isreal(x),
        lambda x: np.diff(x, axis=1)[:, :1] + np.cov(rows(x))[0, 0] + np.iscomplex(x)[:, :1],
        lambda x: np.zeros_like(x) + np.ones_like(x) * x,
    ],
    "another shape": [
        lambda x: np.reshape(x, (4, 6, 5))[0] + np.ravel(x)[:30].reshape(6, 5) + np.transpose(x, (1, 0, 2))[1],
        lambda x: np.swapaxes(x, 0, 1)[0] + np.moveaxis(x, 1, 0)[1] + np.rollaxis(x, 1)[2] + np.squeeze(x[:, :1]),
        lambda x: np.expand_dims(x, 1)[:, 0] + np.broadcast_to(x[:, :1], x.shape) + np.roll(x, 1, axis=1),
        lambda x: np.flip(x, 1) + np.fliplr(x) + np.flipud(x) + np.rot90(x, 2) + np.resize(x, x.shape),
        lambda x: np.tril(x) + np.triu(x) + np.diag(x[0]).sum() + np.diagflat(x[0, 0])[:4] + np.diagonal(x)[0, 0],
        lambda x: np.repeat(x, 2, axis=0)[:6] + np.tile(x, (2, 1, 1))[6:] + np.pad(x, ((0, 0), (1, 0), (0, 0)))[:, 1:],
        lambda x: np.atleast_1d(x) + np.atleast_2d(x) + np.atleast_3d(x),
        lambda x: np.lib.stride_tricks.sliding_window_view(x, 2, axis=1).sum(axis=-1) + np.shape(x)[0] + np.ndim(x),
    ],
    "methods": [
        lambda x: x.mean(axis=1) + x.std(axis=1) + x.var(1) + x.round(1)[:, 0] + x.clip(0)[:, 0] + x.diagonal()[0, 0],
        lambda x: (
            x.argsort(axis=1) + x.cumsum(axis=1) + x.take([0, 1, 2, 3], axis=1) + x.repeat(1, axis=0) + x.trace()[0]
        ),
        lambda x: (x > 0).astype(int).choose([x, -x]) + x.argpartition(1, axis=1) + x.T.real.T + x.dot(x[0].T)[..., :1],
    ],
    "out": [
        lambda x: np.dot(x[0], x[1].T, y := np.empty_like(x, shape=(4, 4))) + y,
        in_place(lambda y, x: np.sum(x, 0, None, y[0])),
        in_place(lambda y, x: np.concatenate([x[3:], x[:3]], 0, y)),
        in_place(lambda y, x: np.take(x, [1, 0, 2, 3, 4, 5], 0, y, mode="clip")),
        in_place(lambda y, x: x.mean(0, out=y[0])),
        in_place(lambda y, x: np.einsum("nhw->nhw", x, out=y)),
        in_place(lambda y, x: np.multiply(x, 2, out=y, where=x > 0)),
    ],
    "written by a mask": [in_place(lambda y, x: y.__setitem__(y > 2, 7.0))],
    "arrays that are made": [
        in_place(lambda y, x: y.__setitem__(Ellipsis, ENGINE.xp.full(x.shape, x[0, 0, 0]) + ENGINE.xp.asarray(x))),
        lambda x: x + ENGINE.xp.arange(5, dtype=x.dtype) * ENGINE.xp.eye(4, 5, dtype=x.dtype),
        lambda x: (
            ENGINE.xp.array(x, dtype="float64") + ENGINE.xp.ascontiguousarray(x[:, ::-1]) + ENGINE.xp.array([1.0] * 5)
        ),
        lambda x: (
            ENGINE.xp.asarray(x, dtype="float64") + ENGINE.xp.ones(x.shape) + ENGINE.xp.ascontiguousarray(x[0, 0, 0])
        ),
    ],
}


@pytest.mark.parametrize(("group", "number"), [(group, n) for group, calls in CALLS.items() for n in range(len(calls))])
def test_known_calls_replay_the_same_bits(group, number):
    function = CALLS[group][number]
    with np.errstate(all="ignore"):
        first, replay = captured(function)
        assert replay.failure == ""
        for seed, result in ((0, first.copy()), (1, replay(numbers(1)).copy()), (2, replay(numbers(2)))):
            expected = np.asarray(function(numbers(seed)))
            assert result.dtype == expected.dtype
            assert result.copy().tobytes() == expected.tobytes()


def test_mask_that_is_empty_at_capture_is_written_through_on_replay():
    def function(x):
        y = x * 1
        y[x > 0] = 7.0
        return y

    _, replay = Tracer(arena.Arena(), workspace.detach).capture(function, -np.ones((3, 4), "float32"))
    np.testing.assert_array_equal(replay(np.ones((3, 4), "float32")), np.full((3, 4), 7.0))


def test_known_calls_are_all_tested():
    text = Path(__file__).read_text(encoding="utf-8")
    for function in (
        known_calls.OF_ARRAYS
        | known_calls.OF_ONE_ARRAY
        | known_calls.IN_PARTS
        | set(known_calls.FILLS) - {np.empty_like}
    ):
        assert f".{function.__name__}" in text, (
            f"{known_calls.name_of(function)} is on the list, and nothing here calls it"
        )


UFUNCS = sorted(known_calls.UFUNCS, key=lambda ufunc: ufunc.__name__)


@pytest.mark.parametrize("ufunc", UFUNCS, ids=lambda ufunc: ufunc.__name__)
def test_known_ufuncs_replay_the_same_bits(ufunc):
    def function(x):
        given = [x, x[::-1] + 1][: ufunc.nin]
        if ufunc.signature is not None:
            given = [rows(x)[:, :6], rows(x)[:, 6:12]]
        try:
            return ufunc(*given)
        except TypeError:  # of integers, or of booleans
            return ufunc(*((array * 4).astype("int16") % 8 for array in given))

    with np.errstate(all="ignore"):
        try:
            function(numbers(0))
        except (TypeError, ValueError):
            pytest.skip("of dates, or of text")
        _, replay = captured(function)
        assert replay.failure == ""
        assert replay(numbers(3)).tobytes() == function(numbers(3)).tobytes()


FALLS_BACK = {
    "numpy.linalg.inv is not": lambda x: np.linalg.inv(x[:, :4, :4]),
    "numpy.insert is not": lambda x: np.insert(x, 1, 0, axis=0),
    "numpy.delete is not": lambda x: np.delete(x, 1, axis=0),
    "numpy.polyval is not": lambda x: np.polyval(x[0, 0], x),
    "numpy.piecewise is not": lambda x: np.piecewise(x, [x < 0], [lambda v: -v, lambda v: v]),
    "numpy.apply_along_axis is not": lambda x: np.apply_along_axis(lambda v: v - v.mean(), 1, x),
    "numpy.fft.fft is not": lambda x: np.fft.fft(x).real,
    "numpy.unique is not": lambda x: x + np.unique(np.rint(x)).sum(),
    "numpy.add.at is not": in_place(lambda y, x: np.add.at(y, [0, 0], 1.0)),
    "divmod is not": lambda x: divmod(x, 0.3)[1],
    "(vectorized) is not captured": lambda x: np.vectorize(lambda v: v * 2, otypes=["f4"])(x),
    "an array of object is not": lambda x: x.astype(object).astype("f4"),
    "an array of datetime64[s] is not": lambda x: (x * 100).astype("datetime64[s]").astype("f4"),
    "an array of <U32 is not": lambda x: x.astype(str).astype("f4"),
    "indexed by a mask": lambda x: x + x[x > 0].sum(),
    "assigned by a mask": in_place(lambda y, x: y.__setitem__(x[:, 0, 0] > 0, x[0])),
    "numpy.roll is not captured where more than its first": lambda x: np.roll(x, x[0].argmax(), axis=0),
    "numpy.repeat is not captured where": lambda x: np.repeat(x, (x[:, 0, 0] > 0).astype(int), axis=0),
    "numpy.median is not captured with overwrite_input": lambda x: np.median(x * 1, axis=0, overwrite_input=True),
    "numpy.ndarray.flat is not": lambda x: x * x.flat[3],
    "setting numpy.ndarray.flat": in_place(lambda y, x: setattr(y, "flat", 7)),
    "setting numpy.ndarray.real": in_place(lambda y, x: setattr(y, "real", x[::-1])),
    "numpy.ndarray.data is not": lambda x: x + np.frombuffer(x.copy().data, "f4").sum(),
    "numpy.ndarray.ctypes is not": lambda x: x + (x.ctypes.data > 0),
    "numpy.ndarray.__array_interface__ is not": lambda x: x + len(x.__array_interface__),
    "numpy.ndarray.base is not": lambda x: x + (x[1:].base is None),
    "numpy.ndarray.__str__ is not": lambda x: x + len(str(x)),
    "numpy.ndarray.__format__ is not": lambda x: x + len(f"{x.sum()}"),
    "numpy.ndarray.__contains__ is not": lambda x: x + (0.5 in x),
    "numpy.ndarray.__reduce_ex__ is not": lambda x: x + len(__import__("pickle").dumps(x)),
    "numpy.ndarray.__index__ is not": lambda x: x[: x[0, 0].argmax() + 1].sum(axis=0),
    "numpy.ndarray.sort is not": in_place(lambda y, x: y.sort(axis=0)),
    "a view as ndarray": lambda x: x + x.view(np.ndarray).sum(),
    "an array is used that NumPy made": lambda x: x + np.asarray(x),
    "a number of NumPy's, a float32, is used": lambda x: x + np.asarray(x).max(),
    "array is written to that is not captured": lambda x: np.add(x, 1, out=np.empty(x.shape, x.dtype)),
    "a call is given an object of function": lambda x: np.pad(x, 1, mode=lambda *given: None),
    "numpy.array of a list": lambda x: x * ENGINE.xp.array([x[0], x[1], x[2], x[3], x[4], x[5]]),
    "numpy.eye of what": lambda x: x + ENGINE.xp.linspace(x[0, 0], 1, 6)[:, :, None][..., 0].sum(),
}


@pytest.mark.parametrize("reason", FALLS_BACK)
def test_unknown_calls_fall_back_with_a_reason(reason):
    function = FALLS_BACK[reason]
    result, replay = captured(function)
    assert replay.failure
    assert reason.replace("numpy.eye", "numpy.linspace") in replay.failure
    np.testing.assert_array_equal(result, function(numbers(0)))


def test_dlpack_reads_fall_back():
    def function(x):
        return x + np.from_dlpack(x.copy()).sum()

    result, replay = captured(function)
    assert replay.failure  # at `__dlpack__`, or where NumPy asks for it past the array's class, at the number
    np.testing.assert_array_equal(result, function(numbers(0)))

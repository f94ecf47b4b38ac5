"""Signals: steps are whole, whatever comes in between; a training run that has checkpoints saves itself."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import gpucnn
from gpucnn import Checkpoints
from gpucnn.callbacks import Callback
from gpucnn.engine import signals
from gpucnn.engine.signals import whole_step
from gpucnn.training.interrupt import DeferredInterrupt
from tests.helpers import always, assert_same_bits, fit, positions, small_model, stripes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def usual_handlers():
    """Python's own."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGALRM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    assert {number: signal.getsignal(number) for number in usual} == usual
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def test_signals_ignored_stay_ignored(tmp_path):
    """As nohup and a shell's background jobs ask: neither ends a training run, nor does its checkpoint note them."""

    class Send(Callback):
        def on_step_end(self, model, step):
            send(signal.SIGINT)
            send(signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        fit(small_model(), always(tmp_path), Send())
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in numbers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert positions(tmp_path)[-1][0] == 2


# --- whole steps ----------------------------------------------------------------------------------


def test_interrupt_waits_for_the_end_of_the_step():
    done = []

    def step():
        with whole_step:
            with whole_step:
                send()
                send()  # a second one soon after is the same, as of a key that is held
                done.append("inside")
            done.append("outside")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert done == ["inside", "outside"]


def test_interrupt_leaves_whole_steps():
    """The weights are those of a number of steps, never those of half of one."""

    class Interrupted(gpucnn.optimizers.SGD):
        def update(self, *arguments):
            send()
            super().update(*arguments)

    x, y = stripes(20)
    models = [small_model() for _ in range(2)]
    for model, optimizer in zip(models, (gpucnn.optimizers.SGD(0.1), Interrupted(0.1)), strict=True):
        model.compile(optimizer)
    models[0].train_on_batch(x, y)
    with pytest.raises(KeyboardInterrupt):
        models[1].train_on_batch(x, y)
    assert_same_bits(*models)


def test_interrupt_again_in_a_long_step_is_obeyed_at_once(monkeypatch):
    reached, now = [], time.monotonic()

    def step():
        with whole_step:
            send()
            monkeypatch.setattr(signals.time, "monotonic", lambda: now + signals.PATIENCE + 100)
            reached.append("the second")
            send()
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert reached == ["the second"]


def test_signals_that_wait_reach_the_programs_own_handlers():
    seen = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))

    def step():
        with whole_step:
            for number in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM):
                send(number)
            seen.append("the end")

    try:
        with pytest.raises(SystemExit) as ended:
            step()
        assert seen == ["the end", signal.SIGALRM]
        assert (ended.value.code, type(ended.value.__context__)) == (3, KeyboardInterrupt)
        send(signal.SIGALRM)
        assert seen == ["the end", signal.SIGALRM, signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_signals_handler_set_within_a_step_stays():
    def own(number, frame):
        pass

    with whole_step:
        signal.signal(signal.SIGINT, own)
    assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_signals_do_not_wait_for_other_threads():
    inside, leave = threading.Event(), threading.Event()

    def step():
        with whole_step:
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=step)
    thread.start()
    try:
        assert inside.wait(20)
        with pytest.raises(KeyboardInterrupt):
            send()
    finally:
        leave.set()
        thread.join()


def interrupted(count, seed, how):
    command = [sys.executable, "-m", "tests.interrupted", str(count), str(seed), how]
    limit = 30 + count
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{count} interrupts, the same bits True, BLAS given back True\n"


@pytest.mark.parametrize("how", ["jit", "eager"])
def test_interrupts_at_random_leave_whole_steps_of_two_threads(how):
    interrupted(60, 0, how)


@pytest.mark.fuzz
@pytest.mark.parametrize("how", ["jit", "eager"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_interrupts_a_thousand_at_random_leave_whole_steps_of_two_threads(seed, how):
    interrupted(1000, seed, how)


# --- SIGTERM ---------------------------------------------------------------------------------------


class Terminates(Callback):
    """Sends a signal after a number of steps."""

    def __init__(self, after, *numbers):
        self.after, self.numbers, self.interrupted = after, numbers or [signal.SIGTERM], False

    def on_step_end(self, model, step):
        if step + 1 == self.after:
            for number in self.numbers:
                send(number)

    def on_exception(self, model):
        self.interrupted = True


def test_sigterm_saves_the_training_and_ends_the_process(tmp_path):
    expected, terminates = small_model(), Terminates(3)
    fit(expected)
    with pytest.raises(SystemExit) as ended:
        fit(small_model(), Checkpoints(tmp_path), terminates)
    assert ended.value.code == 128 + signal.SIGTERM
    assert terminates.interrupted
    assert positions(tmp_path) == [(0, 0), (0, 3)]
    model = small_model()
    fit(model, tmp_path, resume=True)
    assert_same_bits(model, expected)


def test_sigterm_twice_does_not_wait(tmp_path):
    with pytest.raises(SystemExit) as ended:
        fit(small_model(), Checkpoints(tmp_path), Terminates(3, signal.SIGTERM, signal.SIGTERM))
    assert ended.value.code == 128 + signal.SIGTERM
    assert positions(tmp_path) == [(0, 0)]


def test_sigterm_then_ctrl_c_interrupts(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(small_model(), always(tmp_path), Terminates(3, signal.SIGTERM, signal.SIGINT))


def test_sigterm_handler_of_the_program_stays(tmp_path):
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        fit(small_model(), Checkpoints(tmp_path), Terminates(3))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert seen == [signal.SIGTERM] * 2  # in each epoch


def test_signals_handler_set_by_a_callback_stays():
    def own(number, frame):
        pass

    with DeferredInterrupt():
        signal.signal(signal.SIGTERM, own)
    assert signal.getsignal(signal.SIGTERM) is own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

"""`Checkpoints`: a training saved from time to time, so that an interruption costs a minute, and its best model kept.

A checkpoint is a tree (`gpucnn/saving/tree.py`) of what `gpucnn/training/state.py` gathers, in a file that is written
whole or not at all. The last two are kept, so that a damaged one has another before it.
"""

import contextlib
import math
import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpucnn.core import checks
from gpucnn.core.files import FolderLock, elsewhere, make_folder, remove_parts, user_path, write_into
from gpucnn.errors import CheckpointError, CheckpointWarning, ConfigurationError
from gpucnn.metrics import MODES, is_larger_better
from gpucnn.saving import tree as trees
from gpucnn.saving.model_file import to_bytes
from gpucnn.saving.tree import Tree
from gpucnn.training import state
from gpucnn.training.session import Training
from gpucnn.training.steps import StepRunner

KEY, FORMAT = "gpucnn_training", 1
BEST = "best.safetensors"
NAME = re.compile(r"checkpoint-(\d+)-(\d+)\.safetensors")  # whole epochs, steps of the next one
MOST_COST = 0.05  # of the time, that checkpoints at the ends of short epochs may take


class Checkpoints:
    """Where and how often a training is saved, so that `fit(…, checkpoints=…, resume=True)` goes on from there.

    The resumed training ends with the same bits as one that was never interrupted. A checkpoint is written before the
    first step, when so many seconds or steps have passed, and at the end of each epoch, unless epochs are so short that
    writing would take more than a twentieth of the time. The best model so far, by a number of the history, is kept as
    an ordinary file, `best.safetensors`, with averaged weights where an average is shown; `gpucnn.load` reads it.

    Arguments
        folder         made if it is not there
        every_seconds  between two checkpoints; None: only by steps and epochs
        every_steps    between two checkpoints; then each end of an epoch is saved, too
        keep           how many of the newest checkpoints are kept
        monitor        a key of the history, such as "val_loss". None takes "val_accuracy", or "val_loss" where no
                       accuracy is measured, and no best model is kept without validation data
        mode           "min": smaller is better; "max": larger is better; "auto" asks the metric

    Afterwards `best` is None or {"monitor": …, "value": …, "epoch": …}, with epochs counted from 0.

    Raises
        ConfigurationError  an argument makes no sense

    Example
        >>> from pathlib import Path
        >>> from gpucnn import Checkpoints, datasets, networks
        >>> (x, y), test = datasets.synthetic_digits(200)
        >>> checkpoints = Checkpoints("run", monitor="val_loss")
        >>> model = networks.lenet()
        >>> history = model.fit(x, y, epochs=2, validation_data=test, checkpoints=checkpoints, resume=True, verbose=0)
        >>> sorted(path.name for path in Path("run").glob("best*"))
        ['best.safetensors']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_seconds: float | None = 60.0,
        every_steps: int | None = None,
        keep: int = 2,
        monitor: str | None = None,
        mode: str = "auto",
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise ConfigurationError(f"checkpoints go into a folder, named by a string or a path, not {folder!r}")
        self.folder = user_path(folder)
        if every_seconds is not None:
            every_seconds = checks.number(every_seconds, "every_seconds", 0)
        if every_steps is not None:
            every_steps = checks.integer(every_steps, "every_steps", 1)
        keep = checks.integer(keep, "keep", 1)
        if monitor is not None and not isinstance(monitor, str):
            raise ConfigurationError(f'monitor must be a key of the history such as "val_loss", not {monitor!r}')
        self.every_seconds, self.every_steps, self.keep, self.monitor = every_seconds, every_steps, keep, monitor
        self.mode = checks.one_of(mode, "mode", MODES)
        self.best: dict[str, Any] | None = None
        self.elsewhere: Path | None = None  # where an interrupted training was saved if not in the folder
        self._lock = FolderLock(self.folder)
        self._end: Path | None = None

    # --- for who trains -----------------------------------------------------------------------

    def files(self) -> list[Path]:
        """Return the checkpoints in the folder, the newest last."""
        try:
            names = [path for path in self.folder.iterdir() if path.is_file()]
        except OSError:
            return []
        found = {tuple(map(int, named.groups())): path for path in names if (named := _named(path))}
        return [found[position] for position in sorted(found)]

    def clear(self, keep: int = 0) -> None:
        """Remove all checkpoints but the newest `keep`, when nobody will resume the training; the best model stays."""
        self._remove(keep=self.files()[len(self.files()) - keep :])

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one who writes into the folder, from before a training to after it; it is made if need be.

        Raises:
            CheckpointError: it cannot be written.
            ConfigurationError: another process is writing into it.
        """
        self._take_folder()
        try:
            yield
        finally:
            self.end()

    @property
    def end_is_saved(self) -> bool:
        """Whether the newest checkpoint is that of the training's end, and lies in the folder."""
        return self._end is not None and self._end.is_file()

    # --- for the training loop ----------------------------------------------------------------

    def begin(self, training: Training, resume: bool | Path) -> Tree | None:
        """Return what a training is to go on from, or None for the beginning.

        Raises:
            CheckpointError: what is there is no whole checkpoint, or one of another training.
            ConfigurationError: the folder holds a training, and nobody asked to resume it; another process is writing
                one into it; an unknown monitor.
        """
        self._settings, self._circumstances = state.settings(training), state.circumstances(training)
        self._monitor = self._checked_monitor(training)
        larger = self._monitor is not None and is_larger_better(self._monitor, training.model.metrics, self.mode)
        self._sign = -1.0 if larger else 1.0
        self.best = None
        self._pending: tuple[dict[str, Any], bytes] | None = None
        self._whole: list[Path] = []
        self._cost, self._last, self._steps = 0.0, time.monotonic(), 0
        self._end, self.elsewhere = None, None
        self._failure: dict[str, int | None] = {}
        source = resume if isinstance(resume, Path) else self.folder
        new = not self.folder.exists()
        self._take_folder()
        try:
            return self._begin(training, source, resume)
        except BaseException:
            self.end()
            if new:  # nothing is left of what was refused
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            raise

    def _take_folder(self) -> None:
        """Make the folder, and be the only one who writes into it."""
        try:
            make_folder(self.folder)
            self._lock.__enter__()
        except OSError as error:
            raise self._no_place(error) from error

    def end(self) -> None:
        """Let others write into the folder."""
        self._lock.release()

    def _begin(self, training: Training, source: Path, resume: bool | Path) -> Tree | None:
        if resume is False or source != self.folder:
            self._refuse_to_overwrite()
        found = self._newest(source, training) if resume else None
        if resume and found is None and resume is not True:
            raise CheckpointError(f"{source}: there is no checkpoint to resume from; was it written to another folder?")
        if found is not None:
            self.best = found["best"]
        return found

    def first(self, training: Training, steps: StepRunner) -> None:
        """Save a training that begins, which shows that it can be saved.

        Raises:
            CheckpointError: it cannot be; says why.
        """
        try:
            self._write(training, steps)
        except OSError as error:
            raise self._no_place(error) from error

    def step_made(self, training: Training, steps: StepRunner) -> None:
        """Save if it is time."""
        self._steps += 1
        by_steps = self.every_steps is not None and self._steps >= self.every_steps
        if by_steps or (self.every_seconds is not None and time.monotonic() - self._last >= self.every_seconds):
            self.save(training, steps)

    def epoch_over(self, training: Training, steps: StepRunner, logs: dict[str, float]) -> None:
        """Keep the model if it is the best so far, and save unless the last checkpoint is too fresh."""
        if self._monitor is not None:
            self._compare(training, logs[self._monitor])
        may_cost = MOST_COST * (time.monotonic() - self._last)
        if self.every_steps is not None or not training.has_next_step or self._cost <= may_cost:
            self.save(training, steps)

    def save(self, training: Training, steps: StepRunner, *, interrupted: bool = False) -> None:
        """Write a checkpoint, and remove those that it makes superfluous; where it cannot be written, warn.

        That of an interrupted training is written to another place then, which is named.
        """
        try:
            self._write(training, steps)
        except OSError as error:
            self._last, self._steps, self._end = time.monotonic(), 0, None
            whole = [path for path in self._whole if path.is_file()]
            left = f"{whole[-1].name}, the one before, is whole" if whole else "there is none before it"
            place = f"the checkpoint {_place(training.epoch, training.step)} could not be written into {self.folder}"
            if interrupted:
                self._save_elsewhere(training, steps, f"{place} ({error.strerror or error})")
            else:
                self._warn_of_failure(
                    "checkpoint",
                    error,
                    f"{place} ({error.strerror or error}); {left}, and the training goes on; make room, or let the "
                    "folder be written, and the next one will be",
                )

    def _save_elsewhere(self, training: Training, steps: StepRunner, failed: str) -> None:
        """Write a checkpoint into a new folder in another place, where that of the training cannot take it."""
        self.elsewhere = elsewhere(self.folder.name)
        try:
            if self.elsewhere is None:
                raise OSError("no place")
            self._put(training, steps, self.elsewhere)
        except OSError:
            self.elsewhere = None
            _warn(f"{failed}, nor into any other place; what was trained since the one before is lost")
        else:
            _warn(f"{failed}; it is saved in {self.elsewhere} instead: go on with resume={str(self.elsewhere)!r}")

    def _warn_of_failure(self, what: str, error: OSError, message: str) -> None:
        """Warn of a file that could not be written, once as long as it fails for the same reason."""
        if self._failure.get(what, 0) != error.errno:
            self._failure[what] = error.errno
            _warn(message)

    # --- writing ------------------------------------------------------------------------------

    def _write(self, training: Training, steps: StepRunner) -> None:
        started = time.monotonic()
        steps.watch.check()  # a bad one would take the place of a good one
        self._write_best()
        path = self._put(training, steps, self.folder)
        self._whole = [*(other for other in self._whole if other != path), path][-self.keep :]
        self._remove(keep=self._whole)
        self._end = None if training.has_next_step else path
        self._failure.clear()
        self._last, self._steps = time.monotonic(), 0
        self._cost = self._last - started

    def _put(self, training: Training, steps: StepRunner, folder: Path) -> Path:
        """Write a checkpoint into a folder, and return its path."""
        head = {"format": FORMAT, "python": platform.python_version(), "best": self.best}
        known = {"settings": self._settings, "circumstances": self._circumstances}
        tree = {**head, **known, **state.gather(training, steps)}
        name = f"checkpoint-{training.epoch:05d}-{training.step:06d}.safetensors"
        write_into(folder, name, trees.to_bytes(tree, KEY))
        return folder / name

    def _no_place(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot write checkpoints into {self.folder} ({error.strerror or error}); name a folder that may be "
            "written, on a disk with room"
        )

    def _remove(self, keep: "tuple[()] | list[Path]") -> None:
        """Remove all other checkpoints, and what killed writers left of them and of best models."""
        remove_parts(self.folder, ("checkpoint-", BEST))
        for path in self.files():
            if path not in keep:
                with contextlib.suppress(OSError):  # it takes room, and nothing else
                    path.unlink()

    def _compare(self, training: Training, value: float) -> None:
        """Keep the model if the number is better than all before."""
        assert self._monitor is not None
        best = self._pending[0] if self._pending else self.best
        least = math.inf if best is None else self._sign * best["value"]
        if self._sign * value < least:  # which no NaN is
            named = {"monitor": self._monitor, "value": value, "epoch": training.epoch - 1}
            self._pending = named, to_bytes(training.model)
        try:
            self._write_best()
        except OSError as error:
            self._warn_of_failure(
                BEST,
                error,
                f"the best model so far could not be written to {self.folder / BEST} ({error.strerror or error}); the "
                "training goes on with it in memory, and it is written as soon as there is room",
            )

    def _write_best(self) -> None:
        """Write the best model that waits to be written; only then does it count."""
        if self._pending is not None:
            named, content = self._pending
            write_into(self.folder, BEST, content)
            self.best, self._pending = named, None

    # --- reading ------------------------------------------------------------------------------

    def _newest(self, folder: Path, training: Training) -> Tree | None:
        """Return the newest whole checkpoint of a folder, and warn of newer ones that are damaged."""
        files = Checkpoints(folder).files()
        for path in reversed(files):
            try:
                tree = state.with_current_keys(trees.from_file(path, KEY))
            except CheckpointError as error:
                _warn(f"{error} The checkpoint before it is tried.")
                continue
            tree = self._checked(path, tree, training)
            if folder == self.folder:
                self._whole, self._end = [path], path if state.is_over(tree, training.epochs) else None
            return tree
        if files:
            raise CheckpointError(
                f"{folder}: none of its {len(files)} checkpoints is whole; the training cannot be resumed: begin it "
                "anew, in another folder"
            )
        return None

    def _checked(self, path: Path, tree: Tree, training: Training) -> Tree:
        """Return a checkpoint with the names of now; refuse one of another run, warn of another environment.

        Another number of epochs is taken: it is what a training is lengthened by.
        """
        found = tree.get("format") if isinstance(tree, dict) else None
        if type(found) is not int or found != FORMAT:
            raise CheckpointError(
                f"{path}: is of format {found!r}, and this gpucnn reads {FORMAT}; resume it with the version that "
                "wrote it"
            )
        if not state.is_head(tree):
            raise CheckpointError(f"{path}: is whole, but not a checkpoint of a training; was it edited?")
        tree = state.with_current_names(tree, training)
        then = tree["settings"]["epochs"]
        if others := list(state.differences(tree["settings"], self._settings | {"epochs": then})):
            raise CheckpointError(
                f"{path}: is of another training: {state.in_words(others)}; pass what it was begun with to go on, or "
                "another folder to begin anew"
            )
        if then != training.epochs:
            self._lengthen(path, tree, training)
        before = tree["circumstances"]
        if isinstance(before, dict) and before.get("backend") == "portable":  # the name it had before
            before = {**before, "backend": "reference"}
        if changed := list(state.differences(before, self._circumstances)):
            _warn(
                f"the training goes on under other circumstances: {state.in_words(changed)}; its numbers may differ in "
                "their last bits from those of one that was not interrupted"
            )
        return tree

    def _lengthen(self, path: Path, tree: Tree, training: Training) -> None:
        """Take another number of epochs, if it is not over yet; say so where it comes to something else."""
        then, position = tree["settings"]["epochs"], tree["position"]
        if training.epochs < position["epoch"] + bool(position["step"]):
            raise CheckpointError(
                f"{path}: is {place_of(path)} of {then} already, so it cannot end with epochs={training.epochs}; pass "
                "more, or another folder to begin anew"
            )
        if not state.same_so_far(training, tree, then):
            _warn(
                f"the training goes on to {training.epochs} epochs where it was to have {then}: as its schedules, or "
                f"its cut last epoch, depend on that number, it will not be what {training.epochs} epochs from the "
                "beginning come to"
            )

    def _refuse_to_overwrite(self) -> None:
        files, best = self.files(), self.folder / BEST
        if files:
            raise ConfigurationError(
                f"{self.folder} holds a training already, saved {place_of(files[-1])}; pass resume=True to go on with "
                "it, or name another folder: nothing is overwritten"
            )
        if best.exists():
            raise ConfigurationError(
                f"{best} is there already; name another folder, or move it away: nothing is overwritten"
            )

    def _checked_monitor(self, training: Training) -> str | None:
        """Return the key that best models are chosen by, or None."""
        keys = state.measured(training)
        if self.monitor is None:
            return next((key for key in ("val_accuracy", "val_loss") if key in keys), None)
        if self.monitor not in keys:
            raise ConfigurationError(
                f"the best model is to be chosen by {self.monitor!r}, but an epoch gives only {', '.join(keys)}; pass "
                "validation_data, or another monitor"
            )
        return self.monitor

    def __repr__(self) -> str:
        return f"<Checkpoints in {self.folder}: {len(self.files())}>"


def check_checkpoints(checkpoints: Any, resume: Any) -> "tuple[Checkpoints | None, bool | Path]":
    """Return what `fit` is given as an object, and where it resumes: False, True for its folder, or another folder.

    Raises:
        ConfigurationError: it is neither a `Checkpoints` nor a folder, or nobody says which training is resumed.
    """
    if isinstance(resume, str | os.PathLike):
        checkpoints = resume if checkpoints is None else checkpoints
        resume = user_path(resume)
        if resume.is_file():
            raise ConfigurationError(f"resume={str(resume)!r} is a file; pass the folder that checkpoints lie in")
    elif not isinstance(resume, bool):
        raise ConfigurationError(f"resume must be True, False or a folder of checkpoints, not {resume!r}")
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = Checkpoints(checkpoints)
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise ConfigurationError(f"checkpoints must be a folder or a Checkpoints(folder, …), not {checkpoints!r}")
    if resume is True and checkpoints is None:
        raise ConfigurationError("resume=True needs checkpoints=…, the folder that they lie in")
    return checkpoints, resume


def place_of(path: Path) -> str:
    """Return in words after how many epochs and steps a checkpoint was written, by its name."""
    named = _named(path)
    assert named is not None
    return _place(*map(int, named.groups()))


def _place(epoch: int, step: int) -> str:
    epochs = f"after {epoch} epoch{'' if epoch == 1 else 's'}"
    return f"{epochs} and {step} step{'' if step == 1 else 's'}" if step else epochs


def _named(path: Path) -> "re.Match[str] | None":
    return NAME.fullmatch(path.name)


def _warn(message: str) -> None:
    warnings.warn(CheckpointWarning(message), stacklevel=2)

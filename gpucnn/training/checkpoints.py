"""`Checkpoints`: a training run saved at intervals, so that an interruption costs a minute, and its best model.

A checkpoint is a tree (`gpucnn/saving/tree.py`) of what `gpucnn/training/state.py` collects, written atomically. The
last two are kept, so that a damaged one has a predecessor.
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
from gpucnn.core.files import FolderLock, elsewhere, make_folder, remove_partial, user_path, write_into
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
MAX_OVERHEAD = 0.05  # of the time, that checkpoints at the ends of short epochs may take


class Checkpoints:
    """Where and how often a training run is saved, so that `fit(…, checkpoints=…, resume=True)` can continue it.

    The resumed run ends with the same bits as one that was never interrupted. A checkpoint is written before the first
    step, every given number of seconds or steps, and at the end of each epoch, unless epochs are so short that writing
    would take more than a twentieth of the time. The best model so far, by a metric of the history, is saved as a
    model file, `best.safetensors`, with averaged weights if weights are averaged; `gpucnn.load` reads it.

    Arguments
        folder         is created if it does not exist
        every_seconds  between two checkpoints; None: only by steps and epochs
        every_steps    between two checkpoints; then every epoch ends with one, too
        keep           how many of the newest checkpoints are kept
        monitor        a key of the history, such as "val_loss". None selects "val_accuracy", or "val_loss" where no
                       accuracy is measured; without validation data no best model is saved
        mode           "min": smaller is better; "max": larger is better; "auto" asks the metric

    Afterwards `best` is None or {"monitor": …, "value": …, "epoch": …}, with epochs counted from 0.

    Raises
        ConfigurationError  an argument is invalid

    Example
        >>> from pathlib import Path
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
        self.folder = user_path(folder)
        self.every_seconds = checks.optional(checks.number, every_seconds, "every_seconds", 0)
        self.every_steps = checks.optional(checks.integer, every_steps, "every_steps", 1)
        self.keep = checks.integer(keep, "keep", 1)
        if monitor is not None and not isinstance(monitor, str):
            raise ConfigurationError(f'monitor must be a key of the history such as "val_loss", not {monitor!r}')
        self.monitor, self.mode = monitor, checks.one_of(mode, "mode", MODES)
        self.best: dict[str, Any] | None = None
        self.elsewhere: Path | None = None  # where an interrupted run was saved if not in the folder
        self._lock = FolderLock(self.folder)
        self._end: Path | None = None

    # --- for callers ----------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """Return the checkpoints in the folder, the newest last."""
        try:
            names = [path for path in self.folder.iterdir() if path.is_file()]
        except OSError:
            return []
        found = {tuple(map(int, named.groups())): path for path in names if (named := NAME.fullmatch(path.name))}
        return [found[position] for position in sorted(found)]

    def clear(self, keep: int = 0) -> None:
        """Remove all checkpoints but the newest `keep` of a run that will not be resumed; the best model stays."""
        self._prune(keep=self.files()[len(self.files()) - keep :])

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder for the duration of a block around a training run; it is created if need be.

        Raises:
            CheckpointError: the folder cannot be written.
            ConfigurationError: another process is writing to it.
        """
        self._lock_folder()
        try:
            yield
        finally:
            self.close()

    @property
    def end_is_saved(self) -> bool:
        """Whether the newest checkpoint in the folder is that of the end of the run."""
        return self._end is not None and self._end.is_file()

    # --- for the training loop ----------------------------------------------------------------

    def open(self, training: Training, resume: bool | Path) -> Tree | None:
        """Lock the folder, and return the checkpoint that a run resumes from, or None for a new run.

        Raises:
            CheckpointError: no checkpoint can be read, or they are of another run.
            ConfigurationError: the folder contains a run that is not to be resumed, another process is writing to it,
                or the monitor is unknown.
        """
        self._settings, self._environment = state.settings(training), state.environment(training)
        self._monitor = self._checked_monitor(training)
        larger = self._monitor is not None and is_larger_better(self._monitor, training.model.metrics, self.mode)
        self._sign = -1.0 if larger else 1.0
        self.best = None
        self._pending: tuple[dict[str, Any], bytes] | None = None
        self._complete: list[Path] = []
        self._cost, self._last, self._steps = 0.0, time.monotonic(), 0
        self._end, self.elsewhere = None, None
        self._failure: dict[str, int | None] = {}
        source = resume if isinstance(resume, Path) else self.folder
        new = not self.folder.exists()
        self._lock_folder()
        try:
            if resume is False or source != self.folder:
                self._refuse_to_overwrite()
            found = self._newest(source, training) if resume else None
            if found is not None:
                self.best = found["best"]
            elif isinstance(resume, Path):
                raise CheckpointError(
                    f"{source}: there is no checkpoint to resume from; was it written to another folder?"
                )
            return found
        except BaseException:
            self.close()
            if new:  # a rejected run leaves nothing
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            raise

    def _lock_folder(self) -> None:
        """Create the folder and lock it."""
        try:
            make_folder(self.folder)
            self._lock.__enter__()
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def on_start(self, training: Training, steps: StepRunner) -> None:
        """Save a new run before its first step, which shows that it can be saved.

        Raises:
            CheckpointError: it cannot be saved; gives the reason.
        """
        try:
            self._write(training, steps)
        except OSError as error:
            raise self._cannot_write(error) from error

    def on_step(self, training: Training, steps: StepRunner) -> None:
        """Save after a step, if one is due."""
        self._steps += 1
        by_steps = self.every_steps is not None and self._steps >= self.every_steps
        if by_steps or (self.every_seconds is not None and time.monotonic() - self._last >= self.every_seconds):
            self.save(training, steps)

    def on_epoch(self, training: Training, steps: StepRunner, logs: dict[str, float]) -> None:
        """Save after an epoch, unless the last checkpoint is too recent; the model too, if it is the best so far."""
        if self._monitor is not None:
            self._update_best(training, logs[self._monitor])
        may_cost = MAX_OVERHEAD * (time.monotonic() - self._last)
        if self.every_steps is not None or not training.has_next_step or self._cost <= may_cost:
            self.save(training, steps)

    def save(self, training: Training, steps: StepRunner, *, interrupted: bool = False) -> None:
        """Write a checkpoint and remove those that it supersedes; warn if it cannot be written.

        The checkpoint of an interrupted run is then written elsewhere, and the warning says where.
        """
        try:
            self._write(training, steps)
        except OSError as error:
            self._last, self._steps, self._end = time.monotonic(), 0, None
            whole = [path for path in self._complete if path.is_file()]
            left = f"the previous one, {whole[-1].name}, is intact" if whole else "there is no earlier one"
            place = f"the checkpoint {_position(training.epoch, training.step)} could not be written to {self.folder}"
            if interrupted:
                self._save_elsewhere(training, steps, f"{place} ({error.strerror or error})")
            else:
                self._warn_of_failure(
                    "checkpoint",
                    error,
                    f"{place} ({error.strerror or error}); {left}, and training continues; free disk space or "
                    "make the folder writable, and the next one will be written",
                )

    def _save_elsewhere(self, training: Training, steps: StepRunner, failed: str) -> None:
        """Write a checkpoint to a new folder elsewhere, because that of the run cannot be written."""
        self.elsewhere = elsewhere(self.folder.name)
        try:
            if self.elsewhere is None:
                raise OSError("no place")
            self._put(training, steps, self.elsewhere)
        except OSError:
            self.elsewhere = None
            _warn(f"{failed}, nor anywhere else; progress since the previous one is lost")
        else:
            _warn(f"{failed}; it was saved to {self.elsewhere} instead: continue with resume={str(self.elsewhere)!r}")

    def _warn_of_failure(self, what: str, error: OSError, message: str) -> None:
        """Warn of a file that could not be written, once per reason."""
        if self._failure.get(what, 0) != error.errno:
            self._failure[what] = error.errno
            _warn(message)

    # --- writing ------------------------------------------------------------------------------

    def _write(self, training: Training, steps: StepRunner) -> None:
        started = time.monotonic()
        steps.finite_check.raise_if_bad()  # or a bad checkpoint would replace a good one
        self._write_best()
        path = self._put(training, steps, self.folder)
        self._complete = [*(other for other in self._complete if other != path), path][-self.keep :]
        self._prune(keep=self._complete)
        self._end = None if training.has_next_step else path
        self._failure.clear()
        self._last, self._steps = time.monotonic(), 0
        self._cost = self._last - started

    def _put(self, training: Training, steps: StepRunner, folder: Path) -> Path:
        """Write a checkpoint to a folder, and return its path."""
        head = {"format": FORMAT, "python": platform.python_version(), "best": self.best}
        known = {"settings": self._settings, "environment": self._environment}
        tree = {**head, **known, **state.snapshot(training, steps)}
        name = f"checkpoint-{training.epoch:05d}-{training.step:06d}.safetensors"
        write_into(folder, name, trees.to_bytes(tree, KEY))
        return folder / name

    def _cannot_write(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot write checkpoints to {self.folder} ({error.strerror or error}); choose a writable folder on a "
            "disk with free space"
        )

    def _prune(self, keep: "tuple[()] | list[Path]") -> None:
        """Remove all other checkpoints, and partial files that killed processes left."""
        remove_partial(self.folder, ("checkpoint-", BEST))
        for path in self.files():
            if path not in keep:
                with contextlib.suppress(OSError):  # it only takes space
                    path.unlink()

    def _update_best(self, training: Training, value: float) -> None:
        """Save the model if the monitored value is better than all before."""
        assert self._monitor is not None
        best = self._pending[0] if self._pending else self.best
        lowest = math.inf if best is None else self._sign * best["value"]
        if self._sign * value < lowest:  # which no NaN is
            named = {"monitor": self._monitor, "value": value, "epoch": training.epoch - 1}
            self._pending = named, to_bytes(training.model)
        try:
            self._write_best()
        except OSError as error:
            self._warn_of_failure(
                BEST,
                error,
                f"the best model so far could not be written to {self.folder / BEST} ({error.strerror or error}); "
                "training continues with it in memory, and it will be written as soon as there is space",
            )

    def _write_best(self) -> None:
        """Write the pending best model; only then does it count."""
        if self._pending is not None:
            named, content = self._pending
            write_into(self.folder, BEST, content)
            self.best, self._pending = named, None

    # --- reading ------------------------------------------------------------------------------

    def _newest(self, folder: Path, training: Training) -> Tree | None:
        """Return the newest readable checkpoint of a folder; warn of newer ones that are damaged."""
        files = Checkpoints(folder).files()
        for path in reversed(files):
            try:
                tree = state.with_current_keys(trees.from_file(path, KEY))
            except CheckpointError as error:
                _warn(f"{error} Trying the previous checkpoint.")
                continue
            tree = self._checked(path, tree, training)
            if folder == self.folder:
                self._complete, self._end = [path], path if state.is_over(tree, training.epochs) else None
            return tree
        if files:
            raise CheckpointError(
                f"{folder}: none of its {len(files)} checkpoints can be read, so the run cannot be resumed; start a "
                "new one in another folder"
            )
        return None

    def _checked(self, path: Path, tree: Tree, training: Training) -> Tree:
        """Return a checkpoint with current names; refuse one of another run, warn of another environment.

        Another number of epochs is accepted: it extends the run.
        """
        found = tree.get("format") if isinstance(tree, dict) else None
        if type(found) is not int or found != FORMAT:
            raise CheckpointError(
                f"{path}: has format {found!r}, expected {FORMAT}; resume it with the version that wrote it"
            )
        if not state.is_head(tree):
            raise CheckpointError(f"{path}: can be read, but is not a checkpoint of a run; was it edited?")
        tree = state.with_current_names(tree, training)
        then = tree["settings"]["epochs"]
        if others := list(state.diff(tree["settings"], self._settings | {"epochs": then})):
            raise CheckpointError(
                f"{path}: is from a different run: {state.format_diff(others)}; pass the original settings to resume "
                "it, or another folder to start a new one"
            )
        if then != training.epochs:
            self._extend(path, tree, training)
        if changed := list(state.diff(tree["environment"], self._environment)):
            _warn(
                f"resuming in a different environment: {state.format_diff(changed)}; results may differ in the last "
                "bits from those of an uninterrupted run"
            )
        return tree

    def _extend(self, path: Path, tree: Tree, training: Training) -> None:
        """Accept another number of epochs if it is not reached yet; warn if the result will differ."""
        then, position = tree["settings"]["epochs"], tree["position"]
        if training.epochs < position["epoch"] + bool(position["step"]):
            raise CheckpointError(
                f"{path}: is already {position_of(path)} of {then}, so epochs={training.epochs} is too few; pass more, "
                "or another folder to start a new run"
            )
        if not state.same_so_far(training, tree, then):
            _warn(
                f"the run continues to {training.epochs} epochs instead of {then}; its schedules, or its shortened "
                f"last epoch, depend on that number, so the result differs from a run of {training.epochs} epochs"
            )

    def _refuse_to_overwrite(self) -> None:
        files, best = self.files(), self.folder / BEST
        if files:
            raise ConfigurationError(
                f"{self.folder} already contains a run, saved {position_of(files[-1])}; pass resume=True to continue "
                "it, or choose another folder: nothing is overwritten"
            )
        if best.exists():
            raise ConfigurationError(
                f"{best} already exists; choose another folder, or move the file: nothing is overwritten"
            )

    def _checked_monitor(self, training: Training) -> str | None:
        """Return the key that best models are chosen by, or None."""
        keys = state.measured(training)
        if self.monitor is None:
            return next((key for key in ("val_accuracy", "val_loss") if key in keys), None)
        if self.monitor not in keys:
            raise ConfigurationError(
                f"the monitor of the best model is {self.monitor!r}, but an epoch reports only {', '.join(keys)}; pass "
                "validation_data, or another monitor"
            )
        return self.monitor

    def __repr__(self) -> str:
        return f"<Checkpoints in {self.folder}: {len(self.files())}>"


def check_checkpoints(checkpoints: Any, resume: Any) -> "tuple[Checkpoints | None, bool | Path]":
    """Return what `fit` is given as an object, and what it resumes: False, True for its own folder, or another folder.

    Raises:
        ConfigurationError: it is neither a `Checkpoints` nor a folder, or it is not clear what is resumed.
    """
    if isinstance(resume, str | os.PathLike):
        checkpoints = resume if checkpoints is None else checkpoints
        resume = user_path(resume)
        if resume.is_file():
            raise ConfigurationError(f"resume={str(resume)!r} is a file; pass the folder of the checkpoints")
    elif not isinstance(resume, bool):
        raise ConfigurationError(f"resume must be True, False or a folder of checkpoints, not {resume!r}")
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = Checkpoints(checkpoints)
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise ConfigurationError(f"checkpoints must be a folder or a Checkpoints(folder, …), not {checkpoints!r}")
    if resume is True and checkpoints is None:
        raise ConfigurationError("resume=True needs checkpoints=…, their folder")
    return checkpoints, resume


def position_of(path: Path) -> str:
    """Return after how many epochs and steps a checkpoint was written, as text, from its name."""
    named = NAME.fullmatch(path.name)
    assert named is not None
    return _position(*map(int, named.groups()))


def _position(epoch: int, step: int) -> str:
    epochs = f"after {epoch} epoch{'' if epoch == 1 else 's'}"
    return f"{epochs} and {step} step{'' if step == 1 else 's'}" if step else epochs


def _warn(message: str) -> None:
    warnings.warn(CheckpointWarning(message), stacklevel=2)

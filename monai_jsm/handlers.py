"""Adapters to ignite. The first four make a training survive being killed.

Together they promise: a training that was killed at any moment and resumed ends, on a CPU, with the same weights,
bit for bit, as one that was never disturbed. In a bundle::

    "resume": false,
    "checkpointed": {"network": "@network", "optimizer": "@optimizer", "lr_scheduler": "@lr_scheduler",
                     "evaluator": "@validate::evaluator", "early_stop": "@validate::early_stop"},
    "train::handlers": [
        {"_target_": "monai_jsm.handlers.CheckpointResume",
         "save_dir": "@output_dir", "load_dict": "@checkpointed", "resume": "@resume"},
        {"_target_": "monai_jsm.handlers.EpochSeed", "seed": "@seed"},
        {"_target_": "ValidationHandler", "validator": "@validate::evaluator", "interval": 1},
        {"_target_": "monai_jsm.handlers.AtomicCheckpointSaver",
         "save_dir": "@output_dir", "save_dict": "@checkpointed"}],
    "validate::handlers": [
        {"_target_": "monai_jsm.handlers.AtomicModelSaver", "save_dir": "@output_dir", "network": "@network"},
        "@validate::early_stop"]
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from ignite.utils import manual_seed
from monai.data.utils import set_rnd
from monai.engines import Workflow
from monai.handlers import EarlyStopHandler
from monai.networks.utils import get_state_dict

from monai_jsm.data.errors import InputError
from monai_jsm.data.results import told_of, write_evaluation, write_registration
from monai_jsm.metrics import summarise
from monai_jsm.transforms import pair_images, pair_record

__all__ = [
    "AtomicCheckpointSaver",
    "AtomicModelSaver",
    "CheckpointResume",
    "EpochSeed",
    "MeasureSaver",
    "RegistrationSaver",
    "refuse_overwriting",
]

logger = logging.getLogger(__name__)

_OWN_ENTRIES = ("trainer", "scaler", "stopped")


class AtomicCheckpointSaver:
    """Writes all that a training needs to go on, at the end of its epochs, so that no kill can spoil it.

    Attach it to the trainer, anywhere in its list of handlers: when the run starts it queues up behind every other
    handler of the epoch's end, so that validation, learning rate and early stopping have acted before it saves.

    A file is written beside its final name, flushed to the disk, read back as a resume will read it and only then
    renamed: ``checkpoint_epoch=N.pt`` is complete or absent. Only the process of rank 0 writes.
    The trainer's epoch, its best metric and, with ``amp``, its gradient scaler are saved without being named.

    Args:
        save_dir: folder of the checkpoints, made if it is absent.
        save_dict: what to save by name: anything with a ``state_dict``, an ``EarlyStopHandler``, or the evaluator,
            of which the best metric is kept. Give ``CheckpointResume`` the same.
        name: logger to use, the engine's own by default.
        interval: epochs between two checkpoints. The last epoch, also one chosen by early stopping, is always saved.
        n_saved: how many of the newest checkpoints stay.

    Raises:
        ValueError: if an entry of ``save_dict`` has no state or takes a name used by the handler itself, or if
            ``interval`` or ``n_saved`` is below 1.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        save_dict: Mapping[str, Any],
        name: str | None = None,
        interval: int = 1,
        n_saved: int = 2,
    ) -> None:
        _require_states(save_dict)
        if interval < 1 or n_saved < 1:
            raise ValueError(f"interval and n_saved must be at least 1, got {interval} and {n_saved}.")
        self.save_dir = Path(save_dir)
        self.save_dict = save_dict
        self.interval = interval
        self.n_saved = n_saved
        self._name = name

    def attach(self, engine: Workflow) -> None:
        """Has the trainer call this handler when its run starts."""
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Workflow) -> None:
        """Clears what a killed run left half-written and queues up behind the handlers of the epoch's end."""
        if idist.get_rank() == 0:
            self.save_dir.mkdir(parents=True, exist_ok=True)
            for stale in self.save_dir.glob("checkpoint_epoch=*.pt.tmp"):
                stale.unlink()
            self._drop_older(engine.state.epoch)
        if engine.has_event_handler(self, Events.EPOCH_COMPLETED):
            engine.remove_event_handler(self, Events.EPOCH_COMPLETED)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Saves the epoch that has just ended, then removes the checkpoints that ``n_saved`` leaves no room for."""
        epoch = engine.state.epoch
        due = epoch % self.interval == 0 or epoch == engine.state.max_epochs or engine.should_terminate
        if idist.get_rank() != 0 or not due:
            return
        checkpoint = {name: _state(thing) for name, thing in self.save_dict.items()}
        checkpoint["trainer"] = {**engine.state_dict(), **_best(engine)}
        checkpoint["stopped"] = bool(engine.should_terminate)
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            checkpoint["scaler"] = scaler.state_dict()
        path = self.save_dir / f"checkpoint_epoch={epoch}.pt"
        _save_atomically(checkpoint, path)
        self._drop_older(epoch)
        _logger(self._name, engine).info(f"Saved {path}.")

    def _drop_older(self, epoch: int) -> None:
        # A later epoch's file can only be one that a resume found damaged: it is written anew when its turn comes.
        saved = [path for number, path in _checkpoints(self.save_dir).items() if number <= epoch]
        for path in saved[: -self.n_saved]:
            path.unlink()


class AtomicModelSaver:
    """Keeps the weights of the best network so far, as a bare state dict.

    Attach it to the evaluator that validates. What is best the evaluator decides: its key metric, compared by its
    ``metric_cmp_fn`` (for an error such as TRE ``lambda new, best: new < best``; MONAI's default takes the greater).
    The best value lives in the evaluator's state: put the evaluator into ``save_dict`` of ``AtomicCheckpointSaver``,
    or a resumed run takes its first model for the best one.

    The file is replaced in one step, as checkpoints are, and holds CPU tensors that load with ``weights_only=True``,
    without the prefix of data-parallel training. Only the process of rank 0 writes.

    Args:
        save_dir: folder of the file, made if it is absent.
        network: the network in training.
        key_metric_filename: name of the file.
        name: logger to use, the engine's own by default.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        network: torch.nn.Module,
        key_metric_filename: str = "model.pt",
        name: str | None = None,
    ) -> None:
        self.path = Path(save_dir) / key_metric_filename
        self.network = network
        self._name = name

    def attach(self, engine: Workflow) -> None:
        """Has the evaluator call this handler after it compared its key metric.

        Raises:
            ValueError: if the evaluator has no key metric.
        """
        if engine.state.key_metric_name is None:
            raise ValueError("the evaluator needs a key_metric to tell the best model by: give it one.")
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Workflow) -> None:
        """Clears what a killed run left half-written."""
        if idist.get_rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.with_name(self.path.name + ".tmp").unlink(missing_ok=True)

    def __call__(self, engine: Workflow) -> None:
        """Saves the network if this validation was the best one."""
        state = engine.state
        if not math.isfinite(state.best_metric):
            _logger(self._name, engine).warning(f"{state.key_metric_name} is not a number: no model is saved.")
            state.best_metric_epoch = -1  # any number is better, but compares as if it were not
            return
        # The value is compared too: several validations may fall into one epoch.
        new_best = state.best_metric_epoch == state.epoch and state.metrics[state.key_metric_name] == state.best_metric
        if idist.get_rank() != 0 or not new_best:
            return
        weights = get_state_dict(self.network)
        _save_atomically({k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in weights.items()}, self.path)
        _logger(self._name, engine).info(
            f"Saved {self.path}: {state.key_metric_name} {float(state.best_metric):.6g} at epoch {state.epoch}."
        )


class CheckpointResume:
    """Goes on with a training from the newest checkpoint that can be read.

    Attach it to the trainer, first in its list of handlers. It acts once, when the first run starts, in every process.

    With ``resume`` it restores all that ``AtomicCheckpointSaver`` wrote; ``max_epochs`` stays as it is now, so
    a greater one prolongs a finished training. No checkpoint: the training starts from the beginning. Damaged newest
    checkpoint: a warning, and the one before. Training complete, or ended by early stopping and
    ``max_epochs`` not raised since: nothing is trained.

    Without ``resume``, a folder that holds checkpoints is refused: a new training would overwrite the old one's
    files one by one, and a later resume could pick up either.

    A validation before the first epoch (``exec_at_start``) is repeated on resuming and counts for early stopping:
    leave it off where a resumed run must equal an undisturbed one.

    Args:
        save_dir: folder of the checkpoints.
        load_dict: what to restore by name, as in ``save_dict`` of ``AtomicCheckpointSaver``.
        resume: whether to go on from a checkpoint.
        name: logger to use, the engine's own by default.

    Raises:
        ValueError: if an entry of ``load_dict`` has no state or takes a name used by the handler itself.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        load_dict: Mapping[str, Any],
        resume: bool = False,
        name: str | None = None,
    ) -> None:
        _require_states(load_dict)
        self.save_dir = Path(save_dir)
        self.load_dict = load_dict
        self.resume = resume
        self._name = name
        refuse_overwriting(save_dir, resume)

    def attach(self, engine: Workflow) -> None:
        """Has the trainer call this handler when its run starts."""
        if self.resume:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Restores the training.

        Raises:
            InputError: if no checkpoint of the folder can be read, or if the one read does not fit the objects to
                restore or the number of batches in an epoch.
        """
        engine.remove_event_handler(self, Events.STARTED)  # a second run goes on from what is in memory
        logger = _logger(self._name, engine)
        checkpoints = _checkpoints(self.save_dir)
        if not checkpoints:
            logger.info(f"No checkpoint in {self.save_dir}: training starts from the beginning.")
            return
        path, checkpoint = self._newest_readable(checkpoints, logger)
        self._restore(path, checkpoint, engine)
        epoch, max_epochs = engine.state.epoch, engine.state.max_epochs
        if epoch >= max_epochs:
            logger.info(f"{path}: epoch {epoch} of {max_epochs} is done already, raise max_epochs to train on.")
            engine.terminate()
        elif checkpoint["stopped"] and max_epochs <= checkpoint["trainer"]["max_epochs"]:
            logger.info(f"{path}: training was stopped early at epoch {epoch}, raise max_epochs to train on.")
            engine.terminate()
        else:
            logger.info(f"Resumed from {path}: epoch {epoch + 1} of {max_epochs} is next.")

    def _newest_readable(self, checkpoints: Mapping[int, Path], logger: logging.Logger) -> tuple[Path, dict[str, Any]]:
        for path in reversed(list(checkpoints.values())):
            try:
                return path, _read(path)
            except Exception as error:  # a damaged file fails in the zip, pickle or torch layer, each in its own way
                logger.warning(f"{path} cannot be read, trying the checkpoint before it: {error}")
        raise InputError(
            f"none of the checkpoints in {self.save_dir} can be read: "
            "remove them and train again, or use a different --output_dir."
        )

    def _restore(self, path: Path, checkpoint: dict[str, Any], engine: Workflow) -> None:
        remedy = "resume with the configuration and data that wrote it, or use a different --output_dir."
        missing = [name for name in self.load_dict if name not in checkpoint]
        if missing:
            raise InputError(f"{path} holds no {', '.join(missing)}: {remedy}")
        trainer, max_epochs = checkpoint["trainer"], engine.state.max_epochs
        if trainer["epoch_length"] != engine.state.epoch_length:
            raise InputError(
                f"{path} was written with {trainer['epoch_length']} batches per epoch, "
                f"the data now give {engine.state.epoch_length}: {remedy}"
            )
        for name, thing in self.load_dict.items():
            try:
                _restore_state(thing, checkpoint[name])
            except (RuntimeError, ValueError, KeyError) as error:
                detail = " ".join(str(error).split())
                raise InputError(f"{path} does not fit the {name} ({detail:.200}): {remedy}") from error
        engine.load_state_dict(trainer)
        engine.state.max_epochs = max_epochs
        _restore_state(engine, trainer)
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and checkpoint.get("scaler"):  # a scaler disabled for want of a GPU has an empty state
            scaler.load_state_dict(checkpoint["scaler"])


def refuse_overwriting(save_dir: str | os.PathLike[str], resume: bool) -> None:
    """Make sure that a new training finds no other one in its folder; called before anything is written there.

    Raises:
        InputError: if ``resume`` is off and the folder holds checkpoints.
    """
    checkpoints = _checkpoints(Path(save_dir))
    if checkpoints and not resume:
        raise InputError(
            f"{save_dir} already holds a training up to epoch {max(checkpoints)}: "
            "continue it with --resume true, or start another one with a different --output_dir."
        )


class EpochSeed:
    """Makes the random numbers of an epoch a function of seed, epoch and rank, whatever was drawn before it.

    Attach it to the trainer: when an epoch starts it seeds torch, NumPy and Python, the random transforms of the
    engine's dataset, and the data loader's own generator, if any. The data are then iterated afresh, so that an epoch
    depends on nothing that was drawn, prefetched or left over in the epoch before it.

    Args:
        seed: any integer from 0 upwards; another one gives another training.

    Raises:
        ValueError: if ``seed`` is negative.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or greater, got {seed}.")
        self.seed = seed

    def attach(self, engine: Workflow) -> None:
        """Has the engine call this handler when an epoch starts.

        Raises:
            ValueError: if worker processes outlive an epoch, out of reach of any seed set here.
        """
        if getattr(engine.data_loader, "persistent_workers", False):
            raise ValueError("persistent workers keep their random state from epoch to epoch: turn them off.")
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Seeds the epoch that is about to start."""
        seed = int(np.random.SeedSequence((self.seed, engine.state.epoch, idist.get_rank())).generate_state(1)[0])
        loader = engine.state.dataloader
        engine.set_data(())  # ends the last epoch's iterator: its thread may still draw from the transforms
        manual_seed(seed)
        set_rnd(getattr(loader, "dataset", None), seed)
        generator = getattr(loader, "generator", None)
        if generator is not None:
            generator.manual_seed(seed)
        engine.set_data(loader)


def _logger(name: str | None, engine: Workflow) -> logging.Logger:
    return engine.logger if name is None else logging.getLogger(name)


def _require_states(things: Mapping[str, Any]) -> None:
    """Refuses what cannot be saved and restored by name."""
    reserved = [name for name in _OWN_ENTRIES if name in things]
    if reserved:
        raise ValueError(f"{', '.join(reserved)}: saved without being named, leave it out.")
    for name, thing in things.items():
        if not (hasattr(thing, "state_dict") or isinstance(thing, EarlyStopHandler)):
            raise ValueError(f"{name} must have a state_dict to be saved, got {type(thing).__name__}.")


def _state(thing: Any) -> Any:
    return _best(thing) if isinstance(thing, Workflow) else get_state_dict(_inner(thing))


def _restore_state(thing: Any, state: Mapping[str, Any]) -> None:
    if isinstance(thing, Workflow):
        thing.state.best_metric, thing.state.best_metric_epoch = state["best_metric"], state["best_metric_epoch"]
    else:
        _inner(thing).load_state_dict(state)


def _best(engine: Workflow) -> dict[str, float]:
    return {"best_metric": float(engine.state.best_metric), "best_metric_epoch": int(engine.state.best_metric_epoch)}


def _inner(thing: Any) -> Any:
    """The object that has the state: under a parallel wrapper, or the ignite handler that MONAI's wraps."""
    if isinstance(thing, EarlyStopHandler):
        if thing._handler is None:
            raise ValueError("the early stopping has no trainer yet: call its set_trainer() before training.")
        return thing._handler
    if isinstance(thing, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        return thing.module
    return thing


def _checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by epoch, in their order."""
    found = ((re.fullmatch(r"checkpoint_epoch=(\d+)\.pt", path.name), path) for path in folder.glob("*.pt"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Replaces ``path`` in one step by a file that is on the disk and can be read back."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            os.chmod(temporary, 0o644)
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            _read(temporary)
        except pickle.UnpicklingError as error:
            raise TypeError(
                f"{path} would not load with weights_only=True: keep to tensors and plain Python values in the "
                f"states to be saved ({error})."
            ) from error
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class MeasureSaver:
    """Collects what :class:`~monai_jsm.transforms.MeasurePaird` measured, case by case, over all processes.

    At the end of an epoch every measure's mean over cases joins ``engine.state.metrics``, where MONAI's StatsHandler
    and TensorBoardStatsHandler find it (put this handler before them), and, with a folder, the process of rank 0 writes

    - ``metrics.json``: mean, SD and median over cases of each measure with its unit, the errors of all landmarks
      pooled, and versions;
    - ``cases.csv``: one row per case;
    - ``landmarks.csv``: one row per landmark: positions (world, RAS, mm), errors before and after in mm and voxels.

    Args:
        save_dir: folder for the files, made if it is absent; None writes nothing.
        seed: of the run, told in ``metrics.json``.
        weights: file of the weights, told with its hash; left out while they are in training.
    """

    def __init__(
        self, save_dir: str | Path | None = None, seed: int | None = None, weights: str | Path | None = None
    ) -> None:
        self.save_dir = None if save_dir is None else Path(save_dir)
        self.seed = seed
        self.weights = weights
        self._cases: list[dict[str, Any]] = []

    def attach(self, engine: Workflow) -> None:
        """Listen to an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Workflow) -> None:
        self._cases = []

    def _collect(self, engine: Workflow) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            self._cases.append(pair_record({**batch, **output}))

    def _finish(self, engine: Workflow) -> None:
        gathered = _gather(self._cases) if idist.get_world_size() > 1 else [self._cases]
        cases = list({case["id"]: case for part in gathered for case in part}.values())  # a sampler may repeat a case
        cases.sort(key=lambda case: case["id"])
        summary = summarise(cases)
        engine.state.metrics.update({name: values["mean"] for name, values in summary["measures"].items()})
        if self.save_dir is not None and idist.get_rank() == 0:
            write_evaluation(self.save_dir, cases, summary, told_of(self.seed, self.weights))


class RegistrationSaver:
    """Writes each registered pair into a folder of its own, complete or not at all.

    ``save_dir/ID`` holds ``warped``, ``field``, ``joint_saliency``, ``trust`` and ``jacobian`` (``.nii.gz``, on the
    grid of the fixed image; the field as ITK has it), ``inverse_field`` (on that of the moving image),
    ``metrics.json`` and, where there are landmarks, ``landmarks.csv``. A folder of the same pair that is there already
    is replaced.

    Args:
        save_dir: folder of the folders, made if it is absent.
        seed: of the run, told in ``metrics.json``.
        weights: file of the weights, told with its hash.
        settings: how pairs are registered, told in ``metrics.json``.
    """

    def __init__(
        self,
        save_dir: str | Path,
        seed: int | None = None,
        weights: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.save_dir = Path(save_dir)
        self.seed = seed
        self.weights = weights
        self.settings = dict(settings or {})

    def attach(self, engine: Workflow) -> None:
        """Listen to an evaluator whose postprocessing made all that is to be written."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save)

    def _save(self, engine: Workflow) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            pair = {**batch, **output}
            made_by = {**told_of(self.seed, self.weights), "settings": self.settings}
            write_registration(self.save_dir / pair["id"], pair_record(pair), pair_images(pair), made_by)
            logger.info("Registered %s.", pair["id"])


def _gather(cases: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The cases of every process."""
    parts: list[Any] = [None] * idist.get_world_size()
    torch.distributed.all_gather_object(parts, cases)
    return parts

"""A tiny training to kill: builds it, and as a script kills it at many moments and resumes it until it is done.

Usage: python tests/killed_training.py FOLDER. Writes one folder per way of dying, and FOLDER/undisturbed.
Every training runs in a fork of this process, so that MONAI is imported once.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Events
from monai.data import CacheDataset, ThreadDataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    EarlyStopHandler,
    LrScheduleHandler,
    MeanSquaredError,
    ValidationHandler,
    from_engine,
)
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandScaleIntensityd

from monai_jsm.handlers import AtomicCheckpointSaver, AtomicModelSaver, CheckpointResume, EpochSeed

MAX_EPOCHS = 6


class Training(NamedTuple):
    trainer: SupervisedTrainer
    evaluator: SupervisedEvaluator
    early_stop: EarlyStopHandler
    checkpointed: dict[str, Any]
    saver: AtomicCheckpointSaver


def build(
    folder: Path,
    resume: bool = False,
    max_epochs: int = MAX_EPOCHS,
    patience: int = 9,
    channels: int = 3,
    batch_size: int = 2,
    epoch_length: int | None = None,
    **saver_options: Any,
) -> Training:
    """The trainer of a network with batch norm and dropout, on random-augmented pairs; validation error to be small."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((7, 1, 9, 8), generator=generator)
    items = [{"image": image, "label": image.roll(1, -1)} for image in images]
    augment = Compose(
        [
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
            RandScaleIntensityd("image", factors=0.2, prob=0.7),
            RandGaussianNoised("image", prob=1.0, std=0.1),
        ]
    )
    loader = ThreadDataLoader(
        CacheDataset(items[:5], augment, progress=False), num_workers=0, batch_size=batch_size, shuffle=True
    )
    validation = ThreadDataLoader(CacheDataset(items[5:], Compose([]), progress=False), num_workers=0, batch_size=1)
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, channels, 3, padding=1),
        torch.nn.BatchNorm2d(channels),
        torch.nn.Dropout(0.2),
        torch.nn.Conv2d(channels, 1, 3, padding=1),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    scheduler: Any = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4], gamma=0.5)
    early_stop = EarlyStopHandler(patience=patience, score_function=lambda engine: -engine.state.metrics["error"])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=validation,
        network=network,
        key_val_metric={"error": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
        metric_cmp_fn=lambda new, best: new < best,
        val_handlers=[AtomicModelSaver(folder, network), early_stop],
    )
    checkpointed = {
        "network": network,
        "optimizer": optimizer,
        "lr_scheduler": scheduler,
        "evaluator": evaluator,
        "early_stop": early_stop,
    }
    saver = AtomicCheckpointSaver(folder, checkpointed, **saver_options)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        epoch_length=epoch_length,
        train_handlers=[
            CheckpointResume(folder, checkpointed, resume),
            EpochSeed(seed=4),
            saver,  # before what it must follow: its place in the list shall not matter
            LrScheduleHandler(scheduler, print_lr=False),
            ValidationHandler(interval=1, validator=evaluator),
        ],
    )
    early_stop.set_trainer(trainer)
    return Training(trainer, evaluator, early_stop, checkpointed, saver)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(name: str, turn: int = 1) -> None:
    """At this turn the file of this name gets half of its bytes, and the process dies."""
    save = torch.save
    turns = iter(range(1, 100))

    def half(content: Any, file: Any) -> None:
        if Path(file.name).name != f"{name}.tmp" or next(turns) < turn:
            return save(content, file)
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        die()

    torch.save = half  # type: ignore[assignment]


def die_at_the_rename(name: str, after: bool) -> None:
    replace = os.replace

    def rename(source: Any, target: Any) -> None:
        dying = Path(target).name == name
        if dying and not after:
            die()
        replace(source, target)
        if dying:
            die()

    os.replace = rename  # type: ignore[assignment]


def die_in_mid_epoch(trainer: SupervisedTrainer) -> None:
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=trainer.state.epoch_length * 3 + 2), die)


WAYS: dict[str, Callable[[SupervisedTrainer], object]] = {
    "in_mid_epoch": die_in_mid_epoch,
    "half_a_checkpoint": lambda _: die_while_writing("checkpoint_epoch=3.pt"),
    "half_the_first_checkpoint": lambda _: die_while_writing("checkpoint_epoch=1.pt"),
    "half_the_second_best_model": lambda _: die_while_writing("model.pt", turn=2),
    "before_the_rename": lambda _: die_at_the_rename("checkpoint_epoch=4.pt", after=False),
    "after_the_last_rename": lambda _: die_at_the_rename("checkpoint_epoch=6.pt", after=True),
}


def in_a_fork(work: Callable[[], object], seconds: float | None = None) -> int | None:
    """The exit status of the work done in a child process, or None if it was killed (here: after some seconds)."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def train(folder: Path, resume: bool, dying: Callable[[SupervisedTrainer], object] | None = None) -> None:
    """Trains to the end unless it dies on the way, and leaves the final state of everything in ``final.pt``."""
    training = build(folder, resume)
    if dying is not None:
        dying(training.trainer)
    training.trainer.run()
    torch.save(final_state(training), folder / "final.pt")


def final_state(training: Training) -> dict[str, Any]:
    network, optimizer, scheduler = (training.checkpointed[k] for k in ("network", "optimizer", "lr_scheduler"))
    best = training.evaluator.state
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "best": [best.best_metric, best.best_metric_epoch],
        "epoch": training.trainer.state.epoch,
    }


def main(root: Path) -> None:
    """Trains undisturbed, and once for each way of dying."""
    torch.set_num_threads(1)
    build(root / "unused")  # what torch and MONAI load at first use is loaded before the forks
    start = time.monotonic()
    assert in_a_fork(lambda: train(root / "undisturbed", resume=False)) == 0
    duration = time.monotonic() - start

    for name, dying in WAYS.items():
        assert in_a_fork(lambda: train(root / name, resume=False, dying=dying)) is None, name  # noqa: B023
        (root / f"{name}.txt").write_text("\n".join(sorted(os.listdir(root / name))))
        assert in_a_fork(lambda: train(root / name, resume=True)) == 0, name  # noqa: B023

    delays = random.Random(5)
    for _ in range(8):
        in_a_fork(lambda: train(root / "at_random", resume=True), seconds=delays.uniform(0.1, 0.6) * duration)
    assert in_a_fork(lambda: train(root / "at_random", resume=True)) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))

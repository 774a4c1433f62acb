from __future__ import annotations

import logging
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import killed_training
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from killed_training import Training, build, final_state
from monai.data import DataLoader, Dataset
from monai.handlers import CheckpointLoader, EarlyStopHandler

from monai_jsm import handlers
from monai_jsm.data.errors import InputError
from monai_jsm.handlers import AtomicCheckpointSaver, AtomicModelSaver, CheckpointResume, EpochSeed


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings killed and resumed, one folder for each way of dying, and ``undisturbed``."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    root = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    subprocess.run([sys.executable, killed_training.__file__, str(root)], env=environment, check=True, timeout=300)
    return root


def trained(folder: Path, **options: Any) -> Training:
    training = build(folder, **options)
    training.trainer.run()
    return training


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def assert_identical(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# A training that is killed


@pytest.mark.slow
@pytest.mark.parametrize("way", [*killed_training.WAYS, "at_random"])
def test_a_killed_and_resumed_training_ends_as_the_undisturbed_one_bit_for_bit(killed: Path, way: str) -> None:
    for name in ("final.pt", "model.pt"):
        assert_identical(load(killed / way / name), load(killed / "undisturbed" / name))
    assert (killed / way / "model.pt").read_bytes() == (killed / "undisturbed" / "model.pt").read_bytes()
    assert names(killed / way) == ["checkpoint_epoch=5.pt", "checkpoint_epoch=6.pt", "final.pt", "model.pt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "left"),
    [
        ("half_a_checkpoint", "checkpoint_epoch=1.pt checkpoint_epoch=2.pt checkpoint_epoch=3.pt.tmp model.pt"),
        ("half_the_first_checkpoint", "checkpoint_epoch=1.pt.tmp model.pt"),
        ("half_the_second_best_model", "checkpoint_epoch=1.pt model.pt model.pt.tmp"),
        ("before_the_rename", "checkpoint_epoch=2.pt checkpoint_epoch=3.pt checkpoint_epoch=4.pt.tmp model.pt"),
        ("after_the_last_rename", "checkpoint_epoch=4.pt checkpoint_epoch=5.pt checkpoint_epoch=6.pt model.pt"),
    ],
)
def test_a_kill_leaves_the_older_files_and_at_most_one_temporary_file(killed: Path, way: str, left: str) -> None:
    assert (killed / f"{way}.txt").read_text().split() == left.split()


def test_resuming_with_more_epochs_equals_training_them_at_once(tmp_path: Path) -> None:
    trained(tmp_path / "parts", max_epochs=3)
    resumed = trained(tmp_path / "parts", max_epochs=5, resume=True)
    at_once = trained(tmp_path / "whole", max_epochs=5)
    assert_identical(final_state(resumed), final_state(at_once))
    assert_identical(load(tmp_path / "parts" / "model.pt"), load(tmp_path / "whole" / "model.pt"))


@pytest.mark.parametrize("epoch_length", [2, 4])
def test_an_epoch_of_another_length_than_the_data_resumes_exactly(tmp_path: Path, epoch_length: int) -> None:
    trained(tmp_path / "parts", max_epochs=2, epoch_length=epoch_length)
    resumed = trained(tmp_path / "parts", max_epochs=4, epoch_length=epoch_length, resume=True)
    at_once = trained(tmp_path / "whole", max_epochs=4, epoch_length=epoch_length)
    assert_identical(final_state(resumed), final_state(at_once))


def test_a_finished_training_is_left_alone_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = trained(tmp_path, max_epochs=3)
    written = (tmp_path / "checkpoint_epoch=3.pt").stat().st_mtime_ns
    for max_epochs in (3, 2):
        again = trained(tmp_path, max_epochs=max_epochs, resume=True)
        assert f"epoch 3 of {max_epochs} is done already" in caplog.text
        assert_identical(final_state(again), final_state(first))
    assert (tmp_path / "checkpoint_epoch=3.pt").stat().st_mtime_ns == written


def hopeless(training: Training) -> Training:
    """No validation is better than the first one from now on."""
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: training.checkpointed["network"][-1].bias.data.fill_(9.0)
    )
    return training


def test_early_stopping_counts_on_across_a_resume_and_stays_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trained(tmp_path, max_epochs=2, patience=3)
    (tmp_path / "checkpoint_epoch=2.pt").unlink()
    hopeless(build(tmp_path, max_epochs=3, patience=3, resume=True)).trainer.run()

    stopped = hopeless(build(tmp_path, max_epochs=20, patience=3, resume=True))
    stopped.trainer.run()
    assert stopped.trainer.state.epoch == 4  # epochs 2, 3 and 4 brought nothing
    again = trained(tmp_path, max_epochs=20, patience=3, resume=True)
    assert again.trainer.state.epoch == 4
    assert "stopped early at epoch 4" in caplog.text
    prolonged = hopeless(build(tmp_path, max_epochs=21, patience=3, resume=True))
    prolonged.trainer.run()
    assert prolonged.trainer.state.epoch == 5


def test_a_resumed_training_keeps_a_better_model_of_before(tmp_path: Path) -> None:
    best = trained(tmp_path, max_epochs=2).evaluator.state
    kept = (tmp_path / "model.pt").read_bytes()
    resumed = hopeless(build(tmp_path, max_epochs=4, resume=True))
    resumed.trainer.run()
    assert resumed.evaluator.state.metrics["error"] > best.best_metric
    assert (resumed.evaluator.state.best_metric, resumed.evaluator.state.best_metric_epoch) == (best.best_metric, 2)
    assert (tmp_path / "model.pt").read_bytes() == kept


def test_no_checkpoint_means_starting_from_the_beginning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    resumed = trained(tmp_path / "empty", max_epochs=1, resume=True)
    assert f"No checkpoint in {tmp_path / 'empty'}: training starts from the beginning." in caplog.text
    assert_identical(final_state(resumed), final_state(trained(tmp_path / "new", max_epochs=1)))


def test_a_second_run_of_the_same_trainer_is_not_taken_back_to_the_checkpoint(tmp_path: Path) -> None:
    training = trained(tmp_path, max_epochs=2)
    training.trainer.state.max_epochs = 3
    training.trainer.run()  # neither refused nor restored
    assert training.trainer.state.epoch == 3
    assert names(tmp_path) == ["checkpoint_epoch=2.pt", "checkpoint_epoch=3.pt", "model.pt"]


# Damaged and unfit checkpoints


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a checkpoint" * 99)


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    weight = content.index(load(path)["network"]["0.weight"].numpy().tobytes())
    content[weight] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, overwrite, flip_a_bit_of_a_weight])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    whole = trained(tmp_path, max_epochs=4)
    damage(tmp_path / "checkpoint_epoch=4.pt")
    resumed = trained(tmp_path, max_epochs=4, resume=True)
    assert "checkpoint_epoch=4.pt cannot be read, trying the checkpoint before it" in caplog.text
    assert_identical(final_state(resumed), final_state(whole))
    assert names(tmp_path) == ["checkpoint_epoch=3.pt", "checkpoint_epoch=4.pt", "model.pt"]
    load(tmp_path / "checkpoint_epoch=4.pt")


def test_the_newest_readable_checkpoint_survives_beside_a_damaged_later_one(tmp_path: Path) -> None:
    trained(tmp_path, max_epochs=2)
    overwrite(tmp_path / "checkpoint_epoch=8.pt")
    trained(tmp_path, max_epochs=4, resume=True)
    assert names(tmp_path)[:3] == ["checkpoint_epoch=3.pt", "checkpoint_epoch=4.pt", "checkpoint_epoch=8.pt"]


def test_a_folder_of_damaged_checkpoints_only_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, max_epochs=2)
    for path in tmp_path.glob("checkpoint_*"):
        cut(path)
    with pytest.raises(InputError, match=r"none of the checkpoints in .* can be read: remove them"):
        trained(tmp_path, resume=True)


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    trained(tmp_path, max_epochs=1)
    torch.save(Malicious(), tmp_path / "checkpoint_epoch=2.pt")
    assert trained(tmp_path, max_epochs=2, resume=True).trainer.state.epoch == 2
    assert not (tmp_path / "ran").exists()


def test_a_new_training_in_a_folder_with_checkpoints_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    trained(tmp_path, max_epochs=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"already holds a training up to epoch 2: continue it with --resume true"):
        trained(tmp_path, max_epochs=2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 5}, r"checkpoint_epoch=1.pt does not fit the network \(.*size mismatch for 0.weight"),
        ({"batch_size": 1}, "was written with 3 batches per epoch, the data now give 5: resume with"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    trained(tmp_path, max_epochs=1)
    with pytest.raises(InputError, match=message):
        trained(tmp_path, max_epochs=2, resume=True, **change)


def test_a_checkpoint_without_an_object_to_restore_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, max_epochs=1)
    training = build(tmp_path, max_epochs=2, resume=True)
    resume = CheckpointResume(tmp_path, {"discriminator": training.checkpointed["network"]}, resume=True)
    resume.attach(training.trainer)
    with pytest.raises(InputError, match=r"checkpoint_epoch=1\.pt holds no discriminator: resume with"):
        resume(training.trainer)


# The files


def test_the_last_two_checkpoints_stay_and_the_last_epoch_is_saved_out_of_turn(tmp_path: Path) -> None:
    trained(tmp_path, max_epochs=9, interval=2)
    assert names(tmp_path)[:-1] == ["checkpoint_epoch=8.pt", "checkpoint_epoch=9.pt"]


def test_files_can_be_read_by_everybody_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        trained(tmp_path, max_epochs=1)
    finally:
        os.umask(before)
    for name in ("checkpoint_epoch=1.pt", "model.pt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644


def test_temporary_files_of_a_killed_run_are_removed_when_the_next_one_starts(tmp_path: Path) -> None:
    for name in ("checkpoint_epoch=7.pt.tmp", "model.pt.tmp", "notes.tmp"):
        (tmp_path / name).touch()
    trained(tmp_path, max_epochs=1)
    assert names(tmp_path) == ["checkpoint_epoch=1.pt", "model.pt", "notes.tmp"]


def test_a_file_reaches_the_disk_before_it_takes_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trained(tmp_path, max_epochs=1)
    calls = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        fsync(descriptor)

    def watched_replace(source: str, target: str) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    training.saver(training.trainer)
    assert calls == ["fsync file", "replace", "fsync folder"]


@pytest.mark.parametrize(("module", "function"), [(torch, "save"), (os, "fsync"), (os, "replace")])
def test_a_failing_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    training = trained(tmp_path, max_epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, function, fail)
        for save in (lambda: training.saver(training.trainer), lambda: save_model(training, tmp_path)):
            with pytest.raises(OSError, match="no space left"):
                save()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def save_model(training: Training, folder: Path, network: torch.nn.Module | None = None) -> None:
    AtomicModelSaver(folder, network or training.checkpointed["network"])(training.evaluator)


def test_a_state_that_cannot_be_loaded_safely_never_takes_the_name_of_a_checkpoint(tmp_path: Path) -> None:
    training = build(tmp_path, max_epochs=1)
    training.checkpointed["optimizer"].param_groups[0]["lr"] = np.float64(0.01)
    with pytest.raises(TypeError, match=r"checkpoint_epoch=1\.pt would not load with weights_only=True: keep"):
        training.trainer.run()
    assert names(tmp_path) == ["model.pt"]


def test_a_checkpoint_holds_what_validation_schedule_and_early_stopping_left_behind(tmp_path: Path) -> None:
    training = trained(tmp_path, max_epochs=3)
    checkpoint = load(tmp_path / "checkpoint_epoch=3.pt")
    assert checkpoint["lr_scheduler"]["last_epoch"] == 3
    assert checkpoint["evaluator"] == {
        "best_metric": training.evaluator.state.best_metric,
        "best_metric_epoch": training.evaluator.state.best_metric_epoch,
    }
    assert checkpoint["early_stop"]["best_score"] == -training.evaluator.state.best_metric
    assert checkpoint["trainer"]["iteration"] == 3 * training.trainer.state.epoch_length
    assert checkpoint["stopped"] is False


def test_monai_loads_a_network_from_our_checkpoint(tmp_path: Path) -> None:
    training = trained(tmp_path, max_epochs=2)
    other = build(tmp_path, channels=3, resume=True)
    network = other.checkpointed["network"]
    CheckpointLoader(str(tmp_path / "checkpoint_epoch=2.pt"), {"network": network})(other.trainer)
    assert_identical(network.state_dict(), training.checkpointed["network"].state_dict())


def test_the_best_model_is_a_bare_state_dict_without_the_prefix_of_parallel_training(tmp_path: Path) -> None:
    training = trained(tmp_path, max_epochs=1)
    network = training.checkpointed["network"]
    save_model(training, tmp_path, torch.nn.DataParallel(network))
    assert_identical(load(tmp_path / "model.pt"), dict(network.state_dict()))


def test_a_parallel_network_is_saved_and_restored_without_its_prefix(tmp_path: Path) -> None:
    network, other = (torch.nn.DataParallel(torch.nn.Linear(3, 2)) for _ in range(2))
    state = handlers._state(network)
    assert sorted(state) == ["bias", "weight"]
    handlers._restore_state(other, state)
    assert_identical(other.state_dict(), network.state_dict())


def test_the_gradient_scaler_is_restored(tmp_path: Path) -> None:
    written: Any = trained(tmp_path, max_epochs=1)
    written.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    written.trainer.scaler.scale(torch.ones(()))  # the scale comes into being when it is first used
    written.saver(written.trainer)

    resumed: Any = build(tmp_path, max_epochs=2, resume=True)
    resumed.trainer.scaler = torch.amp.GradScaler("cpu")
    resume = CheckpointResume(tmp_path, resumed.checkpointed, resume=True)
    resume.attach(resumed.trainer)
    resume(resumed.trainer)
    assert resumed.trainer.scaler.get_scale() == 512.0


def test_other_ranks_restore_but_never_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, max_epochs=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "checkpoint_epoch=3.pt.tmp").touch()
    monkeypatch.setattr(handlers.idist, "get_rank", lambda: 1)
    assert trained(tmp_path, max_epochs=4, resume=True).trainer.state.epoch == 4
    (tmp_path / "checkpoint_epoch=3.pt.tmp").unlink()  # not rank 1's to remove
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_validation_without_a_number_neither_saves_a_model_nor_blocks_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = trained(tmp_path / "whole", max_epochs=1)
    state = training.evaluator.state
    state.metrics["error"] = state.best_metric = float("nan")  # as MONAI leaves it after such a first validation
    save_model(training, tmp_path)
    assert "error is not a number: no model is saved" in caplog.text
    assert names(tmp_path) == ["whole"]
    training.evaluator.run(2)
    assert state.best_metric == state.metrics["error"] > 0
    assert state.best_metric_epoch == 2


# What the handlers refuse


@pytest.mark.parametrize("handler", [AtomicCheckpointSaver, CheckpointResume])
def test_an_entry_without_a_state_is_refused(tmp_path: Path, handler: Any) -> None:
    with pytest.raises(ValueError, match="lr_scheduler must have a state_dict to be saved, got NoneType"):
        handler(tmp_path, {"network": torch.nn.Linear(3, 2), "lr_scheduler": None})


@pytest.mark.parametrize("handler", [AtomicCheckpointSaver, CheckpointResume])
def test_a_name_that_the_handler_uses_itself_is_refused(tmp_path: Path, handler: Any) -> None:
    with pytest.raises(ValueError, match="trainer: saved without being named"):
        handler(tmp_path, {"trainer": torch.nn.Linear(3, 2)})


@pytest.mark.parametrize("options", [{"interval": 0}, {"n_saved": 0}])
def test_an_interval_or_number_below_one_is_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(ValueError, match="interval and n_saved must be at least 1"):
        AtomicCheckpointSaver(tmp_path, {}, **options)


def test_early_stopping_without_a_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="call its set_trainer"):
        handlers._state(EarlyStopHandler(patience=2, score_function=lambda engine: 0.0))


def test_an_evaluator_without_a_key_metric_is_refused(tmp_path: Path) -> None:
    training = build(tmp_path)
    training.evaluator.state.key_metric_name = None
    with pytest.raises(ValueError, match="needs a key_metric"):
        AtomicModelSaver(tmp_path, training.checkpointed["network"]).attach(training.evaluator)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be 0 or greater, got -1"):
        EpochSeed(-1)


def test_persistent_workers_are_refused(tmp_path: Path) -> None:
    trainer = build(tmp_path).trainer
    trainer.data_loader = DataLoader(Dataset([1, 2, 3]), num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent workers keep their random state"):
        EpochSeed(3).attach(trainer)


# The seed of an epoch


def draws(folder: Path, seed: int, epoch: int, rank: int, generator: torch.Generator | None = None) -> list[Any]:
    """What an epoch draws: torch, NumPy, Python, the order of the data and their augmentation."""
    trainer = build(folder).trainer
    loader: Any = trainer.data_loader
    if generator is not None:
        loader = DataLoader(loader.dataset, shuffle=True, generator=generator)
    trainer.state.dataloader = loader
    trainer.state.epoch = epoch
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(handlers.idist, "get_rank", lambda: rank)
        EpochSeed(seed)(trainer)
    images = [batch["image"].flatten() for batch in loader]
    return [float(torch.rand(())), float(np.random.rand()), random.random(), torch.cat(images).tolist()]  # noqa: NPY002


@settings(deadline=None, derandomize=True, max_examples=20)
@given(seed=st.integers(0, 2**64), epoch=st.integers(1, 10**6), rank=st.integers(0, 999), noise=st.integers(0, 999))
def test_an_epoch_draws_the_same_whatever_was_drawn_before(
    tmp_path_factory: pytest.TempPathFactory, seed: int, epoch: int, rank: int, noise: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    first = draws(folder, seed, epoch, rank)
    torch.rand(noise), np.random.rand(noise), random.seed(noise)  # noqa: NPY002
    assert draws(folder, seed, epoch, rank) == first


def test_seed_epoch_and_rank_each_give_draws_of_their_own(tmp_path: Path) -> None:
    several = [draws(tmp_path, *key) for key in [(3, 5, 0), (4, 5, 0), (3, 6, 0), (3, 5, 1), (4, 4, 1)]]
    for kind in zip(*several, strict=True):
        assert len({str(drawn) for drawn in kind}) == len(several)


def test_a_generator_of_the_data_loader_is_seeded_too(tmp_path: Path) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    first, second = (draws(tmp_path, 3, 5, 0, generator) for generator in generators)
    assert first == second


def test_a_training_depends_on_the_seed_of_its_epochs(tmp_path: Path) -> None:
    for name, seed in (("one", 4), ("other", 5)):
        training = build(tmp_path / name, max_epochs=1)
        EpochSeed(seed).attach(training.trainer)  # after the one of the training, which uses 4
        training.trainer.run()
    first, second = (load(tmp_path / name / "checkpoint_epoch=1.pt")["network"] for name in ("one", "other"))
    assert any(not torch.equal(first[key], second[key]) for key in first)

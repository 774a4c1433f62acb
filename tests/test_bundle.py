"""The bundle through MONAI's own doors: most of it in this process, the literal commands in processes of their own."""

import csv
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai import bundle as monai_bundle
from monai.bundle import ConfigParser, create_workflow

from monai_jsm.data import load_cases, write_phantom
from monai_jsm.geometry import itk_displacement
from monai_jsm.networks import GlobalToLocalNet, load_weights

PROJECT = Path(__file__).resolve().parents[1]
BUNDLE = PROJECT / "bundle"
CONFIGS = BUNDLE / "configs"
TRAIN, EVALUATE, INFERENCE = (str(CONFIGS / f"{name}.json") for name in ("train", "evaluate", "inference"))
SMALL_NET = (
    "{'_target_': 'monai_jsm.networks.GlobalToLocalNet', 'spatial_dims': 2, "
    "'global_channels': [8, 16, 16], 'local_channels': [8, 16]}"
)
QUICK = [
    *("--max_epochs", "40", "--val_interval", "20", "--batch_size", "1", "--learning_rate", "3e-3"),
    *(
        "--network_def",
        SMALL_NET,
        "--train::preprocessing::transforms",
        "$@train::load",
    ),  # four cases need no augmentation
]


def command(verb: str, *arguments: str, launcher: tuple[str, ...] = ("-m",)) -> list[str]:
    return [sys.executable, "-W", "ignore", *launcher, "monai.bundle", *verb.split(), *arguments]


def run(arguments: list[str], cwd: Path, status: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    """Few small phantom pairs."""
    folder = tmp_path_factory.mktemp("phantom") / "small"
    return Path(write_phantom(folder, training=4, validation=2, testing=2, size=(48, 52)))


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory) -> Path:
    """Trained by the literal command from the root of the project."""
    output = tmp_path_factory.mktemp("trained") / "run"
    arguments = [
        "--config_file",
        "bundle/configs/train.json",
        "--dataset_dir",
        str(phantom),
        "--output_dir",
        str(output),
    ]
    run(command("run training", *arguments, *QUICK), cwd=PROJECT)
    return output


def mean_tre(folder: Path, when: str) -> float:
    return json.loads((folder / "metrics.json").read_text())["measures"][f"tre_mean_{when}"]["mean"]


def test_the_literal_command_trains_and_brings_landmarks_it_never_saw_closer(trained, phantom, tmp_path):
    released = hashlib.sha256((BUNDLE / "models" / "model.pt").read_bytes()).hexdigest()
    arguments = [
        *("--config_file", f"['{TRAIN}','{EVALUATE}']", "--dataset_dir", str(phantom), "--network_def", SMALL_NET),
        *("--ckpt_path", str(trained / "model.pt"), "--output_dir", str(tmp_path)),
    ]
    run(command("run evaluating", *arguments), cwd=PROJECT)
    assert mean_tre(tmp_path, "after") < 0.7 * mean_tre(tmp_path, "before")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "cases.csv", "landmarks.csv"}
    with (tmp_path / "landmarks.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["case"] for row in rows} == {"testing_000", "testing_001"}
    assert json.loads((trained / "validation" / "metrics.json").read_text())["cases"] == 2
    assert len(list(trained.glob("checkpoint_epoch=*.pt"))) == 2
    assert list(trained.glob("events.out.tfevents.*"))
    assert hashlib.sha256((BUNDLE / "models" / "model.pt").read_bytes()).hexdigest() == released


def test_a_second_training_into_the_same_folder_is_refused_in_one_sentence(trained, phantom):
    arguments = ["--config_file", TRAIN, "--dataset_dir", str(phantom), "--output_dir", str(trained)]
    before = sorted(trained.rglob("*"))
    said = run(command("run training", *arguments, *QUICK), cwd=PROJECT, status=2)
    assert "--resume true" in said
    assert "Traceback" not in said
    assert sorted(trained.rglob("*")) == before


def test_it_runs_inside_the_bundle_and_from_anywhere(trained, phantom, tmp_path):
    """In ``bundle/``, and by ``--bundle_root`` from elsewhere, with the released weights: the same field."""
    here, there = tmp_path / "here", tmp_path / "there"
    shared = ["--dataset_dir", str(phantom), "--output_dir"]
    alone = ["--affine", "none", "--refine", "false"]
    run(command("run", "--config_file", "configs/inference.json", *alone, *shared, str(here)), cwd=BUNDLE)
    arguments = ["--config_file", INFERENCE, "--bundle_root", str(BUNDLE), *alone, *shared, str(there)]
    run(command("run", *arguments), cwd=tmp_path)
    settings = [*QUICK, "--max_epochs", "1", "--val_interval", "1", *shared, str(tmp_path / "trained")]
    run(command("run training", "--config_file", "configs/train.json", *settings), cwd=BUNDLE)
    assert (tmp_path / "trained" / "model.pt").is_file()
    files = sorted(path.relative_to(here) for path in here.rglob("*.*"))
    assert files == sorted(path.relative_to(there) for path in there.rglob("*.*"))
    for file in files:
        if file.suffix == ".gz":
            np.testing.assert_array_equal(nib.load(here / file).get_fdata(), nib.load(there / file).get_fdata())


def test_inference_never_writes_over_the_images_it_reads(copy_of_phantom):
    before = {path: path.read_bytes() for path in copy_of_phantom.rglob("*.*")}
    settings = {"dataset_dir": str(copy_of_phantom), "output_dir": str(copy_of_phantom)}
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        in_process(INFERENCE, "infer", **settings).run()
    assert {path: path.read_bytes() for path in copy_of_phantom.rglob("*.*")} == before


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_evaluation_and_inference_run_on_cuda(phantom, tmp_path):
    shared = {"dataset_dir": str(phantom), "amp": True}
    in_process(TRAIN, "train", max_epochs=1, val_interval=1, output_dir=str(tmp_path / "train"), **shared).run()
    in_process([TRAIN, EVALUATE], "train", output_dir=str(tmp_path / "evaluate"), **shared).run()
    in_process(INFERENCE, "infer", output_dir=str(tmp_path / "pairs"), **shared).run()
    assert mean_tre(tmp_path / "evaluate", "after") < mean_tre(tmp_path / "evaluate", "before")
    assert (tmp_path / "pairs" / "testing_001" / "field.nii.gz").is_file()


BAD_INPUTS = {
    "no datalist": lambda folder: (folder / "datalist.json").unlink(),
    "a datalist that is not JSON": lambda folder: (folder / "datalist.json").write_text("{"),
    "a voxel that is not a number": lambda folder: spoil(
        folder, "training_001", lambda v: np.where(v == v.max(), np.nan, v)
    ),
    "a constant image": lambda folder: spoil(folder, "validation_000", lambda v: 0 * v),
    "an image of another dimension": lambda folder: spoil(folder, "training_000", lambda v: np.stack([v] * 20, -1)),
    "an unreadable image": lambda folder: (folder / "training_002" / "fixed_image.nii.gz").write_bytes(
        b"\x1f\x8bnothing"
    ),
    "a landmark outside its image": lambda folder: outside(folder / "validation_000" / "moving_landmarks.csv"),
    "landmark counts that differ": lambda folder: shorten(folder / "validation_001" / "fixed_landmarks.csv"),
}


def spoil(folder: Path, case: str, change: Any) -> None:
    path = folder / case / "fixed_image.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(image.get_fdata()).astype(np.float32), image.affine), path)


def shorten(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def outside(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[1] = ",".join([lines[1].split(",")[0], "-3.0", "5.0"])
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def copy_of_phantom(phantom, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(phantom, tmp_path / "data"))


@pytest.mark.parametrize("fault", ["a voxel that is not a number", "landmark counts that differ"])
def test_bad_input_ends_the_command_with_one_sentence_and_nothing_written(copy_of_phantom, tmp_path, fault):
    BAD_INPUTS[fault](copy_of_phantom)
    output = tmp_path / "output"
    arguments = ["--config_file", TRAIN, "--dataset_dir", str(copy_of_phantom), "--output_dir", str(output)]
    said = run(command("run training", *arguments, *QUICK), cwd=PROJECT, status=2)
    assert "Traceback" not in said
    said_last = said.strip().splitlines()[-1]
    assert said_last.startswith(str(copy_of_phantom))
    assert ";" in said_last  # the remedy
    assert not output.exists()


def refusal(config: str | list[str], kind: str, folder: Path, output: Path) -> str:
    """The sentence with which a workflow refuses its data."""
    from monai_jsm.data import InputError

    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        in_process(config, kind, dataset_dir=str(folder), output_dir=str(output)).run()
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return str(error)


@pytest.mark.parametrize("fault", BAD_INPUTS)
def test_training_refuses_bad_input_in_one_sentence_before_it_writes(copy_of_phantom, tmp_path, fault, one_sentence):
    BAD_INPUTS[fault](copy_of_phantom)
    sentence = refusal(TRAIN, "train", copy_of_phantom, tmp_path / "output")
    one_sentence(sentence, copy_of_phantom, "")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("config", "kind"), [([TRAIN, EVALUATE], "train"), (INFERENCE, "infer")])
def test_evaluation_and_inference_refuse_bad_input_too(copy_of_phantom, tmp_path, config, kind, one_sentence):
    spoil(copy_of_phantom, "testing_000", lambda v: np.where(v == v.max(), np.nan, v))
    sentence = refusal(config, kind, copy_of_phantom, tmp_path / "output")
    one_sentence(sentence, copy_of_phantom / "testing_000" / "fixed_image.nii.gz", "NaN")
    assert not (tmp_path / "output").exists()


def test_a_killed_training_resumes_to_the_same_weights_bit_for_bit(phantom, tmp_path):
    def arguments(name: str, *more: str) -> list[str]:
        settings = ["--config_file", TRAIN, "--dataset_dir", str(phantom), "--output_dir", str(tmp_path / name)]
        return command("run training", *settings, *QUICK, "--max_epochs", "8", "--val_interval", "2", *more)

    run(arguments("undisturbed"), cwd=PROJECT)
    killed = subprocess.Popen(
        arguments("killed"),
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoint_epoch=3.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "checkpoint_epoch=8.pt").exists(), "it was not killed in time"
    run(arguments("killed", "--resume", "true"), cwd=PROJECT)
    for name in ("checkpoint_epoch=8.pt", "model.pt"):
        states = [torch.load(tmp_path / run_name / name, weights_only=True) for run_name in ("undisturbed", "killed")]
        weights = [state.get("network", state) for state in states]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_two_processes_train_together_and_agree_on_the_metric(phantom, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2", "-m")
    configs = f"['{TRAIN}','{CONFIGS / 'multi_gpu_train.json'}']"
    settings = ["--config_file", configs, "--dataset_dir", str(phantom), "--output_dir", str(tmp_path / "run")]
    quick = [*QUICK, "--max_epochs", "2", "--val_interval", "1", "--batch_size", "1"]
    said = run(command("run training", *settings, *quick, launcher=launcher), cwd=PROJECT)
    found = [line.split("case_error: ")[1] for line in said.splitlines() if "Got new best metric of case_error" in line]
    assert found.count(found[0]) >= 2  # the first validation is the best so far in both processes
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 2  # of training and validation, one process
    weights = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in weights)
    assert json.loads((tmp_path / "run" / "validation" / "metrics.json").read_text())["cases"] == 2


def in_process(config: str | list[str], kind: str, **settings: Any) -> Any:
    workflow = create_workflow(
        config_file=config, workflow_type=kind, logging_file=False, bundle_root=str(BUNDLE), **settings
    )
    return workflow


@pytest.mark.parametrize(("config", "kind"), [(TRAIN, "train"), ([TRAIN, EVALUATE], "train"), (INFERENCE, "infer")])
def test_no_property_that_monai_knows_is_missing(phantom, tmp_path, config, kind):
    workflow = in_process(config, kind, dataset_dir=str(phantom), output_dir=str(tmp_path))
    assert workflow.check_properties() == []


def test_a_program_can_change_the_workflow_before_it_runs(phantom, tmp_path):
    workflow = in_process(TRAIN, "train", dataset_dir=str(phantom), output_dir=str(tmp_path / "run"))
    workflow.max_epochs = 1
    workflow.val_interval = 1
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "run" / "model.pt").is_file()
    workflow.finalize()


def test_the_model_kept_is_the_one_of_the_lowest_validation_tre(phantom, tmp_path):
    from ignite.engine import Events
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    settings = {"dataset_dir": str(phantom), "output_dir": str(output), "max_epochs": 8, "val_interval": 1}
    workflow = in_process(TRAIN, "train", batch_size=1, learning_rate=0.02, **settings)  # so fast that it errs at times
    network = workflow.parser.get_parsed_content("network_def")
    evaluator = workflow.parser.get_parsed_content("validate::evaluator")
    seen: list[tuple[float, dict[str, torch.Tensor]]] = []

    def remember(engine: Any) -> None:
        assert engine.state.metrics["case_error"] == pytest.approx(engine.state.metrics["tre_mean_after"])
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        seen.append((engine.state.metrics["case_error"], weights))

    evaluator.add_event_handler(Events.EPOCH_COMPLETED, remember)
    workflow.run()
    errors = [error for error, _ in seen]
    assert len(errors) == 8
    assert evaluator.state.best_metric == min(errors) < max(errors)
    kept, best = torch.load(output / "model.pt", weights_only=True), seen[errors.index(min(errors))][1]
    assert all(torch.equal(kept[name], best[name]) for name in best)
    tags = set()
    for file in output.glob("events.out.tfevents.*"):
        tags |= set(EventAccumulator(str(file)).Reload().Tags()["scalars"])
    assert {"train_loss", "tre_mean_after", "share_improved", "folding"} <= tags
    workflow.finalize()


def test_a_greater_number_of_epochs_stretches_the_learning_rate_schedule(phantom, tmp_path):
    rates = []
    for epochs, resume in ((2, False), (4, True)):
        settings = {"dataset_dir": str(phantom), "output_dir": str(tmp_path / "run"), "max_epochs": epochs}
        workflow = in_process(TRAIN, "train", resume=resume, **settings)
        workflow.run()
        rates.append(workflow.parser.get_parsed_content("optimizer").param_groups[0]["lr"])
    assert rates == pytest.approx([1e-5, 1e-5])


def test_mlflow_takes_the_measures(phantom, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    arguments = ["--config_file", TRAIN, "--dataset_dir", str(phantom), "--output_dir", str(tmp_path / "run")]
    run(
        command("run training", *arguments, *QUICK, "--max_epochs", "1", "--val_interval", "1", "--tracking", "mlflow"),
        cwd=PROJECT,
    )
    import sqlite3

    with sqlite3.connect(tmp_path / "run" / "mlruns.db") as database:
        keys = {row[0] for row in database.execute("select distinct key from metrics")}
    assert {"train_loss", "tre_mean_after"} <= keys


def test_volumes_train_by_the_same_configuration(datalist_factory, tmp_path):
    network = {
        "_target_": "monai_jsm.networks.GlobalToLocalNet",
        "spatial_dims": 3,
        "global_channels": [4, 8],
        "local_channels": [4, 8],
    }
    settings = {"dataset_dir": str(datalist_factory(3)), "output_dir": str(tmp_path / "run"), "max_epochs": 1}
    workflow = in_process(TRAIN, "train", spatial_dims=3, val_interval=1, network_def=network, **settings)
    workflow.run()
    measures = json.loads((tmp_path / "run" / "validation" / "metrics.json").read_text())["measures"]
    assert measures["tre_mean_after"]["mean"] != measures["tre_mean_before"]["mean"]
    workflow.finalize()


def test_the_published_network_trains_with_the_published_loss(phantom, tmp_path):
    network = {"_target_": "monai_jsm.networks.GlobalToLocalNet", "spatial_dims": 2, "arch": "published"}
    loss = {"_target_": "monai_jsm.losses.PublishedEnergyLoss"}
    settings = {"dataset_dir": str(phantom), "output_dir": str(tmp_path / "run"), "max_epochs": 1, "val_interval": 1}
    workflow = in_process(TRAIN, "train", network_def=network, loss=loss, learning_rate=5e-5, **settings)
    workflow.run()
    assert (tmp_path / "run" / "model.pt").is_file()
    workflow.finalize()


def test_evaluator_inference_and_a_plain_call_give_the_same_field(phantom, tmp_path):
    """Inference with neither affine pre-alignment nor refinement is the network alone."""
    shared = {"dataset_dir": str(phantom), "ckpt_path": str(BUNDLE / "models" / "model.pt")}
    settings = {"evaluating": shared, "inference": {**shared, "affine": "none", "refine": False}}
    fields: dict[str, list[torch.Tensor]] = {"evaluating": [], "inference": []}
    from ignite.engine import Events

    for name, config, path in (
        ("evaluating", [TRAIN, EVALUATE], "validate::evaluator"),
        ("inference", INFERENCE, "evaluator"),
    ):
        workflow = in_process(
            config, "infer" if name == "inference" else "train", output_dir=str(tmp_path / name), **settings[name]
        )
        workflow.initialize()
        evaluator = workflow.parser.get_parsed_content(path)
        found = fields[name]
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine, found=found: found.append(engine.state.output[0]["pred"].clone())
        )
        evaluator.run()
        pairs = workflow.parser.get_parsed_content("validate::dataset" if name == "evaluating" else "dataset")
    network = load_weights(GlobalToLocalNet(2), BUNDLE / "models" / "model.pt").eval()
    for index, pair in enumerate(pairs):
        image = torch.cat([pair["moving_image"], pair["fixed_image"]]).as_tensor()[None]
        with torch.no_grad():
            plain = network(image)[0]
        for name in fields:
            torch.testing.assert_close(torch.as_tensor(fields[name][index]).float(), plain, rtol=0, atol=1e-5)
        written = nib.load(tmp_path / "inference" / pair["id"] / "field.nii.gz")
        vectors = torch.as_tensor(written.get_fdata()[:, :, 0, 0]).movedim(-1, 0)
        expected = itk_displacement(plain[None], pair["fixed_image"].affine)[0]
        torch.testing.assert_close(vectors.float(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_mixed_precision_moves_no_field_by_more_than_a_twentieth_of_a_voxel(phantom, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    network = load_weights(GlobalToLocalNet(2), BUNDLE / "models" / "model.pt").eval().to(device)
    workflow = in_process(INFERENCE, "infer", dataset_dir=str(phantom))
    for pair in workflow.parser.get_parsed_content("dataset"):
        image = torch.cat([pair["moving_image"], pair["fixed_image"]]).as_tensor()[None].to(device)
        with torch.no_grad():
            full = network(image)
            with torch.autocast(device, dtype=torch.float16):
                mixed = network(image)
        assert full.abs().max() > 1
        assert (mixed - full).abs().max() < 0.05


def test_amp_stays_off_without_cuda_and_says_so(caplog):
    from monai_jsm.engines import mixed_precision

    assert not mixed_precision(True, torch.device("cpu"))
    assert "amp is for CUDA devices" in caplog.text
    assert mixed_precision(True, torch.device("cuda"))
    assert not mixed_precision(False, torch.device("cuda"))


def test_metadata_holds_what_monai_asks_for(tmp_path):
    """``verify_metadata`` takes a schema that lies there already, so it needs no network."""
    schema = tmp_path / "schema.json"
    schema.write_text((PROJECT / "tests" / "metadata_schema.json").read_text())
    monai_bundle.verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    metadata.pop("required_packages_version")
    broken = tmp_path / "metadata.json"
    broken.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="required_packages_version"):
        monai_bundle.verify_metadata(meta_file=str(broken), filepath=str(schema))


def test_the_model_card_names_the_released_weights():
    weights = BUNDLE / "models" / "model.pt"
    card = (BUNDLE / "docs" / "README.md").read_text()
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    assert weights.stat().st_size < 5e6
    assert f"{sum(p.numel() for p in GlobalToLocalNet(2).parameters()):,} parameters" in card


def test_metadata_names_the_versions_that_are_pinned():
    import monai_jsm

    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    pins = dict(
        line.split(";")[0].split("==")
        for line in (PROJECT / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    assert metadata["version"] == monai_jsm.__version__
    assert metadata["required_packages_version"].pop("monai_jsm") == monai_jsm.__version__
    for name, package in (("monai", "monai"), ("pytorch", "torch"), ("numpy", "numpy")):
        assert metadata[f"{name}_version"] == pins[package]
    for package, version in metadata["required_packages_version"].items():
        assert pins[package] == version


def test_the_network_takes_and_gives_what_the_metadata_say():
    monai_bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=INFERENCE,
        bundle_root=str(BUNDLE),
        any=64,
    )


def test_exports_to_torchscript_and_onnx_give_the_same_field(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    shared = {
        "net_id": "network_def",
        "ckpt_file": str(BUNDLE / "models" / "model.pt"),
        "meta_file": str(CONFIGS / "metadata.json"),
        "config_file": INFERENCE,
        "bundle_root": str(BUNDLE),
    }
    monai_bundle.ckpt_export(filepath=str(tmp_path / "model.ts"), **shared)
    monai_bundle.onnx_export(filepath=str(tmp_path / "model.onnx"), input_shape=[1, 2, 64, 48], **shared)
    image = torch.rand(1, 2, 64, 48, generator=torch.Generator().manual_seed(0))
    network = load_weights(GlobalToLocalNet(2), BUNDLE / "models" / "model.pt").eval()
    with torch.no_grad():
        expected = network(image)
        scripted = torch.jit.load(tmp_path / "model.ts")(image)
    torch.testing.assert_close(scripted, expected, rtol=0, atol=1e-4)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-3)


def entries(content: Any, name: str) -> Iterator[Any]:
    """Every value under a key, anywhere in a configuration."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == name:
                yield value
            yield from entries(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from entries(value, name)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_every_target_is_ours_torchs_ignites_or_monais_and_exists(path):
    for target in entries(json.loads(path.read_text()), "_target_"):
        if "." not in target:
            assert (
                ConfigParser({"x": {"_target_": target}}).locator.get_component_module_name(target).startswith("monai.")
            )
            continue
        module, _, name = target.rpartition(".")
        assert module.split(".")[0] in ("monai", "monai_jsm", "torch", "ignite")
        assert hasattr(importlib.import_module(module), name)


def test_what_inference_shares_with_training_is_equal():
    train, inference = (json.loads(Path(path).read_text()) for path in (TRAIN, INFERENCE))
    for name in (
        "bundle_root",
        "phantom_dir",
        "dataset_dir",
        "allow_outside",
        "spatial_dims",
        "device",
        "amp",
        "network_def",
    ):
        assert inference[name] == train[name], name


def test_inference_without_prealignment_prepares_pairs_as_training_does(phantom):
    load = in_process(TRAIN, "train", dataset_dir=str(phantom)).parser.get_parsed_content("validate::preprocessing")
    prepare = in_process(INFERENCE, "infer", dataset_dir=str(phantom), affine="none").parser.get_parsed_content(
        "preprocessing"
    )
    case = load_cases(phantom, "testing", 2)[0]
    trained_on, inferred_from = load(case), prepare(case)
    for key in ("fixed_image", "moving_image", "fixed_landmarks", "moving_landmarks"):
        torch.testing.assert_close(
            torch.as_tensor(inferred_from[key]), torch.as_tensor(trained_on[key]), rtol=0, atol=0
        )


DOCUMENTED = ("README.md", "bundle/docs/README.md", "docs/results.md", "docs/method.md", "CONTRIBUTING.md", "Makefile")


def test_every_override_in_the_documentation_names_an_entry():
    """A mistyped override is accepted in silence, so no document may hold one."""
    import re

    known = set()
    for path in CONFIGS.glob("*.json"):
        known |= set(json.loads(path.read_text()))
    known |= {
        "config_file",
        "bundle_root",
        "tracking",
        "net_id",
        "filepath",
        "ckpt_file",
        "meta_file",
        "input_shape",
        "any",
    }
    for document in DOCUMENTED:
        text = (PROJECT / document).read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if "monai.bundle" in line or "$(BUNDLE)" in line:
                for option in re.findall(r"--([A-Za-z_:#]+)", line.split("monai.bundle")[-1]):
                    assert re.split("::|#", option)[0] in known | {"train", "validate"}, f"{document}: --{option}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """What pip installs, unpacked: nothing of the clone is beside it."""
    import zipfile

    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    run([sys.executable, "-m", "pip", "wheel", *options, "."], cwd=PROJECT)
    (built,) = folder.glob("*.whl")
    zipfile.ZipFile(built).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel):
    for wanted in ("py.typed", "data/datalist_schema.json", "report/page.html", "bundle/configs/inference.json"):
        assert (wheel / "monai_jsm" / wanted).is_file()
    assert {path.name.split("-")[0] for path in wheel.iterdir()} == {"monai_jsm"}
    modules = {path.relative_to(PROJECT) for path in (PROJECT / "monai_jsm").rglob("*.py")}
    assert modules == {path.relative_to(wheel) for path in wheel.rglob("*.py")}
    released = (BUNDLE / "models" / "model.pt").read_bytes()
    assert (wheel / "monai_jsm" / "bundle" / "models" / "model.pt").read_bytes() == released


def test_the_installed_wheel_registers_with_its_own_weights(wheel, phantom, tmp_path):
    case = load_cases(phantom, "testing", 2)[0]
    words = ["--fixed", case["fixed_image"], "--moving", case["moving_image"], "--affine", "none", "--no-refine"]
    command_line = [sys.executable, "-m", "monai_jsm", "register", *words, "--output", "out"]
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    subprocess.run(command_line, cwd=tmp_path, env=environment, check=True, capture_output=True)
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())["weights"]
    assert told["path"] == str(wheel / "monai_jsm" / "bundle" / "models" / "model.pt")

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_jsm.apps.command_line import main
from monai_jsm.benchmark import named_suites, own_suite, run_benchmark
from monai_jsm.benchmark.methods import METHODS, Method, choose_methods
from monai_jsm.benchmark.results import CaseResult, read_result, write_result
from monai_jsm.benchmark.run import run_suite
from monai_jsm.data import load_cases
from monai_jsm.data.errors import InputError
from monai_jsm.registration import Registrar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two phantom pairs as a user's own testing split."""
    from monai_jsm.data import write_phantom

    place = tmp_path_factory.mktemp("own") / "phantom"
    write_phantom(place, spatial_dims=2, training=1, validation=1, testing=2, size=(64, 72))
    return place


def methods(*names):
    return choose_methods(",".join(names))


def test_our_row_is_what_register_gives(folder, tmp_path):
    suite = own_suite(folder, "auto")
    (first, *_) = run_suite(suite, methods("ours"), folder, tmp_path)
    registration = Registrar(device="cpu")(load_cases(folder, "testing", 2)[0])
    told = {name: entry["value"] for name, entry in registration.metrics["measures"].items()}
    shared = first.measures.keys() & told.keys()
    assert {"tre_mean_after_voxel", "folding", "log_jacobian_sd"} <= shared
    assert {name: first.measures[name] for name in shared} == {name: told[name] for name in shared}
    assert [row["after_mm"] for row in first.landmarks] == [row["after_mm"] for row in registration.landmarks]
    assert first.seconds > 0


def test_refinement_from_the_same_field_is_the_same_in_every_row(folder, tmp_path):
    """The released network is the row trained with saliency as input, so refining either must end at the same field."""
    first = run_suite(own_suite(folder, "none"), methods("ours-saliency-io", "ours"), folder, tmp_path)
    released, trained = first[0].measures, first[2].measures
    assert released == trained


def test_without_registration_nothing_changes(folder, tmp_path):
    for result in run_suite(own_suite(folder, "none"), methods("identity"), folder, tmp_path):
        assert result.measures["tre_mean_after"] == pytest.approx(result.measures["tre_mean_before"], abs=1e-6)
        assert result.measures["folding"] == 0
        assert all(0 <= row["trust"] <= 1 for row in result.landmarks)


def test_the_affine_row_aligns_whatever_the_suite_says_and_the_identity_row_never_does(folder, tmp_path):
    found = {}
    for affine in ("none", "auto"):
        results = run_suite(own_suite(folder, affine), methods("identity", "affine"), folder, tmp_path / affine)
        found[affine] = [(r.method, r.case, r.measures["tre_mean_after"]) for r in results]
    assert found["none"] == found["auto"]


def test_what_is_done_is_not_done_again_until_it_changes(folder, tmp_path, monkeypatch):
    suite, rows = own_suite(folder, "none"), methods("identity")
    first = run_suite(suite, rows, folder, tmp_path)

    def refuse(*_):
        raise AssertionError("was asked to work")

    with monkeypatch.context() as patch:
        patch.setattr(Method, "runner", refuse)
        assert str(run_suite(suite, rows, folder, tmp_path)) == str(first)  # as text, since NaN is not itself
    kept = tmp_path / "results" / "identity" / f"{first[0].case}.json"
    kept.write_text(kept.read_text()[:40])  # as a crash would not leave it, but a full disk might
    assert run_suite(suite, rows, folder, tmp_path)[0].measures == first[0].measures
    other = own_suite(folder, "auto")
    assert run_suite(other, rows, folder, tmp_path)[0].fingerprint != first[0].fingerprint


def test_a_method_that_fails_is_a_row_with_its_reason_and_is_tried_again(folder, tmp_path, monkeypatch):
    import monai_jsm.baselines.identity as identity

    def fail(fixed, moving, spacing):
        raise InputError("antspyx: is not installed; pip install antspyx.")

    def spoil(fixed, moving, spacing):
        return torch.full((1, 2, *fixed.shape[2:]), math.nan)

    suite, rows, ours = own_suite(folder, "none"), methods("identity"), methods("ours-network")
    with monkeypatch.context() as patch:
        patch.setattr(identity, "register", fail)
        patch.setattr("monai_jsm.benchmark.run._runners", {})  # those of other tests are ready to work
        results = run_suite(suite, [*rows, *ours], folder, tmp_path)
        assert [bool(r.failure) for r in results] == [True, True, False, False]
        assert results[0].failure == "antspyx: is not installed; pip install antspyx."
        assert math.isnan(results[0].seconds)
    assert not any(r.failure for r in run_suite(suite, rows, folder, tmp_path))
    monkeypatch.setattr(identity, "register", spoil)
    monkeypatch.setattr("monai_jsm.benchmark.run._runners", {})
    assert "not finite" in run_suite(suite, rows, folder, tmp_path / "again")[0].failure


@pytest.mark.slow
def test_two_processes_find_what_one_finds(folder, tmp_path):
    suite, rows = own_suite(folder, "none"), methods("identity", "ours-network")
    alone = run_suite(suite, rows, folder, tmp_path / "alone")
    shared = run_suite(suite, rows, folder, tmp_path / "shared", jobs=2)
    assert [(r.method, r.case) for r in shared] == [(r.method, r.case) for r in alone]
    for one, other in zip(alone, shared, strict=True):
        assert other.measures == pytest.approx(one.measures, rel=1e-4)  # other numbers of threads add in other orders


def test_distances_to_what_only_one_image_shows_are_known(folder, tmp_path):
    cases = load_cases(folder, "testing", 2)
    datalist = json.loads((folder / "datalist.json").read_text())
    image = nib.load(cases[0]["fixed_image"])
    outlier = np.zeros(image.shape[:2], np.uint8)
    outlier[10, 20] = 1
    nib.save(nib.Nifti1Image(outlier, image.affine), folder / "outlier.nii.gz")
    for case in datalist["testing"]:
        case.pop("fixed_outlier", None)
        case.pop("moving_outlier", None)
    datalist["testing"][0]["fixed_outlier"] = "outlier.nii.gz"
    before = (folder / "datalist.json").read_text()
    (folder / "datalist.json").write_text(json.dumps(datalist))
    try:
        with_one, without = run_suite(own_suite(folder, "none"), methods("identity"), folder, tmp_path)
    finally:
        (folder / "datalist.json").write_text(before)
    registered = Registrar(refine=False, device="cpu")(cases[0])
    affine = registered.ddf.affine.numpy()
    for row, told in zip(with_one.landmarks, registered.landmarks, strict=True):
        voxel = np.linalg.solve(affine[:2, :2], np.array(told["fixed"]) - affine[:2, -1])
        assert row["outlier_distance"] == pytest.approx(np.hypot(*(voxel - [10, 20])), abs=0.15)  # linear in between
    assert all(row["outlier_distance"] is None for row in without.landmarks)


def test_a_result_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "case.json"
    result = CaseResult("demons", "a", {"folding": 0.5}, [{"label": "1", "outlier_distance": None}], 1.5, 20.0)
    write_result(result, path)
    assert read_result(path) == result
    assert [p.name for p in path.parent.iterdir()] == ["case.json"]
    assert read_result(tmp_path / "none.json") is None
    path.write_text("[1]")
    assert read_result(path) is None


def test_every_method_has_its_own_name_and_a_module_that_registers():
    import importlib

    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    for method in METHODS.values():
        assert not method.module or callable(importlib.import_module(f"monai_jsm.baselines.{method.module}").register)


def test_unknown_names_are_refused_with_the_names_there_are():
    with pytest.raises(InputError, match=r"--methods ours,magic: magic is no method; choose from identity, affine"):
        choose_methods("ours,magic")
    with pytest.raises(InputError, match=r"--suite moon: is no suite; choose from digits"):
        named_suites("moon")
    assert {suite.spatial_dims for suite in named_suites("3d")} == {3}


def test_the_command_measures_a_datalist_and_goes_on_where_it_was(folder, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["benchmark", "--dataset-dir", str(folder), "--methods", "identity,ours-network", "--output", str(output)]
    assert main([*words, "--cases", "1"]) == 0
    assert main(words) == 0
    text = capsys.readouterr().out
    assert METHODS["ours-network"].title in text
    assert text.rstrip().endswith((output / "benchmark.md").read_text().rstrip())
    lines = (output / "cases.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2
    assert {p.name for p in output.iterdir()} >= {"landmarks.csv", "statistics.csv", "bars.png", "landmarks.png"}


def test_the_command_lists_what_it_can_do(capsys):
    assert main(["benchmark", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in [*METHODS, "known-field", "published"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give either --suite or --dataset-dir"),
        (["--suite", "cine", "--dataset-dir", "x"], "give either --suite or --dataset-dir"),
        (["--suite", "cine"], "give --output"),
        (["--suite", "cine", "--output", "o", "--affine", "auto"], "leave it out"),
        (["--suite", "moon", "--output", "o"], "is no suite"),
        (["--suite", "phantom", "--output", "o", "--methods", "magic"], "is no method"),
        (["--suite", "phantom", "--output", "o", "--weights", "none.pt"], "there is no such file"),
        (["--dataset-dir", "nowhere", "--output", "o"], "datalist.json"),
    ],
)
def test_a_command_that_cannot_be_followed_ends_with_a_sentence_and_status_2(
    words, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_suite_without_its_data_says_where_to_name_them(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--data or MONAI_JSM_DATA"):
        run_benchmark(named_suites("cine"), "identity", tmp_path / "o")

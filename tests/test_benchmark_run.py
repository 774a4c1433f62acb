import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_jsm.apps.command_line import main
from monai_jsm.baselines import identity
from monai_jsm.benchmark import named_suites, own_suite, run_benchmark
from monai_jsm.benchmark.methods import METHODS, Method, choose_methods
from monai_jsm.benchmark.results import CaseResult, read_result, write_result
from monai_jsm.benchmark.run import _prepare, run_suite
from monai_jsm.data import load_cases
from monai_jsm.data.errors import InputError
from monai_jsm.data.results import file_hash
from monai_jsm.networks import released_weights
from monai_jsm.refinement import refine
from monai_jsm.registration import Registrar, preprocessing


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
    trained, _, released, _ = run_suite(
        own_suite(folder, "none"), methods("ours-saliency-io", "ours"), folder, tmp_path
    )
    assert released.measures == trained.measures
    assert released.landmarks == trained.landmarks


def test_refinement_goes_on_from_the_field_of_its_own_row(folder, tmp_path):
    case = load_cases(folder, "testing", 2)[0]
    pair = preprocessing(2, "none")(case)
    found = METHODS["ours-untrained"].runner("cine")(pair)["pred"]
    images = [pair[f"{side}_image"].as_tensor()[None] for side in ("fixed", "moving")]
    inside = torch.ones_like(images[0])
    expected = refine(*images, torch.zeros(1, 2, *images[0].shape[2:]), inside, spacing=(1.0, 1.0))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - METHODS["ours"].runner("cine")(pair)["pred"]).abs().max() > 1e-3


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


@pytest.mark.parametrize("changed", ["image", "source", "weights", "library"])
def test_a_result_is_done_again_when_what_decides_it_has_changed(changed, folder, tmp_path, monkeypatch):
    place = tmp_path / "data"
    shutil.copytree(folder, place)
    suite, rows = own_suite(place, "none"), methods("ours-network")
    before = [r.fingerprint for r in run_suite(suite, rows, place, tmp_path / "o")]
    weights = None
    if changed == "image":
        path = load_cases(place, "testing", 2)[0]["moving_image"]
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata() + 1, image.affine), path)
    elif changed == "source":
        true_hash = file_hash
        fake = lambda path: "other" if Path(path).name == "metrics.py" else true_hash(path)  # noqa: E731
        monkeypatch.setattr("monai_jsm.benchmark.methods.file_hash", fake)
    elif changed == "weights":
        weights = tmp_path / "model.pt"
        torch.save({k: v * 1.01 for k, v in torch.load(released_weights(2), weights_only=True).items()}, weights)
    else:
        monkeypatch.setattr("monai_jsm.benchmark.methods._versions", lambda: {"torch": "9"})
    after = [r.fingerprint for r in run_suite(suite, rows, place, tmp_path / "o", weights=weights)]
    assert before[0] != after[0]
    assert (before[1] == after[1]) == (changed == "image")  # of the other case nothing has changed


def test_our_source_decides_our_rows_and_not_the_others(folder):
    names = {name: {path.name for path in METHODS[name]._sources()} for name in METHODS}
    assert {"refinement.py", "networks.py", "run.py", "metrics.py"} <= names["ours"] & names["voxelmorph-ncc-io"]
    assert "refinement.py" not in names["voxelmorph-ncc"] | names["demons"]
    assert {"demons.py", "syn.py", "run.py", "metrics.py", "prealignment.py"} <= names["demons"]
    assert {"dirnet.py", "learned.py", "networks.py"} <= names["dirnet"]


def test_masks_help_no_row(folder, tmp_path):
    place = tmp_path / "data"
    shutil.copytree(folder, place)
    suite, rows = own_suite(place, "none"), methods("ours")
    (without, *_) = run_suite(suite, rows, place, tmp_path / "a")
    image = nib.load(load_cases(place, "testing", 2)[0]["fixed_image"])
    mask = np.zeros(image.shape, np.uint8)
    mask[:20] = 1
    nib.save(nib.Nifti1Image(mask, image.affine), place / "mask.nii.gz")
    datalist = json.loads((place / "datalist.json").read_text())
    datalist["testing"][0]["fixed_mask"] = "mask.nii.gz"
    (place / "datalist.json").write_text(json.dumps(datalist))
    (with_mask, *_) = run_suite(suite, rows, place, tmp_path / "b")
    assert with_mask.measures == without.measures


def test_a_method_that_fails_is_a_row_with_its_reason_and_is_tried_again(folder, tmp_path, monkeypatch):
    def fail(fixed, moving, spacing):
        raise InputError("antspyx: is not installed; pip install antspyx.")

    suite, rows, ours = own_suite(folder, "none"), methods("identity"), methods("ours-network")
    with monkeypatch.context() as patch:
        patch.setattr(identity, "register", fail)
        patch.setattr("monai_jsm.benchmark.run._runners", {})  # those of other tests are ready to work
        results = run_suite(suite, [*rows, *ours], folder, tmp_path)
        assert [bool(r.failure) for r in results] == [True, True, False, False]
        assert results[0].failure == "antspyx: is not installed; pip install antspyx."
        assert math.isnan(results[0].seconds)
    assert not any(r.failure for r in run_suite(suite, rows, folder, tmp_path))


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (lambda fixed: torch.full((1, 2, *fixed.shape[2:]), math.nan), "identity: returned a field that is not finite"),
        (lambda fixed: torch.zeros(1, 2, 5, 5), "identity: returned a field of another shape"),
        (lambda fixed: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_a_method_does_the_others_go_on(field, told, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "register", lambda fixed, moving, spacing: field(fixed))
    monkeypatch.setattr("monai_jsm.benchmark.run._runners", {})
    results = run_suite(own_suite(folder, "none"), methods("identity", "ours-network"), folder, tmp_path)
    assert [r.failure[: len(told)] for r in results] == [told, told, "", ""]


def test_a_pair_that_cannot_be_aligned_is_told_and_the_next_one_done(folder, tmp_path, monkeypatch):
    def fail_on_the_first(case, spatial_dims, affine):
        if case["id"].endswith("0"):
            raise RuntimeError("no overlap")
        return _prepare(case, spatial_dims, affine)

    monkeypatch.setattr("monai_jsm.benchmark.run._prepare", fail_on_the_first)
    first, second = run_suite(own_suite(folder, "none"), methods("identity"), folder, tmp_path)
    assert first.failure == "RuntimeError: no overlap"
    assert not second.failure


def test_rows_of_an_aligned_suite_count_the_time_of_the_alignment(folder, tmp_path):
    results = run_suite(own_suite(folder, "auto"), methods("identity", "affine", "ours-network"), folder, tmp_path)
    seconds = {r.method: r.seconds for r in results if r.case == results[0].case}
    assert seconds["identity"] < 0.02 < seconds["affine"] <= seconds["ours-network"]
    assert all(r.made["threads"] >= 1 and r.made["jobs"] == 1 for r in results)


def test_volumes_are_measured_and_say_that_no_network_is_released(datalist_factory, tmp_path):
    place = datalist_factory(spatial_dims=3, cases_per_section=1)
    ours, plain = run_suite(own_suite(place, "none"), choose_methods("ours,ours-untrained", 3), place, tmp_path)[::-1]
    assert not ours.failure
    assert any("No network is released for 3D" in warning for warning in ours.warnings)
    assert ours.measures == plain.measures
    titles = {row.name: row.title for row in choose_methods("ours,ours-untrained", 3)}
    assert "no network is released" in titles["ours"]


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
    with pytest.raises(InputError, match=r"--suite moon: moon is no suite to give here; choose from digits"):
        named_suites("moon")
    assert {suite.spatial_dims for suite in named_suites("3d")} == {3}


def test_the_command_measures_a_datalist_and_goes_on_where_it_was(folder, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["benchmark", "--dataset-dir", str(folder), "--methods", "identity,ours-network", "--output", str(output)]
    assert main([*words, "--cases", "1"]) == 0
    assert "the first 1 of 2" in (output / "benchmark.md").read_text()
    assert main(words) == 0
    text = capsys.readouterr().out
    assert METHODS["ours-network"].title in text
    assert text.rstrip().endswith((output / "benchmark.md").read_text().rstrip())
    lines = (output / "cases.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2
    assert {p.name for p in output.iterdir()} >= {"landmarks.csv", "statistics.csv", "bars.png", "landmarks.png"}


def test_results_are_written_over_nothing_else(folder, tmp_path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "cases.csv").write_text("precious")
    for place in (other, folder):
        with pytest.raises(InputError, match="holds other files, which would be written over; give a new folder"):
            run_benchmark([own_suite(folder, "none")], "identity", place, dataset_dir=folder)
    assert (other / "cases.csv").read_text() == "precious"
    run_benchmark([own_suite(folder, "none")], "identity", tmp_path / "o", dataset_dir=folder)
    for suite, section in ((own_suite(folder, "auto"), "testing"), (own_suite(folder, "none"), "validation")):
        with pytest.raises(InputError, match="holds the results of other pairs; give another folder"):
            run_benchmark([suite], "identity", tmp_path / "o", dataset_dir=folder, section=section)
    with pytest.raises(InputError, match="holds the results of one suite; give another folder for several"):
        run_benchmark(named_suites("phantom,cine"), "identity", tmp_path / "o", data=tmp_path)


def test_a_benchmark_without_any_result_fails(folder, tmp_path, monkeypatch):
    def fail(fixed, moving, spacing):
        raise InputError("antspyx: is not installed; pip install antspyx.")

    monkeypatch.setattr(identity, "register", fail)
    monkeypatch.setattr("monai_jsm.benchmark.run._runners", {})
    with pytest.raises(InputError, match="no method gave a result; antspyx: is not installed"):
        run_benchmark([own_suite(folder, "none")], "identity", tmp_path / "o", dataset_dir=folder)
    assert "antspyx" in (tmp_path / "o" / "benchmark.md").read_text()


def test_weights_of_the_user_are_checked_first_and_named_so(folder, tmp_path):
    bad = tmp_path / "bad.pt"
    bad.write_text("no weights")
    with pytest.raises(InputError, match=r"bad\.pt"):
        run_benchmark([own_suite(folder, "none")], "ours", tmp_path / "o", dataset_dir=folder, weights=bad)
    assert not (tmp_path / "o").exists()
    titles = [row.title for row in choose_methods("ours,ours-network,demons", own_weights=True)]
    assert titles == ["Diffeomorphic Demons", "Ours, given network alone", "Ours, given (network and refinement)"]


def test_the_published_figure_is_made_by_one_command(folder, tmp_path, monkeypatch):
    suite = own_suite(folder, "none")
    monkeypatch.setattr(
        "monai_jsm.benchmark.compare.SUITES", {"digits": suite, "known-field": replace(suite, name="b")}
    )
    monkeypatch.setattr("monai_jsm.benchmark.compare.suite_folder", lambda suite, data, place: folder)
    text = run_benchmark(named_suites("published"), "identity,ours-network", tmp_path / "o", published=True)
    assert text.count("# Every row") + text.count("Every row against") == 0  # the reference is not among the rows
    assert (tmp_path / "o" / "published.png").stat().st_size > 5000


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
        (["--suite", "moon", "--output", "o"], "is no suite to give here"),
        (["--suite", "cine,histology", "--output", "o"], "name their folder with --data or MONAI_JSM_DATA"),
        (["--suite", "cine", "--output", "o", "--data", "nowhere"], "there is no such folder"),
        (["--suite", "phantom", "--output", "o", "--methods", "magic"], "is no method"),
        (["--suite", "phantom", "--output", "o", "--weights", "none.pt"], "there is no such file"),
        (["--suite", "phantom", "--output", "o", "--methods", ""], "names nothing"),
        (["--suite", "speed,phantom", "--output", "o"], "is no suite to give here"),
        (["--suite", "speed", "--methods", "ours"], "has no meaning for the suite speed"),
        (["--dataset-dir", "nowhere", "--output", "o"], "datalist.json"),
    ],
)
def test_a_command_that_cannot_be_followed_ends_with_a_sentence_and_status_2(
    words, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MONAI_JSM_DATA", raising=False)
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_suite_without_its_data_says_where_to_name_them(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--data or MONAI_JSM_DATA"):
        run_benchmark(named_suites("cine"), "identity", tmp_path / "o")

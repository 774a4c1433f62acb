import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import monai_jsm
import monai_jsm.benchmark
import monai_jsm.report
from monai_jsm.apps.command_line import main
from monai_jsm.data import load_cases, read_landmarks

PROJECT = Path(__file__).resolve().parents[1]
DATA_SETS = ["sunnybrook", "mnist", "known-field", "acdc", "lvquan", "learn2reg", "bratsreg", "dirlab", "birl"]


@pytest.fixture
def digits(tmp_path):
    generator = np.random.default_rng(1)
    arrays = {f"x_{part}": generator.integers(0, 256, (12, 28, 28), dtype=np.uint8) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.arange(12, dtype=np.uint8) % 2 for part in ("train", "test")}
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "mnist.npz", **arrays)
    return tmp_path / "source"


def test_prepare_makes_a_datalist_and_prints_its_folder(digits, tmp_path, capsys):
    counts = ["--training", "3", "--validation", "2", "--testing", "1", "--seed", "7"]
    assert main(["prepare", "mnist", str(digits), str(tmp_path / "out"), *counts]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    datalist = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert [len(datalist[section]) for section in ("training", "validation", "testing")] == [3, 2, 1]


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_unusable_input_is_one_sentence_and_status_2(data_set, tmp_path, capsys, one_sentence):
    assert main(["prepare", data_set, str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    one_sentence(written.err.removesuffix("\n"), tmp_path / "absent", "is not a folder")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["prepair"],
        ["prepare"],
        ["prepare", "cifar", "a", "b"],
        ["prepare", "mnist", "a"],
        ["prepare", "mnist", "a", "b", "--training", "-1"],
        ["prepare", "mnist", "a", "b", "--training", "many"],
        ["prepare", "sunnybrook", "a", "b", "--training", "1"],
        ["benchmark", "--suite", "cine", "--jobs", "0"],
        ["benchmark", "--suite", "cine", "--section", "training"],
        ["report"],
        ["register"],
        ["register", "--output", "a", "--affine", "rigid"],
        ["register", "--output", "a", "--formats", "png"],
        ["register", "--output", "a", "--landmark-space", "mni"],
        ["transform", "--field", "a", "--output", "b"],
        ["transform", "--field", "a", "--output", "b", "--image", "c", "--label", "d"],
        ["evaluate", "--fixed", "a", "--moving", "b"],
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_be_parsed_ends_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: monai-jsm" in capsys.readouterr().err


COMMANDS = [
    *([], ["register"], ["transform"], ["evaluate"], ["prepare"], ["benchmark"], ["report"]),
    *(["prepare", name] for name in DATA_SETS),
]


def example_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The words of the example with which the help of a command ends, without the program's name."""
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    return shlex.split(capsys.readouterr().out.rpartition("example:\n  monai-jsm ")[2])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_ends_with_an_example(words, capsys):
    example = example_of(words, capsys)
    assert example[: len(words)] == words
    assert len(example) > len(words)


@pytest.fixture
def pair(datalist_factory):
    """A small 2D pair with labels and landmarks: the case of a datalist."""
    return load_cases(datalist_factory(2), "testing", 2)[0]


def test_the_examples_work_as_they_are_printed(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, key in (("before", "fixed_image"), ("after", "moving_image")):
        shutil.copy(pair[key], f"{name}.nii.gz")
    for command in ("register", "transform", "evaluate", "report"):
        assert main(example_of([command], capsys)) == 0, command
        assert capsys.readouterr().out
    assert Path("result/report.html").is_file()
    np.testing.assert_allclose(
        nib.load("warped.nii.gz").get_fdata(), nib.load("result/warped.nii.gz").get_fdata(), atol=1e-3
    )
    assert main(example_of([], capsys)) == 0  # again, into the same folder: the older result is replaced


def test_the_example_of_prepare_works_as_it_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(1)
    arrays = {f"x_{part}": generator.integers(0, 256, (1300, 28, 28), dtype=np.uint8) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.arange(1300, dtype=np.uint8) % 10 for part in ("train", "test")}
    Path("downloads/mnist").mkdir(parents=True)
    np.savez("downloads/mnist/mnist.npz", **arrays)
    assert main(example_of(["prepare"], capsys)) == 0
    assert Path("data/mnist/datalist.json").is_file()


def register_words(pair: dict, output: Path, *more: str) -> list[str]:
    words = ["register", "--output", str(output), "--affine", "none", "--no-refine", *more]
    for key in ("fixed_image", "moving_image", "fixed_landmarks", "moving_landmarks", "fixed_label", "moving_label"):
        words += [f"--{key.removesuffix('_image').replace('_', '-')}", pair[key]]
    return [*words, "--landmark-space", pair["landmark_space"]]


def test_transform_carries_images_labels_and_landmarks_there_and_back(pair, tmp_path, capsys):
    result = tmp_path / "result"
    assert main(register_words(pair, result, "--formats", "mha", "nrrd", "h5")) == 0
    told = {row.split(",")[1]: row for row in (result / "landmarks.csv").read_text().splitlines()[1:]}
    fields = [result / name for name in ("field.nii.gz", "field.mha", "field.nrrd", "transform.h5")]
    for number, field in enumerate(fields):
        there, back = tmp_path / f"there{number}.csv", tmp_path / f"back{number}.csv"
        words = ["transform", "--field", str(field), "--landmark-space", "lps", "--landmarks"]
        assert main([*words, pair["fixed_landmarks"], "--output", str(there)]) == 0
        assert main([*words, str(there), "--output", str(back), "--inverse"]) == 0
        affine = np.eye(4)
        begun, carried, returned = (
            read_landmarks(path, "lps", affine) for path in (pair["fixed_landmarks"], there, back)
        )
        np.testing.assert_allclose(returned.positions, begun.positions, atol=0.02)  # 0.01 voxel of 1.5 mm
        for label, position in zip(carried.labels, carried.positions, strict=True):
            expected = [float(value) for value in told[label].split(",")[6:8]]
            np.testing.assert_allclose(position, expected, atol=1e-3)
        out = tmp_path / f"label{number}.mha"
        label = ["transform", "--field", str(field), "--label", pair["moving_label"], "--output", str(out)]
        assert main([*label, "--reference", pair["fixed_image"]]) == 0
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(out)))
        truth = nib.load(pair["fixed_label"]).get_fdata()
        assert values.dtype.kind in "iu"
        assert set(np.unique(values)) <= set(np.unique(truth))
    inverse = ["transform", "--field", str(fields[0]), "--inverse", "--image", pair["fixed_image"]]
    assert main([*inverse, "--reference", pair["moving_image"], "--output", str(tmp_path / "fixed.nrrd")]) == 0
    pulled = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "fixed.nrrd"))).T
    moving = nib.load(pair["moving_image"]).get_fdata()
    assert np.corrcoef(pulled.ravel(), moving.ravel())[0, 1] > 0.9


def test_landmarks_in_voxels_go_from_one_grid_to_the_other(pair, tmp_path):
    from monai_jsm.data import write_landmarks

    result = tmp_path / "result"
    assert main(register_words(pair, result)) == 0
    affine = nib.load(pair["fixed_image"]).affine
    begun = read_landmarks(pair["fixed_landmarks"], "lps", affine)
    write_landmarks(tmp_path / "voxels.csv", begun, "voxel0", affine)
    words = ["transform", "--field", str(result / "field.nii.gz"), "--landmarks", str(tmp_path / "voxels.csv")]
    words += ["--landmark-space", "voxel0", "--output", str(tmp_path / "carried.csv"), "--source", pair["fixed_image"]]
    assert main([*words, "--reference", pair["moving_image"]]) == 0
    carried = read_landmarks(tmp_path / "carried.csv", "voxel0", nib.load(pair["moving_image"]).affine)
    rows = [row.split(",") for row in (result / "landmarks.csv").read_text().splitlines()[1:]]
    np.testing.assert_allclose(carried.positions, [[float(v) for v in row[6:8]] for row in rows], atol=1e-3)


def test_evaluate_repeats_the_measures_of_the_registration(pair, tmp_path, capsys):
    result = tmp_path / "result"
    assert main(register_words(pair, result)) == 0
    shared = [f"--{key.removesuffix('_image').replace('_', '-')}={value}" for key, value in pair.items() if key != "id"]
    inverse = ["--inverse-field", str(result / "inverse_field.nii.gz")]
    for number, more in enumerate(([], inverse)):
        words = ["evaluate", "--field", str(result / "field.nii.gz"), *shared, *more]
        assert main([*words, "--output", str(tmp_path / f"out{number}")]) == 0
        told = json.loads((result / "metrics.json").read_text())["measures"]
        found = json.loads((tmp_path / f"out{number}" / "metrics.json").read_text())["measures"]
        assert set(found) == set(told)
        for name, entry in found.items():
            assert entry["unit"] == told[name]["unit"]
            assert entry["mean"] == pytest.approx(told[name]["value"], rel=1e-2, abs=2e-3), name
    assert "| TRE, mean | mm |" in capsys.readouterr().out
    rows = [(folder / "landmarks.csv").read_text().splitlines()[0] for folder in (result, tmp_path / "out0")]
    assert rows[0] == rows[1]


def table_of(folder: Path, rows: list[dict]) -> Path:
    columns = ["id", "fixed", "moving", "fixed_landmarks", "moving_landmarks", "landmark_space"]
    lines = [",".join(columns), *(",".join(row.get(column, "") for column in columns) for row in rows)]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def rows_of(folder: Path) -> list[dict]:
    kept = ("id", "fixed_landmarks", "moving_landmarks", "landmark_space")
    return [
        {"fixed": case["fixed_image"], "moving": case["moving_image"], **{key: case[key] for key in kept}}
        for section in ("training", "validation", "testing")
        for case in load_cases(folder, section, 2)
    ]


def test_many_pairs_run_in_one_process_and_a_bad_one_stops_none(datalist_factory, tmp_path, capsys):
    rows = rows_of(datalist_factory(2, cases_per_section=1))
    rows[1]["moving"] = str(tmp_path / "absent.nii.gz")
    words = ["register", "--pairs", str(table_of(tmp_path, rows)), "--affine", "none", "--no-refine"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "1 of 3 pairs failed" in said
    assert f"{rows[1]['id']}: {tmp_path / 'absent.nii.gz'}: there is no such file; correct the path." in said
    assert "Traceback" not in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["pairs.csv", rows[0]["id"], rows[2]["id"]]
    )
    listed = (tmp_path / "out" / "pairs.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in listed[1:]] == ["done", "failed", "done"]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("metrics.json")}
    rows[1]["moving"] = rows[0]["moving"]
    table_of(tmp_path, rows)
    assert main([*words, "--output", str(tmp_path / "out")]) == 0  # mended: only the one that failed is done
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("metrics.json")}
    assert len(after) == 3
    assert all(after[path] == before[path] for path in before)
    assert main([*[word for word in words if word != "--no-refine"], "--output", str(tmp_path / "out")]) == 0
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("metrics.json")}
    assert all(again[path] > after[path] for path in after)  # other settings: all are done again


def test_a_killed_run_over_many_pairs_goes_on_where_it_stopped(datalist_factory, tmp_path):
    rows = rows_of(datalist_factory(2, cases_per_section=3))
    words = [
        "register",
        "--pairs",
        str(table_of(tmp_path, rows)),
        "--output",
        str(tmp_path / "out"),
        "--affine",
        "none",
    ]
    process = subprocess.Popen([sys.executable, "-m", "monai_jsm", *words], cwd=PROJECT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("[!.]*/metrics.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[!.]*/metrics.json")}
    assert 2 <= len(done) < len(rows)
    for path in done:  # each is whole
        assert (path.parent / "report.html").is_file()
        nib.load(path.parent / "inverse_field.nii.gz").get_fdata()
    assert main(words) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    assert len(list((tmp_path / "out").glob("[!.]*/metrics.json"))) == len(rows)
    assert not list((tmp_path / "out").glob(".*"))  # what the kill left over is gone


def test_options_of_one_pair_do_not_go_with_a_table(tmp_path, capsys):
    words = ["register", "--pairs", "pairs.csv", "--output", str(tmp_path / "out"), "--fixed", "a.nii.gz"]
    assert main(words) == 2
    assert "--fixed: is for one pair; put it into the table of --pairs." in capsys.readouterr().err
    assert main(["register", "--output", str(tmp_path / "out"), "--fixed", "a.nii.gz"]) == 2
    assert "give --fixed and --moving, or --pairs." in capsys.readouterr().err


def test_benchmark_prints_the_table_of_the_suite(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        monai_jsm.benchmark, "speed_suite", lambda output: asked.append(output) or "the table", raising=False
    )
    assert main(["benchmark", "--suite", "speed"]) == 0
    assert main(["benchmark", "--suite", "speed", "--output", str(tmp_path)]) == 0
    assert asked == [None, tmp_path]
    assert capsys.readouterr().out == "the table\nthe table\n"


def test_report_prints_the_measures_and_the_path_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(monai_jsm.report, "write_report", lambda folder: folder / "report.html")
    measures = {"tre_mean_after": {"mean": 1.5, "sd": 0.5, "median": 1.25, "unit": "mm"}}
    (tmp_path / "metrics.json").write_text(json.dumps({"cases": 3, "measures": measures}))
    assert main(["report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| TRE, mean | mm |  | 1.50 ± 0.50 (median 1.25) |" in out
    assert out.endswith(f"{tmp_path / 'report.html'}\n")


def test_the_module_is_the_program_and_help_loads_no_torch():
    program = "import sys, runpy; sys.argv[1:] = {words}\ntry: runpy.run_module('monai_jsm', run_name='__main__')\n"
    program += "finally: print('torch' in sys.modules, 'monai' in sys.modules)"
    for words, first in ((["--version"], f"monai-jsm {monai_jsm.__version__}"), (["--help"], "usage: monai-jsm")):
        done = subprocess.run(
            [sys.executable, "-c", program.format(words=words)], capture_output=True, text=True, cwd=PROJECT, check=True
        )
        assert done.stdout.startswith(first)
        assert done.stdout.endswith("False False\n")


def test_the_process_ends_with_the_status_and_no_traceback(tmp_path):
    words = ["prepare", "known-field", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "monai_jsm", *words], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(str(tmp_path / "cases.csv"))


def test_no_command_writes_over_what_it_reads(pair, tmp_path, capsys):
    result = tmp_path / "result"
    assert main(register_words(pair, result)) == 0
    field = str(result / "field.nii.gz")
    shared = ["transform", "--field", field, "--reference", pair["fixed_image"]]
    before = {path: path.read_bytes() for path in [Path(pair["moving_image"]), result / "field.nii.gz"]}
    capsys.readouterr()
    for words in (
        [*shared, "--image", pair["moving_image"], "--output", pair["moving_image"]],
        [*shared, "--image", pair["moving_image"], "--output", field],
        [*shared, "--landmarks", pair["fixed_landmarks"], "--output", pair["fixed_landmarks"]],
    ):
        assert main(words) == 2
        assert "is one of the files that the command reads; give another" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_result_of_another_pair_and_the_tables_of_others_are_left_as_they_are(pair, tmp_path, capsys):
    result = tmp_path / "result"
    assert main(register_words(pair, result)) == 0
    other = pair | {"fixed_image": pair["moving_image"], "fixed_label": pair["moving_label"]}
    other |= {"fixed_landmarks": pair["moving_landmarks"]}
    capsys.readouterr()
    assert main(register_words(other, result)) == 2
    assert "is no result of this pair alone" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "landmarks.csv").write_text("precious")
    words = ["evaluate", "--field", str(result / "field.nii.gz"), "--fixed", pair["fixed_image"]]
    words += ["--moving", pair["moving_image"], "--output"]
    assert main([*words, str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "landmarks.csv").read_text() == "precious"
    for _ in range(2):  # an older evaluation is replaced
        assert main([*words, str(tmp_path / "evaluation")]) == 0
    told = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert "The fixed image is thin: 24 x 28 voxels." in told["warnings"]["pair"]


def test_a_label_of_one_image_is_refused_as_landmarks_of_one_are(pair, tmp_path, capsys, one_sentence):
    words = ["register", "--fixed", pair["fixed_image"], "--moving", pair["moving_image"], "--output", "never"]
    assert main([*words, "--moving-label", pair["moving_label"]]) == 2
    said = capsys.readouterr().err.strip()
    one_sentence(said, Path(pair["moving_label"]), "a label of one image cannot be compared")

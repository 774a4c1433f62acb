import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import monai_jsm
import monai_jsm.benchmark
import monai_jsm.report
from monai_jsm.apps.command_line import main

PROJECT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("data_set", ["sunnybrook", "mnist", "known-field"])
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
        ["benchmark"],
        ["benchmark", "--suite", "beauty"],
        ["report"],
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_be_parsed_ends_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: monai-jsm" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["prepare"], ["prepare", "mnist"], ["benchmark"], ["report"]], ids=" ".join)
def test_help_ends_with_an_example(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    last = capsys.readouterr().out.strip().rpartition("example: monai-jsm ")[2]
    assert last.startswith(" ".join(words))


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

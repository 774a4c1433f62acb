import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from monai_jsm.data import InputError
from monai_jsm.data.results import (
    check_replaceable,
    clear_leftovers,
    file_hash,
    is_finished,
    told_of,
    write_evaluation,
    write_pairs_table,
    write_registration,
)
from monai_jsm.metrics import summarise


def landmark_row(label: str, after: float) -> dict:
    sides = {"fixed": [1.0, 2.0], "moving": [2.0, 2.0], "carried": [1.5, 2.0]}
    return {"label": label, **sides, "before_mm": 1.0, "after_mm": after, "before_voxel": 0.5, "after_voxel": after / 2}


def case_record(tmp_path, name: str = "a") -> dict:
    source = tmp_path / "fixed.nii.gz"
    source.write_bytes(b"an image")
    measures = {"tre_mean_after": {"value": 0.5, "unit": "mm"}}
    rows = [landmark_row("tip", 0.5)]
    return {"id": name, "inputs": {"fixed_image": source}, "measures": measures, "landmarks": rows}


def maps(shape: tuple[int, ...] = (6, 7)) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    values = {name: np.ones(shape) for name in ("warped", "joint_saliency", "trust", "jacobian")}
    fields = {name: np.zeros((len(shape), *shape)) for name in ("field", "inverse_field")}
    return {name: (array, np.eye(4)) for name, array in (values | fields).items()}


def test_a_registration_is_written_whole_and_replaces_an_older_one(tmp_path):
    folder = tmp_path / "out" / "a"
    for _ in range(2):
        write_registration(folder, case_record(tmp_path), maps(), {"seed": 3})
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.nii.gz" for name in ("warped", "field", "inverse_field", "joint_saliency", "trust", "jacobian")),
        *("metrics.json", "landmarks.csv"),
    }
    record = json.loads((folder / "metrics.json").read_text())
    assert record["measures"]["tre_mean_after"] == {"value": 0.5, "unit": "mm"}
    assert len(record["inputs"]["fixed_image"]["sha256"]) == 64
    assert {"monai_jsm", "monai", "torch"} <= set(record["versions"])
    assert record["seed"] == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_folder_that_is_no_result_of_the_case_alone_is_never_replaced(tmp_path):
    folder = tmp_path / "out" / "a"
    for prepare in (
        lambda: folder.mkdir(parents=True),
        lambda: write_registration(folder, case_record(tmp_path), maps(), {}),
    ):
        prepare()
        (folder / "scan.nii.gz").write_bytes(b"precious")
        with pytest.raises(InputError, match=r"is no result of this pair alone.*another folder"):
            write_registration(folder, case_record(tmp_path), maps(), {})
        assert (folder / "scan.nii.gz").read_bytes() == b"precious"
        shutil.rmtree(folder)


def test_a_result_that_is_an_input_is_never_replaced(tmp_path):
    folder = tmp_path / "a"
    write_registration(folder, case_record(tmp_path), maps(), {})
    case = {**case_record(tmp_path), "inputs": {"moving_image": folder / "warped.nii.gz"}}
    with pytest.raises(InputError, match="which is to be registered"):
        write_registration(folder, case, maps(), {})
    assert (folder / "warped.nii.gz").is_file()


def test_a_value_that_is_not_a_number_is_null(tmp_path):
    case = case_record(tmp_path)
    case["measures"]["log_jacobian_sd"] = {"value": float("nan"), "unit": "1"}
    write_registration(tmp_path / "a", case, maps(), {})
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["measures"]["log_jacobian_sd"]["value"] is None


def test_a_failing_write_leaves_neither_a_folder_nor_a_temporary_one(tmp_path):
    broken = maps()
    broken["trust"] = (np.array(["low"]), np.eye(4))
    with pytest.raises(ValueError, match="could not convert"):
        write_registration(tmp_path / "out" / "a", case_record(tmp_path), broken, {})
    assert not (tmp_path / "out").exists()


def test_an_evaluation_has_a_row_per_case_and_per_landmark(tmp_path):
    cases = [case_record(tmp_path, name) for name in ("a", "b")]
    write_evaluation(tmp_path / "out", cases, summarise(cases), {"seed": 3})
    assert (tmp_path / "out" / "cases.csv").read_text().splitlines()[0] == "case,tre_mean_after"
    rows = (tmp_path / "out" / "landmarks.csv").read_text().splitlines()
    assert rows[0].startswith("case,label,fixed_x,fixed_y,moving_x")
    assert rows[2].startswith("b,tip,1.000000,2.000000,2.000000")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["cases"] == 2


def test_an_evaluation_without_landmarks_leaves_no_table_of_them(tmp_path):
    for landmarks in ([landmark_row("tip", 0.5)], []):
        cases = [{**case_record(tmp_path), "landmarks": landmarks}]
        write_evaluation(tmp_path / "out", cases, summarise(cases), {"seed": 3})
        assert (tmp_path / "out" / "landmarks.csv").exists() == bool(landmarks)


def test_a_result_is_finished_only_for_the_same_files_and_the_same_way(tmp_path):
    case = case_record(tmp_path)
    source = case["inputs"]["fixed_image"]
    listed = {"id": "a", "fixed_image": str(source), "landmark_space": ""}
    way = {"settings": {"affine": "auto"}, **told_of(3, None)}
    assert not is_finished(tmp_path / "out", listed, way)
    case |= {"landmark_space": "", "series": {}}
    write_registration(tmp_path / "out", case, maps(), way, [lambda folder: (folder / "report.html").touch()])
    assert is_finished(tmp_path / "out", listed, way)
    assert not is_finished(tmp_path / "out", listed, way, ["field.mha"])
    assert not is_finished(tmp_path / "out", {**listed, "landmark_space": "ras"}, way)
    assert not is_finished(tmp_path / "out", {**listed, "fixed_series": "1.2"}, way)
    assert not is_finished(tmp_path / "out", listed, {**way, "seed": 4})
    assert not is_finished(tmp_path / "out", {**listed, "id": "b"}, way)
    assert not is_finished(tmp_path / "out", {**listed, "fixed_label": str(source)}, way)
    source.write_bytes(b"another image")
    assert not is_finished(tmp_path / "out", listed, way)
    (tmp_path / "out" / "metrics.json").write_text("{")
    assert not is_finished(tmp_path / "out", listed, way)


def test_the_table_of_pairs_lists_measures_and_faults(tmp_path):
    write_registration(tmp_path / "a", case_record(tmp_path), maps(), {})
    write_pairs_table(tmp_path, ["b", "a"], {"b": "b.nii.gz: is damaged, twice; copy it again."})
    assert (tmp_path / "pairs.csv").read_text().splitlines() == [
        "id,state,fault,tre_mean_after",
        'b,failed,"b.nii.gz: is damaged, twice; copy it again.",',
        "a,done,,0.5",
    ]


def test_the_hash_of_a_folder_follows_names_and_contents(tmp_path):
    (tmp_path / "one").write_bytes(b"1")
    first = file_hash(tmp_path)
    (tmp_path / "two").write_bytes(b"2")
    second = file_hash(tmp_path)
    (tmp_path / "two").rename(tmp_path / "three")
    assert len({first, second, file_hash(tmp_path)}) == 3


def test_the_hash_of_a_detached_header_follows_its_data(tmp_path):
    header = "ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = image.raw\n"
    (tmp_path / "image.mhd").write_text(header)
    (tmp_path / "image.raw").write_bytes(b"abcd")
    first = file_hash(tmp_path / "image.mhd")
    (tmp_path / "image.raw").write_bytes(b"abce")
    assert file_hash(tmp_path / "image.mhd") != first


def test_the_working_directory_is_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for name in (".", "..", str(tmp_path)):
        with pytest.raises(InputError, match="is the folder that the command runs in"):
            check_replaceable(name, {"id": "a"})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="takes no folder"):
        check_replaceable(tmp_path / "file" / "out", {"id": "a"})


def test_a_link_to_an_older_result_is_followed(tmp_path):
    write_registration(tmp_path / "old", case_record(tmp_path), maps(), {"seed": 1})
    (tmp_path / "link").symlink_to(tmp_path / "old")
    write_registration(tmp_path / "link", case_record(tmp_path), maps(), {"seed": 2})
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "old" / "metrics.json").read_text())["seed"] == 2


def test_an_evaluation_never_writes_over_a_registration(tmp_path):
    write_registration(tmp_path / "out", case_record(tmp_path), maps(), {})
    cases = [case_record(tmp_path)]
    with pytest.raises(InputError, match="holds a registration or files of others"):
        write_evaluation(tmp_path / "out", cases, summarise(cases), {})
    assert "id" in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_builds_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid()):
        (tmp_path / f".a-{number}-abcdefgh").mkdir()
    clear_leftovers(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [f".a-{os.getpid()}-abcdefgh"]

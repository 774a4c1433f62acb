import csv
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from monai_jsm.data import SECTIONS, InputError, check_image, load_cases, read_landmarks
from monai_jsm.data.published import prepare_birl, prepare_bratsreg, prepare_dirlab, prepare_learn2reg
from monai_jsm.data.published_landmarks import _DIRLAB_GRIDS
from monai_jsm.geometry import world_to_voxel

SHAPE = (18, 24, 20)
POINTS = {"fixed": [(3, 5, 7), (12, 20, 2), (9, 1, 16)], "moving": [(4, 5, 8), (11, 22, 3), (9, 2, 15)]}


def planted(shape, points, seed):
    """Noise of 0 to 99 in which the voxels of the landmarks hold 200, 201, ..."""
    image = np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16)
    for value, point in enumerate(points, start=200):
        image[tuple(point)] = value
    return image


def oblique_affine():
    """Left-handed, 1.5, 1.75 and 2.5 mm, rotated about the third axis."""
    affine = np.eye(4)
    affine[:3, :3] = [[1.2, -1.05, 0], [0.9, 1.4, 0], [0, 0, -2.5]]
    affine[:3, 3] = (-30, 40, 10)
    return affine


def save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_learn2reg(folder, pairs=(1, 2, 3, 4), validation=(3,), test=(4,), **changes):
    """Pair N is 000N_0000 (fixed) and 000N_0001 (moving); those for testing lie in imagesTs."""
    place = {number: "Ts" if number in test else "Tr" for number in pairs}
    for number in pairs:
        for modality, side in enumerate(("fixed", "moving")):
            stem = f"NLST_{number:04d}_{modality:04d}"
            image = planted(SHAPE, POINTS[side], seed=(number, modality))
            save(folder / f"images{place[number]}/{stem}.nii.gz", image, oblique_affine())
            for kind in ("labels", "masks"):
                save(folder / f"{kind}{place[number]}/{stem}.nii.gz", (image > 50).astype(np.uint8), oblique_affine())
            rows = "".join(",".join(f"{value:.5f}" for value in point) + "\n" for point in POINTS[side])
            (folder / f"keypoints{place[number]}").mkdir(exist_ok=True)
            (folder / f"keypoints{place[number]}/{stem}.csv").write_text(rows)

    def listed(numbers):
        images = [[f"./images{place[number]}/NLST_{number:04d}_{m:04d}.nii.gz" for m in (0, 1)] for number in numbers]
        return [dict(zip(("fixed", "moving"), names, strict=True)) for names in images]

    training = [number for number in pairs if number not in test]
    table = {
        "name": "NLST",
        "release": "1.1",
        "pairings": "paired",
        "labels": {"0": "background"},
        "modality": {"0": "CT"},
        "tensorImageSize": "3D",
        "tensorImageShape": {"0": list(SHAPE), "1": list(SHAPE)},
        "training": [{"image": name} for pair in listed(training) for name in pair.values()],
        "training_paired_images": listed(training),
        "registration_val": listed(validation),
        "registration_test": listed(test),
    }
    table = {key: value for key, value in (table | changes).items() if value is not None}
    (folder / "NLST_dataset.json").write_text(json.dumps(table))


def write_bratsreg(folder, numbers=(1, 2, 3), days=(106, 37, 1250)):
    """The published grid, smaller: LPS millimetres are voxels, but for 239 along the second axis."""
    affine = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
    for number, day in zip(numbers, days, strict=True):
        name = f"BraTSReg_{number:03d}"
        for time, side in ((f"01_{day:04d}", "fixed"), ("00_0000", "moving")):
            for modality in ("t1", "t1ce", "t2", "flair"):
                seed = [number, len(modality), side == "fixed"]
                image = planted(SHAPE, POINTS[side], seed)
                save(folder / name / f"{name}_{time}_{modality}.nii.gz", image, affine)
            rows = [f"{row},{x}.0,{y - 239}.0,{z}.0\n" for row, (x, y, z) in enumerate(POINTS[side], start=1)]
            (folder / name / f"{name}_{time}_landmarks.csv").write_text("Landmark,X,Y,Z\n" + "".join(rows))


def write_dirlab(folder, number, shape, image, points, kind="Pack", ending="_s", landmarks="Case{}_300_T{}_xyz.txt"):
    pack = folder / f"Case{number}{kind}"
    for name in ("Images", "ExtremePhases", "Sampled4D"):
        (pack / name).mkdir(parents=True)
    for phase in ("00", "50"):
        array = image[phase]
        assert array.shape == shape
        (pack / "Images" / f"case{number}_T{phase}{ending}.img").write_bytes(array.T.astype("<i2").tobytes())
        rows = "".join("\t".join(f"{value + 1}" for value in point) + " \n" for point in points[phase])
        (pack / "ExtremePhases" / landmarks.format(number, phase)).write_text(rows)
        (pack / "Sampled4D" / f"case{number}_4D-75_T{phase}.txt").write_text("1 1 1\n")


def small_dirlab(folder, monkeypatch, number=6, **layout):
    """A case of a small grid, 300 landmarks of which the voxels hold HU 100."""
    monkeypatch.setitem(_DIRLAB_GRIDS, number, (SHAPE, _DIRLAB_GRIDS[number][1]))
    generator = np.random.default_rng(number)
    image, points = {}, {}
    for phase in ("00", "50"):
        flat = generator.choice(np.prod(SHAPE), 300, replace=False)
        points[phase] = np.stack(np.unravel_index(flat, SHAPE), axis=1)
        image[phase] = generator.integers(0, 400, SHAPE).astype(np.int16)
        image[phase][tuple(points[phase].T)] = 1124
    write_dirlab(folder, number, SHAPE, image, points, **layout)
    return image, points


def write_tissue(folder, names, seed, size=(40, 31), landmarks=4, ending=".png"):
    """Colour pictures, wide by high, with landmarks where the picture is white."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for name in names:
        picture = generator.integers(0, 120, (size[1], size[0], 3)).astype(np.uint8)  # rows first
        flat = generator.choice(size[0] * size[1], landmarks, replace=False)
        points = [(pixel % size[0], pixel // size[0]) for pixel in flat]
        for x, y in points:
            picture[y, x] = 255
        Image.fromarray(picture).save(folder / f"{name}{ending}")
        rows = "".join(f"{row},{x},{y}\n" for row, (x, y) in enumerate(points))
        (folder / f"{name}.csv").write_text(",X,Y\n" + rows)


def sections_of(folder):
    datalist = json.loads((folder / "datalist.json").read_text())
    return {section: [case["id"] for case in datalist[section]] for section in SECTIONS if datalist[section]}


def loaded(folder, spatial_dims):
    """Every case by its id, each section found usable."""
    return {case["id"]: case for section in sections_of(folder) for case in load_cases(folder, section, spatial_dims)}


def voxels_of(case, side):
    affine = check_image(case[f"{side}_image"]).affine
    landmarks = read_landmarks(case[f"{side}_landmarks"], case["landmark_space"], affine)
    return landmarks.labels, world_to_voxel(torch.from_numpy(landmarks.positions), torch.from_numpy(affine)).numpy()


def array_of(path):
    return np.asarray(nib.load(path).dataobj)


def test_a_learn2reg_task_keeps_its_pairs_and_sections(tmp_path):
    write_learn2reg(tmp_path / "NLST")
    prepare_learn2reg(tmp_path / "NLST", tmp_path / "data" / "nlst")
    assert sections_of(tmp_path / "data" / "nlst") == {
        "training": ["NLST_0001_0000_0001_0001", "NLST_0002_0000_0002_0001"],
        "validation": ["NLST_0003_0000_0003_0001"],
        "testing": ["NLST_0004_0000_0004_0001"],
    }
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["nlst"]
    for case in loaded(tmp_path / "data" / "nlst", 3).values():
        for side in ("fixed", "moving"):
            assert {f"{side}_label", f"{side}_mask"} <= set(case)
            _, voxels = voxels_of(case, side)
            np.testing.assert_allclose(voxels, POINTS[side], atol=1e-6)
            np.testing.assert_allclose(nib.load(case[f"{side}_image"]).affine, oblique_affine(), rtol=1e-6)
            found = array_of(case[f"{side}_image"])[tuple(np.rint(voxels).astype(int).T)]
            assert found.tolist() == [200, 201, 202]


def test_test_pairs_of_a_folder_that_was_not_downloaded_are_left_out(tmp_path):
    write_learn2reg(tmp_path / "NLST", test=())
    table = json.loads((tmp_path / "NLST" / "NLST_dataset.json").read_text())
    table["registration_test"] = [{"fixed": "./imagesTs/A_0000.nii.gz", "moving": "./imagesTs/A_0001.nii.gz"}]
    (tmp_path / "NLST" / "NLST_dataset.json").write_text(json.dumps(table))
    prepare_learn2reg(tmp_path / "NLST", tmp_path / "out")
    assert {section: len(ids) for section, ids in sections_of(tmp_path / "out").items()} == {
        "training": 3,
        "validation": 1,
    }


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            [{"image": f"./imagesTr/NLST_{n:04d}_0000.nii.gz", "label": "any"} for n in (1, 2, 3, 4)],
            ["NLST_0001_0000_0002_0000", "NLST_0002_0000_0004_0000"],  # 3 is for validation
        ),
        (
            [f"./imagesTr/NLST_{n:04d}_0000.nii.gz" for n in (1, 4)],
            ["NLST_0001_0000_0004_0000"],
        ),
        (
            [{"image": [f"./imagesTr/NLST_{n:04d}_{m:04d}.nii.gz" for m in (0, 1)]} for n in (1, 2, 3)],
            ["NLST_0001_0000_0001_0001", "NLST_0002_0000_0002_0001"],
        ),
    ],
    ids=["unpaired", "names", "lists"],
)
def test_training_pairs_are_made_where_a_task_lists_none(tmp_path, entries, expected):
    write_learn2reg(tmp_path / "task", test=(), training_paired_images=None, training=entries)
    prepare_learn2reg(tmp_path / "task", tmp_path / "out")
    assert sections_of(tmp_path / "out") == {"training": expected, "validation": ["NLST_0003_0000_0003_0001"]}
    loaded(tmp_path / "out", 3)


def test_manual_landmarks_go_before_keypoints(tmp_path):
    write_learn2reg(tmp_path / "task", pairs=(1,), validation=(), test=())
    (tmp_path / "task" / "landmarksTr").mkdir()
    for modality in (0, 1):
        (tmp_path / "task" / "landmarksTr" / f"NLST_0001_{modality:04d}.csv").write_text("1.5,2,3.25\n")
    prepare_learn2reg(tmp_path / "task", tmp_path / "out")
    (case,) = loaded(tmp_path / "out", 3).values()
    np.testing.assert_allclose(voxels_of(case, "moving")[1], [[1.5, 2, 3.25]], atol=1e-6)


def test_the_follow_up_of_bratsreg_is_fixed_and_its_baseline_moving(tmp_path):
    write_bratsreg(tmp_path / "source")
    prepare_bratsreg(tmp_path / "source", tmp_path / "out")
    assert sections_of(tmp_path / "out") == {
        "testing": ["BraTSReg_001"],
        "validation": ["BraTSReg_002"],
        "training": ["BraTSReg_003"],
    }
    for case in loaded(tmp_path / "out", 3).values():
        assert "_01_" in case["fixed_image"]
        assert case["moving_image"].endswith("_00_0000_t1ce.nii.gz")
        for side in ("fixed", "moving"):
            labels, voxels = voxels_of(case, side)
            assert labels == ("1", "2", "3")
            np.testing.assert_allclose(voxels, POINTS[side], atol=1e-6)
            assert array_of(case[f"{side}_image"])[tuple(np.rint(voxels).astype(int).T)].tolist() == [200, 201, 202]


def test_another_modality_of_bratsreg_can_be_had(tmp_path):
    write_bratsreg(tmp_path / "source", (1,), (5,))
    prepare_bratsreg(tmp_path / "source", tmp_path / "out", modality="t1")
    (case,) = loaded(tmp_path / "out", 3).values()
    assert case["fixed_image"].endswith("BraTSReg_001/BraTSReg_001_01_0005_t1.nii.gz")
    with pytest.raises(ValueError, match="modality must be one of"):
        prepare_bratsreg(tmp_path / "source", tmp_path / "other", modality="pd")


def test_landmarks_of_bratsreg_pair_up_by_number_and_hidden_ones_leave_none(tmp_path):
    write_bratsreg(tmp_path / "source")
    first, second = (tmp_path / "source" / f"BraTSReg_{number:03d}" for number in (1, 2))
    lines = (first / "BraTSReg_001_00_0000_landmarks.csv").read_text().splitlines(keepends=True)
    (first / "BraTSReg_001_00_0000_landmarks.csv").write_text("".join([lines[0], lines[3], lines[1]]))
    (second / "BraTSReg_002_00_0000_landmarks.csv").unlink()
    prepare_bratsreg(tmp_path / "source", tmp_path / "out")
    cases = loaded(tmp_path / "out", 3)
    for side in ("fixed", "moving"):
        labels, voxels = voxels_of(cases["BraTSReg_001"], side)
        assert labels == ("1", "3")
        np.testing.assert_allclose(voxels, [POINTS[side][0], POINTS[side][2]], atol=1e-6)
    assert "fixed_landmarks" not in cases["BraTSReg_002"]


def test_the_first_case_of_dirlab_has_its_published_grid(tmp_path):
    shape = (256, 256, 94)
    ramp = (np.arange(256)[:, None, None] + 2 * np.arange(256)[:, None] + 3 * np.arange(94)).astype(np.int16)
    generator = np.random.default_rng(1)
    points = {phase: generator.integers(0, shape, (300, 3)) for phase in ("00", "50")}
    write_dirlab(tmp_path / "source", 1, shape, {"00": ramp, "50": ramp + 7}, points)
    prepare_dirlab(tmp_path / "source", tmp_path / "out")
    assert sections_of(tmp_path / "out") == {"testing": ["case_01"]}
    (case,) = loaded(tmp_path / "out", 3).values()
    for side, phase, shift in (("fixed", "00", 0), ("moving", "50", 7)):
        image = SimpleITK.ReadImage(case[f"{side}_image"])
        assert image.GetSize() == shape
        assert image.GetSpacing() == pytest.approx((0.97, 0.97, 2.5))
        assert image.GetDirection() == pytest.approx(np.eye(3).ravel())
        assert image.GetPixel(10, 200, 50) == 10 + 2 * 200 + 3 * 50 + shift - 1024
        np.testing.assert_allclose(voxels_of(case, side)[1], points[phase], atol=1e-6)


@pytest.mark.parametrize(
    "layout",
    [
        {"ending": "-ssm"},
        {"ending": "", "kind": "Deploy", "landmarks": "case{}_dirLab300_T{}_xyz.txt"},
    ],
    ids=["ssm", "deploy"],
)
def test_names_of_dirlab_vary_and_its_values_become_hounsfield_units(tmp_path, monkeypatch, layout):
    image, points = small_dirlab(tmp_path / "source", monkeypatch, 6, **layout)
    small_dirlab(tmp_path / "source", monkeypatch, 10)
    prepare_dirlab(tmp_path / "source", tmp_path / "out")
    cases = loaded(tmp_path / "out", 3)
    assert list(cases) == ["case_06", "case_10"]
    for side, phase in (("fixed", "00"), ("moving", "50")):
        array = array_of(cases["case_06"][f"{side}_image"])
        np.testing.assert_array_equal(array, image[phase].astype(int) - 1024)
        _, voxels = voxels_of(cases["case_06"], side)
        np.testing.assert_allclose(voxels, points[phase], atol=1e-6)
        assert (array[tuple(np.rint(voxels).astype(int).T)] == 100).all()


def test_every_two_images_of_a_tissue_are_a_pair_in_its_smallest_scale(tmp_path):
    write_tissue(tmp_path / "source" / "lung-lesion_1" / "scale-5pc", ("b_HE", "a_CD31", "c_Ki67"), seed=1)
    write_tissue(tmp_path / "source" / "lung-lesion_1" / "scale-25pc", ("b_HE", "a_CD31", "c_Ki67"), 2, (80, 62))
    write_tissue(tmp_path / "source" / "mice-kidney_1" / "scale-10pc", ("x", "y"), seed=3, size=(20, 50), ending=".jpg")
    prepare_birl(tmp_path / "source", tmp_path / "out")
    assert sections_of(tmp_path / "out") == {
        "testing": ["lung_lesion_1_000", "lung_lesion_1_001", "lung_lesion_1_002", "mice_kidney_1_003"]
    }
    cases = loaded(tmp_path / "out", 2)
    tissues = [*["lung-lesion_1"] * 3, "mice-kidney_1"]
    assert [case["subject"] for case in cases.values()] == tissues
    case = cases["lung_lesion_1_001"]
    for side, name in (("fixed", "a_CD31"), ("moving", "c_Ki67")):
        assert case[f"{side}_image"].endswith(f"lung-lesion_1/scale-5pc/{name}.png")
        picture = np.asarray(Image.open(case[f"{side}_image"]))
        assert picture.shape == (31, 40, 3)
        x, y = np.rint(voxels_of(case, side)[1]).astype(int).T
        assert (picture[y, x] == 255).all()


def write_birl_table(folder):
    write_tissue(folder / "images" / "COAD_01" / "scale-25pc", ("S1", "S2", "S3"), seed=7)
    rows = [("S2", "S1", "training"), ("S1", "S3", "evaluation"), ("S3", "S2", "training")]
    columns = ["Image diagonal [pixels]", "Target image", "Source image", "Source landmarks", "Target landmarks"]
    with (folder / "dataset_medium.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", *columns, "status"])
        for number, (target, moving, status) in enumerate(rows):
            place = "images/COAD_01/scale-25pc"
            names = [f"{target}.png", f"{moving}.png", f"{moving}.csv", f"{target}.csv"]
            writer.writerow([number, 50.6, *[f"{place}/{name}" for name in names], status])


def test_a_table_of_birl_names_target_and_source_and_evaluation_is_left_out(tmp_path):
    (tmp_path / "source").mkdir()
    write_birl_table(tmp_path / "source")
    prepare_birl(tmp_path / "source", tmp_path / "out")
    cases = loaded(tmp_path / "out", 2)
    assert list(cases) == ["COAD_01_000", "COAD_01_001"]
    for case, fixed, moving in zip(cases.values(), ("S2", "S3"), ("S1", "S2"), strict=True):
        for side, name in (("fixed", fixed), ("moving", moving)):
            assert case[f"{side}_image"].endswith(f"{name}.png")
            x, y = np.rint(voxels_of(case, side)[1]).astype(int).T
            assert (np.asarray(Image.open(case[f"{side}_image"]))[y, x] == 255).all()


def test_published_histology_keeps_its_landmark_error(shared_data, tmp_path):
    prepare_birl(shared_data / "histology", tmp_path / "out")
    cases = list(loaded(tmp_path / "out", 2).values())
    with (shared_data / "histology" / "pairs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(cases) == len(rows) == 11
    for case, row in zip(cases, rows, strict=True):
        assert case["fixed_image"].endswith(row["fixed"])
        assert case["moving_image"].endswith(row["moving"])
        (labels, fixed), (_, moving) = (voxels_of(case, side) for side in ("fixed", "moving"))
        assert len(labels) == int(row["n_landmarks"])
        error = np.linalg.norm(fixed - moving, axis=1).mean()
        assert error == pytest.approx(float(row["tre_mean_px"]), abs=0.01)


def test_the_stains_give_the_same_pairs_without_their_table(shared_data, tmp_path):
    for name in ("lesions_", "lung_lesion_3"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for path in (shared_data / "histology" / name).iterdir():
            (tmp_path / "source" / name / path.name).symlink_to(path)
    prepare_birl(tmp_path / "source", tmp_path / "out")
    assert [case_id[:-4] for case_id in sections_of(tmp_path / "out")["testing"]] == ["lesions_"] + 10 * [
        "lung_lesion_3"
    ]


def table(**changes):
    def make(folder, monkeypatch):
        write_learn2reg(folder, pairs=(1,), validation=(), test=(), **changes)
        return folder / "NLST_dataset.json"

    return make


def file_of(write, name, content=None):
    """One file of a source removed, or replaced by text."""

    def make(folder, monkeypatch):
        write(folder, monkeypatch)
        path = folder / name
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        return path

    return make


def learn2reg(folder, monkeypatch):
    write_learn2reg(folder, pairs=(1,), validation=(), test=())


def bratsreg(folder, monkeypatch):
    write_bratsreg(folder, (1,), (5,))


def dirlab(folder, monkeypatch):
    small_dirlab(folder, monkeypatch, number=2)


def birl(folder, monkeypatch):
    write_birl_table(folder)


def tissue(folder, monkeypatch):
    write_tissue(folder / "t", ("a", "b"), seed=1)


def within(make, name):
    """The refusal names another path than the file that was changed."""

    def remake(folder, monkeypatch):
        make(folder, monkeypatch)
        return folder / name

    return remake


def empty(folder, monkeypatch):
    return folder


def two_tasks(folder, monkeypatch):
    learn2reg(folder, monkeypatch)
    (folder / "Other_dataset.json").write_text("{}")
    return folder


def other_shape(folder, monkeypatch):
    write_learn2reg(folder, pairs=(1,), validation=(), test=(), tensorImageShape={"0": [18, 24, 20], "1": [18, 24, 21]})
    return folder / "imagesTr" / "NLST_0001_0001.nii.gz"


def other_label(folder, monkeypatch):
    learn2reg(folder, monkeypatch)
    path = folder / "labelsTr" / "NLST_0001_0001.nii.gz"
    save(path, np.ones((18, 24, 19), np.uint8), oblique_affine())
    return path


def two_follow_ups(folder, monkeypatch):
    bratsreg(folder, monkeypatch)
    patient = folder / "BraTSReg_001"
    (patient / "BraTSReg_001_01_0099_t1ce.nii.gz").write_bytes(b"another")
    return patient


def other_case(folder, monkeypatch):
    (folder / "Case11Pack").mkdir()
    return folder / "Case11Pack"


def case_twice(folder, monkeypatch):
    dirlab(folder, monkeypatch)
    (folder / "Case2deploy").mkdir()
    return folder / "Case2deploy"


def other_numbers(folder, monkeypatch):
    dirlab(folder, monkeypatch)
    path = folder / "Case2Pack" / "Images" / "case2_T00_s.img"
    path.write_bytes(np.full(SHAPE, -32000, "<i2").tobytes())
    return path


def two_tables(folder, monkeypatch):
    write_birl_table(folder)
    (folder / "again.csv").write_bytes((folder / "dataset_medium.csv").read_bytes())
    return folder


BRATS = "BraTSReg_001/BraTSReg_001_"
XYZ = "Case2Pack/ExtremePhases/Case2_300_T00_xyz.txt"
HEADER = "Target image,Source image,Target landmarks,Source landmarks\n"


@pytest.mark.parametrize(
    ("prepare", "make", "fault"),
    [
        (prepare_learn2reg, empty, "holds 0 files NAME_dataset.json where one must stand"),
        (prepare_learn2reg, two_tasks, "holds 2 files NAME_dataset.json"),
        (prepare_learn2reg, file_of(learn2reg, "NLST_dataset.json", "{"), "cannot be read as JSON"),
        (prepare_learn2reg, file_of(learn2reg, "NLST_dataset.json", "[]"), "holds no object"),
        (prepare_learn2reg, table(registration_val=[{"fixed": "a"}]), "its registration_val must list pairs of"),
        (prepare_learn2reg, table(training_paired_images=None, training=[]), "lists no pair whose folder is here"),
        (prepare_learn2reg, table(training_paired_images=None, training={}), "its training must be a list"),
        (prepare_learn2reg, table(training_paired_images=None, training=[{"label": "x"}]), "names no image or more"),
        (prepare_learn2reg, table(registration_val=[dict.fromkeys(("fixed", "moving"), "../a")]), "lies outside"),
        (prepare_learn2reg, table(registration_val=[dict.fromkeys(("fixed", "moving"), "a.mha")]), "imagesTr/NAME"),
        (prepare_learn2reg, file_of(learn2reg, "imagesTr/NLST_0001_0001.nii.gz"), "there is no such file"),
        (prepare_learn2reg, file_of(learn2reg, "imagesTr/NLST_0001_0001.nii.gz", "x"), "cannot be read as an image"),
        (prepare_learn2reg, file_of(learn2reg, "labelsTr/NLST_0001_0001.nii.gz"), "there is no such file beside"),
        (prepare_learn2reg, file_of(learn2reg, "keypointsTr/NLST_0001_0000.csv"), "there is no such file beside"),
        (prepare_learn2reg, file_of(learn2reg, "keypointsTr/NLST_0001_0000.csv", "1,2\n"), "has 2 coordinates a row"),
        (prepare_learn2reg, file_of(learn2reg, "keypointsTr/NLST_0001_0000.csv", "1,2,99\n"), "lie outside"),
        (prepare_learn2reg, file_of(learn2reg, "keypointsTr/NLST_0001_0000.csv", "1,2,3\n"), "do not pair up"),
        (prepare_learn2reg, other_shape, "has the shape (18, 24, 20) where its task lists (18, 24, 21)"),
        (prepare_learn2reg, other_label, "has 18 x 24 x 19 voxels where its image has 18 x 24 x 20"),
        (prepare_bratsreg, empty, "holds no folder BraTSReg_NNN"),
        (
            prepare_bratsreg,
            within(file_of(bratsreg, f"{BRATS}00_0000_t1ce.nii.gz"), "BraTSReg_001"),
            "holds 0 files BraTSReg_001_00_0000_t1ce.nii.gz where one must stand",
        ),
        (prepare_bratsreg, two_follow_ups, "holds 2 files BraTSReg_001_01_*_t1ce.nii.gz"),
        (
            prepare_bratsreg,
            within(file_of(bratsreg, f"{BRATS}01_0005_landmarks.csv"), "BraTSReg_001"),
            "holds 0 files BraTSReg_001_01_*_landmarks.csv",
        ),
        (prepare_bratsreg, file_of(bratsreg, f"{BRATS}00_0000_landmarks.csv", "Landmark,X,Y,Z\n1,2,3,4\n"), "outside"),
        (prepare_dirlab, empty, "holds no folder CaseNPack"),
        (prepare_dirlab, other_case, "is not one of the ten 4DCT cases"),
        (prepare_dirlab, case_twice, "is not one of the ten 4DCT cases, or a case that came before"),
        (prepare_dirlab, other_numbers, "holds no CT of 16 bits"),
        (
            prepare_dirlab,
            file_of(dirlab, "Case2Pack/Images/case2_T50_s.img", "short"),
            "has 5 bytes where 18 x 24 x 20 voxels of 16 bits take 17280",
        ),
        (
            prepare_dirlab,
            within(file_of(dirlab, "Case2Pack/Images/case2_T50_s.img"), "Case2Pack"),
            "holds 0 files case2_T50*.img",
        ),
        (
            prepare_dirlab,
            within(file_of(dirlab, XYZ), "Case2Pack"),
            "holds 0 files case2_*300_T00_xyz.txt",
        ),
        (prepare_dirlab, file_of(dirlab, XYZ, "1 1 1\n2 2 2\n"), "2 fixed and 300 moving landmarks do not pair up"),
        (prepare_dirlab, file_of(dirlab, XYZ, "0 1 1\n"), "1 of 1 landmarks lie outside of the image"),
        (prepare_birl, empty, "holds neither a table with the columns Target image"),
        (prepare_birl, two_tables, "holds several tables of pairs"),
        (prepare_birl, file_of(birl, "dataset_medium.csv", HEADER), "has no row with published landmarks"),
        (prepare_birl, file_of(birl, "dataset_medium.csv", f"{HEADER}a,b,c,\n"), "row 1 does not name two images"),
        (prepare_birl, file_of(birl, "dataset_medium.csv", f"{HEADER}a.png,../b.png,c,d\n"), "lies outside"),
        (prepare_birl, file_of(birl, "images/COAD_01/scale-25pc/S1.png"), "there is no such file"),
        (prepare_birl, file_of(tissue, "t/b.csv"), "there is no such file"),
        (prepare_birl, within(file_of(tissue, "t/b.csv", ",X,Y\n0,1,2\n"), "t/a.csv"), "do not pair up"),
    ],
)
def test_a_source_of_another_layout_is_refused_and_nothing_is_left(
    tmp_path, one_sentence, monkeypatch, prepare, make, fault
):
    source = tmp_path / "source"
    source.mkdir()
    path = make(source, monkeypatch)
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError) as refusal:
        prepare(source, tmp_path / "data" / "out")
    one_sentence(str(refusal.value), path, fault)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("prepare", [prepare_learn2reg, prepare_bratsreg, prepare_dirlab, prepare_birl])
def test_a_source_that_is_no_folder_is_refused(tmp_path, one_sentence, prepare):
    with pytest.raises(InputError) as refusal:
        prepare(tmp_path / "absent", tmp_path / "out")
    one_sentence(str(refusal.value), tmp_path / "absent", "is not a folder; name the folder that holds")

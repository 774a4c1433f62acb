import json

import nibabel as nib
import numpy as np
import pytest
import scipy.io

from monai_jsm.data import SECTIONS, InputError, load_cases, load_datalist
from monai_jsm.data.published import prepare_acdc, prepare_lvquan

SHAPE = (150, 140, 4)
SPACING = (1.4, 1.6, 9.0)


def oblique_affine(spacing):
    """Rotated about two axes, left-handed."""
    a, b = 0.3, -0.5
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_z) @ about_x @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = (31, -42, 53)
    return affine


def write_patient(folder, end_systole=12, middle=(70, 60), spacing=SPACING, shape=SHAPE):
    """A left ventricle in slices 0 to 2 at end-diastole and 1 to 3 at end-systole; an image tells a voxel's place."""
    folder.mkdir(parents=True)
    group = "Group: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
    (folder / "Info.cfg").write_text(f"ED: 1\nES: {end_systole}\n{group}")
    axes = np.indices(shape)
    distance = np.hypot(axes[0] - middle[0], axes[1] - middle[1])
    for frame, radius, shown in ((1, 12, axes[2] < 3), (end_systole, 8, axes[2] > 0)):
        image = (axes[0] + 2 * axes[1] + 3 * axes[2] + frame).astype(np.int16)
        label = np.where(distance < radius, 3, np.where(distance < radius + 5, 2, 0)) * shown
        label[(axes[0] < 10) & (axes[1] > 130)] = 1
        stem = f"{folder.name}_frame{frame:02d}"
        for name, array in ((stem, image), (f"{stem}_gt", label.astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, oblique_affine(spacing)), folder / f"{name}.nii.gz")
    (folder / f"{folder.name}_4d.nii.gz").write_bytes(b"not read")


def write_lvquan(folder, subjects, names=("images_LV", "endo_LV", "epi_LV"), middle=(30, 45), stem="cardiac-dig"):
    """Rows around middle[0], columns around middle[1]; the cavity is largest in frame 3 and smallest in frame 9."""
    rows, columns = np.indices((80, 80))
    distance = np.hypot(rows - middle[0], columns - middle[1])[..., None]
    radius = np.full(20, 10.0)
    radius[[3, 9]] = (13, 6)
    endo = np.tile(distance < radius, subjects).astype(np.uint8)
    epi = np.tile(distance < radius + 4, subjects).astype(np.uint8)
    image = (rows + 100 * columns)[..., None] + np.arange(20 * subjects) / 1000.0
    content = dict(zip(names, (image, endo, epi), strict=True))
    scipy.io.savemat(folder / f"{stem}.mat", content | {"dims_LV": np.zeros((3, 20 * subjects))}, do_compression=True)


def case_ids(folder):
    datalist = json.loads((folder / "datalist.json").read_text())
    return {section: [case["id"] for case in datalist[section]] for section in SECTIONS}


def array_of(path):
    return np.asarray(nib.load(path).dataobj)


def test_patients_are_parted_where_there_is_no_testing_folder(tmp_path):
    for number in range(1, 13):
        write_patient(tmp_path / "source" / "training" / f"patient{number:03d}")
    prepare_acdc(tmp_path / "source", tmp_path / "data" / "acdc")
    ids = case_ids(tmp_path / "data" / "acdc")
    assert ids["testing"] == [f"patient{n:03d}_slice{i:02d}" for n in (1, 6, 11) for i in (1, 2)]
    assert ids["validation"] == [f"patient{n:03d}_slice{i:02d}" for n in (2, 12) for i in (1, 2)]
    assert len(ids["training"]) == 7 * 2
    for section in SECTIONS:
        cases = load_cases(tmp_path / "data" / "acdc", section, 2)
        assert [case["subject"] for case in cases] == [case["id"].split("_")[0] for case in cases]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["acdc"]


def test_the_testing_folder_is_for_testing_and_leaves_the_others_to_training(tmp_path):
    for part, number in (("training", 1), ("training", 2), ("training", 3), ("testing", 101), ("testing", 102)):
        write_patient(tmp_path / "source" / part / f"patient{number}")
    prepare_acdc(tmp_path / "source", tmp_path / "out")
    assert case_ids(tmp_path / "out") == {
        "training": [f"patient{n}_slice{i:02d}" for n in (1, 3) for i in (1, 2)],
        "validation": [f"patient2_slice{i:02d}" for i in (1, 2)],
        "testing": [f"patient{n}_slice{i:02d}" for n in (101, 102) for i in (1, 2)],
    }


@pytest.mark.parametrize(("middle", "corner"), [((70, 74), (6, 10)), ((12, 125), (0, 12)), ((140, 66), (22, 2))])
def test_slices_of_a_tilted_stack_become_upright_windows_of_both_phases(tmp_path, middle, corner):
    write_patient(tmp_path / "source" / "training" / "patient007", middle=middle, end_systole=9)
    prepare_acdc(tmp_path / "source", tmp_path / "out")
    case = load_cases(tmp_path / "out", "testing", 2)[1]
    assert case["id"] == "patient007_slice02"
    i, j = np.indices((128, 128)) + np.array(corner)[:, None, None]
    distance = np.hypot(i - middle[0], j - middle[1])
    for side, frame, radius in (("fixed", 1, 12), ("moving", 9, 8)):
        image = nib.load(case[f"{side}_image"])
        np.testing.assert_array_equal(np.asarray(image.dataobj), i + 2 * j + 3 * 2 + frame)
        assert image.header.get_zooms() == pytest.approx(SPACING[:2])
        # The first voxel of the uncut slice lies at the origin; LPS and RAS differ in the sign of x and y.
        np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [-1.4 * corner[0], -1.6 * corner[1], 18, 1], rtol=1e-6)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        label = array_of(case[f"{side}_label"])
        right = (i < 10) & (j > 130)
        expected = np.where(right, 1, np.where(distance < radius, 3, np.where(distance < radius + 5, 2, 0)))
        np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("names", [("images_LV", "endo_LV", "epi_LV"), ("image", "endo", "epi")], ids=" ".join)
def test_subjects_of_one_matlab_file_are_parted_and_stand_upright(tmp_path, names):
    (tmp_path / "source").mkdir()
    write_lvquan(tmp_path / "source", 12, names)
    prepare_lvquan(tmp_path / "source", tmp_path / "out")
    ids = case_ids(tmp_path / "out")
    assert ids["testing"] == [f"cardiac-dig_{number:03d}" for number in (1, 6, 11)]
    assert ids["validation"] == [f"cardiac-dig_{number:03d}" for number in (2, 12)]
    assert len(ids["training"]) == 7
    for section in SECTIONS:
        load_cases(tmp_path / "out", section, 2)
    case = load_datalist(tmp_path / "out", "testing")[1]
    columns, rows = np.indices((80, 80))  # the first axis goes to the right
    distance = np.hypot(rows - 30, columns - 45)
    for side, frame, radius in (("fixed", 3, 13), ("moving", 9, 6)):
        image = nib.load(case[f"{side}_image"])
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        expected = rows + 100 * columns + (5 * 20 + frame) / 1000
        np.testing.assert_allclose(np.asarray(image.dataobj), expected, rtol=1e-6)  # float32
        expected = np.where(distance < radius, 1, np.where(distance < radius + 4, 2, 0))
        np.testing.assert_array_equal(array_of(case[f"{side}_label"]), expected)


def test_one_matlab_file_for_each_subject_gives_its_name_to_the_case(tmp_path):
    (tmp_path / "source").mkdir()
    for stem in ("patient1", "patient2", "patient3"):
        write_lvquan(tmp_path / "source", 1, ("image", "endo", "epi"), stem=stem)
    prepare_lvquan(tmp_path / "source", tmp_path / "out")
    assert case_ids(tmp_path / "out") == {
        "training": ["patient3"],
        "validation": ["patient2"],
        "testing": ["patient1"],
    }


def patient(folder, **changes):
    write_patient(folder / "training" / "patient004", **changes)
    return folder / "training" / "patient004"


def changed(name, change):
    """A patient of which one file is removed (None), or its text or voxels changed."""

    def make(folder):
        path = patient(folder) / name
        if change is None:
            path.unlink()
        elif isinstance(change, str):
            path.write_text(change)
        else:
            image = nib.load(path)
            nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)
        return path

    return make


def other_spacing(folder):
    path = patient(folder) / "patient004_frame12.nii.gz"
    nib.save(nib.Nifti1Image(array_of(path), oblique_affine((1.4, 1.7, 9.0))), path)
    return path


def narrow_patient(folder):
    return patient(folder, shape=(150, 120, 4)) / "patient004_frame01.nii.gz"


def patient_without_common_slice(folder):
    path = patient(folder)
    label = path / "patient004_frame12_gt.nii.gz"
    image = nib.load(label)
    nib.save(nib.Nifti1Image(array_of(label) * (np.arange(4) > 2).astype(np.uint8), image.affine), label)
    return path


def matlab(**content):
    def make(folder):
        write_lvquan(folder, 2)
        path = folder / "cardiac-dig.mat"
        scipy.io.savemat(
            path,
            {name: array for name, array in scipy.io.loadmat(path).items() if name[0] != "_" and name not in content}
            | {name: array for name, array in content.items() if array is not None},
        )
        return path

    return make


def matlab_bytes(content):
    def make(folder):
        (folder / "cardiac-dig.mat").write_bytes(content)
        return folder / "cardiac-dig.mat"

    return make


def oddly_named_matlab(folder):
    write_lvquan(folder, 1, stem="a b")
    return folder / "a b.mat"


VERSION_7_3 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512)
LINE = np.zeros((80, 80, 40), np.uint8)
LINE[10, 10:50] = 1


@pytest.mark.parametrize(
    ("prepare", "make", "fault"),
    [
        (prepare_acdc, lambda folder: folder, "holds no training/patientNNN"),
        (prepare_acdc, changed("Info.cfg", None), "there is no such file or it is not text"),
        (prepare_acdc, changed("Info.cfg", "ED: 1\nGroup: NOR\n"), "lacks a line 'ED: NUMBER' or 'ES: NUMBER'"),
        (prepare_acdc, changed("patient004_frame12.nii.gz", None), "there is no such file"),
        (prepare_acdc, changed("patient004_frame12_gt.nii.gz", None), "there is no such file"),
        (prepare_acdc, changed("patient004_frame12.nii.gz", "damaged"), "cannot be read as an image"),
        (prepare_acdc, changed("patient004_frame12.nii.gz", lambda a: a[..., :3]), "has the shape (150, 140, 3) where"),
        (prepare_acdc, changed("patient004_frame01_gt.nii.gz", lambda a: a + 2), "other values than the labels 0 to 3"),
        (prepare_acdc, changed("patient004_frame01.nii.gz", np.zeros_like), "is constant"),
        (prepare_acdc, narrow_patient, "has the shape (150, 120, 4) where"),
        (prepare_acdc, other_spacing, "has another spacing than patient004_frame01.nii.gz"),
        (prepare_acdc, patient_without_common_slice, "has no slice with label 3 in both phases"),
        (prepare_lvquan, lambda folder: folder, "holds no .mat file"),
        (prepare_lvquan, matlab_bytes(b"damaged" * 99), "is damaged or not a MATLAB file"),
        (prepare_lvquan, matlab_bytes(VERSION_7_3), "is of MATLAB's version 7.3"),
        (prepare_lvquan, matlab(epi_LV=None), "holds dims_LV, endo_LV, images_LV where"),
        (prepare_lvquan, matlab(images_LV=np.zeros((80, 80, 41))), "its images_LV has the shape (80, 80, 41) where"),
        (prepare_lvquan, matlab(endo_LV=np.full((80, 80, 40), 0.5)), "its endo_LV holds other values than 0 and 1"),
        (prepare_lvquan, matlab(images_LV=np.full((80, 80, 40), "a")), "its images_LV holds other values than numbers"),
        (prepare_lvquan, matlab(images_LV=np.zeros((80, 80, 40))), "is constant"),
        (prepare_lvquan, matlab(endo_LV=LINE), "the endo of cardiac-dig_001 does not fill the inside of its epi"),
        (prepare_lvquan, matlab(endo_LV=np.zeros((80, 80, 40))), "the cavity of cardiac-dig_001 is absent"),
        (prepare_lvquan, oddly_named_matlab, "its name cannot name a case"),
    ],
)
def test_a_source_of_another_layout_is_refused_and_nothing_is_left(tmp_path, one_sentence, prepare, make, fault):
    source = tmp_path / "source"
    source.mkdir()
    path = make(source)
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError) as refusal:
        prepare(source, tmp_path / "data" / "out")
    one_sentence(str(refusal.value), path, fault)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("prepare", [prepare_acdc, prepare_lvquan])
def test_a_source_that_is_no_folder_is_refused(tmp_path, one_sentence, prepare):
    with pytest.raises(InputError) as refusal:
        prepare(tmp_path / "absent", tmp_path / "out")
    one_sentence(str(refusal.value), tmp_path / "absent", "is not a folder; name the folder that holds")

import csv
import gzip
import json
import struct

import nibabel as nib
import numpy as np
import pytest

from monai_jsm.data import (
    SECTIONS,
    InputError,
    check_cases,
    check_image,
    load_datalist,
    prepare_known_field,
    prepare_mnist,
    prepare_sunnybrook,
    read_landmarks,
)

STACK_AFFINE = np.array([[0.0, -1.25, 0, 90], [-1.25, 0, 0, 80], [0, 0, 8, -30], [0, 0, 0, 1]])


def write_stacks(folder, subject, shape=(150, 140, 2), middle=(70, 60), label=1):
    """Cavities are discs around ``middle``, smaller at end-systole; each voxel's intensity tells its place."""
    axes = np.indices(shape)
    image = (axes[0] + axes[1] + axes[2]).astype(np.int16)
    distance = np.hypot(axes[0] - middle[0], axes[1] - middle[1])
    stacks = {
        "ED": image,
        "ES": image + 1,
        "ED_label": label * (distance < 9) + 2 * ((distance >= 9) & (distance < 14)),
        "ES_label": label * (distance < 6),
    }
    for name, stack in stacks.items():
        nib.save(nib.Nifti1Image(stack.astype(np.int16), STACK_AFFINE), folder / f"{subject}_{name}.nii.gz")


def write_digits(folder, form, train=40, test=24):
    generator = np.random.default_rng(3)
    parts = {}
    for part, count in (("train", train), ("test", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        parts[part] = (images, (np.arange(count) % 3).astype(np.uint8))
    if form == "npz":
        arrays = {
            f"{axis}_{part}": array for part, pair in parts.items() for axis, array in zip("xy", pair, strict=True)
        }
        np.savez_compressed(folder / "mnist.npz", **arrays)
        return parts
    for part, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in zip(("images", "labels"), parts[part], strict=True):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            content = header + array.tobytes()
            name = f"{prefix}-{kind}{'.' if 'dot' in form else '-'}idx{array.ndim}-ubyte"
            if "gz" in form:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return parts


def write_known_field(folder, names=("case_000", "case_001")):
    generator = np.random.default_rng(5)
    (folder / "cases.csv").write_text("case,outlier\n" + "".join(f"{name},none\n" for name in names))
    for name in names:
        (folder / name).mkdir()
        for side in ("fixed", "moving"):
            image = nib.Nifti1Image(generator.random((20, 24), dtype=np.float32), np.diag([1.5, -1.2, 1, 1]))
            nib.save(image, folder / name / f"{side}.nii.gz")
            (folder / name / f"{side}_landmarks.csv").write_text("label,x,y\n0,4.5,7\n1,12,19.25\n")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def case_ids(folder):
    datalist = json.loads((folder / "datalist.json").read_text())
    return {section: [case["id"] for case in datalist[section]] for section in SECTIONS}


def test_subjects_are_parted_and_every_slice_is_a_case(tmp_path):
    (tmp_path / "source").mkdir()
    for number in range(12):
        write_stacks(tmp_path / "source", f"SC-{number:02d}")
    prepare_sunnybrook(tmp_path / "source", tmp_path / "data" / "sunnybrook")
    ids = case_ids(tmp_path / "data" / "sunnybrook")
    assert ids["testing"] == [f"SC-{n:02d}_slice{i:02d}" for n in (0, 5, 10) for i in (0, 1)]
    assert ids["validation"] == [f"SC-{n:02d}_slice{i:02d}" for n in (1, 11) for i in (0, 1)]
    assert len(ids["training"]) == 2 * 7
    for section in SECTIONS:
        cases = load_datalist(tmp_path / "data" / "sunnybrook", section)
        assert [case["subject"] for case in cases] == [case["id"].split("_slice")[0] for case in cases]
        check_cases(cases, 2)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["sunnybrook"]


@pytest.mark.parametrize(("middle", "corner"), [((70, 74), (6, 10)), ((3, 139), (0, 12)), ((149, 66), (22, 2))])
def test_a_window_is_centred_on_the_cavity_and_keeps_its_place(tmp_path, middle, corner):
    (tmp_path / "source").mkdir()
    write_stacks(tmp_path / "source", "A", middle=middle)
    prepare_sunnybrook(tmp_path / "source", tmp_path / "out")
    case = load_datalist(tmp_path / "out", "testing")[1]
    grid = check_image(case["fixed_image"], 2)
    assert grid.shape == (128, 128)
    expected = STACK_AFFINE.copy()
    expected[:3, 3] = (STACK_AFFINE @ [*corner, 1, 1])[:3]
    image = nib.load(case["fixed_image"])
    np.testing.assert_allclose(image.affine, expected)
    assert image.header.get_zooms() == (1.25, 1.25)
    array = np.asarray(image.dataobj)
    assert (array[0, 0], array[3, 5]) == (sum(corner) + 1, sum(corner) + 1 + 8)  # slice 1
    for side, radius in (("fixed", 9), ("moving", 6)):
        label = np.asarray(nib.load(case[f"{side}_label"]).dataobj)
        assert np.unique(label).tolist() == [0, 1]
        i, j = np.indices((128, 128))
        np.testing.assert_array_equal(label, np.hypot(i + corner[0] - middle[0], j + corner[1] - middle[1]) < radius)


def test_the_published_cine_slices_become_258_pairs_of_30_subjects(shared_data, tmp_path):
    prepare_sunnybrook(shared_data / "sunnybrook_cine", tmp_path / "out")
    ids = case_ids(tmp_path / "out")
    subjects = {section: {case_id.split("_slice")[0] for case_id in ids[section]} for section in SECTIONS}
    assert {section: (len(ids[section]), len(subjects[section])) for section in SECTIONS} == {
        "training": (172, 21),
        "validation": (27, 3),
        "testing": (59, 6),
    }
    assert len(set.union(*subjects.values())) == 30
    check_cases(load_datalist(tmp_path / "out", "testing"), 2)
    with (shared_data / "sunnybrook_cine" / "pairs.csv").open() as stream:
        dice = {
            f"{row['subject']}_slice{int(row['slice']):02d}": float(row["dice_endo"]) for row in csv.DictReader(stream)
        }
    for case in load_datalist(tmp_path / "out", "testing"):
        fixed, moving = (np.asarray(nib.load(case[f"{side}_label"]).dataobj) > 0 for side in ("fixed", "moving"))
        overlap = 2 * (fixed & moving).sum() / (fixed.sum() + moving.sum())
        assert overlap == pytest.approx(dice[case["id"]], abs=1e-4)  # four digits; no cavity is cut by its window


@pytest.mark.parametrize("form", ["npz", "idx", "idx gz", "idx dot", "idx dot gz"])
def test_digits_are_paired_within_their_class_and_used_once(tmp_path, form):
    (tmp_path / "source").mkdir()
    parts = write_digits(tmp_path / "source", form)
    prepare_mnist(tmp_path / "source", tmp_path / "out", training=11, validation=4, testing=7)
    ids = case_ids(tmp_path / "out")
    assert {section: len(ids[section]) for section in SECTIONS} == {"training": 11, "validation": 4, "testing": 7}
    used = []
    for section, part in (("training", "train"), ("validation", "train"), ("testing", "test")):
        for case_id in ids[section]:
            found, fixed, moving, _, digit = case_id.split("_")
            used += [(part, fixed), (part, moving)]
            assert found == part
            assert {parts[part][1][int(number)] for number in (fixed, moving)} == {int(digit)}
        check_cases(load_datalist(tmp_path / "out", section), 2)
    assert len(set(used)) == len(used) == 2 * (11 + 4 + 7)


def test_the_four_forms_of_mnist_give_the_same_pairs(tmp_path):
    for form in ("npz", "idx gz"):
        (tmp_path / form).mkdir()
        write_digits(tmp_path / form, form)
        prepare_mnist(tmp_path / form, tmp_path / f"{form} out", 5, 3, 2, seed=4)
    assert contents(tmp_path / "npz out") == contents(tmp_path / "idx gz out")
    prepare_mnist(tmp_path / "npz", tmp_path / "other", 5, 3, 2, seed=5)
    assert case_ids(tmp_path / "other") != case_ids(tmp_path / "npz out")


def test_a_digit_is_doubled_and_centred_with_its_columns_across(tmp_path):
    images = np.zeros((4, 28, 28), np.uint8)
    images[:, 3:9, 12:26] = 255  # 6 rows, 14 columns
    zeros = np.zeros(4, np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=zeros, x_test=images, y_test=zeros)
    prepare_mnist(tmp_path, tmp_path / "out", 1, 1, 1)
    case = load_datalist(tmp_path / "out", "testing")[0]
    image, label = (nib.load(case[f"moving_{kind}"]) for kind in ("image", "label"))
    expected = np.zeros((64, 64), np.uint8)
    expected[4 + 2 * 12 : 4 + 2 * 26, 4 + 2 * 3 : 4 + 2 * 9] = 1
    np.testing.assert_array_equal(np.asarray(label.dataobj), expected)
    assert np.asarray(image.dataobj).max() == 255
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")  # upright and unmirrored in a radiological viewer


def test_published_digits_become_pairs(shared_data, tmp_path):
    prepare_mnist(shared_data / "mnist", tmp_path / "out", training=30, validation=20, testing=60)
    cases = load_datalist(tmp_path / "out", "testing")
    check_cases(cases, 2)
    overlaps = []
    for case in cases:
        fixed, moving = (np.asarray(nib.load(case[f"{side}_label"]).dataobj) > 0 for side in ("fixed", "moving"))
        overlaps.append(2 * (fixed & moving).sum() / (fixed.sum() + moving.sum()))
    assert np.mean(overlaps) == pytest.approx(0.45, abs=0.06)  # two digits of one class, unregistered


def test_more_pairs_than_digits_are_refused(tmp_path, one_sentence):
    (tmp_path / "source").mkdir()
    write_digits(tmp_path / "source", "npz", train=21)  # three classes of 7: 9 pairs
    prepare_mnist(tmp_path / "source", tmp_path / "enough", 6, 3, 12)
    with pytest.raises(InputError) as refusal:
        prepare_mnist(tmp_path / "source", tmp_path / "out", 6, 4, 12)
    one_sentence(str(refusal.value), tmp_path / "source", "its train images give 9 pairs where 10 are asked for")


def test_negative_numbers_of_pairs_are_a_mistake_of_the_program(tmp_path):
    with pytest.raises(ValueError, match="must not be negative"):
        prepare_mnist(tmp_path, tmp_path / "out", training=-1)


def test_known_fields_are_all_for_testing_and_copied_as_they_are(tmp_path):
    (tmp_path / "source").mkdir()
    write_known_field(tmp_path / "source")
    (tmp_path / "source" / "case_001" / "outlier.nii.gz").write_bytes(b"any")
    prepare_known_field(tmp_path / "source", tmp_path / "out")
    assert case_ids(tmp_path / "out") == {"training": [], "validation": [], "testing": ["case_000", "case_001"]}
    copied = contents(tmp_path / "out")
    copied.pop(next(path for path in copied if path.name == "datalist.json"))
    assert copied == contents(tmp_path / "source")
    check_cases(load_datalist(tmp_path / "out", "testing"), 2)


def test_an_outlier_of_a_known_field_belongs_to_the_image_that_carries_it(tmp_path):
    (tmp_path / "source").mkdir()
    write_known_field(tmp_path / "source", ("a", "b", "c"))
    (tmp_path / "source" / "cases.csv").write_text("case,carrier,subject\na,fixed,S1\nb,,\nc,moving,S/2\n")
    for name in "ac":
        outlier = nib.Nifti1Image(np.eye(20, 24, dtype=np.uint8), np.diag([1.5, -1.2, 1, 1]))
        nib.save(outlier, tmp_path / "source" / name / "outlier.nii.gz")
    prepare_known_field(tmp_path / "source", tmp_path / "out")
    cases = load_datalist(tmp_path / "out", "testing")
    assert [[key for key in case if key.endswith("outlier")] for case in cases] == [
        ["fixed_outlier"],
        [],
        ["moving_outlier"],
    ]
    assert [case.get("subject") for case in cases] == ["S1", None, "S/2"]
    assert cases[2]["moving_outlier"] == str(tmp_path / "out" / "c" / "outlier.nii.gz")
    check_cases(cases, 2)


def test_published_known_fields_keep_their_initial_error(shared_data, tmp_path):
    prepare_known_field(shared_data / "known_field", tmp_path / "out")
    cases = load_datalist(tmp_path / "out", "testing")
    assert len(cases) == 40
    check_cases(cases, 2)
    with (shared_data / "known_field" / "cases.csv").open() as stream:
        expected = {row["case"]: float(row["initial_tre_px"]) * 1.25 for row in csv.DictReader(stream)}
    for case in cases:
        affine = check_image(case["fixed_image"], 2).affine
        fixed, moving = (
            read_landmarks(case[f"{side}_landmarks"], case["landmark_space"], affine) for side in ("fixed", "moving")
        )
        error = np.linalg.norm(fixed.positions - moving.positions, axis=1).mean()
        assert error == pytest.approx(expected[case["id"]], abs=1e-3)  # three digits of a pixel


def no_folder(folder):
    return folder / "absent"


def empty_folder(folder):
    return folder


def damaged(name, write, content=b"damaged"):
    def make(folder):
        write(folder)
        (folder / name).write_bytes(content)
        return folder / name

    return make


def missing(name, write):
    def make(folder):
        write(folder)
        (folder / name).unlink()
        return folder / name

    return make


def small_stacks(folder):
    write_stacks(folder, "A", shape=(150, 100, 2))
    return folder / "A_ED.nii.gz"


def unequal_stacks(folder):
    write_stacks(folder, "A", shape=(150, 140, 3))
    longer = (folder / "A_ES.nii.gz").read_bytes()
    write_stacks(folder, "A")
    (folder / "A_ES.nii.gz").write_bytes(longer)
    return folder / "A_ES.nii.gz"


def stacks_without_cavity(folder):
    write_stacks(folder, "A", label=3)
    return folder / "A_ED_label.nii.gz"


def one_subject(folder):
    write_stacks(folder, "A")


def two_archives(folder):
    write_digits(folder, "npz")
    (folder / "more.npz").write_bytes((folder / "mnist.npz").read_bytes())
    return folder


def wrong_digits(folder):
    arrays = {"x_train": np.zeros((4, 32, 32), np.uint8), "y_train": np.zeros(4), "x_test": np.zeros((4, 28, 28))}
    np.savez(folder / "mnist.npz", **arrays, y_test=np.zeros(4))
    return folder / "mnist.npz"


def pickled_digits(folder):
    np.savez(folder / "mnist.npz", x_train=np.array([{}], dtype=object))
    return folder / "mnist.npz"


def short_idx(folder):
    write_digits(folder, "idx")
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-10])
    return path


def npz(folder):
    write_digits(folder, "npz")


def idx(folder):
    write_digits(folder, "idx gz")


@pytest.mark.parametrize(
    ("prepare", "make", "fault"),
    [
        (prepare_sunnybrook, no_folder, "is not a folder; name the folder that holds SUBJECT_ED.nii.gz"),
        (prepare_sunnybrook, empty_folder, "holds no SUBJECT_ED.nii.gz"),
        (prepare_sunnybrook, missing("A_ES_label.nii.gz", one_subject), "there is no such file"),
        (prepare_sunnybrook, damaged("A_ES.nii.gz", one_subject), "cannot be read as an image"),
        (prepare_sunnybrook, small_stacks, "has the shape (150, 100, 2) where"),
        (prepare_sunnybrook, unequal_stacks, "has the shape (150, 140, 3) where"),
        (prepare_sunnybrook, stacks_without_cavity, "has no label 1 in slice 0"),
        (prepare_mnist, no_folder, "is not a folder; name the folder that holds one .npz file"),
        (prepare_mnist, empty_folder, "holds neither an .npz file nor train-images-idx3-ubyte"),
        (prepare_mnist, two_archives, "holds several .npz files"),
        (prepare_mnist, wrong_digits, "its train images are uint8 of the shape (4, 32, 32) for classes of the shape"),
        (prepare_mnist, pickled_digits, "is damaged or lacks one of x_train"),
        (prepare_mnist, damaged("mnist.npz", npz), "is damaged or lacks one of x_train"),
        (prepare_mnist, damaged("t10k-labels-idx1-ubyte.gz", idx), "is damaged or not an IDX file of 1 dimensions"),
        (prepare_mnist, short_idx, "is damaged or not an IDX file of 3 dimensions"),
        (prepare_known_field, no_folder, "is not a folder; name the folder that holds cases.csv"),
        (prepare_known_field, missing("cases.csv", write_known_field), "must be a CSV table"),
        (
            prepare_known_field,
            damaged("cases.csv", write_known_field, b"name\na\n"),
            "must be a CSV table with a column",
        ),
        (prepare_known_field, damaged("cases.csv", write_known_field, b"case\n"), "must name one or more folders"),
        (
            prepare_known_field,
            damaged("cases.csv", write_known_field, b"case,carrier\ncase_000,both\n"),
            "must say fixed, moving or nothing in its column carrier",
        ),
        (
            prepare_known_field,
            damaged("cases.csv", write_known_field, b"case\n../up\n"),
            "must name one or more folders",
        ),
        (prepare_known_field, missing("case_001/fixed.nii.gz", write_known_field), "there is no such file"),
        (
            prepare_known_field,
            damaged("case_001/moving_landmarks.csv", write_known_field, b"0,1,2\n1,2,3\n"),
            "has 3 coordinates a row",
        ),
    ],
)
def test_a_source_of_another_layout_is_refused_and_nothing_is_left(tmp_path, one_sentence, prepare, make, fault):
    source = tmp_path / "source"
    source.mkdir()
    path = make(source)
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError) as refusal:
        prepare(path if make is no_folder else source, tmp_path / "data" / "out")
    one_sentence(str(refusal.value), path, fault)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize(
    ("prepare", "write"),
    [(prepare_sunnybrook, one_subject), (prepare_mnist, npz), (prepare_known_field, write_known_field)],
)
def test_an_output_that_exists_is_left_alone(tmp_path, one_sentence, prepare, write):
    (tmp_path / "source").mkdir()
    write(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError) as refusal:
        prepare(
            tmp_path / "source",
            tmp_path / "out",
            **({"training": 1, "validation": 1, "testing": 1} if write is npz else {}),
        )
    one_sentence(str(refusal.value), tmp_path / "out", "exists already")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_output_that_cannot_be_made_is_refused(tmp_path, one_sentence):
    (tmp_path / "source").mkdir()
    write_known_field(tmp_path / "source")
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as refusal:
        prepare_known_field(tmp_path / "source", tmp_path / "file" / "out")
    one_sentence(str(refusal.value), tmp_path / "file" / "out", "cannot be made")

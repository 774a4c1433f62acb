import json
import os

import nibabel as nib
import numpy as np
import pytest

from monai_jsm.data import (
    SECTIONS,
    InputError,
    check_cases,
    datalist_spatial_dims,
    load_cases,
    load_datalist,
    load_pairs,
    write_phantom,
)

KEYS = {f"{side}_{kind}" for side in ("fixed", "moving") for kind in ("image", "label", "landmarks")}


def edit(folder, change):
    path = folder / "datalist.json"
    datalist = json.loads(path.read_text())
    change(datalist)
    path.write_text(json.dumps(datalist))


def set_in_case(key, value):
    def change(datalist):
        datalist["training"][1][key] = value

    return change


def rename(old, new):
    def change(datalist):
        case = datalist["training"][1]
        case[new] = case.pop(old)

    return change


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("section", SECTIONS)
def test_cases_come_with_absolute_paths_and_the_declared_frame(datalist_factory, section, spatial_dims):
    folder = datalist_factory(spatial_dims, cases_per_section=3)
    cases = load_datalist(folder, section)
    assert [case["id"] for case in cases] == [f"{section}_{number}" for number in range(3)]
    for case in cases:
        assert set(case) == KEYS | {"id", "landmark_space"}
        assert case["landmark_space"] == "lps"
        assert all(os.path.isabs(case[key]) and os.path.exists(case[key]) for key in KEYS)
    assert datalist_spatial_dims(folder) == spatial_dims
    check_cases(cases, spatial_dims)


def test_a_subject_is_kept_as_it_is_and_an_id_may_have_200_letters(datalist_factory):
    folder = datalist_factory()
    edit(folder, set_in_case("subject", "Smith, J. / left"))
    edit(folder, set_in_case("id", "x" * 200))
    cases = load_cases(folder, "training", 2)
    assert [case.get("subject") for case in cases[:2]] == [None, "Smith, J. / left"]
    assert cases[1]["id"] == "x" * 200


def test_a_table_of_pairs_may_name_subjects_and_refuses_ids_that_no_folder_can_have(tmp_path, one_sentence):
    (tmp_path / "pairs.csv").write_text("id,fixed,moving,subject\na,f.nii,m.nii,S1\nb,f.nii,m.nii,\n")
    assert [case.get("subject") for case in load_pairs(tmp_path / "pairs.csv")] == ["S1", None]
    (tmp_path / "pairs.csv").write_text(f"id,fixed,moving\n{'x' * 201},f.nii,m.nii\n")
    with pytest.raises(InputError, match="cannot name a folder"):
        load_pairs(tmp_path / "pairs.csv")


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_an_outlier_of_one_image_alone_is_located_and_passes(datalist_factory, side):
    folder = datalist_factory()
    plain = load_datalist(folder, "training")[1]
    edit(folder, set_in_case(f"{side}_outlier", f"training_1/{side}_label.nii.gz"))
    case = load_cases(folder, "training", 2)[1]
    assert case == plain | {f"{side}_outlier": plain[f"{side}_label"]}


def test_loading_cases_reads_their_files(datalist_factory, one_sentence):
    folder = datalist_factory(3, cases_per_section=1)
    cases = load_datalist(folder, "testing")
    assert load_cases(folder, "testing", 3) == cases
    with open(cases[0]["moving_image"], "r+b") as stream:
        stream.truncate(100)
    with pytest.raises(InputError) as refusal:
        load_cases(folder, "testing", 3)
    one_sentence(str(refusal.value), cases[0]["moving_image"], "cannot be read as an image")


def test_a_list_of_other_dimensions_than_asked_for_is_refused(datalist_factory, one_sentence):
    folder = datalist_factory(3, cases_per_section=1)
    with pytest.raises(InputError) as refusal:
        load_cases(folder, "testing", 2)
    one_sentence(str(refusal.value), folder / "datalist.json", "declares 3 spatial dimensions where 2 were asked for")


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_phantom_passes(tmp_path, spatial_dims):
    write_phantom(tmp_path / "phantom", spatial_dims, training=1, validation=1, testing=1)
    for section in SECTIONS:
        check_cases(load_datalist(tmp_path / "phantom", section), spatial_dims)


def test_paths_are_absolute_also_where_the_folder_is_relative(datalist_factory, monkeypatch):
    folder = datalist_factory()
    monkeypatch.chdir(folder.parent)
    assert load_datalist(folder.name, "testing") == load_datalist(folder, "testing")


def test_an_undeclared_frame_is_empty_and_refused_when_landmarks_are_read(datalist_factory, one_sentence):
    cases = load_datalist(datalist_factory(landmark_space=None), "training")
    assert {case["landmark_space"] for case in cases} == {""}
    with pytest.raises(InputError) as refusal:
        check_cases(cases, 2)
    one_sentence(str(refusal.value), cases[0]["fixed_landmarks"], "not declared")


@pytest.mark.parametrize("space", ["ras", "lps", "voxel0", "voxel1"])
def test_landmarks_of_every_frame_pass(datalist_factory, space):
    check_cases(load_datalist(datalist_factory(3, 1, landmark_space=space), "testing"), 3)


def test_an_unknown_section_is_a_mistake_of_the_program(datalist_factory):
    with pytest.raises(ValueError, match="section must be one of"):
        load_datalist(datalist_factory(), "test")


def test_a_folder_without_a_list_is_refused(tmp_path, one_sentence):
    for load in (datalist_spatial_dims, lambda folder: load_datalist(folder, "training")):
        with pytest.raises(InputError) as refusal:
            load(tmp_path)
        one_sentence(str(refusal.value), tmp_path / "datalist.json", "there is no such file")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"spatial_dims": 2,\n "training": [}', "is not JSON (Expecting value at line 2, column 15)"),
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "cannot be read as JSON in UTF-8"),
        (b"[" * 100_000, "cannot be read as JSON in UTF-8"),
        (b"[]", "the list: [] is not of type 'object'"),
        (b"{}", "the list: 'spatial_dims' is a required property"),
    ],
)
def test_what_is_no_datalist_is_refused(tmp_path, one_sentence, content, fault):
    (tmp_path / "datalist.json").write_bytes(content)
    with pytest.raises(InputError) as refusal:
        load_datalist(tmp_path, "training")
    one_sentence(str(refusal.value), tmp_path / "datalist.json", fault)


CASE = "case training[1] (id 'training_1')"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda datalist: datalist.update(spatial_dims=4), "key 'spatial_dims': 4 is not one of [2, 3]"),
        (lambda datalist: datalist.update(landmark_space="LPS"), "key 'landmark_space': 'LPS' is not one of"),
        (lambda datalist: datalist.update(landmarkspace="lps"), "('landmarkspace' was unexpected)"),
        (lambda datalist: datalist.update(training={}), "key 'training': {} is not of type 'array'"),
        (lambda datalist: datalist["training"].insert(1, "pair"), "case training[1]: 'pair' is not of type 'object'"),
        (lambda datalist: datalist["training"][1].pop("id"), "case training[1]: 'id' is a required property"),
        (set_in_case("id", "../up"), "case training[1] (id '../up'), key 'id': '../up' does not match"),
        (set_in_case("id", "x" * 201), "key 'id': 'xxxxxxxxxxxx...xxxxxxxxxxxxx' breaks the rule maxLength"),
        (set_in_case("subject", ""), f"{CASE}, key 'subject'"),
        (set_in_case("fixed_image", 12), f"{CASE}, key 'fixed_image': 12 is not of type 'string'"),
        (set_in_case("fixed_image", ["x" * 500]), f"{CASE}, key 'fixed_image': ['xxxx"),
        (set_in_case("fixed_image", ""), f"{CASE}, key 'fixed_image'"),
        (rename("moving_image", "moved_image"), CASE),
        (rename("moving_label", "moving_lable"), "('moving_lable' was unexpected)"),
        (lambda datalist: datalist["training"][1].pop("moving_landmarks"), f"{CASE} has only one of"),
        (lambda datalist: datalist["training"][1].pop("fixed_landmarks"), f"{CASE} has only one of"),
        (set_in_case("id", "training_0"), "two cases with the id 'training_0'"),
        (set_in_case("id", "testing_0"), "two cases with the id 'testing_0'"),
        (lambda datalist: datalist.update(training=[]), "has no training cases"),
        (lambda datalist: datalist.pop("training"), "has no training cases"),
        (
            set_in_case("moving_label", "gone.nii.gz"),
            "moving_label of case 'training_1' names 'gone.nii.gz', which does",
        ),
        (set_in_case("moving_label", "nul\0l.nii.gz"), "which does not exist"),
        (set_in_case("moving_label", "x" * 5000), "which does not exist"),
    ],
)
def test_a_list_that_breaks_the_rules_is_refused(datalist_factory, one_sentence, change, fault):
    folder = datalist_factory()
    edit(folder, change)
    with pytest.raises(InputError) as refusal:
        load_datalist(folder, "training")
    one_sentence(str(refusal.value), folder / "datalist.json", fault)


@pytest.mark.parametrize("way", ["absolute", "upwards", "file link", "folder link"])
def test_files_outside_of_the_folder_need_leave(datalist_factory, one_sentence, way):
    folder, other = datalist_factory(), datalist_factory()
    target = other / "training_1" / "moving_label.nii.gz"
    name = {
        "absolute": str(target),
        "upwards": f"../{other.name}/training_1/moving_label.nii.gz",
        "file link": "link.nii.gz",
        "folder link": "linked/training_1/moving_label.nii.gz",
    }[way]
    (folder / "link.nii.gz").symlink_to(target)
    (folder / "linked").symlink_to(other)
    edit(folder, set_in_case("moving_label", name))
    with pytest.raises(InputError) as refusal:
        load_datalist(folder, "training")
    one_sentence(
        str(refusal.value),
        folder / "datalist.json",
        "lies outside of the folder; move it inside or give --allow-outside",
    )
    cases = load_datalist(folder, "training", allow_outside=True)
    assert os.path.samefile(cases[1]["moving_label"], target)
    check_cases(cases, 2)


def test_a_detached_header_needs_leave(datalist_factory, one_sentence):
    folder = datalist_factory()
    (folder / "image.mhd").write_text("ElementDataFile = /etc/passwd")
    edit(folder, set_in_case("fixed_image", "image.mhd"))
    with pytest.raises(InputError) as refusal:
        load_datalist(folder, "training")
    one_sentence(str(refusal.value), folder / "datalist.json", "whose data may lie outside of the folder")


def test_links_inside_of_the_folder_keep_their_name(datalist_factory):
    folder = datalist_factory()
    (folder / "store").mkdir()
    (folder / "training_1" / "fixed_image.nii.gz").rename(folder / "store" / "4f2a")
    (folder / "training_1" / "fixed_image.nii.gz").symlink_to("../store/4f2a")
    cases = load_datalist(folder, "training")
    assert cases[1]["fixed_image"].endswith("fixed_image.nii.gz")
    check_cases(cases, 2)


def replace_image(side, change):
    def damage(case):
        image = nib.load(case[f"{side}_image"])
        array, affine = change(np.asarray(image.dataobj), image.affine)
        nib.save(nib.Nifti1Image(array, affine), case[f"{side}_image"])
        return case[f"{side}_image"]

    return damage


def replace_text(key, old, new):
    def damage(case):
        with open(case[key], encoding="utf-8") as stream:
            text = stream.read()
        assert old in text
        with open(case[key], "w", encoding="utf-8") as stream:
            stream.write(text.replace(old, new))
        return case[key]

    return damage


def swap_labels(case):
    case["fixed_label"] = case["moving_label"]
    return case["moving_label"]


def empty_mask(case):
    image = nib.load(case["moving_label"])
    case["moving_mask"] = case["moving_label"].replace("label", "mask")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), case["moving_mask"])
    return case["moving_mask"]


def outlier_of_the_other_grid(case):
    case["fixed_outlier"] = case["moving_label"]
    return case["fixed_outlier"]


def drop_landmarks(case):
    del case["moving_landmarks"]
    return case["fixed_landmarks"]


def pair_of_files(damage):
    return lambda case: f"{case['fixed_landmarks']} and {damage(case)}"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (replace_image("moving", lambda array, affine: (array * np.nan, affine)), "NaN or infinite voxels"),
        (replace_image("fixed", lambda array, affine: (array[:9], affine)), "needs at least 16"),
        (replace_image("moving", lambda array, affine: (array[..., None, None], affine)), "one scalar image of 3 axes"),
        (swap_labels, "has 26 x 27 x 22 voxels where its image has 24 x 28 x 20"),
        (empty_mask, "is an empty mask"),
        (outlier_of_the_other_grid, "has 26 x 27 x 22 voxels where its image has 24 x 28 x 20"),
        (drop_landmarks, "landmarks of one image cannot be compared"),
        (replace_text("fixed_landmarks", "label,x,y,z", "label,x,y,t"), "columns must be named"),
        (replace_text("moving_landmarks", "\na,-", "\na,-99"), "1 of 5 landmarks lie outside of the image ('a')"),
        (pair_of_files(replace_text("moving_landmarks", "\na,", "\nf,")), "'a', 'f' in one set only"),
    ],
)
def test_a_case_with_an_unusable_file_is_refused(datalist_factory, one_sentence, damage, fault):
    case = load_datalist(datalist_factory(3, cases_per_section=1), "testing")[0]
    path = damage(case)
    with pytest.raises(InputError) as refusal:
        check_cases([case], 3)
    one_sentence(str(refusal.value), path, fault)


def test_landmarks_of_too_few_coordinates_are_refused(datalist_factory, one_sentence):
    case = load_datalist(datalist_factory(3, cases_per_section=1), "testing")[0]
    with open(case["fixed_landmarks"], "w", encoding="utf-8") as stream:
        stream.write("label,x,y\na,1,2\n")
    with pytest.raises(InputError) as refusal:
        check_cases([case], 3)
    one_sentence(str(refusal.value), case["fixed_landmarks"], "has 2 coordinates a row where its image has 3 axes")

import csv
import gzip
import json
import math
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st

from monai_jsm.data import InputError
from monai_jsm.data.landmarks import (
    LANDMARK_SPACES,
    Landmarks,
    check_inside,
    landmark_layout,
    match_landmarks,
    read_landmarks,
    write_landmarks,
)

SUFFIXES = {
    **{"plain": ".csv", "ants": ".csv", "bratsreg": ".csv", "birl": ".csv", "learn2reg": ".csv"},
    **{"slicer": ".mrk.json", "fcsv": ".fcsv", "elastix": ".txt", "dirlab": ".txt"},
}
LABELLESS = ("elastix", "learn2reg", "dirlab")
AFFINE_2D = np.array([[0.0, -1.5, 10.0], [1.2, 0.0, -20.0], [0.0, 0.0, 1.0]])
SQUARE = Landmarks(("a", "b", "c"), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]))


def oblique_affine(spatial_dims, seed):
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.standard_normal((spatial_dims, spatial_dims)))
    rotation[:, 0] *= (-1) ** seed  # left-handed half of the time
    affine = np.eye(spatial_dims + 1)
    affine[:-1, :-1] = rotation * np.array([0.9, 1.3, 2.5])[:spatial_dims]
    affine[:-1, -1] = generator.uniform(-300, 300, spatial_dims)
    return affine


def written(folder, text, encoding="utf-8", name="points.csv"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("space", "world"),
    [
        ("ras", [4.0, 6.0]),
        ("lps", [-4.0, -6.0]),
        ("voxel0", [10.0 - 1.5 * 6, -20.0 + 1.2 * 4]),
        ("voxel1", [10.0 - 1.5 * 5, -20.0 + 1.2 * 3]),
    ],
)
def test_a_row_lies_where_its_frame_says(tmp_path, space, world):
    landmarks = read_landmarks(written(tmp_path, "label,x,y\ntip,4,6\n"), space, AFFINE_2D)
    assert landmarks.labels == ("tip",)
    np.testing.assert_allclose(landmarks.positions, [world], atol=1e-12)


def test_lps_turns_x_and_y_but_not_z(tmp_path):
    landmarks = read_landmarks(written(tmp_path, "label,x,y,z\ntip,4,6,8\n"), "lps", np.eye(4))
    assert landmarks.positions.tolist() == [[-4, -6, 8]]


def test_a_2d_file_takes_the_4x4_affine_of_its_image(tmp_path):
    affine = np.array([[0.0, -1.5, 0, 10.0], [1.2, 0.0, 0, -20.0], [0, 0, 8, 30], [0, 0, 0, 1.0]])
    path = written(tmp_path, "label,x,y\ntip,4,6\n")
    np.testing.assert_array_equal(
        read_landmarks(path, "voxel0", affine).positions, read_landmarks(path, "voxel0", AFFINE_2D).positions
    )


@pytest.mark.parametrize("layout", SUFFIXES)
@given(
    spatial_dims=st.sampled_from([2, 3]),
    space=st.sampled_from(LANDMARK_SPACES),
    seed=st.integers(0, 2**16),
    labels=st.lists(st.text("aÄß肺1,;'\"\\#", min_size=1, max_size=4), min_size=1, unique=True),
)
def test_written_landmarks_read_back_from_every_layout(tmp_path_factory, layout, spatial_dims, space, seed, labels):
    spatial_dims = 2 if layout == "birl" else spatial_dims
    path = tmp_path_factory.mktemp("landmarks") / f"points{SUFFIXES[layout]}"
    positions = np.random.default_rng(seed).uniform(-500, 500, (len(labels), spatial_dims))
    affine = oblique_affine(spatial_dims, seed)
    write_landmarks(path, Landmarks(tuple(labels), positions), space, affine, layout)
    again = read_landmarks(path, space, affine)
    numbered = tuple(map(str, range(len(labels))))
    assert again.labels == (numbered if layout in LABELLESS else tuple(labels))
    np.testing.assert_allclose(again.positions, positions, rtol=0, atol=1e-6)
    assert landmark_layout(path) == layout
    assert os.listdir(path.parent) == [path.name]  # no draft is left


@pytest.mark.parametrize(
    "text",
    [
        "\ufefflabel,x,y\na,1.5,-2\nb,3,4e1\n",
        "label;x;y\na;1.5;-2\nb;3;40\n",
        "label;x;y\na;1,5;-2\nb;3,0;40\n",
        "label\tx\ty\na\t1,5\t-2\nb\t3\t40\n",
        "LABEL, X, Y\r\na, 1.5, -2\r\nb, 3, 40\r\n\r\n",
        "y,x,label\n-2,1.5,a\n40,3,b\n",
        'label,x,y\n"a",1.5,-2\nb,"3",40',
    ],
    ids=["byte order mark", "semicolons", "decimal commas", "tabs", "blanks and CRLF", "other order", "quotes"],
)
def test_common_ways_to_write_a_table_read_alike(tmp_path, text):
    landmarks = read_landmarks(written(tmp_path, text), "ras", np.eye(3))
    assert landmarks.labels == ("a", "b")
    assert landmarks.positions.tolist() == [[1.5, -2], [3, 40]]


def test_rows_without_labels_are_numbered_from_zero(tmp_path):
    assert read_landmarks(written(tmp_path, "x,y\n1,2\n3,4\n"), "ras", np.eye(3)).labels == ("0", "1")


@pytest.mark.parametrize(
    ("text", "space", "fault"),
    [
        ("label,x,y\na,1,2\n", "", "not declared; give --landmark-space {lps,ras,voxel0,voxel1} or declare"),
        ("label,x,y\na,1,2\n", "mni", '"mni", which is unknown'),
        ("x,y,z\n1,2,3\n", "", "not declared; give --landmark-space"),
        ("1.0,2.0\n3.0,4.0\n", "", "not declared; give --landmark-space"),
        ("1.0,2.0\n3.0,4.0\n", "", "landmark_space in datalist.json (Learn2Reg is voxel0, DIR-Lab is voxel1)"),
        ("", "ras", "is empty and holds no landmarks"),
        (" \n\n", "ras", "is empty and holds no landmarks"),
        ("label,x,y\n", "ras", "holds no landmarks"),
        ("1,2,3,4\n", "ras", "its first line holds 4 numbers and no names of columns"),
        ("2\n1 2\n3 4\n", "ras", "its first line holds 1 numbers and no names of columns"),
        ("1 2\n3 4 5\n", "ras", "landmark 2 has 3 coordinates where the first has 2"),
        ("1,2\n3,b\n", "ras", "landmark 2 has 'b' where a finite number"),
        ("1,2\n\n3,nan\n", "ras", "landmark 2 has 'nan'"),
        ("1 2\n-1e309 2\n", "ras", "landmark 2 has '-1e309'"),
        (",x,y,z,t\n0,1,2,3,0\n", "ras", "columns must be named"),
        ("id,x,y\n1,2,3\n", "ras", "columns must be named"),
        ("label,x,y\na,1,2\nb,3,-10000.1\n", "lps", "landmark 2 lies more than 10000 mm from the origin"),
        ("Landmark,X,Y\n1,2,3\n", "ras", "columns must be named"),
        ("label,x,y,x\na,1,2,3\n", "ras", "columns must be named"),
        ("label,x,z\na,1,2\n", "ras", "columns must be named"),
        ("label,x,y\na,1,5,2,5\n", "ras", "landmark 1 has 5 fields where the header has 3"),
        ("label,x,y\na,1,2\nb,1\n", "ras", "landmark 2 has 2 fields"),
        ("label,x,y\na,one,2\n", "ras", "landmark 1 has 'one' where a finite number"),
        ("label,x,y\na,1,2\nb,nan,2\n", "ras", "landmark 2 has 'nan'"),
        ("label,x,y\na,inf,2\n", "ras", "landmark 1 has 'inf'"),
        ("label,x,y\na,1_0,2\n", "ras", "landmark 1 has '1_0'"),
        ("label,x,y\na,,2\n", "ras", "landmark 1 has ''"),
        ('label,x,y\na,"1,5",2\n', "ras", "landmark 1 has '1,5'"),
        ("label;x;y\na;1.234,5;2\n", "ras", "landmark 1 has '1.234,5'"),
        ("label,x,y\na,1,2\n ,3,4\n", "ras", "landmark 2 has no label"),
        ("label,x,y\na,1,2\nb,3,4\na,5,6\n", "ras", "holds the label 'a' twice"),
        ("label,x,y\na\tb,1,2\n", "ras", "the label 'a\\tb' holds a control character"),
        ("label,x,y,z\na,1,2,3\n", "ras", "has 3 coordinates a row where its image has 2 axes"),
        ("label,x,y,z\na,1,2,1e-5\n", "ras", "has 3 coordinates a row where its image has 2 axes"),
        ("x,y,z,t,label\n1,2,0,0,a\n1,2,0,0,a\n", "", "holds the label 'a' twice"),
        ("Landmark,X,Y,Z\n1,2,,0\n", "", "landmark 1 has ''"),
        (",X,Y\n1,2,3\n1,4,5\n", "", "holds the label '1' twice"),
        ("point\n3\n1 2\n3 4\n", "", "its second line is '3' where 2 landmarks follow"),
        ("point\n1 2\n3 4\n", "", "its second line is '1 2' where 1 landmarks follow"),
        ("point\n", "", "its second line is '' where 0 landmarks follow"),
        ("point\n0\n", "", "holds no landmarks"),
        ("point\n1\n1 2 3 4\n", "", "has 4 coordinates a row where 2 or 3 must stand"),
        ("point\n2\n1 2\n3 x\n", "", "landmark 2 has 'x'"),
        ("index\n2\n1 2\n3 4.5\n", "", "has fractions, which elastix cuts off"),
        ("Point\t0\t; OutputPoint = [ 1 2 ]\nPoint\t1\t; OutputPoi", "", "landmark 2 has no OutputPoint"),
        ("MZ\0\1\2", "ras", "columns must be named"),
        (",,\n;;\n", "ras", "columns must be named"),
        ('label,x,y\n"a,1,2\nb,3,4\n', "ras", "landmark 1 has 1 fields"),
        (f"label,x,y\n{'a' * 200_000},1,2\n", "ras", "is not a CSV file (field larger than field limit"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(tmp_path, one_sentence, text, space, fault):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as refusal:
        read_landmarks(path, space, np.eye(3))
    one_sentence(str(refusal.value), path, fault)


def test_a_file_in_another_encoding_is_refused(tmp_path, one_sentence):
    path = written(tmp_path, "label,x,y\na,1,2\n", encoding="utf-16")
    with pytest.raises(InputError) as refusal:
        read_landmarks(path, "ras", np.eye(3))
    one_sentence(str(refusal.value), path, "save it as a landmark file in UTF-8")


def test_a_binary_file_is_refused(tmp_path, one_sentence):
    (tmp_path / "points.csv").write_bytes(gzip.compress(b"label,x,y\na,1,2\n"))
    with pytest.raises(InputError) as refusal:
        read_landmarks(tmp_path / "points.csv", "ras", np.eye(3))
    one_sentence(str(refusal.value), tmp_path / "points.csv", "cannot be read as text")


def test_an_absent_file_is_refused(tmp_path, one_sentence):
    with pytest.raises(InputError) as refusal:
        read_landmarks(tmp_path / "none.csv", "ras", np.eye(3))
    one_sentence(str(refusal.value), tmp_path / "none.csv", "there is no such file")


def test_an_unknown_frame_is_not_written(tmp_path):
    with pytest.raises(ValueError, match='the frame of its landmarks is "mni", which is unknown; give'):
        write_landmarks(tmp_path / "points.csv", SQUARE, "mni", np.eye(3))


@given(order=st.permutations(range(3)))
def test_landmarks_pair_by_label_in_the_order_of_fixed(order):
    shuffled = Landmarks(tuple(SQUARE.labels[i] for i in order), SQUARE.positions[list(order)] + 0.5)
    fixed, moving = match_landmarks(SQUARE, shuffled)
    assert fixed.labels == moving.labels == SQUARE.labels
    np.testing.assert_array_equal(moving.positions - fixed.positions, np.full((3, 2), 0.5))


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (("a", "b"), "3 fixed and 2 moving landmarks do not pair up: 'c' in one set only"),
        (("a", "b", "d"), "'c', 'd' in one set only"),
        (("a", "b", "b"), "the moving landmarks hold the label 'b' twice"),
        (("a", "b", "c", "d", "e", "f", "g", "h", "i"), "'d', 'e', 'f', 'g', 'h' and 1 more in one set only"),
    ],
)
def test_landmarks_that_do_not_pair_up_are_refused(labels, fault):
    with pytest.raises(InputError, match=fault):
        match_landmarks(SQUARE, Landmarks(labels, np.zeros((len(labels), 2))))


def test_landmarks_that_a_layout_may_leave_out_are_left_out_of_both_sets(caplog):
    fixed = Landmarks(("1", "2", "4", "5"), np.arange(12.0).reshape(4, 3), may_be_absent=True)
    moving = Landmarks(("5", "3", "1"), np.arange(9.0).reshape(3, 3), may_be_absent=True)
    matched = match_landmarks(fixed, moving)
    assert matched[0].labels == matched[1].labels == ("1", "5")
    assert matched[0].positions.tolist() == [[0, 1, 2], [9, 10, 11]]
    assert matched[1].positions.tolist() == [[6, 7, 8], [0, 1, 2]]
    assert "4 fixed and 3 moving landmarks, 3 are left out" in caplog.text


def test_a_landmark_may_be_absent_only_where_the_layout_says_so():
    some = Landmarks(SQUARE.labels[:2], SQUARE.positions[:2], may_be_absent=True)
    assert match_landmarks(SQUARE, some)[0].labels == ("a", "b")
    with pytest.raises(InputError, match="'c' in one set only"):
        match_landmarks(SQUARE._replace(may_be_absent=True), some._replace(may_be_absent=False))


def test_sets_without_a_common_landmark_are_refused():
    others = Landmarks(("d", "e", "f"), SQUARE.positions, may_be_absent=True)
    with pytest.raises(InputError, match=r"do not pair up: 'a', 'b', 'c' in one set only"):
        match_landmarks(SQUARE._replace(may_be_absent=True), others)


def test_all_landmarks_that_pair_up_give_no_warning(caplog):
    match_landmarks(SQUARE._replace(may_be_absent=True), SQUARE)
    assert not caplog.text


def test_half_a_voxel_outside_is_still_inside():
    corners = np.array([[-0.5, -0.5], [5.5, 6.5], [-0.5, 6.5], [2.0, 3.0]])
    world = corners @ AFFINE_2D[:2, :2].T + AFFINE_2D[:2, 2]
    check_inside(Landmarks(("a", "b", "c", "d"), world), (6, 7), AFFINE_2D)


def test_a_landmark_outside_is_refused_by_name():
    world = np.array([[0.0, -0.51], [2, 3], [4, 3]]) @ AFFINE_2D[:2, :2].T + AFFINE_2D[:2, 2]
    with pytest.raises(InputError, match=r"1 of 3 landmarks lie outside of the image \('far'\); correct"):
        check_inside(Landmarks(("far", "b", "c"), world), (6, 7), AFFINE_2D)


def test_landmarks_mostly_outside_point_to_the_frame():
    with pytest.raises(InputError, match="check the declared landmark_space"):
        check_inside(Landmarks(SQUARE.labels, SQUARE.positions + 1000), (6, 7), AFFINE_2D)


AFFINE_3D = np.array([[0.0, -1.3, 0.0, 10.0], [0.9, 0.0, 0.0, -20.0], [0.0, 0.0, -2.5, 300.0], [0.0, 0.0, 0.0, 1.0]])
"""Left-handed; voxel (4, 6, 8) lies at (2.2, -16.4, 280) RAS."""


@pytest.mark.parametrize(
    ("name", "text", "space", "layout"),
    [
        ("a.csv", "x,y,z,t\n-2.2,16.4,280,0\n", "", "ants"),
        ("a.csv", "x,y,z,t,comment,label\n-2.2,16.4,280,0,nan,0\n", "ras", "ants"),
        ("a.csv", '"x","y","z","t"\n-2.2,16.4,280,0\n', "", "ants"),
        ("a.csv", "Landmark,X,Y,Z\n0,-2.2,16.4,280\n", "", "bratsreg"),
        ("a.csv", "4.00000,6.00000,8.00000\n", "voxel0", "learn2reg"),
        ("a.csv", "\ufeff4,0;6,0;8\n", "voxel0", "learn2reg"),
        ("a.txt", "5\t7\t9\t\r\n", "voxel1", "dirlab"),
        ("a.txt", "  5  7\t9 \n\n", "voxel1", "dirlab"),
        ("a.txt", "2.2 -1.64e1 280\n", "ras", "dirlab"),
        ("a.txt", "point\n1\n-2.2 16.4 280\n", "voxel1", "elastix"),
        ("a.pts", "index\r\n1\r\n4 6.0 8\r\n", "", "elastix"),
        (
            "outputpoints.txt",
            "Point\t0\t; InputIndex = [ 9 9 9 ]\t; InputPoint = [ 1.0 1.0 1.0 ]\t; OutputIndexFixed = [ 8 8 8 ]\t; "
            "OutputPoint = [ -2.200000 16.400000 280.000000 ]\t; Deformation = [ 3.0 3.0 3.0 ]\n",
            "",
            "elastix",
        ),
        ("a.csv", "z,label,y,x\n280,0,-16.4,2.2\n", "ras", "plain"),
        ("a.txt", "x\ty\tz\n2,2\t-16,4\t280\n", "ras", "plain"),
        ("a.fcsv", "# Markups fiducial file version = 4.13\n# CoordinateSystem = LPS\n", "ras", "fcsv"),
        ("a.fcsv", "# Markups fiducial file version = 4.10\n# CoordinateSystem = 1\n", "ras", "fcsv"),
        ("a.fcsv", "# Markups fiducial file version = 4.10\n# CoordinateSystem = 0\n", "lps", "fcsv"),
        ("a.fcsv", "", "lps", "fcsv"),
    ],
)
def test_a_file_is_read_in_the_frame_of_its_layout(tmp_path, name, text, space, layout):
    if name.endswith("fcsv"):
        sign = -1 if "LPS" in text or "= 1" in text else 1
        text += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        text += f"7,{sign * 2.2},{sign * -16.4},280,0,0,0,1,1,1,0,0,,node1,2,0\n"
    path = written(tmp_path, text, name=name)
    landmarks = read_landmarks(path, space, AFFINE_3D)
    assert landmarks.labels == ("0",)
    np.testing.assert_allclose(landmarks.positions, [[2.2, -16.4, 280]], atol=1e-12)
    assert landmarks.may_be_absent == (layout == "bratsreg")
    assert landmark_layout(path) == layout


@pytest.mark.parametrize("header", [",X,Y", "id,X,Y", "id;X;Y"])
def test_birl_pixels_are_voxels_whose_labels_stand_first(tmp_path, header):
    path = written(tmp_path, f"{header}\nn7,4,6\n".replace(",", ";" if ";" in header else ","))
    landmarks = read_landmarks(path, "", AFFINE_2D)
    assert landmarks.labels == ("n7",)
    np.testing.assert_allclose(landmarks.positions, [[10.0 - 1.5 * 6, -20.0 + 1.2 * 4]], atol=1e-12)
    assert landmark_layout(path) == "birl"


def test_bratsreg_counts_voxels_from_minus_239_mm_in_y(tmp_path):
    atlas = np.diag([-1.0, -1.0, 1.0, 1.0])
    atlas[1, 3] = 239  # 240 x 240 x 155 voxels of 1 mm, LPS origin (0, -239, 0)
    landmarks = read_landmarks(written(tmp_path, "Landmark,X,Y,Z\n3,100,-139,70\n"), "", atlas)
    voxels = np.linalg.inv(atlas) @ [*landmarks.positions[0], 1]
    np.testing.assert_allclose(voxels[:3], [100, 100, 70])


def markups(**changes):
    points = [
        {"id": "1", "label": "tip", "position": [-2.2, 16.4, 280], "positionStatus": "defined"},
        {"id": "2", "label": "base, left", "position": [1, 2, 3]},
    ]
    fiducials = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    return {"@schema": "markups-schema-v1.0.0.json#", "markups": [fiducials | changes]}


@pytest.mark.parametrize(
    ("changes", "signs"),
    [
        ({}, [-1, -1, 1]),
        ({"coordinateSystem": "RAS"}, [1, 1, 1]),
        ({"coordinateSystem": "0"}, [1, 1, 1]),
        ({"coordinateSystem": "1"}, [-1, -1, 1]),
        ({"coordinateUnits": ["mm", "UCUM", "millimeter"]}, [-1, -1, 1]),
    ],
)
def test_slicer_markups_say_their_frame(tmp_path, changes, signs):
    path = written(tmp_path, json.dumps(markups(**changes)), name="F.mrk.json")
    landmarks = read_landmarks(path, "voxel1", AFFINE_3D)
    assert landmarks.labels == ("tip", "base, left")
    np.testing.assert_allclose(landmarks.positions, np.array([[-2.2, 16.4, 280], [1, 2, 3]]) * signs)
    assert landmark_layout(path) == "slicer"


def test_markups_without_frame_and_unit_are_lps_in_mm_beside_an_empty_list(tmp_path):
    content = markups()
    del content["markups"][0]["coordinateSystem"], content["markups"][0]["coordinateUnits"]
    content["markups"].insert(0, {"type": "Fiducial", "controlPoints": []})
    landmarks = read_landmarks(written(tmp_path, json.dumps(content), name="F.JSON"), "", AFFINE_3D)
    np.testing.assert_allclose(landmarks.positions, [[2.2, -16.4, 280], [-1, -2, 3]])


def point(**changes):
    return {"controlPoints": [{"label": "tip", "position": [1, 2, 3]} | changes]}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (json.dumps(markups())[:-40], "is cut off or not JSON"),
        ("[" * 100_000, "is cut off or not JSON"),
        ("[1, 2]", "is JSON but no markups of 3D Slicer"),
        ({"spatial_dims": 2, "testing": []}, "is JSON but no markups of 3D Slicer"),
        ({"markups": ["Fiducial"]}, "is JSON but no markups of 3D Slicer"),
        ({"markups": []}, "holds no landmarks"),
        (markups(controlPoints=[]), "holds no landmarks"),
        ({"markups": markups()["markups"] * 2}, "holds 2 lists of points"),
        (markups(type="Line"), "holds 'Line' and no point list"),
        (markups(controlPoints=[1]), "holds 'Fiducial' and no point list"),
        (markups(controlPoints={"label": "a"}), "holds 'Fiducial' and no point list"),
        (markups(coordinateSystem="IJK"), "has the coordinate system 'IJK'"),
        (markups(coordinateUnits="um"), "coordinateUnits are 'um' and not mm"),
        (markups(coordinateUnits=["m", "UCUM", "metre"]), "and not mm; set the length unit"),
        (markups(**point(positionStatus="undefined")), "landmark 1 ('tip') has the positionStatus 'undefined'"),
        (markups(**point(positionStatus="missing")), "place it or delete it, and its counterpart"),
        (markups(**point(position=None)), "landmark 1 ('tip') has no position of 3 numbers"),
        (markups(**point(position=[1, 2])), "landmark 1 ('tip') has no position of 3 numbers"),
        (markups(**point(position=[1, math.nan, 3])), "landmark 1 has 'nan' where a finite number"),
        (markups(**point(position=[1, "2", 3])), "landmark 1 has \"'2'\" where a finite number"),
        (markups(**point(position=[1, True, 3])), "landmark 1 has 'True' where a finite number"),
        (markups(**point(position=[1, 10**400, 3])), "where a finite number"),
        (markups(**point(position=[1, 20000.0, 3])), "landmark 1 lies more than 10000 mm"),
        (markups(controlPoints=point()["controlPoints"] * 2), "holds the label 'tip' twice"),
        (
            markups(controlPoints=[*point()["controlPoints"], *point(label="")["controlPoints"]]),
            "landmark 2 has no label",
        ),
    ],
)
def test_markups_that_cannot_be_trusted_are_refused(tmp_path, one_sentence, content, fault):
    path = written(tmp_path, content if isinstance(content, str) else json.dumps(content), name="F.mrk.json")
    with pytest.raises(InputError) as refusal:
        read_landmarks(path, "", AFFINE_3D)
    one_sentence(str(refusal.value), path, fault)


COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("tip,1,2,3,1,1\n", "has no line '# columns = id,x,y,z"),
        (COLUMNS, "holds no landmarks"),
        ("# CoordinateSystem = 2\n" + COLUMNS + "1,1,2,3\n", "has the coordinate system '2'"),
        (COLUMNS + "1,1,2\n", "landmark 1 has '' where a finite number"),
        (COLUMNS + "1,1,2,3,0,0,0,1,1,1,0,tip,,,0,0\n", "landmark 1 ('tip') has the positionStatus '0'"),
        (COLUMNS + "1,1,2,3,0,0,0,1,1,1,0,tip,,\n2,1,2,3,0,0,0,1,1,1,0,,,\n", "landmark 2 has no label"),
    ],
)
def test_an_fcsv_file_that_cannot_be_trusted_is_refused(tmp_path, one_sentence, text, fault):
    path = written(tmp_path, text, name="F.fcsv")
    with pytest.raises(InputError) as refusal:
        read_landmarks(path, "", AFFINE_3D)
    one_sentence(str(refusal.value), path, fault)


def test_points_without_any_label_are_numbered_from_zero(tmp_path):
    nameless = [{"position": [1, 2, 3]}, {"position": [4, 5, 6]}]
    path = written(tmp_path, json.dumps(markups(controlPoints=nameless)), name="F.mrk.json")
    assert read_landmarks(path, "", AFFINE_3D).labels == ("0", "1")


@pytest.mark.parametrize(("space", "z"), [("ras", 0), ("lps", -5e-7), ("voxel0", 0), ("voxel1", 1)])
def test_three_coordinates_are_accepted_for_a_2d_image_on_its_only_slice(tmp_path, space, z):
    flat = read_landmarks(written(tmp_path, "label,x,y\na,4,6\n"), space, AFFINE_2D)
    path = written(tmp_path, f"label,x,y,z\na,4,6,{z}\n")
    np.testing.assert_array_equal(read_landmarks(path, space, AFFINE_2D).positions, flat.positions)
    assert read_landmarks(path, space, AFFINE_3D).positions.shape == (1, 3)


@pytest.mark.parametrize("dims", [2, 3])
def test_landmarks_in_mm_need_no_image(tmp_path, dims):
    landmarks = Landmarks(("a", "b"), np.array([[2.2, -16.4, 280], [-1, -2, 3]])[:, :dims])
    for name, space in (("a.csv", "ras"), ("b.csv", "lps"), ("c.txt", "")):
        write_landmarks(tmp_path / name, landmarks, space, None)
        np.testing.assert_array_equal(read_landmarks(tmp_path / name, space, None).positions, landmarks.positions)


def test_landmarks_in_voxels_need_their_image(tmp_path, one_sentence):
    path = written(tmp_path, ",X,Y\n1,2,3\n")
    for attempt in (
        lambda: read_landmarks(path, "", None),
        lambda: write_landmarks(path, SQUARE, "voxel1", None),
    ):
        with pytest.raises(InputError) as refusal:
            attempt()
        one_sentence(str(refusal.value), path, "holds voxels of an image that is not given")


def test_voxels_may_count_beyond_ten_thousand(tmp_path):
    landmarks = read_landmarks(written(tmp_path, ",X,Y\n1,25000,30000\n"), "", np.diag([-1.0, -1.0, 1.0]))
    assert landmarks.positions.tolist() == [[-25000, -30000]]


@pytest.mark.parametrize(
    ("name", "layout", "space", "fault"),
    [
        ("a.nii.gz", "", "lps", "has no suffix of a landmark file"),
        ("a.csv", "slicer", "lps", "cannot hold landmarks in the layout slicer"),
        ("a.mrk.json", "ants", "lps", "cannot hold landmarks in the layout ants"),
        ("a.csv", "", "", "not declared; give --landmark-space"),
        ("a.csv", "birl", "", "the layout birl holds pixels of 2D images only"),
        ("absent/a.csv", "", "lps", "cannot be written (No such file or directory)"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path, one_sentence, name, layout, space, fault):
    with pytest.raises(InputError) as refusal:
        write_landmarks(tmp_path / name, Landmarks(("a",), np.ones((1, 3))), space, AFFINE_3D, layout)
    one_sentence(str(refusal.value), tmp_path / name, fault)
    assert not os.listdir(tmp_path)


def test_an_unknown_layout_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"layout must be one of \('plain', .*'birl'\), got 'vtk'"):
        write_landmarks(tmp_path / "points.csv", SQUARE, "lps", np.eye(3), "vtk")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "points.csv").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_landmarks(tmp_path / "points.csv", SQUARE, "lps", np.eye(3))
    assert os.listdir(tmp_path) == ["points.csv"]


def test_a_file_is_its_own_layout_whatever_its_frame_and_suffix(tmp_path):
    path = tmp_path / "points.txt"
    write_landmarks(path, SQUARE, "voxel0", AFFINE_2D, "ants")
    assert landmark_layout(path) == "ants"
    np.testing.assert_allclose(read_landmarks(path, "", AFFINE_2D).positions, SQUARE.positions, atol=1e-12)


def itk_image(folder):
    """An oblique, left-handed image as ITK reads it, and its affine (RAS)."""
    affine = oblique_affine(3, 7)
    assert np.linalg.det(affine) < 0
    image = nib.Nifti1Image(np.zeros((7, 8, 9), np.float32), affine)
    image.set_qform(affine, code=1)  # as exact as ITK takes it
    nib.save(image, folder / "image.nii")
    return sitk.ReadImage(str(folder / "image.nii"), sitk.sitkFloat64), affine


VOXELS = np.array([[1.25, 2.5, 3.0], [6.0, 0.125, 7.75], [0.0, 7.0, 8.0]])


@pytest.mark.parametrize("layout", ["slicer", "fcsv", "elastix", "ants", "bratsreg"])
def test_a_voxel_is_written_where_itk_places_it(tmp_path, layout):
    image, affine = itk_image(tmp_path)
    source = written(tmp_path, "".join(f"{x},{y},{z}\n" for x, y, z in VOXELS))
    landmarks = read_landmarks(source, "voxel0", affine)
    path = tmp_path / f"written{SUFFIXES[layout]}"
    write_landmarks(path, landmarks, "", affine, layout)
    text = path.read_text()
    if layout == "slicer":
        positions = [entry["position"] for entry in json.loads(text)["markups"][0]["controlPoints"]]
    elif layout == "elastix":
        positions = np.loadtxt(path, skiprows=2)
    else:
        rows = [row for row in csv.reader(text.splitlines()) if row[0].isdigit() or layout == "ants"]
        first = 0 if layout == "ants" else 1
        positions = [row[first : first + 3] for row in rows if row[0] != "x"]
    expected = [image.TransformContinuousIndexToPhysicalPoint(voxel) for voxel in VOXELS.tolist()]
    # the NIfTI header holds float32 numbers of up to 300 mm
    np.testing.assert_allclose(np.array(positions, dtype=float), expected, atol=1e-4)


def test_slicerio_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    slicerio = pytest.importorskip("slicerio", reason="slicerio judges Slicer's files")
    landmarks = Landmarks(("tip", "Spitze 肺"), np.array([[2.2, -16.4, 280], [-1, -2, 3]]))
    write_landmarks(tmp_path / "F.fcsv", landmarks, "", AFFINE_3D)
    judged = slicerio.read_markups_fcsv(tmp_path / "F.fcsv")["markups"][0]
    assert judged["coordinateSystem"] == "LPS"
    assert [point["label"] for point in judged["controlPoints"]] == ["tip", "Spitze 肺"]
    assert [point["position"] for point in judged["controlPoints"]] == [[-2.2, 16.4, 280], [1, 2, 3]]
    converted = slicerio.fcsv_to_markups_json(tmp_path / "F.fcsv")
    again = read_landmarks(converted, "", AFFINE_3D)
    assert again.labels == landmarks.labels
    np.testing.assert_allclose(again.positions, landmarks.positions, atol=1e-12)


def test_a_file_that_slicer_wrote_reads_like_slicerio_reads_it():
    slicerio = pytest.importorskip("slicerio", reason="slicerio brings a file of Slicer 5.11")
    path = slicerio.get_testdata_file("F_1.fcsv")
    judged = slicerio.read_markups_fcsv(path)["markups"][0]["controlPoints"]
    landmarks = read_landmarks(path, "", AFFINE_3D)
    assert landmarks.labels == tuple(point["label"] for point in judged)
    np.testing.assert_array_equal(landmarks.positions * [-1, -1, 1], [point["position"] for point in judged])


def test_ants_moves_our_points_as_itk_does(tmp_path):
    ants = pytest.importorskip("ants", reason="antspyx judges the frame of its tables")
    pandas = pytest.importorskip("pandas", reason="antspyx takes tables of pandas")
    image, affine = itk_image(tmp_path)
    landmarks = read_landmarks(written(tmp_path, "".join(f"{x},{y},{z}\n" for x, y, z in VOXELS)), "voxel0", affine)
    write_landmarks(tmp_path / "ants.csv", landmarks, "", affine, "ants")
    transform = sitk.Euler3DTransform((5.0, -7.0, 9.0), 0.3, -0.2, 0.45, (11.0, -13.0, 17.0))
    affine_transform = sitk.AffineTransform(transform.GetMatrix(), transform.GetTranslation(), transform.GetCenter())
    sitk.WriteTransform(affine_transform, str(tmp_path / "moved.mat"))
    table = pandas.read_csv(tmp_path / "ants.csv")
    moved = ants.apply_transforms_to_points(3, table, [str(tmp_path / "moved.mat")], whichtoinvert=[False])
    moved.to_csv(tmp_path / "moved.csv", index=False)
    physical = [image.TransformContinuousIndexToPhysicalPoint(voxel) for voxel in VOXELS.tolist()]
    expected = [transform.TransformPoint(point) for point in physical]
    again = read_landmarks(tmp_path / "moved.csv", "", affine)
    assert again.labels == landmarks.labels
    # ANTs computes points in float32, at up to 300 mm
    np.testing.assert_allclose(again.positions * [-1, -1, 1], expected, atol=1e-3)


def test_transformix_carries_our_points_and_we_read_where(tmp_path):
    itk = pytest.importorskip("itk", reason="itk-elastix judges the point files of elastix")
    if not hasattr(itk, "TransformixFilter"):
        pytest.skip("itk-elastix judges the point files of elastix")
    landmarks = Landmarks(("0", "1"), np.array([[2.2, -16.4, 280], [-1e-5, -2, 3]]))
    write_landmarks(tmp_path / "points.txt", landmarks, "", AFFINE_3D)
    parameters = {
        **{"Transform": "TranslationTransform", "NumberOfParameters": "3", "TransformParameters": "1.5 -2 3"},
        **{"InitialTransformParameterFileName": "NoInitialTransform", "HowToCombineTransforms": "Compose"},
        **{"FixedImageDimension": "3", "MovingImageDimension": "3", "Size": "7 8 9", "Index": "0 0 0"},
        **{"FixedInternalImagePixelType": "float", "MovingInternalImagePixelType": "float", "Spacing": "1 1 1"},
        **{"Origin": "0 0 0", "Direction": "1 0 0 0 1 0 0 0 1", "UseDirectionCosines": "true"},
        **{"ResampleInterpolator": "FinalLinearInterpolator", "Resampler": "DefaultResampler"},
        **{"ResultImagePixelType": "float", "ResultImageFormat": "mha"},
    }
    settings = itk.ParameterObject.New()
    settings.AddParameterMap({key: value.split() for key, value in parameters.items()})
    transformix = itk.TransformixFilter.New(itk.image_from_array(np.zeros((9, 8, 7), np.float32)))
    transformix.SetTransformParameterObject(settings)
    transformix.SetFixedPointSetFileName(str(tmp_path / "points.txt"))
    transformix.SetOutputDirectory(str(tmp_path))
    transformix.Update()
    carried = read_landmarks(tmp_path / "outputpoints.txt", "", AFFINE_3D)
    assert carried.labels == landmarks.labels
    # LPS (1.5, -2, 3) is RAS (-1.5, 2, 3); transformix writes six digits after the point
    np.testing.assert_allclose(carried.positions, landmarks.positions + np.array([-1.5, 2, 3]), atol=1e-6)


def test_histology_landmarks_lie_in_their_images_and_as_far_apart_as_published(shared_data):
    folder = shared_data / "histology"
    with (folder / "pairs.csv").open(newline="") as stream:
        pairs = list(csv.DictReader(stream))
    assert len(pairs) == 11
    for pair in pairs:
        sets = []
        for side in ("fixed", "moving"):
            image = sitk.ImageFileReader()
            image.SetFileName(str(folder / pair["folder"] / pair[side]))
            image.ReadImageInformation()
            affine = np.diag([-1.0, -1.0, 1.0])  # LPS, 1 mm a pixel
            landmarks = read_landmarks(folder / pair["folder"] / pair[f"{side}_landmarks"], "", affine)
            check_inside(landmarks, image.GetSize()[:2], affine)
            sets.append(landmarks)
        fixed, moving = match_landmarks(*sets)
        assert len(fixed.labels) == int(pair["n_landmarks"])
        distance = np.linalg.norm(fixed.positions - moving.positions, axis=1).mean()
        assert distance == pytest.approx(float(pair["tre_mean_px"]), abs=0.01)

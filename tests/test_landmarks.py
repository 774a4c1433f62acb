import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_jsm.data import (
    LANDMARK_SPACES,
    InputError,
    Landmarks,
    check_inside,
    match_landmarks,
    read_landmarks,
    write_landmarks,
)

AFFINE_2D = np.array([[0.0, -1.5, 10.0], [1.2, 0.0, -20.0], [0.0, 0.0, 1.0]])
SQUARE = Landmarks(("a", "b", "c"), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]))


def oblique_affine(spatial_dims, seed):
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.standard_normal((spatial_dims, spatial_dims)))  # flipped half of the time
    affine = np.eye(spatial_dims + 1)
    affine[:-1, :-1] = rotation * np.array([0.9, 1.3, 2.5])[:spatial_dims]
    affine[:-1, -1] = generator.uniform(-300, 300, spatial_dims)
    return affine


def written(folder, text, encoding="utf-8"):
    path = folder / "points.csv"
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


@given(
    spatial_dims=st.sampled_from([2, 3]),
    space=st.sampled_from(LANDMARK_SPACES),
    seed=st.integers(0, 2**16),
    labels=st.lists(st.text("aÄß肺1,;'\"\\", min_size=1, max_size=4), min_size=1, unique=True),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_written_landmarks_read_back(tmp_path_factory, spatial_dims, space, seed, labels):
    path = tmp_path_factory.mktemp("landmarks") / "points.csv"
    positions = np.random.default_rng(seed).uniform(-500, 500, (len(labels), spatial_dims))
    affine = oblique_affine(spatial_dims, seed)
    write_landmarks(path, Landmarks(tuple(labels), positions), space, affine)
    again = read_landmarks(path, space, affine)
    assert again.labels == tuple(labels)
    np.testing.assert_allclose(again.positions, positions, rtol=0, atol=1e-6)


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
        ("label,x,y\na,1,2\n", "", "not declared; declare landmark_space"),
        ("label,x,y\na,1,2\n", "mni", '"mni", which is unknown'),
        ("", "ras", "holds no landmarks"),
        ("label,x,y\n", "ras", "holds no landmarks"),
        ("1.0,2.0\n3.0,4.0\n", "ras", "columns must be named"),
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
        ("label,x,y,z\na,1,2,3\n", "ras", "has 3 coordinates a row where its image has 2 axes"),
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
    one_sentence(str(refusal.value), path, "save it as a CSV file in UTF-8")


def test_an_absent_file_is_refused(tmp_path, one_sentence):
    with pytest.raises(InputError) as refusal:
        read_landmarks(tmp_path / "none.csv", "ras", np.eye(3))
    one_sentence(str(refusal.value), tmp_path / "none.csv", "there is no such file")


def test_an_unknown_frame_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="space must be one of"):
        write_landmarks(tmp_path / "points.csv", SQUARE, "mni", np.eye(3))


@given(order=st.permutations(range(3)))
@settings(deadline=None, derandomize=True)
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

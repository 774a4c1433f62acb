import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_jsm.data import InputError, check_image, check_label, check_mask, read_image

SHAPE = (18, 21, 24)
AFFINE = np.array([[0.0, -1.5, 0, 10], [1.2, 0, 0, -20], [0, 0, 2.0, 30], [0, 0, 0, 1]])


def voxels(shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(0).uniform(0, 200, shape).astype(dtype)


def saved(folder, array, affine=AFFINE, name="image.nii.gz", **header):
    image = nib.Nifti1Image(array, affine)
    for entry, value in header.items():
        image.header[entry] = value
    nib.save(image, folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_image_tells_its_shape_and_place(tmp_path, spatial_dims, name):
    grid = check_image(saved(tmp_path, voxels(SHAPE[:spatial_dims]), name=name), spatial_dims)
    assert grid.shape == SHAPE[:spatial_dims]
    kept = [*range(spatial_dims), 3]
    np.testing.assert_allclose(grid.affine, AFFINE[np.ix_(kept, kept)], rtol=1e-7)  # headers hold float32


def test_one_slice_of_a_stack_is_a_2d_image(tmp_path):
    flat, stack = voxels(SHAPE[:2]), voxels(SHAPE[:2])[..., None]
    expected = read_image(saved(tmp_path, flat, name="flat.nii"), 2)
    found = read_image(saved(tmp_path, stack, name="stack.nii"), 2)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_voxels_keep_their_type_and_values(tmp_path, dtype):
    array = voxels(dtype=dtype)
    read, _ = read_image(saved(tmp_path, array), 3)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


def test_a_picture_is_read_with_axis_zero_across(tmp_path):
    Image.fromarray(voxels(SHAPE[:2], np.uint8)).save(tmp_path / "picture.png")
    assert check_image(tmp_path / "picture.png", 2).shape == SHAPE[1::-1]


def absent(folder):
    return folder / "image.nii.gz"


def text_in_disguise(folder):
    (folder / "image.nii").write_text("This is no image. It is text.\nOf two lines.")
    return folder / "image.nii"


def empty(folder):
    (folder / "image.nii.gz").touch()
    return folder / "image.nii.gz"


def cut_short(folder):
    path = saved(folder, voxels(), name="image.nii")
    path.write_bytes(path.read_bytes()[:-100])
    return path


def gzip_cut_short(folder):
    path = saved(folder, voxels())
    path.write_bytes(path.read_bytes()[:-100])
    return path


def wrong_checksum(folder):
    path = saved(folder, voxels())
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the last 8 bytes are CRC and length
    path.write_bytes(content)
    return path


def bomb(folder):
    path = saved(folder, voxels(), name="image.nii")
    packed = folder / "image.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes() + bytes(2**22)))
    return packed


def huge_header(folder):
    path = saved(folder, voxels(), name="image.nii")
    content = bytearray(path.read_bytes())
    content[40:48] = struct.pack("<4h", 3, 32767, 32767, 32767)
    path.write_bytes(content)
    return path


def rgb(folder):
    return saved(folder, np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


def colour_picture(folder):
    Image.fromarray(voxels((*SHAPE[:2], 3), np.uint8)).save(folder / "picture.png")
    return folder / "picture.png"


def with_nan(folder):
    array = voxels()
    array[3, 4, 5] = np.nan
    return saved(folder, array)


def with_infinity(folder):
    array = voxels()
    array[3, 4, 5] = -np.inf
    return saved(folder, array)


def affine_with(row, column, value):
    affine = AFFINE.copy()
    affine[row, column] = value
    return affine


def zero_affine(folder):
    path = saved(folder, voxels(), name="image.nii")
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)  # the sform
    path.write_bytes(content)
    return path


def two_orientations(folder):
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE @ np.diag([1, 1, -1, 1]), code=1)
    nib.save(image, folder / "image.nii.gz")
    return folder / "image.nii.gz"


def a_folder(folder):
    (folder / "series").mkdir()
    return folder / "series"


def a_pickle(folder):
    np.save(folder / "image.npy", voxels())
    return folder / "image.npy"


REFUSED = {
    absent: "there is no such file",
    a_folder: "is a folder and not an image",
    a_pickle: "is of a format that is not read",
    text_in_disguise: "cannot be read as an image",
    empty: "cannot be read as an image",
    cut_short: "cannot be read as an image",
    gzip_cut_short: "cannot be read as an image",
    wrong_checksum: "cannot be read as an image (CRC check failed",
    bomb: "holds more data than its header announces",
    huge_header: "more than 2^30",
    rgb: "colour or complex values",
    with_nan: "NaN or infinite voxels",
    with_infinity: "NaN or infinite voxels",
    two_orientations: "its sform and qform place the image differently",
    lambda folder: saved(folder, voxels().astype(np.complex64)): "colour or complex values",
    lambda folder: saved(folder, voxels(SHAPE[:2])): "has the shape 18 x 21 where one scalar image of 3 axes",
    lambda folder: saved(folder, voxels((*SHAPE, 5))): "has the shape 18 x 21 x 24 x 5 where",
    lambda folder: saved(folder, voxels((*SHAPE, 1, 3))): "has the shape 18 x 21 x 24 x 1 x 3 where",
    lambda folder: saved(folder, voxels((18, 15, 24))): "has 18 x 15 x 24 voxels where each axis needs at least 16",
    lambda folder: saved(folder, voxels((18, 21, 1))): "has 18 x 21 x 1 voxels where each axis needs at least 16",
    lambda folder: saved(folder, np.full(SHAPE, 7, np.int16)): "is constant",
    zero_affine: "voxel edge of zero length",
    lambda folder: saved(folder, voxels(), AFFINE @ np.array([[1, 1, 0, 0], [0] * 4, [0, 0, 1, 0], [0, 0, 0, 1]])): (
        "its affine is singular"
    ),
    lambda folder: saved(folder, voxels(), affine_with(0, 3, np.nan)): "NaN or infinite entries",
    lambda folder: saved(folder, voxels(), affine_with(0, 2, 0.3)): "its axes are sheared",
    lambda folder: saved(folder, voxels(), pixdim=[1, 1.2, 1.5, 3.0, 1, 1, 1, 1]): "its header gives the voxel edges",
}


@pytest.mark.parametrize(("make", "fault"), REFUSED.items(), ids=list(REFUSED.values()))
def test_an_image_that_cannot_be_registered_is_refused(tmp_path, one_sentence, make, fault):
    path = make(tmp_path)
    with pytest.raises(InputError) as refusal:
        check_image(path, 3)
    one_sentence(str(refusal.value), path, fault)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (colour_picture, "where one scalar image of 2 axes must stand"),
        (lambda folder: saved(folder, voxels()), "has the shape 18 x 21 x 24 where one scalar image of 2 axes"),
        (lambda folder: saved(folder, voxels(SHAPE[:2]), AFFINE[[0, 2, 1, 3]]), "its plane is tilted"),
    ],
)
def test_what_is_no_2d_image_is_refused(tmp_path, one_sentence, make, fault):
    path = make(tmp_path)
    with pytest.raises(InputError) as refusal:
        check_image(path, 2)
    one_sentence(str(refusal.value), path, fault)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_label_on_the_grid_of_its_image_passes(tmp_path, dtype):
    grid = check_image(saved(tmp_path, voxels()), 3)
    label = saved(tmp_path, (voxels() > 100).astype(dtype), AFFINE + 1e-6, name="label.nii.gz")
    check_label(label, 3, grid)
    check_mask(label, 3, grid)


@pytest.mark.parametrize(
    ("array", "affine", "fault"),
    [
        (voxels(), AFFINE, "not whole numbers"),
        (np.full(SHAPE, np.nan), AFFINE, "not whole numbers"),
        (np.ones(SHAPE[::-1], np.uint8), AFFINE, "has 24 x 21 x 18 voxels where its image has 18 x 21 x 24"),
        (np.ones(SHAPE, np.uint8), affine_with(2, 3, 30.1), "lies elsewhere in the world than its image"),
        (np.ones(SHAPE, np.uint8), AFFINE @ np.diag([1, -1, 1, 1]), "lies elsewhere in the world than its image"),
    ],
)
def test_a_label_that_does_not_fit_its_image_is_refused(tmp_path, one_sentence, array, affine, fault):
    grid = check_image(saved(tmp_path, voxels()), 3)
    label = saved(tmp_path, array, affine, name="label.nii.gz")
    with pytest.raises(InputError) as refusal:
        check_label(label, 3, grid)
    one_sentence(str(refusal.value), label, fault)


def test_an_empty_mask_is_refused_where_an_empty_label_passes(tmp_path, one_sentence):
    grid = check_image(saved(tmp_path, voxels()), 3)
    nothing = saved(tmp_path, np.zeros(SHAPE, np.uint8), name="mask.nii.gz")
    check_label(nothing, 3, grid)
    with pytest.raises(InputError) as refusal:
        check_mask(nothing, 3, grid)
    one_sentence(str(refusal.value), nothing, "is an empty mask")


def test_published_images_pass(shared_data):
    assert check_image(next((shared_data / "known_field").glob("*/fixed.nii.gz")), 2).shape == (128, 128)
    for path in sorted((shared_data / "hippocampus_msd" / "images").glob("*.nii.gz"))[:5]:
        grid = check_image(path, 3)
        check_label(shared_data / "hippocampus_msd" / "labels" / path.name, 3, grid)

import gzip
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_jsm.data import InputError, check_image, check_label, check_mask, read_image
from monai_jsm.data.images import check_voxels

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


def test_voxels_outlive_a_file_that_is_written_over(tmp_path):
    array, _ = read_image(saved(tmp_path, voxels(), name="image.nii"))
    saved(tmp_path, np.zeros(SHAPE, np.uint8), name="image.nii")
    np.testing.assert_array_equal(array, voxels())


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = Rotation.from_euler("xyz", [0.3, -0.2, 0.45]).as_matrix() @ np.diag([1, -1, 1])  # left-handed


def itk_image(shape=SHAPE, dtype=np.float32, direction=OBLIQUE, spacing=(0.9, 1.3, 2.5), origin=(-11.0, 7.0, 40.0)):
    dims = len(shape)
    image = SimpleITK.GetImageFromArray(voxels(shape, dtype).T)
    image.SetDirection(np.asarray(direction)[:dims, :dims].ravel().tolist())
    image.SetSpacing(spacing[:dims])
    image.SetOrigin(origin[:dims])
    return image


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_images_that_itk_writes_are_read_exactly(tmp_path, spatial_dims, suffix, compressed):
    direction = OBLIQUE if spatial_dims == 3 else np.array([[0.8, 0.6], [0.6, -0.8]])
    image = itk_image(SHAPE[:spatial_dims], np.int16, direction)
    path = tmp_path / f"image{suffix}"
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)
    for asked in (spatial_dims, None):
        array, affine = read_image(path, asked)
        assert array.dtype == np.int16
        np.testing.assert_array_equal(array, voxels(SHAPE[:spatial_dims], np.int16))
        far = [size - 1 for size in array.shape]
        place = np.array(image.TransformIndexToPhysicalPoint(far)) * [-1, -1, 1][:spatial_dims]
        np.testing.assert_allclose((affine @ [*far, 1])[:-1], place, rtol=0, atol=1e-5)  # headers hold six digits


@settings(max_examples=25)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    flip=st.sampled_from([-1, 1]),
    spacing=st.tuples(*[st.floats(0.2, 6)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_every_format_puts_an_image_at_the_same_place(tmp_path_factory, angles, flip, spacing, origin):
    folder = tmp_path_factory.mktemp("formats")
    direction = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag([1, 1, flip])
    image = itk_image((3, 4, 5), np.int16, direction, spacing, origin)
    expected = np.eye(4)
    expected[:3, :3] = direction * spacing
    expected[:3, 3] = origin
    for suffix in (".nii.gz", ".mha", ".nrrd"):
        path = folder / f"image{suffix}"
        SimpleITK.WriteImage(image, str(path))
        array, affine = read_image(path)
        np.testing.assert_array_equal(array, voxels((3, 4, 5), np.int16))
        np.testing.assert_allclose(affine, LPS @ expected, rtol=0, atol=2e-4)  # NIfTI holds float32, of 500 mm


def test_the_number_of_axes_is_taken_from_the_file(tmp_path):
    for shape, found in (
        (SHAPE, SHAPE),
        (SHAPE[:2], SHAPE[:2]),
        ((18, 21, 1), (18, 21)),
        ((18, 21, 24, 1), SHAPE),
    ):
        array, affine = read_image(saved(tmp_path, voxels(shape)))
        assert array.shape == found
        assert affine.shape == (len(found) + 1,) * 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"])
def test_a_picture_is_read_with_axis_zero_across_where_itk_puts_it(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(voxels(SHAPE[:2], np.uint8)).save(path, dpi=(100, 50))
    array, affine = read_image(path)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.asarray(Image.open(path)).T)
    far = (20, 17)
    place = np.array(SimpleITK.ReadImage(str(path)).TransformIndexToPhysicalPoint(far))
    np.testing.assert_allclose(affine @ [*far, 1], [-place[0], -place[1], 1])
    assert check_image(path, 2).shape == SHAPE[1::-1]


def in_colours(folder, mode, suffix):
    colours = voxels((*SHAPE[:2], 3), np.uint8)
    picture = Image.fromarray(colours)
    if mode == "P":
        picture = picture.quantize(16)
    elif mode == "RGBA":
        picture.putalpha(255)
    path = folder / f"picture{suffix}"
    picture.save(path)
    return path, np.asarray(picture.convert("RGB")).astype(np.float64)


@pytest.mark.parametrize(
    ("mode", "suffix", "scale"),
    [
        ("RGB", ".png", 1),
        ("RGB", ".bmp", 1),
        ("RGB", ".tif", 1),
        ("RGBA", ".png", 1),
        ("RGBA", ".tif", 1),
        ("P", ".png", 1),
        ("P", ".bmp", 1),
        ("P", ".tif", 256),  # ITK reads the 16 bits that a TIFF palette has
    ],
)
def test_colour_becomes_luma(tmp_path, mode, suffix, scale):
    path, colours = in_colours(tmp_path, mode, suffix)
    array, _ = read_image(path)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array.T, scale * colours @ [0.299, 0.587, 0.114], rtol=1e-6)


def test_sixteen_bits_of_grey_and_floats_keep_their_values(tmp_path):
    import tifffile

    grey = voxels(SHAPE[:2], np.uint16) * 300
    Image.fromarray(grey).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    tifffile.imwrite(tmp_path / "tiled.tif", grey.astype(np.uint8), tile=(16, 16), compression="zlib")
    tifffile.imwrite(tmp_path / "floats.tif", voxels(SHAPE[:2]))
    for name in ("grey.png", "grey.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[0].T, grey)
    np.testing.assert_array_equal(read_image(tmp_path / "tiled.tif")[0].T, grey.astype(np.uint8))
    np.testing.assert_array_equal(read_image(tmp_path / "floats.tif")[0].T, voxels(SHAPE[:2]))


def test_pages_are_slices_only_where_a_volume_is_declared(tmp_path, one_sentence):
    pages = [Image.fromarray(page) for page in voxels(SHAPE, np.uint8)]
    path = tmp_path / "pages.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(path, 3)[0].T, voxels(SHAPE, np.uint8))
    with pytest.raises(InputError) as refusal:
        read_image(path)
    one_sentence(str(refusal.value), path, "has 18 pages")
    with pytest.raises(InputError, match="where one scalar image of 2 axes must stand"):
        read_image(path, 2)


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


def transparent(folder):
    picture = Image.fromarray(voxels((*SHAPE[:2], 3), np.uint8))
    picture.putalpha(255)
    picture.putpixel((3, 4), (1, 2, 3, 254))
    picture.save(folder / "picture.png")
    return folder / "picture.png"


def grey_and_transparent(folder):
    Image.fromarray(voxels(SHAPE[:2], np.uint8)).convert("LA").save(folder / "picture.png")
    return folder / "picture.png"


def huge_png(folder):
    Image.fromarray(voxels(SHAPE[:2], np.uint8)).save(folder / "picture.png")
    content = bytearray((folder / "picture.png").read_bytes())
    content[16:24] = struct.pack(">2I", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (folder / "picture.png").write_bytes(content)
    return folder / "picture.png"


def huge_tiff(folder):
    path = folder / "picture.tif"
    Image.fromarray(voxels(SHAPE[:2], np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<I", content, 4)
    for entry in range(directory + 2, directory + 2 + 24, 12):  # the first two: width and length
        struct.pack_into("<HHII", content, entry, *struct.unpack_from("<H", content, entry), 4, 1, 100_000)
    path.write_bytes(content)
    return path


def cut_picture(folder, suffix, **options):
    path = folder / f"picture{suffix}"
    Image.fromarray(voxels((118, 121), np.uint8)).save(path, **options)
    path.write_bytes(path.read_bytes()[:-40])
    return path


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


def spoilt_pixdim(edge):
    def make(folder):
        path = saved(folder, voxels(), name="image.nii")
        content = bytearray(path.read_bytes())
        struct.pack_into("<f", content, 80, edge)  # pixdim[1]
        path.write_bytes(content)
        return path

    return make


def a_folder(folder):
    (folder / "series").mkdir()
    return folder / "series"


def meta(data=None, suffix=".mha", **changes):
    """A maker of a MetaImage file; None takes an entry away."""

    def make(folder):
        header = {
            "ObjectType": "Image",
            "NDims": 3,
            "BinaryData": True,
            "BinaryDataByteOrderMSB": False,
            "TransformMatrix": "1 0 0 0 1 0 0 0 1",
            "Offset": "1 2 3",
            "ElementSpacing": "1 1.5 2",
            "DimSize": "18 21 24",
            "ElementType": "MET_SHORT",
            "ElementDataFile": "LOCAL",
        }
        header = {key: value for key, value in (header | changes).items() if value is not None}
        header["ElementDataFile"] = header.pop("ElementDataFile")  # the last entry
        content = voxels(dtype=np.int16).T.tobytes() if data is None else data
        text = "".join(f"{key} = {value}\n" for key, value in header.items())
        (folder / f"image{suffix}").write_bytes(text.encode() + content)
        return folder / f"image{suffix}"

    return make


def nrrd(data=None, suffix=".nrrd", **changes):
    """A maker of an NRRD file; None takes an entry away."""

    def make(folder):
        header = {
            "type": "short",
            "dimension": 3,
            "space": "left-posterior-superior",
            "sizes": "18 21 24",
            "space_directions": "(1,0,0) (0,1.5,0) (0,0,2)",
            "space_origin": "(1,2,3)",
            "endian": "little",
            "encoding": "raw",
        }
        header = {key: value for key, value in (header | changes).items() if value is not None}
        content = voxels(dtype=np.int16).T.tobytes() if data is None else data
        text = "".join(f"{key.replace('_', ' ')}: {value}\n" for key, value in header.items())
        (folder / f"image{suffix}").write_bytes(f"NRRD0004\n{text}\n".encode() + content)
        return folder / f"image{suffix}"

    return make


def packed_meta(data, size=None, **changes):
    """A maker of a compressed MetaImage file; ``size`` is what it says of its data."""
    packed = zlib.compress(data)
    return meta(packed, CompressedData=True, CompressedDataSize=len(packed) if size is None else size, **changes)


def named(name, beside=()):
    """A maker of a header that names its data; ``beside`` are files that stand beside it."""

    def make(folder):
        for file in beside:
            (folder / file).write_bytes(voxels(dtype=np.int16).T.tobytes())
        return meta(b"", ".mhd", ElementDataFile=name)(folder)

    return make


WHOLE = voxels(dtype=np.int16).T.tobytes()
AS_TEXT = " ".join(map(str, voxels(dtype=np.int16).T.ravel())).encode()


@pytest.mark.parametrize(
    "make",
    [
        meta(),
        packed_meta(WHOLE),
        nrrd(),
        nrrd(gzip.compress(WHOLE), encoding="gzip"),
        nrrd(WHOLE.hex().encode(), encoding="hex"),
        nrrd(AS_TEXT, encoding="text"),
        meta(AS_TEXT + b"\n", BinaryData=False),
        named("image.raw", ["image.raw"]),
        named("my image.raw", ["my image.raw"]),
    ],
)
def test_images_that_others_write_are_read(tmp_path, make):
    array, affine = read_image(make(tmp_path))
    np.testing.assert_array_equal(array, voxels(dtype=np.int16))
    np.testing.assert_array_equal(affine, LPS @ [[1, 0, 0, 1], [0, 1.5, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])


def a_pickle(folder):
    np.save(folder / "image.npy", voxels())
    return folder / "image.npy"


REFUSED = {
    absent: "there is no such file",
    a_folder: "holds no DICOM image",
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
    spoilt_pixdim(0.0): "its header gives the voxel edges 0 x 1.5 x 2 mm;",
    spoilt_pixdim(-1.2): "its header gives the voxel edges -1.2 x 1.5 x 2 mm;",
    spoilt_pixdim(np.nan): "its header gives the voxel edges nan x 1.5 x 2 mm;",
    meta(ElementSpacing="0 1.5 2"): "its header gives the voxel edges 0 x 1.5 x 2 mm;",
    meta(ElementSpacing="-1 1.5 2"): "its header gives the voxel edges -1 x 1.5 x 2 mm;",
    meta(ElementSpacing="1,5 1 2"): "has '1,5' in elementspacing, which is no finite number",
    meta(ElementSpacing="nan 1.5 2"): "has 'nan' in elementspacing, which is no finite number",
    meta(Offset="1 inf 3"): "has 'inf' in offset, which is no finite number",
    meta(TransformMatrix="1 0 0 0 nan 0 0 0 1"): "has 'nan' in transformmatrix",
    meta(TransformMatrix="1 0 0 0.3 1 0 0 0 1"): "its axes are sheared",
    meta(TransformMatrix="1 0 0 1 0 0 0 0 1"): "its affine is singular",
    meta(TransformMatrix="1 0 0 0 2 0 0 0 1"): "voxel edges 1 x 1.5 x 2 mm but its affine 1 x 3 x 2 mm",
    meta(DimSize="100000 100000 100000"): "announces 1000000000000000 voxels, more than 2^30",
    meta(DimSize="-18 21 24"): "more than 2^30",
    meta(DimSize="1000 1000 1000"): "holds less data than its header announces",
    meta(WHOLE[:-50]): "holds less data than its header announces",
    meta(WHOLE * 2, ElementNumberOfChannels=2): "holds 2 numbers a voxel",
    meta(WHOLE, NDims=4, DimSize="9 21 24 2", ElementSpacing="1 1.5 2 1", Offset="0 0 0 0", TransformMatrix=None): (
        "has the shape 9 x 21 x 24 x 2 where one scalar image of 3 axes"
    ),
    meta(ObjectType="Im\x00age"): "its header holds control characters",
    meta(b"", Comment="a\relementdatafile = b"): "its header holds control characters",
    packed_meta(WHOLE + bytes(2**22)): "holds more data than its header announces",
    packed_meta(WHOLE[:-50]): "holds less data than its header announces",
    packed_meta(WHOLE, size=10**11): "its CompressedDataSize is not that of its data",
    packed_meta(WHOLE, size=10): "its CompressedDataSize is not that of its data",
    meta(zlib.compress(WHOLE), CompressedData=True): "its CompressedDataSize is not that of its data",
    meta(zlib.compress(WHOLE)[:-10], CompressedData=True): "cannot be read as an image (compressed data end too early)",
    meta(b"no zlib", CompressedData=True): "cannot be read as an image (Error -3",
    nrrd(space_directions="(0,0,0) (0,1,0) (0,0,1)"): "its header gives the voxel edges 0 x 1 x 1 mm",
    nrrd(space=None, space_directions=None, space_origin=None, spacings="-1 1 2"): "voxel edges -1 x 1 x 2 mm",
    nrrd(space=None, space_directions=None, space_origin=None, spacings="nan 1 2"): "has 'nan' in spacings",
    nrrd(space_origin="(nan,2,3)"): "has 'nan' in spaceorigin",
    nrrd(space_directions="(1,0,0) (0.3,1,0) (0,0,1)"): "its axes are sheared",
    nrrd(sizes="100000 100000 100000"): "more than 2^30",
    nrrd(WHOLE[:-50]): "holds less data than its header announces",
    nrrd(b"1 " * 2000, encoding="text"): "holds less data than its header announces",
    nrrd(b"01" * 2000, encoding="hex"): "holds less data than its header announces",
    meta(b"1 " * 2000, BinaryData=False): "holds less data than its header announces",
    nrrd(gzip.compress(WHOLE + bytes(2**22)), encoding="gzip"): "holds more data than its header announces",
    nrrd(gzip.compress(WHOLE[:-50]), encoding="gzip"): "holds less data than its header announces",
    nrrd(gzip.compress(WHOLE)[:-20], encoding="gzip"): "cannot be read as an image",
    nrrd(b"", data_file="/etc/hostname"): "names '/etc/hostname' as its data, which are not one file beside it",
    nrrd(b"", ".nhdr", **{"data file": "image.raw", "datafile": "/etc/hostname"}): "has 'datafile' twice in its header",
    nrrd(b"", ".nhdr", datafile="LIST"): "names 'LIST' as its data, which are not one file beside it",
    named("/etc/hostname"): "names '/etc/hostname' as its data, which are not one file beside it",
    named("../image.raw"): "names '../image.raw' as its data, which are not one file beside it",
    named("..\\image.raw"): "as its data, which are not one file beside it",
    named("LIST"): "names 'LIST' as its data, which are not one file beside it",
    named("image%03d.raw 1 9 1"): "as its data, which are not one file beside it",
    named("https://example.org/image.raw"): "as its data, which are not one file beside it",
    named("image.raw"): "names 'image.raw' as its data, which is not beside it",
    named(".."): "names '..' as its data, which is not beside it",
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
        (transparent, "is transparent in places"),
        (grey_and_transparent, "; save it again as grey or RGB"),
        (huge_png, "announces 10000000000 voxels, more than 2^30"),
        (huge_tiff, "announces 10000000000 voxels, more than 2^30"),
        (lambda folder: cut_picture(folder, ".jpg"), "is cut short"),
        (lambda folder: cut_picture(folder, ".jpg", progressive=True), "is cut short"),
        (lambda folder: cut_picture(folder, ".bmp"), "is cut short"),
        (lambda folder: cut_picture(folder, ".png"), "cannot be read as an image (Error while reading file"),
        (lambda folder: cut_picture(folder, ".tif"), "cannot be read as an image"),
        (lambda folder: saved(folder, voxels()), "has the shape 18 x 21 x 24 where one scalar image of 2 axes"),
        (lambda folder: saved(folder, voxels(SHAPE[:2]), AFFINE[[0, 2, 1, 3]]), "its plane is tilted"),
    ],
)
def test_what_is_no_2d_image_is_refused(tmp_path, one_sentence, make, fault):
    path = make(tmp_path)
    with pytest.raises(InputError) as refusal:
        check_image(path, 2)
    one_sentence(str(refusal.value), path, fault)


@pytest.mark.parametrize(
    ("array", "affine", "fault"),
    [
        (voxels().astype(complex), AFFINE, "colour or complex values"),
        (voxels((2, *SHAPE)), AFFINE, "where one scalar image of 2 or 3 axes must stand"),
        (voxels((18, 15)), np.eye(3), "has 18 x 15 voxels where each axis needs at least 16"),
        (np.where(voxels() > 1, 5, voxels()), AFFINE, "98 % of its voxels or more have one value"),
        (voxels(), affine_with(0, 0, np.nan), "NaN or infinite entries"),
        (voxels(SHAPE[:2]), np.array([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]]), "its axes are sheared"),
        (voxels(SHAPE[:2]), AFFINE[[0, 2, 1, 3]], "its plane is tilted"),
    ],
)
def test_voxels_in_memory_that_cannot_be_registered_are_refused(one_sentence, array, affine, fault):
    with pytest.raises(InputError) as refusal:
        check_voxels("fixed", array, affine)
    one_sentence(str(refusal.value), "fixed", fault)


def test_voxels_in_memory_tell_their_grid():
    assert check_voxels("fixed", voxels(), AFFINE).shape == SHAPE
    for affine in (np.diag([2.0, -3.0, 1.0]), np.diag([2.0, -3.0, 5.0, 1.0])):
        np.testing.assert_array_equal(check_voxels("fixed", voxels(SHAPE[:2]), affine).affine, np.diag([2, -3, 1]))


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


def test_a_nifti_file_that_says_not_where_it_lies_is_refused(tmp_path, one_sentence):
    """nibabel puts it around the origin, ITK behind it."""
    path = tmp_path / "nowhere.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(16 * 17 * 18, dtype=np.float32).reshape(16, 17, 18), None), path)
    with pytest.raises(InputError) as refusal:
        read_image(path)
    one_sentence(str(refusal.value), path, "its header places it nowhere")


def test_a_qform_that_is_as_good_as_float32_allows_is_no_contradiction(tmp_path):
    """Near half a turn, as of most axial scans, the fourth number of a quaternion is lost in rounding."""
    angle = np.deg2rad(11)
    turn = np.array([[-1, 0, 0], [0, -np.cos(angle), -np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]])
    small = np.deg2rad(0.003)
    turn = turn @ np.array([[np.cos(small), -np.sin(small), 0], [np.sin(small), np.cos(small), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.7, 0.7, 6.5)
    image = nib.Nifti1Image(np.random.default_rng(0).random((280, 320, 16), dtype=np.float32), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    assert np.abs(image.get_qform() - affine).max() > 1e-6
    nib.save(image, tmp_path / "axial.nii")
    read_image(tmp_path / "axial.nii")
    affine[:3, :3] = affine[:3, :3] @ np.array([[1, -0.01, 0], [0.01, 1, 0], [0, 0, 1]])  # half a degree more
    image.set_sform(affine, code=1)
    nib.save(image, tmp_path / "turned.nii")
    with pytest.raises(InputError, match="its sform and qform place the image differently"):
        read_image(tmp_path / "turned.nii")

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_rescale
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid
from scipy.spatial.transform import Rotation

from monai_jsm.data import InputError, check_image, read_image
from monai_jsm.data.dicom import Series, find_series, read_series

COLUMNS, ROWS, SLICES = 18, 21, 24
EDGES = (0.75, 1.5, 2.5)  # mm, along columns, rows and slices
OBLIQUE = Rotation.from_euler("xyz", [0.3, -0.2, 0.45]).as_matrix()
ORIGIN = np.array([-11.0, 7.5, 40.25])
UPRIGHT = np.eye(3)
CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_CT, SECONDARY = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.7"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(direction=OBLIQUE, edges=EDGES, origin=ORIGIN):
    affine = np.eye(4)
    affine[:3, :3] = direction * edges
    affine[:3, 3] = origin
    return LPS @ affine


def pixels(count=SLICES, seed=0):
    return np.random.default_rng(seed).integers(0, 3000, (count, ROWS, COLUMNS), dtype=np.uint16)


def dataset(sop_class, series="1.2.3"):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, "1.2", "1.2.9"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    return ds


def slices(
    sop_class=CT, direction=OBLIQUE, heights=tuple(EDGES[2] * k for k in range(SLICES)), series="1.2.3", rescale=None
):
    """Datasets of a series; heights are those of the slices along the third column of direction, mm."""
    made = []
    for number, (height, image) in enumerate(zip(heights, pixels(len(heights)), strict=True)):
        ds = dataset(sop_class, series)
        ds.PixelSpacing = [EDGES[1], EDGES[0]]
        ds.ImagePositionPatient = [round(value, 8) for value in ORIGIN + height * direction[:, 2]]
        ds.ImageOrientationPatient = [round(value, 12) for value in direction[:, :2].T.ravel()]
        if rescale is not None:
            ds.RescaleSlope, ds.RescaleIntercept = rescale[number % len(rescale)]
        ds.PixelData = image.tobytes()
        made.append(ds)
    return made


def written(folder, datasets, names=None):
    """The folder of a series; unless named, the order of the names is not that of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ds in enumerate(datasets):
        name = f"{number * 7 % 101:03d}.dcm" if names is None else names[number]
        ds.save_as(folder / name, enforce_file_format=True)
    return folder


def multi_frame(
    positions,
    sop_class=ENHANCED_CT,
    orientation=UPRIGHT,
    shared_rescale=None,
    rescale=None,
    spacing=(EDGES[1], EDGES[0]),
):
    ds = dataset(sop_class)
    ds.NumberOfFrames = len(positions)
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = list(spacing)
    plane.ImageOrientationPatient = [round(value, 12) for value in orientation[:, :2].T.ravel()]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    if shared_rescale is not None:
        shared.PixelValueTransformationSequence = Sequence([transformation(*shared_rescale)])
    frames = []
    for number, position in enumerate(positions):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [round(value, 8) for value in position]
        frame.PlanePositionSequence = Sequence([place])
        if rescale is not None:
            frame.PixelValueTransformationSequence = Sequence([transformation(*rescale[number % len(rescale)])])
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    ds.PixelData = pixels(len(positions)).tobytes()
    return ds


def transformation(slope, intercept):
    ds = Dataset()
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "US"
    return ds


def frame_positions(direction=UPRIGHT, count=SLICES):
    return [ORIGIN + EDGES[2] * number * direction[:, 2] for number in range(count)]


def judged(series):
    """The voxels as pydicom decodes and rescales them, (X, Y, Z)."""
    read = [pydicom.dcmread(file) for file in series.files]
    return np.stack([apply_rescale(ds.pixel_array, ds) for ds in read]).T


@pytest.mark.parametrize("direction", [UPRIGHT, OBLIQUE], ids=["upright", "oblique"])
def test_a_series_is_read_at_its_place_whatever_the_names_of_its_files(tmp_path, direction):
    folder = written(tmp_path / "series", slices(direction=direction, rescale=[(2, -1024)]))
    series = find_series(folder)
    assert series.uid == "1.2.3"
    heights = [pydicom.dcmread(file).ImagePositionPatient @ direction[:, 2] for file in series.files]
    assert heights == sorted(heights)
    for array, affine in (read_series(series), read_image(folder), read_image(folder, 3)):
        np.testing.assert_array_equal(array, 2 * pixels().T.astype(int) - 1024)
        np.testing.assert_allclose(affine, affine_of(direction), atol=1e-6)
    assert check_image(folder).shape == (COLUMNS, ROWS, SLICES)


def test_slices_that_are_stored_from_the_top_down_are_sorted_along_their_normal(tmp_path):
    folder = written(tmp_path / "series", slices()[::-1], [f"{number:03d}" for number in range(SLICES)])
    array, affine = read_image(folder)
    np.testing.assert_array_equal(array, pixels().T)
    np.testing.assert_allclose(affine, affine_of(), atol=1e-6)


@settings(max_examples=15)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    edges=st.tuples(*[st.floats(0.3, 5)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    digits=st.sampled_from([5, 10]),
)
def test_the_grid_follows_the_equation_of_the_standard(tmp_path_factory, angles, edges, origin, digits):
    direction = Rotation.from_euler("xyz", angles).as_matrix()
    datasets = slices(heights=range(3))
    for number, ds in enumerate(datasets):
        ds.ImagePositionPatient = [round(value, 8) for value in origin + edges[2] * number * direction[:, 2]]
        ds.ImageOrientationPatient = [round(value, digits) for value in direction[:, :2].T.ravel()]
        ds.PixelSpacing = [round(edges[1], 10), round(edges[0], 10)]
    _, affine = read_image(written(tmp_path_factory.mktemp("series"), datasets))
    np.testing.assert_allclose(affine, affine_of(direction, edges, origin), atol=10.0 ** (1 - digits))


@pytest.mark.parametrize("sop_class", [CT, MR, PET, SECONDARY])
@pytest.mark.parametrize(
    "rescale", [None, [(1, -1024)], [(0.37, 2.5)], [(1, 0), (1.5, 0.5), (2.25, -3)], [(1, 0), (1, -5)]]
)
def test_each_slice_is_rescaled_by_its_own_slope_and_intercept(tmp_path, sop_class, rescale):
    folder = written(tmp_path / "series", slices(sop_class, rescale=rescale))
    np.testing.assert_allclose(read_image(folder)[0], judged(find_series(folder)), rtol=1e-12)


def test_signed_and_unsigned_slices_keep_their_values(tmp_path):
    datasets = slices(heights=range(4))
    datasets[2].PixelRepresentation = 1
    datasets[2].PixelData = (pixels(4)[2].astype(np.int16) - 2000).tobytes()
    folder = written(tmp_path / "series", datasets)
    np.testing.assert_array_equal(read_image(folder)[0], judged(find_series(folder)))


def test_run_length_compression_is_read(tmp_path):
    datasets = slices(rescale=[(1, -1024)])
    for ds in datasets:
        ds.compress(RLELossless)
    array, affine = read_image(written(tmp_path / "series", datasets))
    np.testing.assert_array_equal(array, pixels().T.astype(int) - 1024)
    np.testing.assert_allclose(affine, affine_of(), atol=1e-6)


@pytest.mark.parametrize("program", ["dcmcjpeg", "dcmcjpls", "dcmconv +td", "dcmconv +tb", "dcmconv +ti"])
def test_transfer_syntaxes_that_dcmtk_writes_are_read(tmp_path, program):
    if shutil.which(program.split()[0]) is None:
        pytest.skip(f"{program.split()[0]} of DCMTK is not installed.")
    folder = written(tmp_path / "series", slices(heights=range(3)))
    for file in folder.iterdir():
        subprocess.run([*program.split(), file, file], check=True)
    np.testing.assert_array_equal(read_image(folder)[0], pixels(3).T)


@pytest.mark.parametrize("direction", [UPRIGHT, OBLIQUE], ids=["upright", "oblique"])
@pytest.mark.parametrize(
    ("shared", "rescale"),
    [(None, None), ((2, -1024), None), (None, [(2, -1024)]), (None, [(1.5, 3), (1, 0), (0.25, -7), (4, 1)])],
)
def test_a_multi_frame_object_is_a_volume(tmp_path, direction, shared, rescale):
    ds = multi_frame(frame_positions(direction), orientation=direction, shared_rescale=shared, rescale=rescale)
    path = written(tmp_path, [ds], ["volume"]) / "volume"  # the suffix is not needed
    slopes, intercepts = np.resize(rescale or [shared or (1, 0)], (SLICES, 2)).T
    for given_path in (path, path.parent):
        array, affine = read_image(given_path)
        np.testing.assert_allclose(array, pixels().T * slopes + intercepts, rtol=1e-12)
        np.testing.assert_allclose(affine, affine_of(direction), atol=1e-6)
    assert find_series(path).files == (path,)


@pytest.mark.parametrize("order", [range(SLICES)[::-1], np.random.default_rng(1).permutation(SLICES)])
def test_frames_come_in_the_order_of_their_positions(tmp_path, order):
    positions = frame_positions(OBLIQUE)
    rescale = [(1 + number, 0) for number in order]
    ds = multi_frame([positions[number] for number in order], orientation=OBLIQUE, rescale=rescale)
    array, affine = read_image(written(tmp_path, [ds]))
    expected = np.empty_like(pixels(), dtype=np.float64)
    expected[order] = pixels() * np.array([slope for slope, _ in rescale])[:, None, None]
    np.testing.assert_array_equal(array, expected.T)
    np.testing.assert_allclose(affine, affine_of(), atol=1e-6)


def test_one_slice_is_a_2d_image_in_the_plane_of_the_world(tmp_path):
    turned = Rotation.from_euler("z", 0.4).as_matrix()
    folder = written(tmp_path / "series", slices(direction=turned)[:1])
    expected = affine_of(turned)[np.ix_([0, 1, 3], [0, 1, 3])]
    for path in (folder, next(folder.iterdir())):
        for asked in (None, 2):
            array, affine = read_image(path, asked)
            np.testing.assert_array_equal(array, pixels(1)[0].T)
            np.testing.assert_allclose(affine, expected, atol=1e-6)
    volume, affine = read_series(find_series(folder))
    assert volume.shape == (COLUMNS, ROWS, 1)
    np.testing.assert_allclose(affine, affine_of(turned, (*EDGES[:2], 1)), atol=1e-6)


def test_a_slice_without_a_place_lies_where_itk_puts_it(tmp_path):
    ds = slices(SECONDARY)[0]
    del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing
    path = next(written(tmp_path / "series", [ds]).iterdir())
    array, affine = read_image(path)
    np.testing.assert_array_equal(array, pixels(1)[0].T)
    np.testing.assert_array_equal(affine, np.diag([-1, -1, 1]))


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_becomes_luma(tmp_path, planar):
    ds = dataset(SECONDARY)
    colours = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS, 3), dtype=np.uint8)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", planar
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = (np.moveaxis(colours, -1, 0) if planar else colours).tobytes()
    array, _ = read_image(written(tmp_path / "series", [ds]), 2)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array.T, colours @ [0.299, 0.587, 0.114], rtol=1e-6)


def test_a_folder_of_two_series_asks_for_a_choice(tmp_path, one_sentence):
    first, second = slices(), slices(MR, series="1.2.4", heights=range(5))
    for ds in second:
        ds.SeriesDescription = "T1 post. \nDose"
    folder = written(written(tmp_path / "study", first, [f"a{k}" for k in range(SLICES)]), second)
    listing = "1.2.4 (T1 post, Dose, 5 slices) and 1.2.3 (no description, 24 slices)"
    for uid, fault in (("", f"holds 2 series, {listing};"), ("1.2.5", f"holds no series 1.2.5 but {listing};")):
        with pytest.raises(InputError, match="--series UID") as refusal:
            read_image(folder, series=uid)
        one_sentence(str(refusal.value), folder, fault)
    assert read_image(folder, series="1.2.3")[0].shape == (COLUMNS, ROWS, SLICES)
    assert check_image(folder, 3, "1.2.3").shape == (COLUMNS, ROWS, SLICES)
    assert read_image(folder, series="1.2.4")[0].shape == (COLUMNS, ROWS, 5)
    assert find_series(folder, "1.2.4").description == "T1 post, Dose"


def test_what_is_no_image_is_passed_over(tmp_path):
    folder = written(tmp_path / "series", slices())
    report = dataset(REPORT, series="1.2.8")
    del report.Rows, report.Columns
    written(folder, [report], ["report.dcm"])
    (folder / "README.txt").write_text("no image")
    (folder / "._000.dcm").write_bytes(b"of a Macintosh")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"no directory")
    (folder / "more.dcm").mkdir()
    assert len(find_series(folder).files) == SLICES
    assert read_image(folder)[0].shape == (COLUMNS, ROWS, SLICES)


def changed(number=5, **entries):
    """A maker of a series in which one slice has other entries; None takes an entry away."""

    def make(folder):
        datasets = slices()
        for keyword, value in entries.items():
            if value is None:
                delattr(datasets[number], keyword)
            else:
                setattr(datasets[number], keyword, value)
        return written(folder / "series", datasets)

    return make


def at_heights(*heights):
    return lambda folder: written(folder / "series", slices(heights=heights))


def leaning(degrees):
    def make(folder):
        datasets = slices()
        lean = np.tan(np.radians(degrees)) * OBLIQUE[:, 1]
        for number, ds in enumerate(datasets):
            place = ORIGIN + EDGES[2] * number * (OBLIQUE[:, 2] + lean)
            ds.ImagePositionPatient = [round(value, 8) for value in place]
        return written(folder / "series", datasets)

    return make


def beside(millimetres):
    place = ORIGIN + 5 * EDGES[2] * OBLIQUE[:, 2] + millimetres * OBLIQUE[:, 0]
    return changed(ImagePositionPatient=[round(value, 8) for value in place])


def smaller(folder):
    datasets = slices()
    datasets[5].Rows -= 2
    datasets[5].PixelData = pixels()[5][:-2].tobytes()
    return written(folder / "series", datasets)


def in_colour(folder):
    datasets = slices()
    datasets[5].SamplesPerPixel, datasets[5].PlanarConfiguration = 3, 0
    datasets[5].PhotometricInterpretation = "RGB"
    datasets[5].PixelData = pixels(3).tobytes()
    return written(folder / "series", datasets)


def spoilt(folder, keyword, old, new):
    """A series of which one file holds a value that pydicom would not write."""
    datasets = slices()
    setattr(datasets[5], keyword, old)
    path = written(folder / "series", datasets) / "035.dcm"
    old, new = ("\\".join(map(str, value)).encode() for value in (old, new))
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path.parent


def cut(length, compressed=False):
    def make(folder):
        datasets = slices()
        if compressed:
            datasets[5].compress(RLELossless)
        path = written(folder / "series", datasets) / "035.dcm"
        path.write_bytes(path.read_bytes()[:length])
        return path.parent

    return make


def empty_folder(folder):
    (folder / "series").mkdir()
    return folder / "series"


def only_a_report(folder):
    report = dataset(REPORT)
    del report.Rows, report.Columns
    return written(folder / "series", [report])


def no_dicom(folder):
    path = written(folder / "series", slices()) / "035.dcm"
    path.write_bytes(b"This is no image. It is text.")
    return path.parent


def frames(*positions, **changes):
    return lambda folder: written(folder / "series", [multi_frame(positions or frame_positions(), **changes)])


def of_several_stacks(folder):
    datasets = [multi_frame(frame_positions()), multi_frame(frame_positions())]
    return written(folder / "series", datasets)


def unplaced_frames(folder):
    ds = multi_frame(frame_positions())
    del ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence
    return written(folder / "series", [ds])


def mosaic(folder):
    ds = slices(MR)[0]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    return written(folder / "series", [ds])


def undecodable(folder):
    ds = slices(direction=UPRIGHT)[0]
    ds.compress(RLELossless)
    path = written(folder / "series", [ds]) / "000.dcm"
    content = path.read_bytes().replace(str(RLELossless).encode() + b"\0", b"1.2.840.10008.1.2.4.102", 1)
    length = len(str(RLELossless)) + 1
    assert length < 23  # the UID grows, and with it the lengths of its element and group
    at = content.index(b"\x02\x00\x10\x00UI") + 6
    content = content[:at] + (24).to_bytes(2, "little") + content[at + 2 :].replace(b"4.102", b"4.102\0", 1)
    group = content.index(b"\x02\x00\x00\x00UL") + 8
    total = int.from_bytes(content[group : group + 4], "little") + 24 - length
    path.write_bytes(content[:group] + total.to_bytes(4, "little") + content[group + 4 :])
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == UID("1.2.840.10008.1.2.4.102")
    return path.parent


EVEN = [2.5 * number for number in range(20)]
UP = ORIGIN + np.outer(EVEN, UPRIGHT[2])

REFUSED = {
    empty_folder: "holds no DICOM image; name the folder in which the slices lie.",
    only_a_report: "holds no DICOM image",
    no_dicom: "035.dcm: is no DICOM file, though its name says so",
    at_heights(*EVEN[:7], *EVEN[8:]): "lie 5 mm apart where others lie 2.5 mm apart, as if slices were missing",
    at_heights(*EVEN, EVEN[-1] + 2.53): "lie 2.53 mm apart where others lie 2.5 mm apart",
    at_heights(*EVEN, EVEN[7]): "lie at one place, as copies, time points or echoes do",
    at_heights(*EVEN, *EVEN): "lie at one place",
    at_heights(*[3.0] * 5): "lie at one place",
    at_heights(*EVEN, -400.0): "apart where others lie 2.5 mm apart",
    leaning(16.5): "its slices lean by 16.5 degrees, as with a tilted gantry",
    leaning(0.2): "its slices lean by 0.2 degrees",
    beside(0.3): "035.dcm lies 0.3 mm beside its place in an even stack",
    smaller: "000.dcm and 035.dcm are of one series but differ in Rows",
    in_colour: "000.dcm and 035.dcm are of one series but differ in SamplesPerPixel",
    changed(FrameOfReferenceUID="1.2.10"): "000.dcm and 035.dcm are of one series but differ in FrameOfReferenceUID",
    changed(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]): "differ in ImageOrientationPatient",
    changed(PixelSpacing=[1.4, 0.75]): "000.dcm and 035.dcm are of one series but differ in PixelSpacing",
    changed(ImagePositionPatient=None): "035.dcm has no ImagePositionPatient, so that its place is unknown",
    changed(ImageOrientationPatient=None): "035.dcm has no ImageOrientationPatient",
    changed(PixelSpacing=None): "035.dcm has no PixelSpacing",
    changed(PixelSpacing=[0, 0.75]): "035.dcm: its PixelSpacing is not positive",
    changed(ImagePositionPatient=[1, 2]): "035.dcm: its ImagePositionPatient is not 3 finite numbers",
    changed(
        ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]
    ): "035.dcm: its ImageOrientationPatient is not two perpendicular unit vectors",
    changed(RescaleSlope=0): "035.dcm: its RescaleSlope is 0",
    changed(NumberOfFrames=0): "035.dcm: its NumberOfFrames is absent or below one",
    lambda folder: spoilt(folder, "PixelSpacing", [1.25, 0.75], ["1,25", 0.75]): "035.dcm: its PixelSpacing is not a",
    lambda folder: spoilt(folder, "ImagePositionPatient", [1.5, 2.5, 3.625], [1.5, 2.5, "three"]): (
        "035.dcm: its ImagePositionPatient is not a number"
    ),
    cut(-100): "035.dcm: its pixel data are cut short or absent",
    cut(-9, compressed=True): "035.dcm: its pixel data are cut short or absent",
    cut(500): "035.dcm: is cut short in its header",
    cut(140): "035.dcm: is cut short in its header",
    cut(0): "035.dcm: is no DICOM file, though its name says so",
    mosaic: "000.dcm: is a mosaic",
    undecodable: "cannot be decoded; export it again, or decompress it with gdcmconv --raw or with pydicom after pip",
    of_several_stacks: "has several multi-frame files in one series",
    unplaced_frames: "000.dcm: has 24 frames but says of 0 where they lie",
    frames(*UP[:7], *UP[8:]): "frame 7 and frame 8 lie 5 mm apart where others lie 2.5 mm apart",
    frames(*UP, UP[3]): "frame 4 and frame 21 lie at one place",
    frames(*UP + np.outer(range(20), [0, 0.1, 0])): "its slices lean by 2.29 degrees",
    frames(spacing=(-1.5, 0.75)): "its PixelSpacing is not positive",
}


@pytest.mark.filterwarnings("error::UserWarning")  # pydicom's: the refusal says it all
@pytest.mark.parametrize(("make", "fault"), REFUSED.items(), ids=list(REFUSED.values()))
def test_a_series_that_is_no_regular_stack_is_refused(tmp_path, one_sentence, make, fault):
    folder = make(tmp_path)
    with pytest.raises(InputError) as refusal:
        read_image(folder)
    sentence = str(refusal.value)
    named = folder / "035.dcm" if fault.startswith("035.dcm: ") else folder
    one_sentence(
        sentence, named if sentence.startswith(f"{named}: ") else next(folder.iterdir()), fault.split(": ")[-1]
    )


def test_an_oblique_slice_alone_is_refused_as_a_2d_image(tmp_path, one_sentence):
    folder = written(tmp_path / "series", slices()[:1])
    with pytest.raises(InputError) as refusal:
        read_image(folder)
    one_sentence(str(refusal.value), folder, "its plane is tilted out of the world's first two axes")


def test_numbers_longer_than_the_standard_allows_are_read(tmp_path):
    orientation = [0.8, 0.6, 0.0, -0.6, 0.8, 0.0]
    datasets = slices(heights=range(3))
    for number, ds in enumerate(datasets):
        ds.ImagePositionPatient = [1, 2, 3 + number]
        ds.ImageOrientationPatient = orientation
        ds["ImageOrientationPatient"].value = orientation
    folder = written(tmp_path / "series", datasets)
    for path in folder.iterdir():
        content = path.read_bytes()
        short, long = b"0.8\\0.6\\0.0\\-0.6\\0.8\\0.0", b"0.80000000000000001\\0.60000000000000001\\0.0\\-0.6\\0.8\\0.0"
        at = content.index(short)
        length = int.from_bytes(content[at - 2 : at], "little")
        longer = (length + len(long) - len(short)).to_bytes(2, "little")
        path.write_bytes(content[: at - 2] + longer + content[at:].replace(short, long, 1))
    _, affine = read_image(folder)
    np.testing.assert_allclose(affine[:3, 0], [-0.8 * 0.75, -0.6 * 0.75, 0], atol=1e-12)


def test_an_image_larger_than_the_limit_is_refused_before_it_is_read(tmp_path, one_sentence, monkeypatch):
    folder = written(tmp_path / "series", slices())
    monkeypatch.setattr("monai_jsm.data.dicom.MOST_VOXELS", 5000)
    with pytest.raises(InputError) as refusal:
        read_image(folder)
    one_sentence(str(refusal.value), folder, "announces 9072 voxels, more than")


def test_a_series_made_by_hand_need_not_be_sorted(tmp_path):
    series = find_series(written(tmp_path / "series", slices(rescale=[(1, 0), (1.5, 0.5)])))
    array, affine = read_series(series)
    mixed = Series(series.uid, series.files[::2] + series.files[1::2], "")
    for one, other in zip((array, affine), read_series(mixed), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "shape", "edges"),
    [
        ("head_small_series", (88, 128, 17), (2, 2, 2)),
        ("pgbm003_t1post", (280, 320, 22), (0.6875, 0.6875, 6.5)),
        ("pgbm003_t1pre_registered", (280, 320, 22), (0.6875, 0.6875, 6.5)),
    ],
)
def test_published_series_are_read_as_itk_reads_them(shared_data, name, shape, edges):
    folder = shared_data / "dicom" / name
    array, affine = read_image(folder)
    assert array.shape == shape
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), edges, rtol=1e-5)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(array, SimpleITK.GetArrayFromImage(image).T)
    np.testing.assert_array_equal(array, judged(find_series(folder)))
    far = [size - 1 for size in shape]
    np.testing.assert_allclose(
        (affine @ [*far, 1])[:3], np.array(image.TransformIndexToPhysicalPoint(far)) * [-1, -1, 1], atol=1e-3
    )
    check_image(folder, 3)


def test_two_published_series_share_a_grid(shared_data):
    affines = [read_image(shared_data / "dicom" / f"pgbm003_t1{name}")[1] for name in ("post", "pre_registered")]
    np.testing.assert_allclose(*affines, atol=1e-9)

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from monai_jsm.data import InputError, dicom_objects
from monai_jsm.data.dicom import Series, find_series, read_series
from monai_jsm.data.dicom_objects import (
    check_dicom_output,
    read_registration_object,
    write_derived_series,
    write_registration_object,
)

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
MR, PET = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (7, 6, 5)
SPACING = (0.9, 1.3, 2.5)
SECRETS = {
    "PatientComments": "secret-comment",
    "OtherPatientIDs": "secret-other",
    "InstitutionName": "secret-hospital",
    "ImageComments": "secret-note",
    "StudyDescription": "secret-study",
    "PerformingPhysicianName": "secret^doctor",
    "DeviceSerialNumber": "secret-serial",
    "RecognizableVisualFeatures": "YES",
}
FIXED_STUDY, MOVING_STUDY = "1.2.3.4", "1.2.3.5"


def oblique_affine(handedness=1, shape=SHAPE, spacing=SPACING):
    """RAS; the grid is right-handed in LPS, and so in RAS, where ``handedness`` is 1."""
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.45)
    directions = np.array(turn.GetMatrix()).reshape(3, 3) @ np.diag([1, 1, handedness])
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = [31.25, -17.5, 43.125]
    return affine


def make_series(folder, sop_class, count=5, description="", **changes):
    """Files of one slice each as a scanner writes them, with all that must not come along, and their Series."""
    folder.mkdir(parents=True)
    series_uid = generate_uid(prefix=None)
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = sop_class
    header.Modality = {CT: "CT", ENHANCED_CT: "CT", MR: "MR", PET: "PT"}[sop_class]
    header.SpecificCharacterSet = "ISO_IR 100"
    header.PatientName = "Müller^Zoë"
    header.PatientID = "P-17"
    header.PatientBirthDate = "19500131"
    header.PatientSex = "F"
    header.StudyInstanceUID = FIXED_STUDY
    header.StudyDate, header.StudyTime, header.StudyID = "20240105", "101112", "S9"
    header.AccessionNumber = "A77"
    header.SeriesInstanceUID = series_uid
    header.SeriesDescription = description
    header.FrameOfReferenceUID = FIXED_STUDY + ".1"
    header.PatientPosition = "HFS"
    header.WindowCenter, header.WindowWidth = 0.0, 400.0
    header.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in (SECRETS | changes).items():
        setattr(header, keyword, value)
    header.private_block(0x0019, "VENDOR", create=True).add_new(1, "LO", "secret-private")
    files = []
    for index in range(count):
        header.SOPInstanceUID = generate_uid(prefix=None)
        header.InstanceNumber = index + 1
        files.append(folder / f"{index}.dcm")
        header.save_as(files[-1], enforce_file_format=True)
    return Series(series_uid, tuple(files), description)


def make_pair(folder, sop_class, **changes):
    other = {"StudyInstanceUID": MOVING_STUDY, "FrameOfReferenceUID": MOVING_STUDY + ".1", "StudyDate": "20230607"}
    fixed = make_series(folder / "fixed", CT, 5, "planning CT")
    return fixed, make_series(folder / "moving", sop_class, 4, "prior", **(other | changes))


def itk_image(array, affine, vector=False):
    """A SimpleITK image of (X, Y, Z) or (3, X, Y, Z) voxels on a grid given in RAS."""
    lps = LPS @ affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T), isVector=vector)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def read_series_with_itk(folder):
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)), sitk.sitkFloat64)


def smooth_field(shape, seed=0):
    """A displacement of up to 9 mm that differs along every axis, (3, X, Y, Z) float32."""
    generator = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
    waves = [np.sin(2 * i + phase) * np.cos(3 * j - phase) + (k - phase) ** 2 for phase in generator.uniform(0, 1, 3)]
    return (4.5 * np.stack(waves)).astype(np.float32)


def displacement_transform(field, affine):
    return sitk.DisplacementFieldTransform(itk_image(field.astype(np.float64), affine, vector=True))


def carry(transform, points):
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def points_inside(shape, affine, count=40):
    """Random points between the voxels of a grid, (count, 3), mm, LPS."""
    voxels = np.random.default_rng(5).uniform(0.1, np.array(shape) - 1.1, (count, 3))
    return (voxels @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]


def assert_conforms(*files):
    """Every validator that is installed reads the files and finds no error."""
    if shutil.which("dciodvfy") is None or shutil.which("dcmdump") is None:
        pytest.skip("dciodvfy (dicom3tools) or dcmdump (dcmtk) is not installed.")
    for file in files:
        found = subprocess.run(["dciodvfy", file], capture_output=True, text=True)
        report = found.stdout + found.stderr
        assert [line for line in report.splitlines() if line.startswith("Error")] == []
        assert "Image" in report or "DeformableSpatialRegistration" in report  # it knew the object
        dump = subprocess.run(["dcmdump", "-q", file], capture_output=True, text=True)
        assert (dump.returncode, dump.stderr) == (0, "")


@pytest.mark.parametrize("handedness", [1, -1])
@pytest.mark.parametrize("sop_class", [CT, MR])
def test_itk_reads_a_derived_series_back_in_its_place_with_its_values(tmp_path, sop_class, handedness):
    fixed, moving = make_pair(tmp_path, sop_class)
    affine = oblique_affine(handedness)
    warped = np.random.default_rng(3).uniform(-1024, 3000, SHAPE)
    write_derived_series(tmp_path / "out", warped, affine, fixed, moving)

    found = read_series_with_itk(tmp_path / "out")
    lps = LPS @ affine
    if handedness == -1:  # ITK reads a series right-handed
        lps[:3, 3] += lps[:3, 2] * (SHAPE[2] - 1)
        lps[:3, 2] *= -1
    place = np.array(found.GetDirection()).reshape(3, 3) * found.GetSpacing()
    np.testing.assert_allclose(place * (np.array(SHAPE) - 1), lps[:3, :3] * (np.array(SHAPE) - 1), atol=1e-4)
    np.testing.assert_allclose(found.GetOrigin(), lps[:3, 3], atol=1e-4)
    again = sitk.Resample(found, itk_image(warped, affine), sitk.Transform(), sitk.sitkNearestNeighbor, np.nan)
    assert np.abs(sitk.GetArrayFromImage(again).T - warped).max() <= 0.5
    assert_conforms(*(tmp_path / "out").iterdir())


def test_slices_are_numbered_along_the_normal_and_each_is_its_own_instance(tmp_path):
    fixed, moving = make_pair(tmp_path, CT)
    write_derived_series(tmp_path / "out", np.zeros(SHAPE), oblique_affine(-1), fixed, moving)
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    row, column = np.array(slices[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    along = [np.dot(np.cross(row, column), np.array(one.ImagePositionPatient, dtype=float)) for one in slices]
    np.testing.assert_allclose(np.diff(along), SPACING[2], atol=1e-9)
    assert [one.InstanceNumber for one in slices] == [1, 2, 3, 4, 5]
    assert len({one.SOPInstanceUID for one in slices}) == 5
    assert all(one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID for one in slices)
    assert len({one.SeriesInstanceUID for one in slices} | {fixed.uid, moving.uid}) == 3
    assert (slices[0].Rows, slices[0].Columns) == (SHAPE[1], SHAPE[0])
    np.testing.assert_allclose(slices[0].PixelSpacing, [SPACING[1], SPACING[0]])


def test_a_derived_series_says_whose_it_is_and_what_it_was_made_from(tmp_path):
    fixed, moving = make_pair(tmp_path, MR, ScanningSequence="SE", SequenceVariant="SP", EchoTime=9.5)
    write_derived_series(tmp_path / "out", np.ones(SHAPE), oblique_affine(), fixed, moving)
    found = pydicom.dcmread(tmp_path / "out" / "000003.dcm")
    assert (found.SOPClassUID, found.Modality) == (MR, "MR")
    assert list(found.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
    assert str(found.PatientName) == "Müller^Zoë"
    assert (found.PatientID, found.StudyInstanceUID, found.StudyDate) == ("P-17", FIXED_STUDY, "20240105")
    assert found.FrameOfReferenceUID == FIXED_STUDY + ".1"
    assert found.SeriesDescription == "prior registered to planning CT"
    assert (found.ScanningSequence, found.EchoTime, found.WindowCenter) == ("SE", 9.5, 0)
    assert found.DerivationCodeSequence[0].CodeValue == "113085"
    assert fixed.uid in found.DerivationDescription
    assert moving.uid in found.DerivationDescription
    sources = [item.ReferencedSOPInstanceUID for item in found.SourceImageSequence]
    assert sources == [pydicom.dcmread(file).SOPInstanceUID for file in (*fixed.files, *moving.files)]
    assert {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in found.SourceImageSequence} == {"121322"}
    assert [item.SeriesInstanceUID for item in found.ReferencedSeriesSequence] == [fixed.uid]
    (other,) = found.StudiesContainingOtherReferencedInstancesSequence
    assert other.StudyInstanceUID == MOVING_STUDY
    assert [item.SeriesInstanceUID for item in other.ReferencedSeriesSequence] == [moving.uid]


def test_a_long_description_is_shortened_to_what_the_standard_allows_and_a_given_one_kept(tmp_path):
    fixed = make_series(tmp_path / "fixed", CT, description="f" * 64)
    moving = make_series(tmp_path / "moving", CT, description="m" * 64)
    write_derived_series(tmp_path / "first", np.ones(SHAPE), oblique_affine(), fixed, moving)
    write_derived_series(tmp_path / "second", np.ones(SHAPE), oblique_affine(), fixed, moving, "mine")
    found = [pydicom.dcmread(tmp_path / name / "000001.dcm").SeriesDescription for name in ("first", "second")]
    assert found == ["m" * 24 + " registered to " + "f" * 24, "mine"]
    with pytest.raises(ValueError, match="64 characters"):
        write_derived_series(tmp_path / "third", np.ones(SHAPE), oblique_affine(), fixed, moving, "x" * 65)


def test_whole_numbers_of_ct_and_mr_come_back_exactly_and_mr_without_rescaling(tmp_path):
    for sop_class in (CT, MR):
        fixed, moving = make_pair(tmp_path / sop_class, sop_class)
        warped = np.random.default_rng(2).integers(-1024, 3072, SHAPE).astype(np.float32)
        write_derived_series(tmp_path / sop_class / "out", warped, oblique_affine(), fixed, moving)
        found = read_series_with_itk(tmp_path / sop_class / "out")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, warped)
        header = pydicom.dcmread(tmp_path / sop_class / "out" / "000001.dcm")
        assert header.get("RescaleSlope") == (1 if sop_class == CT else None)


@pytest.mark.parametrize("sop_class", [CT, MR])
@pytest.mark.parametrize(("scale", "slope"), [(1e-3, 1e-6), (1e6, 1.0), (100.0, 0.1)])
def test_itk_honours_the_rescaling_of_small_and_large_values(tmp_path, sop_class, scale, slope):
    fixed, moving = make_pair(tmp_path, sop_class, RescaleSlope=slope, RescaleIntercept=0)
    warped = np.random.default_rng(2).uniform(0.5, 1.5, SHAPE) * scale
    write_derived_series(tmp_path / "out", warped, oblique_affine(), fixed, moving)
    found = sitk.GetArrayFromImage(read_series_with_itk(tmp_path / "out")).T
    assert np.abs(found - warped).max() <= 0.5 * max(slope, np.ptp(warped) / 65000) * (1 + 1e-6)
    assert_conforms(tmp_path / "out" / "000003.dcm")


@given(
    low=st.floats(-1e7, 1e7),
    extent=st.floats(0, 1e7),
    step=st.sampled_from([1e-4, 0.1, 1.0, 2.34567890123456789]),
    seed=st.integers(0, 2**16),
)
def test_a_stored_value_is_at_most_half_a_step_off(low, extent, step, seed):
    voxels = low + extent * np.random.default_rng(seed).uniform(0, 1, 50)
    stored, slope, intercept = dicom_objects._quantised(voxels, step)
    assert slope <= max(step, np.ptp(voxels) / 65000) * (1 + 1e-8)  # 16 characters of a decimal string
    assert np.abs(stored * slope + intercept - voxels).max() <= 0.5 * slope + 1e-8  # float64 at 1e7


def test_slices_of_an_enhanced_object_are_classic_ones_with_its_step(tmp_path):
    transformation = Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept = 0.25, 0
    groups = Dataset()
    groups.PixelValueTransformationSequence = [transformation]
    fixed = make_series(tmp_path / "fixed", CT)
    moving = make_series(tmp_path / "moving", ENHANCED_CT, 1, SharedFunctionalGroupsSequence=[groups])
    warped = np.random.default_rng(2).uniform(-1000, 1000, SHAPE)
    write_derived_series(tmp_path / "out", warped, oblique_affine(), fixed, moving)
    found = pydicom.dcmread(tmp_path / "out" / "000002.dcm")
    assert (found.SOPClassUID, found.RescaleSlope, found.RescaleType) == (CT, 0.25, "HU")
    assert_conforms(tmp_path / "out" / "000002.dcm")


def test_a_body_part_that_comes_once_has_no_laterality(tmp_path):
    fixed, moving = make_pair(tmp_path, CT, BodyPartExamined="BRAIN", Laterality="")
    write_derived_series(tmp_path / "out", np.ones(SHAPE), oblique_affine(), fixed, moving)
    found = pydicom.dcmread(tmp_path / "out" / "000001.dcm")
    assert found.BodyPartExamined == "BRAIN"
    assert "Laterality" not in found
    assert_conforms(tmp_path / "out" / "000001.dcm")


def test_an_unreadable_number_of_the_source_is_left_empty(tmp_path):
    fixed, moving = make_pair(tmp_path, CT)
    for file in moving.files:
        header = pydicom.dcmread(file)
        header.add_new("KVP", "LO", "high")
        header.save_as(file)
    write_derived_series(tmp_path / "out", np.ones(SHAPE), oblique_affine(), fixed, moving)
    found = pydicom.dcmread(tmp_path / "out" / "000001.dcm")
    assert "KVP" in found
    assert found.KVP is None


def test_nothing_private_or_personal_beyond_the_list_comes_along(tmp_path):
    fixed, moving = make_pair(tmp_path, MR)
    affine = oblique_affine()
    write_derived_series(tmp_path / "out", np.ones(SHAPE), affine, fixed, moving)
    write_registration_object(tmp_path / "reg.dcm", smooth_field(SHAPE), affine, fixed, moving)
    assert b"secret-private" in fixed.files[0].read_bytes()
    for path in (*(tmp_path / "out").iterdir(), tmp_path / "reg.dcm"):
        assert b"secret" not in path.read_bytes()
        found = pydicom.dcmread(path)
        assert not [element.tag for element in found.iterall() if element.tag.is_private]
        assert set(SECRETS) & {element.keyword for element in found.iterall()} <= {"DeviceSerialNumber"}  # ours
        assert "BurnedInAnnotation" not in found


def test_two_runs_differ_in_identifiers_and_time_alone(tmp_path):
    fixed, moving = make_pair(tmp_path, CT)
    warped = np.random.default_rng(0).uniform(0, 100, SHAPE)
    texts = []
    for name in ("first", "second"):
        write_derived_series(tmp_path / name, warped, oblique_affine(), fixed, moving)
        found = pydicom.dcmread(tmp_path / name / "000002.dcm")
        del found.SOPInstanceUID, found.SeriesInstanceUID
        del found.SeriesDate, found.SeriesTime, found.ContentDate, found.ContentTime
        texts.append(found.to_json())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("handedness", [1, -1])
def test_a_registration_object_carries_points_as_the_itk_field_does(tmp_path, handedness):
    fixed, moving = make_pair(tmp_path, MR)
    field, affine = smooth_field(SHAPE), oblique_affine(handedness)
    write_registration_object(tmp_path / "reg.dcm", field, affine, fixed, moving)
    points = points_inside(SHAPE, affine)
    expected = carry(displacement_transform(field, affine), points)
    found = carry(displacement_transform(*read_registration_object(tmp_path / "reg.dcm")), points)
    assert np.abs(expected - points).max() > 3  # mm: the points do move
    assert np.linalg.norm(found - expected, axis=1).max() < 1e-4
    assert_conforms(tmp_path / "reg.dcm")


def by_the_standard(path):
    """Grid points (N, 3) and where they lie in the source, by the equation of PS3.3 C.20.3.1.1 taken literally."""
    (item,) = pydicom.dcmread(path).DeformableRegistrationSequence
    (grid,) = item.DeformableRegistrationGridSequence
    row, column = (np.array(grid.ImageOrientationPatient[part], dtype=float) for part in (slice(3), slice(3, 6)))
    x, y, z = grid.GridDimensions
    vectors = np.frombuffer(grid.VectorGridData, "<f4").reshape(-1, 3)
    points = []
    for k in range(z):
        for j in range(y):
            for i in range(x):
                steps = np.array([i, j, k]) * grid.GridResolution
                along = steps[0] * row + steps[1] * column + steps[2] * np.cross(row, column)
                points.append(np.array(grid.ImagePositionPatient, dtype=float) + along)
    points = np.array(points)
    pre, post = (
        np.array(getattr(item, f"{side}DeformationMatrixRegistrationSequence")[0].FrameOfReferenceTransformationMatrix)
        .astype(float)
        .reshape(4, 4)
        for side in ("Pre", "Post")
    )
    turned = points @ pre[:3, :3].T + pre[:3, 3] + vectors
    return points, turned @ post[:3, :3].T + post[:3, 3]


@pytest.mark.parametrize("handedness", [1, -1])
def test_the_equation_of_the_standard_gives_what_itk_gives(tmp_path, handedness):
    fixed, moving = make_pair(tmp_path, CT)
    field, affine = smooth_field(SHAPE), oblique_affine(handedness)
    write_registration_object(tmp_path / "reg.dcm", field, affine, fixed, moving)
    points, carried = by_the_standard(tmp_path / "reg.dcm")
    assert np.abs(carry(displacement_transform(field, affine), points) - carried).max() < 1e-4


def test_a_left_handed_grid_written_as_it_is_would_be_millimetres_wrong(tmp_path, monkeypatch):
    fixed, moving = make_pair(tmp_path, CT)
    field, affine = smooth_field(SHAPE), oblique_affine(-1)
    monkeypatch.setattr(dicom_objects, "_right_handed", lambda array, affine, leading: (array, LPS @ affine))
    write_registration_object(tmp_path / "wrong.dcm", field, affine, fixed, moving)
    points = points_inside(SHAPE, affine)
    expected = carry(displacement_transform(field, affine), points)
    found = carry(displacement_transform(*read_registration_object(tmp_path / "wrong.dcm")), points)
    assert np.linalg.norm(found - expected, axis=1).max() > 1


def test_the_matrices_around_a_deformation_are_folded_into_the_field(tmp_path):
    fixed, moving = make_pair(tmp_path, MR)
    path = tmp_path / "reg.dcm"
    write_registration_object(path, smooth_field(SHAPE), oblique_affine(-1), fixed, moving)
    edited = pydicom.dcmread(path)
    (item,) = edited.DeformableRegistrationSequence
    for side, angle, shift in (("Pre", 0.3, [5.0, -8.0, 2.0]), ("Post", -0.2, [-1.0, 4.0, 7.0])):
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(sitk.Euler3DTransform((0, 0, 0), angle, 0.1, -angle).GetMatrix()).reshape(3, 3)
        matrix[:3, 3] = shift
        entry = Dataset()
        entry.FrameOfReferenceTransformationMatrix = [f"{value:.10f}" for value in matrix.ravel()]
        entry.FrameOfReferenceTransformationMatrixType = "RIGID"
        setattr(item, f"{side}DeformationMatrixRegistrationSequence", [entry])
    edited.DeformableRegistrationSequence = [Dataset(), item]  # some write an item of the fixed image without a grid
    edited.save_as(path)
    field, affine = read_registration_object(path)
    edited.DeformableRegistrationSequence = [item]
    edited.save_as(path)
    points, carried = by_the_standard(path)
    assert np.abs(carry(displacement_transform(field, affine), points) - carried).max() < 1e-4

    del item.PreDeformationMatrixRegistrationSequence, item.PostDeformationMatrixRegistrationSequence
    edited.save_as(path)
    np.testing.assert_array_equal(read_registration_object(path)[0], smooth_field(SHAPE)[..., ::-1])


def test_a_registration_object_names_both_frames_and_all_images(tmp_path):
    fixed, moving = make_pair(tmp_path, MR)
    write_registration_object(tmp_path / "reg.dcm", smooth_field(SHAPE), oblique_affine(), fixed, moving)
    found = pydicom.dcmread(tmp_path / "reg.dcm")
    assert found.Modality == "REG"
    assert (found.StudyInstanceUID, found.FrameOfReferenceUID) == (FIXED_STUDY, FIXED_STUDY + ".1")
    (item,) = found.DeformableRegistrationSequence
    assert item.SourceFrameOfReferenceUID == MOVING_STUDY + ".1"
    assert [image.ReferencedSOPInstanceUID for image in item.ReferencedImageSequence] == [
        pydicom.dcmread(file).SOPInstanceUID for file in moving.files
    ]
    assert [item.SeriesInstanceUID for item in found.ReferencedSeriesSequence] == [fixed.uid]


def test_a_pair_that_cannot_be_written_is_refused_before_it_is_registered(tmp_path, one_sentence):
    fixed, moving = make_pair(tmp_path, MR)
    check_dicom_output(fixed, moving)
    refused = {
        "another PatientID": make_series(tmp_path / "a", MR, PatientID="P-18"),
        "neither CT nor MR": make_series(tmp_path / "b", PET),
        "text burned into": make_series(tmp_path / "c", MR, BurnedInAnnotation="YES"),
        "lacks FrameOfReferenceUID": make_series(tmp_path / "d", MR, FrameOfReferenceUID=""),
    }
    for fault, series in refused.items():
        with pytest.raises(InputError, match=fault) as caught:
            check_dicom_output(fixed, series)
        one_sentence(str(caught.value), series.files[0], fault)
        with pytest.raises(InputError, match=fault):
            write_derived_series(tmp_path / "out", np.ones(SHAPE), oblique_affine(), fixed, series)
    write_registration_object(  # which needs no pixels of its own
        tmp_path / "reg.dcm", smooth_field(SHAPE), oblique_affine(), fixed, refused["neither CT nor MR"]
    )
    with pytest.raises(InputError, match="another PatientID"):
        write_registration_object(
            tmp_path / "no.dcm", smooth_field(SHAPE), oblique_affine(), fixed, refused["another PatientID"]
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "no.dcm").exists()


def test_an_old_pydicom_is_named_with_the_remedy(tmp_path, monkeypatch):
    fixed, moving = make_pair(tmp_path, CT)
    monkeypatch.setattr(pydicom, "__version__", "2.4.4")
    with pytest.raises(InputError, match=r"DICOM output needs pydicom 3 or newer; pip install 'pydicom>=3'\."):
        check_dicom_output(fixed, moving)


def test_arrays_and_grids_that_do_not_fit_are_refused(tmp_path):
    fixed, moving = make_pair(tmp_path, CT)
    sheared = oblique_affine()
    sheared[:3, 2] += 0.1 * sheared[:3, 0]
    hole = np.full(SHAPE, 1.0)
    hole[3, 2, 1] = np.nan
    for warped, affine, fault in (
        (np.ones(SHAPE[:2]), oblique_affine(), "finite"),
        (hole, oblique_affine(), "finite"),
        (np.ones(SHAPE), sheared, "right angles"),
    ):
        with pytest.raises(ValueError, match=fault):
            write_derived_series(tmp_path / "out", warped, affine, fixed, moving)
    with pytest.raises(ValueError, match=r"finite \(3, X, Y, Z\)"):
        write_registration_object(tmp_path / "reg.dcm", np.zeros((2, *SHAPE)), oblique_affine(), fixed, moving)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_as_it_is_and_an_empty_one_filled(tmp_path, one_sentence):
    fixed, moving = make_pair(tmp_path, CT)
    folder = tmp_path / "out"
    folder.mkdir()
    write_derived_series(folder, np.ones(SHAPE), oblique_affine(), fixed, moving)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="there already") as caught:
        write_derived_series(folder, np.zeros(SHAPE), oblique_affine(), fixed, moving)
    one_sentence(str(caught.value), folder, "there already")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, monkeypatch):
    fixed, moving = make_pair(tmp_path, CT)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "reg.dcm").write_text("older")
    write, calls = pydicom.dcmwrite, []

    def fail_at_the_third(path, *arguments, **options):
        calls.append(path)
        if len(calls) >= 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, *arguments, **options)

    monkeypatch.setattr(pydicom, "dcmwrite", fail_at_the_third)
    with pytest.raises(OSError, match="No space"):
        write_derived_series(folder / "series", np.ones(SHAPE), oblique_affine(), fixed, moving)
    with pytest.raises(OSError, match="No space"):
        write_registration_object(folder / "reg.dcm", smooth_field(SHAPE), oblique_affine(), fixed, moving)
    assert [path.name for path in folder.iterdir()] == ["reg.dcm"]
    assert (folder / "reg.dcm").read_text() == "older"


def test_a_registration_object_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, one_sentence):
    fixed, moving = make_pair(tmp_path, CT)
    path = tmp_path / "reg.dcm"

    def edit(change):
        write_registration_object(path, smooth_field(SHAPE), oblique_affine(), fixed, moving)
        whole = pydicom.dcmread(path)
        (item,) = whole.DeformableRegistrationSequence
        change(whole, item, item.DeformableRegistrationGridSequence[0])
        whole.save_as(path)

    def undefined(whole, item, grid):
        vectors = np.frombuffer(grid.VectorGridData, "<f4").copy()
        vectors[33:36] = np.nan
        grid.VectorGridData = vectors.tobytes()

    faults = [
        (lambda whole, item, grid: delattr(item, "DeformableRegistrationGridSequence"), "holds 0 deformation grids"),
        (lambda whole, item, grid: whole.DeformableRegistrationSequence.append(item), "holds 2 deformation grids"),
        (lambda whole, item, grid: setattr(grid, "VectorGridData", grid.VectorGridData[:-12]), "damaged"),
        (lambda whole, item, grid: delattr(grid, "GridResolution"), "damaged"),
        (lambda whole, item, grid: setattr(grid, "GridDimensions", [7, 0, 5]), "damaged"),
        (lambda whole, item, grid: setattr(grid, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "damaged"),
        (undefined, "undefined"),
        (lambda whole, item, grid: setattr(whole, "SOPClassUID", CT), "is no Deformable Spatial Registration"),
    ]
    for change, fault in faults:
        edit(change)
        with pytest.raises(InputError, match=fault) as caught:
            read_registration_object(path)
        one_sentence(str(caught.value), path, fault)

    edit(lambda whole, item, grid: None)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(InputError, match=r"cannot be read|damaged|holds 0"):
        read_registration_object(path)
    path.write_text("text")
    with pytest.raises(InputError, match="cannot be read as DICOM") as caught:
        read_registration_object(path)
    one_sentence(str(caught.value), path, "cannot be read as DICOM")
    with pytest.raises(InputError, match="no such file") as caught:
        read_registration_object(tmp_path / "absent.dcm")
    one_sentence(str(caught.value), tmp_path / "absent.dcm", "no such file")


def test_a_clinical_pair_gives_a_series_and_a_registration_that_itk_and_validators_accept(tmp_path, shared_data):
    names = ("pgbm003_t1post", "pgbm003_t1pre_registered")
    fixed, moving = (find_series(shared_data / "dicom" / name) for name in names)
    affine = read_series(fixed)[1]
    image = sitk.ReadImage([str(file) for file in fixed.files])
    warped = read_series(moving)[0] + np.float32(0.25)
    write_derived_series(tmp_path / "out", warped, affine, fixed, moving)
    found = read_series_with_itk(tmp_path / "out")
    assert found.GetSize() == image.GetSize()
    for ours, theirs in zip(
        (found.GetOrigin(), found.GetSpacing(), found.GetDirection()),
        (image.GetOrigin(), image.GetSpacing(), image.GetDirection()),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)  # times 320 voxels of 0.7 mm: below 1e-4 mm
    assert np.abs(sitk.GetArrayFromImage(found).T - warped).max() <= 0.5
    assert pydicom.dcmread(tmp_path / "out" / "000001.dcm").SeriesDescription == "T1pre_reg registered to T1post"

    shape, coarse = (9, 8, 7), affine @ np.diag([30.0, 40.0, 3.0, 1.0])
    field = smooth_field(shape)
    write_registration_object(tmp_path / "reg.dcm", field, coarse, fixed, moving)
    points = points_inside(shape, coarse)
    expected = carry(displacement_transform(field, coarse), points)
    found_points = carry(displacement_transform(*read_registration_object(tmp_path / "reg.dcm")), points)
    assert np.linalg.norm(found_points - expected, axis=1).max() < 1e-4
    assert_conforms(*sorted((tmp_path / "out").iterdir())[::7], tmp_path / "reg.dcm")

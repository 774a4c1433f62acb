"""Input that cannot be used: the program ends with status 2 and one plain sentence, and leaves nothing behind."""

import copy
import gzip
import itertools
import json
import logging
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import psutil
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from monai_jsm.apps.command_line import main
from monai_jsm.networks import GlobalToLocalNet

PROJECT = Path(__file__).resolve().parents[1]
SHAPE, MOVING_SHAPE = (19, 23, 17), (21, 18, 20)
SIDES = ("fixed", "moving")
POINTS = {"a": (5, 6, 7), "b": (12, 9, 5), "c": (8, 14, 11)}  # voxels, on both grids
MOST_SECONDS = 20.0
MOST_MEMORY = 2**28  # bytes that a refusal may take


class Pair(NamedTuple):
    """A pair that registers, and what belongs to it."""

    fixed: Path
    moving: Path
    landmarks: dict[str, Path]  # by side, in voxels, the first at 0
    labels: dict[str, Path]
    series: dict[str, Path]  # DICOM folders, 3D
    options: list[str]
    result: Path


Words = list[Any]
Maker = Callable[[Path, int], Path]  # of a file in a folder, for so many axes
LETTER = "Dear colleague,\nplease find. The images are here.\n"


def words_of(pair: Pair, folder: Path, *more: Any, **sides: Any) -> Words:
    """The words that register a pair, of which ``sides`` are replaced, into a folder that has no parent yet."""
    words: Words = ["register", "--output", folder / "new" / "out", *pair.options, *more]
    for side, path in ({"fixed": pair.fixed, "moving": pair.moving} | sides).items():
        words += [f"--{side.replace('_', '-')}", path]
    return words


def voxels(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 200, shape).astype(np.float32)


def affine_of(dims: int) -> np.ndarray:
    """Oblique, anisotropic and left-handed; of a 2D image: within the world's first two axes."""
    cosine, sine = 0.8, 0.6
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    if dims == 3:
        turn = turn @ np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [1.1, -1.4, 1.8]
    affine[:3, 3] = [10, -20, 30][:dims] + [0] * (3 - dims)
    return affine


def nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, affine_of(array.ndim) if affine is None else affine), path)
    return path


def table(points: dict[str, Any], dims: int) -> str:
    rows = [",".join(map(str, (label, *point[:dims]))) for label, point in points.items()]
    return "\n".join([",".join(("label", "x", "y", "z")[: dims + 1]), *rows]) + "\n"


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


Slices = list[Dataset]


def ct(seed: int = 0) -> Slices:
    """The slices of an oblique CT series of 19 columns, 23 rows and 17 slices."""
    matrix = np.diag([-1.0, -1, 1, 1]) @ affine_of(3) @ np.diag([1, 1, -1, 1])  # the normal is row x column
    stored = np.random.default_rng(seed).integers(0, 2000, SHAPE[::-1], dtype=np.uint16)
    made = []
    for number, pixels in enumerate(stored):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.Modality, ds.PatientID, ds.InstanceNumber = "CT", "phantom", number + 1
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = f"1.2.{seed + 3}", "1.2", "1.2.9"
        ds.Rows, ds.Columns = pixels.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelSpacing = [1.4, 1.1]
        ds.ImageOrientationPatient = [round(value, 12) for value in (matrix[:3, :2] / [1.1, 1.4]).T.ravel()]
        ds.ImagePositionPatient = [round(value, 8) for value in matrix[:3, 3] + number * matrix[:3, 2]]
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = pixels.tobytes()
        made.append(ds)
    return made


def saved(folder: Path, slices: Slices) -> Path:
    folder.mkdir()
    for number, ds in enumerate(slices):
        ds.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Pair]:
    """Registered pairs by the number of their axes."""
    pairs = {}
    for dims in (2, 3):
        folder = tmp_path_factory.mktemp(f"good{dims}")
        images, landmarks, labels, series = {}, {}, {}, {}
        for seed, (side, shape) in enumerate(zip(SIDES, (SHAPE, MOVING_SHAPE), strict=True)):
            array = voxels(shape[:dims], seed)
            images[side] = nifti(folder / f"{side}.nii.gz", array)
            labels[side] = nifti(folder / f"{side}_label.nii.gz", (array > 100).astype(np.uint8))
            landmarks[side] = written(folder / f"{side}.csv", table(POINTS, dims))
            series[side] = saved(folder / f"{side}_series", ct(seed))
        options = ["--affine", "none", "--no-refine"]
        if dims == 3:
            torch.manual_seed(0)
            torch.save(GlobalToLocalNet(3).state_dict(), folder / "model.pt")
            options += ["--weights", str(folder / "model.pt")]
        result = folder / "new" / "out"
        pairs[dims] = Pair(**images, landmarks=landmarks, labels=labels, series=series, options=options, result=result)
        assert main([str(word) for word in words_of(pairs[dims], folder)]) == 0
    return pairs


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def memory(entry: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most since the peak was reset."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{entry}:")[2].split()[0])


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


Refused = Callable[[Words, Path | str, str], None]


@pytest.fixture
def refused(
    good: dict[int, Pair],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    one_sentence: Callable[[str, Path, str], None],
) -> Refused:
    """A check that words given to the program are refused: ``refused(words, path, "fault; remedy")``."""

    def check(words: Words, path: Path | str, told: str) -> None:
        fault, remedy = told.split("; ")
        folders = [tmp_path, good[2].fixed.parent, good[3].fixed.parent]
        before = [listing(folder) for folder in folders]
        capfd.readouterr()
        reset_peak()
        held, started = memory("VmRSS"), time.monotonic()
        with caplog.at_level(logging.INFO):  # that of the program, which logs to standard error
            assert main([str(word) for word in words]) == 2
        assert time.monotonic() - started < MOST_SECONDS
        assert memory("VmHWM") - held < MOST_MEMORY
        assert [listing(folder) for folder in folders] == before
        out, err = capfd.readouterr()
        sentence = err.removesuffix("\n")
        assert (out, sentence) == ("", err[:-1])
        one_sentence(sentence, Path(path), fault)
        assert remedy in sentence.rpartition("; ")[2]
        known = help_of(words[0], capfd)
        assert all(option in known for option in re.findall(r"--[a-z_-]{3,}", sentence.removeprefix(str(path))))
        assert caplog.messages == []
        shown = [w for w in recwarn if not issubclass(w.category, (DeprecationWarning, PendingDeprecationWarning))]
        assert shown == []

    return check


def help_of(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capfd.readouterr().out


# Images: each is given once as the fixed image and once as the moving one of a pair that registers.


def packed(path: Path) -> Path:
    """The file of an uncompressed image, compressed beside it."""
    return written(path.with_suffix(".nii.gz"), gzip.compress(path.read_bytes()))


def changed(path: Path, changes: dict[int, bytes]) -> Path:
    """The file with other bytes at the given places, counted from its end where negative."""
    content = bytearray(path.read_bytes())
    for at, piece in changes.items():
        start = at % len(content)
        content[start : start + len(piece)] = piece
    return written(path, bytes(content))


def cut(path: Path, count: int = 100) -> Path:
    return written(path, path.read_bytes()[:-count])


def flipped(path: Path, at: int) -> Path:
    return changed(path, {at: bytes([path.read_bytes()[at] ^ 4])})


def plain(folder: Path, dims: int) -> Path:
    return nifti(folder / "image.nii", voxels(SHAPE[:dims]))


def zipped(folder: Path, dims: int) -> Path:
    return packed(plain(folder, dims))


def with_voxel(folder: Path, dims: int, value: float) -> Path:
    array = voxels(SHAPE[:dims])
    array[(3, 4, 5)[:dims]] = value
    return nifti(folder / "image.nii.gz", array)


def with_shape(folder: Path, dims: int, sizes: Sequence[int]) -> Path:
    """A NIfTI file whose header announces other sizes."""
    return changed(plain(folder, dims), {40: struct.pack(f"<{len(sizes) + 1}h", len(sizes), *sizes)})


def sheared(folder: Path, dims: int) -> Path:
    affine = affine_of(dims)
    affine[0, 1] = 0.9
    return nifti(folder / "image.nii.gz", voxels(SHAPE[:dims]), affine)


def with_two_orientations(folder: Path, dims: int) -> Path:
    image = nib.Nifti1Image(voxels(SHAPE[:dims]), affine_of(dims))
    image.set_qform(affine_of(dims) @ np.diag([-1, 1, 1, 1]), code=1)
    image.set_sform(affine_of(dims), code=2)
    nib.save(image, folder / "image.nii.gz")
    return folder / "image.nii.gz"


def itk(folder: Path, dims: int, suffix: str, old: str = "", new: str = "", compress: bool = False) -> Path:
    """A file that ITK wrote, with another entry in its header."""
    image = sitk.GetImageFromArray(voxels(SHAPE[:dims]).T)
    image.SetSpacing([1.25, 1.5, 2.0][:dims])
    sitk.WriteImage(image, str(folder / f"image{suffix}"), useCompression=compress)
    content = (folder / f"image{suffix}").read_bytes()
    assert old.encode() in content
    return written(folder / f"image{suffix}", content.replace(old.encode(), new.encode(), 1))


def vectors(folder: Path, dims: int) -> Path:
    image = sitk.GetImageFromArray(voxels((*SHAPE[:dims][::-1], 3)), isVector=True)
    sitk.WriteImage(image, str(folder / "image.mha"))
    return folder / "image.mha"


def numpy_file(folder: Path, dims: int) -> Path:
    np.save(folder / "image.npy", voxels(SHAPE[:dims]))
    return folder / "image.npy"


def dangling(folder: Path, dims: int) -> Path:
    (folder / "image.mha").symlink_to(folder / "gone.mha")
    return folder / "image.mha"


def sizes_of(dims: int) -> str:
    return " ".join(map(str, SHAPE[:dims]))


def picture(folder: Path, suffix: str, mode: str = "L") -> Path:
    colours = np.random.default_rng(0).integers(0, 255, (60, 70, 3), dtype=np.uint8)
    Image.fromarray(colours).convert(mode).save(folder / f"picture{suffix}")
    return folder / f"picture{suffix}"


def huge_png(folder: Path, dims: int) -> Path:
    path = changed(picture(folder, ".png"), {16: struct.pack(">2I", 100_000, 100_000)})
    return changed(path, {29: struct.pack(">I", zlib.crc32(path.read_bytes()[12:29]))})


def transparent_png(folder: Path, dims: int) -> Path:
    faded = Image.open(picture(folder, ".png", "RGBA"))
    faded.putalpha(Image.linear_gradient("L").resize(faded.size))
    faded.save(folder / "picture.png")
    return folder / "picture.png"


def zeros(start: bytes, wbits: int) -> bytes:
    """One GiB of zeros after ``start``, packed."""
    packer = zlib.compressobj(1, wbits=wbits)
    pieces = itertools.chain([start], itertools.repeat(bytes(2**22), 256))
    return b"".join([*map(packer.compress, pieces), packer.flush()])


def nifti_bomb(folder: Path, dims: int) -> Path:
    return written(folder / "image.nii.gz", zeros(plain(folder, dims).read_bytes(), wbits=31))


def nrrd_bomb(folder: Path, dims: int) -> Path:
    head, _, body = itk(folder, dims, ".nrrd", "encoding: raw", "encoding: gzip").read_bytes().partition(b"\n\n")
    return written(folder / "image.nrrd", head + b"\n\n" + zeros(body, wbits=31))


def mha_bomb(folder: Path, dims: int) -> Path:
    head, mark, body = itk(folder, dims, ".mha").read_bytes().partition(b"ElementDataFile = LOCAL\n")
    packed_body = zeros(body, wbits=15)
    sizes = f"CompressedDataSize = {len(packed_body)}\n".encode()
    head = head.replace(b"CompressedData = False\n", b"CompressedData = True\n" + sizes)
    return written(folder / "image.mha", head + mark + packed_body)


def elsewhere(suffix: str, name: str) -> Maker:
    """A maker of a header that names, as its data, a file of the right size in another folder."""

    def make(folder: Path, dims: int) -> Path:
        (folder / "headers").mkdir()
        itk(folder, dims, suffix)
        (data,) = folder.glob("image.*raw")
        header = (folder / f"image{suffix}").read_text().replace(data.name, name.format(data))
        return written(folder / "headers" / f"image{suffix}", header)

    return make


def holding(name: str, content: str | bytes) -> Maker:
    return lambda folder, dims: written(folder / name, content)


def truncated(suffix: str) -> Maker:
    return lambda folder, dims: cut(itk(folder, dims, suffix))


IMAGES: dict[str, tuple[Sequence[int], Maker, str]] = {
    "a file that is missing": ((2, 3), lambda f, d: f / "image.nii.gz", "there is no such file; correct the path"),
    "a link to nowhere": ([3], dangling, "there is no such file; correct the path"),
    **{
        f"an empty file {name}": (
            [3],
            holding(name, b""),
            "cannot be read as an image; write",
        )
        for name in ("image.nii", "image.nii.gz", "image.mha", "image.nrrd")
    },
    "an empty PNG": ([2], lambda f, d: written(f / "picture.png", b""), "cannot be read as an image; save it again"),
    **{
        f"text that is named {name}": (
            [3],
            holding(name, LETTER),
            "cannot be read as an image; write the file again",
        )
        for name in ("image.nii", "image.nii.gz", "image.mha", "image.nrrd")
    },
    "text that is named .dcm": (
        [3],
        lambda f, d: written(f / "image.dcm", LETTER),
        "is no DICOM file, though its name says so; export it again",
    ),
    "a truncated .nii": ((2, 3), lambda f, d: cut(plain(f, d)), "; write the file again"),
    "a truncated .nii.gz": ((2, 3), lambda f, d: cut(zipped(f, d)), "cannot be read as an image (Compressed; write"),
    "a .nii.gz without its last byte": ((2, 3), lambda f, d: cut(zipped(f, d), 1), "cannot be read as an image; write"),
    **{
        f"a truncated {suffix}": (
            (2, 3),
            truncated(suffix),
            "holds less data than its header announces; write the file again",
        )
        for suffix in (".mha", ".nrrd")
    },
    "a truncated compressed .mha": (
        (2, 3),
        lambda f, d: cut(itk(f, d, ".mha", compress=True)),
        "cannot be read as an image (compressed data end too early; write the file again",
    ),
    "a truncated PNG": ([2], lambda f, d: cut(picture(f, ".png")), "cannot be read as an image; save it again"),
    "a truncated JPEG": ([2], lambda f, d: cut(picture(f, ".jpg")), "is cut short; write the file again"),
    "a truncated BMP": ([2], lambda f, d: cut(picture(f, ".bmp")), "is cut short; write the file again"),
    "a wrong CRC": ((2, 3), lambda f, d: flipped(zipped(f, d), -6), "(CRC check failed; write the file again"),
    "a flipped bit in a .nii.gz": (
        (2, 3),
        lambda f, d: flipped(zipped(f, d), 800),
        "cannot be read as an image; write the file again",
    ),
    "a .nii.gz that unpacks to 1 GiB": ([3], nifti_bomb, "holds more data than its header announces; write"),
    "a .nrrd that unpacks to 1 GiB": ([3], nrrd_bomb, "holds more data than its header announces; write"),
    "a .mha that unpacks to 1 GiB": ([3], mha_bomb, "holds more data than its header announces; write"),
    "a NIfTI header of 32767 cubed": (
        [3],
        lambda f, d: with_shape(f, d, [32767] * 3),
        "more than 2^30; crop the image",
    ),
    "a NIfTI header of a GiB without data": (
        [3],
        lambda f, d: with_shape(f, d, [1023] * 3),
        "; write the file again",
    ),
    "a .mha header of 100000 cubed": (
        [3],
        lambda f, d: itk(f, d, ".mha", sizes_of(d), "100000 100000 100000"),
        "announces 1000000000000000 voxels, more than 2^30; crop the image",
    ),
    "a .nrrd header of 100000 cubed": (
        [3],
        lambda f, d: itk(f, d, ".nrrd", sizes_of(d), "100000 100000 100000"),
        "announces 1000000000000000 voxels, more than 2^30; crop the image",
    ),
    "a PNG header of 100000 squared": ([2], huge_png, "announces 10000000000 voxels, more than 2^30; crop the image"),
    "a negative NIfTI dimension": ((2, 3), lambda f, d: with_shape(f, d, [19, -23, 17][:d]), "; write the file again"),
    "a zero NIfTI dimension": (
        (2, 3),
        lambda f, d: with_shape(f, d, [19, 0, 17][:d]),
        "holds no voxels; write",
    ),
    "a negative .mha dimension": (
        (2, 3),
        lambda f, d: itk(f, d, ".mha", sizes_of(d), f"-{sizes_of(d)}"),
        "more than 2^30; write it again",
    ),
    "a zero .nrrd dimension": (
        (2, 3),
        lambda f, d: itk(f, d, ".nrrd", "sizes: 19", "sizes: 0"),
        "; write the file again",
    ),
    "a voxel of NaN": ((2, 3), lambda f, d: with_voxel(f, d, np.nan), "holds NaN or infinite voxels; replace them"),
    "an infinite voxel": ((2, 3), lambda f, d: with_voxel(f, d, -np.inf), "holds NaN or infinite voxels; replace them"),
    "a constant image": (
        (2, 3),
        lambda f, d: nifti(f / "image.nii.gz", np.full(SHAPE[:d], 7, np.int16)),
        "is constant; give another image",
    ),
    "an image that is almost constant": (
        (2, 3),
        lambda f, d: nifti(f / "image.nii.gz", (voxels((62, 51, 17)[:d]) > 198.5).astype(np.uint8)),
        "98 % of its voxels or more have one value; crop both images around their content",
    ),
    "a singular affine": (
        (2, 3),
        lambda f, d: nifti(f / "image.nii.gz", voxels(SHAPE[:d]), affine_of(d) @ np.array(np.eye(4)[[0, 0, 2, 3]]).T),
        "its affine is singular; correct the header",
    ),
    "an affine with NaN": (
        (2, 3),
        lambda f, d: changed(plain(f, d), {296: struct.pack("<f", np.nan)}),
        "its affine holds NaN or infinite entries; correct the header",
    ),
    "an affine of zeros": (
        (2, 3),
        lambda f, d: changed(plain(f, d), {252: bytes(2), 280: bytes(48)}),
        "its affine gives a voxel edge of zero length; correct the header",
    ),
    "no affine": (
        (2, 3),
        lambda f, d: changed(plain(f, d), {252: bytes(4)}),
        "its header places it nowhere; write it again with an affine",
    ),
    "a sheared affine": ((2, 3), sheared, "its axes are sheared; resample the image"),
    "a slice that is tilted": (
        [2],
        lambda f, d: nifti(f / "image.nii.gz", voxels(SHAPE[:2]), affine_of(3)),
        "its plane is tilted out of the world's first two axes; give the slice an affine within the plane",
    ),
    "a qform that is not the sform": (
        (2, 3),
        with_two_orientations,
        "its sform and qform place the image differently; copy the right one over the other",
    ),
    "a pixdim that is not the sform's": (
        (2, 3),
        lambda f, d: changed(plain(f, d), {80: struct.pack("<f", 3.0), 252: bytes(2)}),
        "its header gives the voxel edges 3 x 1.4; correct the one that is wrong",
    ),
    "a pixdim of zero": (
        (2, 3),
        lambda f, d: changed(plain(f, d), {80: bytes(4)}),
        "its header gives the voxel edges 0 x 1.4; correct pixdim",
    ),
    "a negative pixdim": (
        (2, 3),
        lambda f, d: changed(plain(f, d), {84: struct.pack("<f", -1.4)}),
        "its header gives the voxel edges 1.1 x -1.4; correct pixdim",
    ),
    "a .mha spacing of zero": (
        (2, 3),
        lambda f, d: itk(f, d, ".mha", "ElementSpacing = 1.25", "ElementSpacing = 0"),
        "its header gives the voxel edges 0 x 1.5; correct the header",
    ),
    "a series of volumes": (
        [3],
        lambda f, d: nifti(f / "image.nii.gz", voxels((*SHAPE, 5)), affine_of(3)),
        "has the shape 19 x 23 x 17 x 5; keep one channel or time point",
    ),
    "a NIfTI of colours": (
        (2, 3),
        lambda f, d: nifti(f / "image.nii.gz", np.ones(SHAPE[:d], [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "holds colour or complex values; convert it to one number a voxel",
    ),
    "complex numbers": (
        (2, 3),
        lambda f, d: nifti(f / "image.nii.gz", voxels(SHAPE[:d]).astype(np.complex64)),
        "holds colour or complex values; convert it to one number a voxel",
    ),
    "a .mha of vectors": ((2, 3), vectors, "holds 3 numbers a voxel; keep one channel"),
    "an axis of 15 voxels": (
        (2, 3),
        lambda f, d: nifti(f / "image.nii.gz", voxels((19, 15, 17)[:d])),
        "where each axis needs at least 16; give a larger image",
    ),
    "an unknown suffix": (
        [3],
        lambda f, d: plain(f, d).rename(f / "image.vol"),
        "is of a format that is not read; convert it to .nii.gz or .mha",
    ),
    "a .npy": (
        [3],
        numpy_file,
        "is of a format that is not read; convert it to .nii.gz or .mha",
    ),
    "a transparent PNG": ([2], transparent_png, "is transparent in places; save it without transparency"),
    **{
        f"a {suffix} whose data lie at {name}": (
            (2, 3),
            elsewhere(suffix, name),
            "as its data, which are not one file beside it; store it as .nii.gz",
        )
        for suffix, name in itertools.product((".mhd", ".nhdr"), ("{}", "../{0.name}"))
    },
    "a .mhd whose data are missing": (
        (2, 3),
        lambda f, d: itk(f, d, ".mhd", "image.raw", "image2.raw"),
        "names 'image2.raw' as its data, which is not beside it; put both into one folder",
    ),
}


@pytest.mark.parametrize(
    ("name", "dims"), [(name, dims) for name, (all_dims, *_) in IMAGES.items() for dims in all_dims]
)
def test_an_image_that_cannot_be_used_is_refused(
    good: dict[int, Pair], tmp_path: Path, refused: Refused, name: str, dims: int
) -> None:
    _, make, told = IMAGES[name]
    path = make(tmp_path, dims)
    for side in SIDES:
        refused(words_of(good[dims], tmp_path, **{side: path}), path, told)


# Series: the slices of a good one, changed before they are written.


def leaning(slices: Slices) -> None:
    for number, ds in enumerate(slices):
        along_row = np.array(ds.ImageOrientationPatient[:3])
        ds.ImagePositionPatient = [
            round(v, 8) for v in np.array(ds.ImagePositionPatient, float) + 0.1 * number * along_row
        ]


def doubled(slices: Slices) -> None:
    slices.append(copy.deepcopy(slices[5]))
    slices[-1].SOPInstanceUID = slices[-1].file_meta.MediaStorageSOPInstanceUID = generate_uid()


def cropped(slices: Slices) -> None:
    slices[5].Rows, slices[5].PixelData = 20, slices[5].PixelData[: 20 * 19 * 2]


def at_one_place(slices: Slices) -> None:
    for ds in slices:
        ds.ImagePositionPatient = slices[0].ImagePositionPatient


def of_two_series(slices: Slices) -> None:
    for ds in slices[::2]:
        ds.SeriesInstanceUID = "1.2.77"


def without_pixels(slices: Slices) -> None:
    for ds in slices:
        for keyword in ("Rows", "Columns", "PixelData"):
            delattr(ds, keyword)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage


def huge(slices: Slices) -> None:
    for ds in slices:
        ds.Rows = ds.Columns = 65535


SERIES: dict[str, tuple[Callable[[Slices], object], str, str]] = {
    "a folder without files": (lambda slices: slices.clear(), "", "holds no DICOM image; name the folder"),
    "a folder of reports": (without_pixels, "", "holds no DICOM image; name the folder"),
    "two series and no choice": (of_two_series, "", "holds 2 series, 1.2.77 (; choose one with --series UID"),
    "a slice that is there twice": (
        doubled,
        "",
        "005.dcm and 017.dcm lie at one place; leave one slice at each place",
    ),
    "a missing slice": (
        lambda slices: slices.pop(7),
        "",
        "006.dcm and 007.dcm lie 3.6 mm apart; export the whole series",
    ),
    "a tilted gantry": (leaning, "", "its slices lean by 3.18 degrees; convert it with dcm2niix"),
    "slices of two sizes": (cropped, "", "000.dcm and 005.dcm are of one series but differ in Rows; move the files"),
    "slices at one place": (at_one_place, "", "000.dcm and 001.dcm lie at one place; leave one slice at each place"),
    "a slice without a position": (
        lambda slices: delattr(slices[5], "ImagePositionPatient"),
        "",
        "005.dcm has no ImagePositionPatient; export the series with it",
    ),
    "a position that is text": (
        lambda slices: slices[5].add_new("ImagePositionPatient", "LO", "somewhere"),
        "005.dcm",
        "its ImagePositionPatient is not; export it again",
    ),
    "a rescale slope of zero": (
        lambda slices: setattr(slices[5], "RescaleSlope", 0),
        "005.dcm",
        "its RescaleSlope is 0; export it again",
    ),
    "slices of 65535 squared": (
        huge,
        "000.dcm",
        "its pixel data are cut short or absent; export it again",
    ),
}


@pytest.mark.parametrize("name", SERIES)
def test_a_series_that_is_no_regular_stack_is_refused(
    good: dict[int, Pair], tmp_path: Path, refused: Refused, name: str
) -> None:
    change, file, told = SERIES[name]
    slices = ct()
    change(slices)
    folder = saved(tmp_path / "series", slices)
    for side in SIDES:
        refused(words_of(good[3], tmp_path, **{side: folder}), folder / file, told)


@pytest.mark.parametrize(
    ("kept", "told"), [(-100, "its pixel data are cut short"), (300, "is cut short in its header")]
)
def test_a_slice_that_is_cut_short_is_refused(
    good: dict[int, Pair], tmp_path: Path, refused: Refused, kept: int, told: str
) -> None:
    file = saved(tmp_path / "series", ct()) / "005.dcm"
    file.write_bytes(file.read_bytes()[:kept])
    for side in SIDES:
        refused(words_of(good[3], tmp_path, **{side: file.parent}), file, f"{told}; export it again")


# Labels and masks: given for the fixed image and for the moving one.


def placed(folder: Path, image: Path, array: np.ndarray, shift: float = 0.0) -> Path:
    affine = np.array(loaded(image).affine)
    affine[0, 3] += shift
    return nifti(folder / "label.nii.gz", array, affine)


def ones(image: Path) -> np.ndarray:
    return np.ones(loaded(image).shape, np.uint8)


def loaded(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


LABELS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "that is missing": (lambda folder, image: folder / "label.nii.gz", "there is no such file; correct the path"),
    "with fractions": (
        lambda folder, image: placed(folder, image, ones(image) / 3),
        "holds values that are not whole numbers; store labels as whole grey values",
    ),
    "with NaN": (
        lambda folder, image: placed(folder, image, ones(image) * np.nan),
        "holds values that are not whole numbers; store labels as whole grey values",
    ),
    "of another size": (
        lambda folder, image: placed(folder, image, ones(image)[1:]),
        "voxels where its image has; resample it onto the grid of its image",
    ),
    "at another place": (
        lambda folder, image: placed(folder, image, ones(image), shift=0.2),
        "lies elsewhere in the world than its image; resample it onto the grid of its image",
    ),
    "that is truncated": (
        lambda folder, image: cut(placed(folder, image, ones(image)), 10),
        "cannot be read as an image; write the file again",
    ),
    "that is empty": (
        lambda folder, image: placed(folder, image, 0 * ones(image)),
        "is an empty mask; mark a region or leave it out",
    ),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("label", "mask") for name in LABELS if (kind, name) != ("label", "that is empty")],
)
def test_a_label_or_mask_that_does_not_fit_is_refused(
    good: dict[int, Pair], tmp_path: Path, refused: Refused, name: str, kind: str, dims: int
) -> None:
    make, told = LABELS[name]
    given = {f"{side}_{kind}": path for side, path in good[dims].labels.items()}
    for side in SIDES:
        path = make(tmp_path, getattr(good[dims], side))
        refused(words_of(good[dims], tmp_path, **given | {f"{side}_{kind}": path}), path, told)


# Landmarks: a file given for the fixed image and then for the moving one, beside good ones for the other.


def markups(**changes: Any) -> str:
    """Slicer's file of two points, the second one changed."""
    points = [{"id": str(n), "label": f"F-{n}", "position": [n, 2, 0], "positionStatus": "defined"} for n in (1, 2)]
    points[1] |= changes
    lists = [{"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}]
    return json.dumps({"markups": lists})


LANDMARKS: dict[str, tuple[str, str | bytes | None, str]] = {
    "that are missing": ("points.csv", None, "there is no such file; correct the path"),
    "that are empty": ("points.csv", "", "is empty and holds no landmarks; mark some"),
    "of a header alone": ("points.csv", "label,x,y\n", "holds no landmarks; mark some"),
    "that are binary": ("points.csv", b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "cannot be read as text; save it"),
    "with a label twice": ("points.csv", table(POINTS, 2) + "a,7,7\n", "holds the label 'a' twice; give each landmark"),
    "without a label": ("points.csv", table(POINTS, 2) + ",7,7\n", "landmark 4 has no label; label every landmark"),
    "with NaN": ("points.csv", "label,x,y\na,5,6\nb,nan,9\n", "landmark 2 has 'nan'; correct the row"),
    "with text": ("points.csv", "label,x,y\na,5,6\nb,five,9\n", "landmark 2 has 'five'; correct the row"),
    "with a decimal comma": ("points.csv", "label,x,y\na,5,6\nb,5,5,9\n", "landmark 2 has 4 fields; part columns by"),
    "without a header's names": (
        "points.csv",
        "name,left,up\na,5,6\n",
        "its first line is 'name,left,up'; name them so",
    ),
    "of three coordinates": ("points.csv", table(POINTS, 3), "has 3 coordinates; give the landmarks of this image"),
    "outside of the image": (
        "points.csv",
        table(POINTS | {"c": (8, 40)}, 2),
        "1 of 3 landmarks lie outside of the image ('c'); correct or remove them",
    ),
    "in another frame": (
        "points.csv",
        table(dict.fromkeys(POINTS, (-50, 80)), 2),
        "3 of 3 landmarks lie outside of the image; check the declared",
    ),
    "farther than ten metres": (
        "points.csv",
        "x,y,z,t,label\n0,0,0,0,a\n12000,0,0,0,b\n",
        "landmark 2 lies more than 10000 mm from the origin; check the unit",
    ),
    "of elastix, fewer than announced": (
        "points.txt",
        "point\n3\n1 2\n3 4\n",
        "line is '3' where 2 landmarks; write their",
    ),
    "of elastix, without a count": (
        "points.pts",
        "point\n1 2\n3 4\n",
        "line is '1 2' where 1 landmarks; write their count",
    ),
    "of elastix, with fractions of an index": ("points.pts", "index\n1\n1.5 2\n", "has fractions; write it in mm"),
    "of Slicer, cut off": ("points.mrk.json", markups()[:-20], "is cut off or not JSON; save it again from 3D Slicer"),
    "of Slicer, of another kind": ("points.mrk.json", '{"a": [1]}', "no markups of 3D Slicer; give a .mrk.json"),
    "of Slicer, with a point that is not placed": (
        "points.mrk.json",
        markups(positionStatus="undefined"),
        "landmark 2 ('F-2') has the positionStatus 'undefined'; place it or delete it",
    ),
    "of Slicer, without a position": (
        "points.mrk.json",
        markups(position=[1, 2]),
        "has no position of 3 numbers; place",
    ),
    "of Slicer, with NaN": ("points.mrk.json", markups(position=[1, float("nan"), 0]), "has 'nan'; correct the row"),
    "of Slicer, without columns": ("points.fcsv", "1,2,3\n", "has no line '# columns =; save it from 3D Slicer"),
}


@pytest.mark.parametrize("name", LANDMARKS)
def test_landmarks_that_cannot_be_used_are_refused(
    good: dict[int, Pair], tmp_path: Path, refused: Refused, name: str
) -> None:
    file, content, told = LANDMARKS[name]
    path = tmp_path / file
    if content is not None:
        written(path, content)
    for side in SIDES:
        refused(marked(good[2], tmp_path, **{side: path}), path, told)


def marked(pair: Pair, folder: Path, **sides: Path) -> Words:
    """The words that register a pair with landmarks in voxels, of which ``sides`` are replaced."""
    given = {f"{side}_landmarks": path for side, path in (pair.landmarks | sides).items()}
    return words_of(pair, folder, "--landmark-space", "voxel0", **given)


# Everything else: a function makes the words of a command that is refused, and tells what the sentence begins with.


Case = Callable[[Path, dict[int, Pair]], tuple[Words, Path | str]]
CASES: dict[str, tuple[Case, str]] = {}


def says(told: str) -> Callable[[Case], Case]:
    """Add a case that is refused with "fault; remedy"."""

    def add(make: Case) -> Case:
        CASES[make.__name__.replace("_", " ")] = make, told
        return make

    return add


@says("where one scalar image of 2 axes must stand; give images of as many axes")
def a_volume_onto_a_slice(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return words_of(good[2], folder, moving=good[3].moving), good[3].moving


@says("where one scalar image of 3 axes must stand; give images of as many axes")
def a_slice_onto_a_volume(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return words_of(good[3], folder, moving=good[2].moving), good[2].moving


@says("shares no place in the world with; correct the headers, or let the affine")
def images_that_share_no_place(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    affine = affine_of(2)
    affine[0, 3] += 1000
    path = nifti(folder / "image.nii.gz", voxels(SHAPE[:2]), affine)
    return words_of(good[2], folder, moving=path), path


@says("leaves no voxel of fixed to look at; mark a region")
def masks_that_share_no_place(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    masks = {}
    for side in SIDES:
        image = getattr(good[2], side)
        mask = ones(image)
        mask[slice(6, None) if side == "fixed" else slice(None, 9)] = 0
        masks[f"{side}_mask"] = placed(folder, image, mask).rename(folder / f"{side}_mask.nii.gz")
    words = words_of(good[2], folder, **masks)
    words.remove("--no-refine")
    return words, masks["moving_mask"]


@says("has 17 pages; keep one")
def a_tiff_of_several_pages(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    pages = [Image.fromarray(page) for page in voxels(SHAPE).T.astype(np.uint8)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    return words_of(good[2], folder, fixed=folder / "pages.tif"), folder / "pages.tif"


@says("; correct the path")
def a_name_that_is_too_long(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = folder / f"{'a' * 300}.nii.gz"
    return words_of(good[2], folder, moving=path), path


@says("is in neither folder; choose from 1.2.")
def a_series_that_is_not_there(folder: Path, good: dict[int, Pair]) -> tuple[Words, str]:
    slices = ct()
    of_two_series(slices)
    series = saved(folder / "series", slices)
    return words_of(good[3], folder, "--series", "1.2.99", fixed=series), "--series 1.2.99"


@says("lie 3.6 mm apart; export the whole series")
def a_chosen_series_with_a_missing_slice(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    slices = [*ct(), *ct(seed=9)]
    del slices[7]
    series = saved(folder / "series", slices)
    return words_of(good[3], folder, "--series", "1.2.3", moving=series), series


@says("landmarks of one image cannot be compared; give those of the other image too")
def landmarks_of_one_image(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = good[2].landmarks["moving"]
    return words_of(good[2], folder, "--landmark-space", "voxel0", moving_landmarks=path), path


@says("3 fixed and 2 moving landmarks do not pair up: 'c' in one set only; mark the same landmarks in both images")
def fewer_landmarks_in_one_image(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = written(folder / "points.csv", table({name: POINTS[name] for name in "ab"}, 2))
    return marked(good[2], folder, moving=path), good[2].landmarks["fixed"]


@says("3 fixed and 3 moving landmarks do not pair up: 'c', 'd' in one set only; mark the same landmarks in both images")
def landmarks_of_other_names(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = written(folder / "points.csv", table({"d": (3, 4), "a": (5, 6), "b": (7, 8)}, 2))
    return marked(good[2], folder, moving=path), good[2].landmarks["fixed"]


@says("the frame of its landmarks is not declared; give --landmark-space {lps,ras,voxel0,voxel1}")
def landmarks_in_an_undeclared_frame(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    given = {f"{side}_landmarks": path for side, path in good[2].landmarks.items()}
    return words_of(good[2], folder, **given), good[2].landmarks["fixed"]


@says("is there already and is no result of this pair; give another folder for the output")
def an_output_folder_of_other_files(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    (folder / "thesis").mkdir()
    written(folder / "thesis" / "chapter.txt", "all my work")
    return words_of(good[2], folder, "--output", folder / "thesis"), folder / "thesis"


@says("cannot be made; give another folder for the output")
def an_output_folder_that_is_a_file(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = written(folder / "thesis", "all my work")
    return words_of(good[2], folder, "--output", path), path


@says("which is to be registered; give another folder for the output")
def an_output_folder_that_holds_an_input(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = good[2].moving.parent
    return words_of(good[2], folder, "--output", path), path


@says("is there already and is no result; give another folder for the output")
def an_output_folder_that_is_an_input(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = good[3].series["fixed"]
    return words_of(good[3], folder, "--output", path, fixed=path), path


@says("; give another folder for the output")
def an_output_folder_inside_of_a_file(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = written(folder / "notes.txt", "all my work") / "out"
    return words_of(good[2], folder, "--output", path), path


@says("; give another folder for the output")
def an_output_folder_that_may_not_be_made(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (folder / "locked").mkdir(mode=0o500)
    return words_of(good[2], folder, "--output", folder / "locked" / "out"), folder / "locked" / "out"


@says("is no DICOM series; give both images as DICOM series")
def dicom_output_of_nifti(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return words_of(good[3], folder, "--dicom-out"), good[3].fixed


@says("is no DICOM series; give both images as DICOM series")
def a_registration_object_of_nifti(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    series = good[3].series["fixed"]
    return words_of(good[3], folder, "--formats", "dicom", fixed=series), good[3].moving


@says("is a 2D image, for which fsl has no form; leave that output out")
def a_2d_field_for_fsl(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return words_of(good[2], folder, "--formats", "mha", "fsl"), good[2].fixed


@says("there is no such file; give the")
def weights_that_are_missing(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return words_of(good[2], folder, "--weights", folder / "model.pt"), folder / "model.pt"


@says("holds no plain weights; give the")
def weights_that_are_text(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = written(folder / "model.pt", LETTER)
    return words_of(good[2], folder, "--weights", path), path


@says("does not hold the weights of this network; give the")
def weights_that_are_empty(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = written(folder / "model.pt", "")
    return words_of(good[2], folder, "--weights", path), path


@says("does not hold the weights of this network; give the")
def weights_of_another_network(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    torch.save(torch.nn.Conv2d(2, 3, 3).state_dict(), folder / "model.pt")
    return words_of(good[2], folder, "--weights", folder / "model.pt"), folder / "model.pt"


@says("does not hold the weights of this network; give the")
def weights_for_the_other_number_of_axes(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path | str]:
    path = good[3].options[-1]
    return words_of(good[2], folder, "--weights", path), path


class Trojan:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


@says("holds no plain weights; give the")
def weights_that_run_a_program(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = written(folder / "model.pt", pickle.dumps(Trojan(folder / "taken over"), protocol=2))
    return words_of(good[2], folder, "--weights", path), path


@says("; leave --no-refine out or give --weights")
def a_volume_with_neither_network_nor_refinement(folder: Path, good: dict[int, Pair]) -> tuple[Words, str]:
    words = ["register", "--fixed", good[3].fixed, "--moving", good[3].moving, "--affine", "none", "--no-refine"]
    return [*words, "--output", folder / "out"], "no weights are released for 3D images"


@says("; give")
def a_device_that_is_unknown(folder: Path, good: dict[int, Pair]) -> tuple[Words, str]:
    return words_of(good[2], folder, "--device", "abacus"), "--device abacus"


@says("; give")
def a_device_that_is_not_there(folder: Path, good: dict[int, Pair]) -> tuple[Words, str]:
    return words_of(good[2], folder, "--device", "cuda:77"), "--device cuda:77"


@says("needs two images; give --fixed and --moving, or --pairs")
def a_fixed_image_alone(folder: Path, good: dict[int, Pair]) -> tuple[Words, str]:
    return ["register", "--fixed", good[2].fixed, "--output", folder / "out"], "monai-jsm register"


def pairs(folder: Path, text: str | bytes) -> tuple[Words, Path]:
    path = written(folder / "pairs.csv", text)
    return ["register", "--pairs", path, "--output", folder / "new" / "out"], path


@says("cannot be read as a CSV table; name a table of pairs")
def a_table_of_pairs_that_is_missing(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return ["register", "--pairs", folder / "pairs.csv", "--output", folder / "out"], folder / "pairs.csv"


@says("cannot be read as a CSV table; name a table of pairs")
def a_table_of_pairs_that_is_binary(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return pairs(folder, b"\x89PNG\r\n\x1a\n\xff\xfe\x00")


@says("lists no pairs; give a row a pair")
def a_table_of_pairs_without_rows(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return pairs(folder, "id,fixed,moving\n")


@says("lacks the columns id,moving; name id,fixed,moving")
def a_table_of_pairs_without_columns(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return pairs(folder, f"name,fixed\n1,{good[2].fixed}\n")


@says("has the unknown columns fixed_mesh; name id,fixed,moving and any of")
def a_table_of_pairs_with_an_unknown_column(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return pairs(folder, f"id,fixed,moving,fixed_mesh\n1,{good[2].fixed},{good[2].moving},a.stl\n")


@says("the id 'one' stands twice; give each pair its own")
def a_table_of_pairs_that_repeats_an_id(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    row = f"one,{good[2].fixed},{good[2].moving}\n"
    return pairs(folder, f"id,fixed,moving\n{row}{row}")


@says("the id '../one' cannot name a folder; give each pair its own")
def a_table_of_pairs_with_a_slash_in_an_id(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return pairs(folder, f"id,fixed,moving\n../one,{good[2].fixed},{good[2].moving}\n")


@says("row 1 has nothing in the columns moving; correct it")
def a_table_of_pairs_with_an_empty_field(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return pairs(folder, f"id,fixed,moving\none,{good[2].fixed},\n")


def transform(pair: Pair, folder: Path, *more: Any) -> Words:
    """The words that pull the moving image of a pair; later ones go before earlier ones."""
    words = ["--field", pair.result / "field.nii.gz", "--reference", pair.fixed, "--output", folder / "out.nii.gz"]
    return (
        ["transform", *words, *more] if "--landmarks" in more else ["transform", *words, "--image", pair.moving, *more]
    )


def with_field(pair: Pair, folder: Path, field: Path) -> tuple[Words, Path]:
    words = ["--field", field, "--image", pair.moving, "--reference", pair.fixed, "--output", folder / "out.nii.gz"]
    return ["transform", *words], field


def field_of(pair: Pair) -> sitk.Image:
    return sitk.ReadImage(str(pair.result / "field.nii.gz"), sitk.sitkVectorFloat64)


def with_vector(folder: Path, pair: Pair, value: float) -> Path:
    """The field of a pair, with one number replaced."""
    field = field_of(pair)
    vector = list(field[(3,) * field.GetDimension()])
    field[(3,) * field.GetDimension()] = [value, *vector[1:]]
    sitk.WriteImage(field, str(folder / "field.mha"))
    return folder / "field.mha"


@says("there is no such file; correct the path")
def a_field_that_is_missing(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return with_field(good[2], folder, folder / "field.nii.gz")


@says("one vector of 2 or 3 components a voxel; convert it")
def a_field_that_is_a_scalar_image(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return with_field(good[2], folder, good[2].result / "warped.nii.gz")


@says("holds NaN or infinite displacements; register again or replace them")
def a_field_with_nan(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return with_field(good[3], folder, with_vector(folder, good[3], np.nan))


@says("holds displacements up to 1e+09 mm, more than 10000; write the field in mm")
def a_field_of_a_wrong_unit(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return with_field(good[2], folder, with_vector(folder, good[2], 1e9))


@says("; write the file again")
def a_field_that_is_truncated(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    content = (good[3].result / "field.nii.gz").read_bytes()
    return with_field(good[3], folder, written(folder / "field.nii.gz", content[:-100]))


@says("; give")
def a_field_of_3_axes_for_an_image_of_2(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    field = good[3].result / "field.nii.gz"
    words = ["transform", "--field", field, "--image", good[2].moving, "--reference", good[2].fixed]
    return [*words, "--output", folder / "out.nii.gz"], good[2].moving


@says("; give the transforms of one registration")
def fields_of_2_and_3_axes(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    words, _ = with_field(good[2], folder, good[2].result / "field.nii.gz")
    return [*words, "--field", good[3].result / "field.nii.gz"], good[3].result / "field.nii.gz"


@says("there is no such file; correct the path")
def a_reference_that_is_missing(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return transform(good[2], folder, "--reference", folder / "gone.nii.gz"), folder / "gone.nii.gz"


@says("needs the grid to write on; give --reference")
def a_transform_without_a_reference(folder: Path, good: dict[int, Pair]) -> tuple[Words, str]:
    words = ["transform", "--field", good[2].result / "field.nii.gz", "--image", good[2].moving]
    return [*words, "--output", folder / "out.nii.gz"], "monai-jsm transform"


@says("is of a format in which no images are written; end it in")
def an_output_of_a_transform_that_ends_in_png(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return transform(good[2], folder, "--output", folder / "out.png"), folder / "out.png"


@says("is to lie in a folder that is not there; name a file")
def an_output_of_a_transform_in_a_missing_folder(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    return transform(good[2], folder, "--output", folder / "new" / "out.mha"), folder / "new" / "out.mha"


@says("is a folder; name a file")
def an_output_of_a_transform_that_is_a_folder(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    (folder / "out.nii.gz").mkdir()
    return transform(good[2], folder), folder / "out.nii.gz"


@says("has 3 coordinates a landmark where the transform has 2 axes; give landmarks of this pair")
def landmarks_of_3_coordinates_through_a_2d_field(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = written(folder / "points.csv", table(POINTS, 3))
    words = transform(good[2], folder, "--landmarks", path, "--landmark-space", "lps")
    return [*words, "--output", folder / "out.csv"], path


@says("the transform says nothing at b; remove these landmarks")
def landmarks_through_a_field_that_does_not_cover_them(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = good[2].landmarks["fixed"]
    words = ["transform", "--field", a_part_of_the_field(folder, good[2]), "--landmarks", path]
    words += ["--landmark-space", "voxel0", "--source", good[2].fixed, "--reference", good[2].moving]
    return [*words, "--output", folder / "out.csv"], path


@says("holds voxels of an image that is not given; give")
def landmarks_in_voxels_without_their_image(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = good[2].landmarks["fixed"]
    words = transform(good[2], folder, "--landmarks", path, "--landmark-space", "voxel0")
    return [*words, "--output", folder / "out.csv"], path


def a_part_of_the_field(folder: Path, pair: Pair) -> Path:
    """The field where both coordinates are below 11 and 21 voxels: without the point b."""
    sitk.WriteImage(field_of(pair)[:11, :21], str(folder / "field.mha"))
    return folder / "field.mha"


def evaluate(pair: Pair, folder: Path, *more: Any) -> Words:
    words = ["--field", pair.result / "field.nii.gz", "--fixed", pair.fixed, "--moving", pair.moving]
    return ["evaluate", *words, "--output", folder / "new" / "out", *more]


@says("says nothing at the landmarks b; give a field that covers them or remove them")
def an_evaluation_where_the_field_says_nothing(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    field = a_part_of_the_field(folder, good[2])
    sides = [word for side in SIDES for word in (f"--{side}-landmarks", good[2].landmarks[side])]
    words = ["evaluate", "--field", field, "--fixed", good[2].fixed, "--moving", good[2].moving, *sides]
    return [*words, "--landmark-space", "voxel0", "--output", folder / "new" / "out"], field


@says("where one scalar image of 3 axes must stand; give")
def an_evaluation_of_a_field_of_other_axes(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    words = ["evaluate", "--field", good[3].result / "field.nii.gz", "--fixed", good[2].fixed]
    return [*words, "--moving", good[2].moving], good[2].fixed


@says("holds NaN or infinite displacements; register again or replace them")
def an_evaluation_of_an_inverse_with_nan(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = with_vector(folder, good[2], np.nan)
    return evaluate(good[2], folder, "--inverse-field", path), path


@says("landmarks of one image cannot be compared; give those of the other image too")
def an_evaluation_with_landmarks_of_one_image(folder: Path, good: dict[int, Pair]) -> tuple[Words, Path]:
    path = good[2].landmarks["fixed"]
    return evaluate(good[2], folder, "--fixed-landmarks", path, "--landmark-space", "voxel0"), path


@pytest.mark.parametrize("name", CASES)
def test_a_command_that_cannot_be_carried_out_is_refused(
    good: dict[int, Pair], tmp_path: Path, refused: Refused, name: str
) -> None:
    make, told = CASES[name]
    refused(*make(tmp_path, good), told)


def test_a_pair_that_memory_cannot_hold_is_refused(
    good: dict[int, Pair], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = psutil.virtual_memory()._replace(available=2**24)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    refused(words_of(good[3], tmp_path), "pair", "of memory where 0.0 GiB are free; crop the images")


# The other way round: what is refused above is refused for its fault alone.


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_pair_without_a_fault_registers(good: dict[int, Pair], tmp_path: Path, dims: int) -> None:
    pair = good[dims]
    given = {f"{side}_{kind}": pair.labels[side] for side in SIDES for kind in ("label", "mask")}
    given |= {f"{side}_landmarks": path for side, path in pair.landmarks.items()}
    words = words_of(pair, tmp_path, "--landmark-space", "voxel0", **given)
    if dims == 3:
        words = words_of(pair, tmp_path, "--formats", "fsl", "dicom", "--dicom-out", **pair.series)
    assert main([str(word) for word in words]) == 0
    assert (tmp_path / "new" / "out" / "report.html").is_file()
    for other in (transform(pair, tmp_path), evaluate(pair, tmp_path, "--output", tmp_path / "told")):
        assert main([str(word) for word in other]) == 0
    assert (tmp_path / "out.nii.gz").is_file()
    assert (tmp_path / "told" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("make", "fault"),
    [(nifti_bomb, "more data than its header announces"), (lambda folder, dims: folder / "gone.mha", "no such file")],
    ids=["a bomb", "a missing file"],
)
def test_the_process_ends_with_one_sentence_within_little_memory(
    good: dict[int, Pair], tmp_path: Path, make: Maker, fault: str
) -> None:
    path = make(tmp_path, 3)
    before = listing(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "monai_jsm", *map(str, words_of(good[3], tmp_path, moving=path))],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{path}: ")
    assert fault in done.stderr
    assert done.stderr.count("\n") == 1
    assert listing(tmp_path) == before

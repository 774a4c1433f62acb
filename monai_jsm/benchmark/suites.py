"""The named suites: fixed sets of pairs on which every method is measured, each made from published data."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from monai_jsm.benchmark.known_motion import (
    LESIONS,
    STROKE_CHANGES,
    WARP_FAMILIES,
    KnownMotionPair,
    make_known_motion_pair,
)
from monai_jsm.data import (
    DATALIST_NAME,
    SECTIONS,
    InputError,
    Landmarks,
    prepare_birl,
    prepare_known_field,
    prepare_mnist,
    prepare_sunnybrook,
    read_image,
    write_landmarks,
    write_phantom,
)
from monai_jsm.data.images import read_placed
from monai_jsm.data.published_folder import Case, write_case, write_datalist
from monai_jsm.data.results import file_hash

__all__ = ["SUITES", "Suite", "suite_folder"]

_DIGIT_PAIRS = (40, 20)  # for testing and for validation
_DIGIT_MOTION = (3.0, 7.0)  # longest vector, mm, which are voxels of a digit
_HIPPOCAMPUS_IMAGES = 54
_HIPPOCAMPUS_HELD_OUT = 14  # images at the end of the sorted list
_HIPPOCAMPUS_PAIRS = (20, 6)
_BRAIN_MOTION = (6.0, 8.0)
_BRAIN_MARGIN = 10  # mm of background around a brain
_LUNG_MOTION = (8.0, 16.0)
_LUNG_CASES = 4
_LUNG_WINDOW = (-1050.0, 200.0)  # HU shown as 0 and 1
_GREY = 1000  # stored value of tissue
_ORIGIN = "origin.txt"  # in the folder of a suite: what it was made of


@dataclass(frozen=True)
class Suite:
    """Pairs that all methods are measured on.

    Attributes:
        name: as the command line takes it.
        title: for tables and plots.
        spatial_dims: D.
        unit: of the distances told first, "voxel" or "mm".
        affine: pre-alignment that all rows share, one of :data:`monai_jsm.registration.AFFINE_CHOICES`.
        split: a sentence: which cases, and what of them a network or a choice of settings has seen.
        weights: data on which the learned rows of the suite were trained, "cine" or "digits"; "" where none can run.
        needs: folders of the data directory that it reads.
        prepare: called with the data directory and the folder to make; writes ``datalist.json`` with "testing" and,
            where it exists, "validation", and all files of it.
    """

    name: str
    title: str
    spatial_dims: int
    unit: str
    affine: str
    split: str
    weights: str
    needs: tuple[str, ...]
    prepare: Callable[[Path, Path], None]


def suite_folder(suite: Suite, data: Path | None, folder: Path) -> Path:
    """The folder of a suite, made where it is not there yet.

    It appears complete or not at all, however many processes ask for it. One that is there is taken, unless it was made
    by another version of this package or from other data.

    Args:
        suite: from ``SUITES``.
        data: folder of the published data sets; None where there is none.
        folder: in which the suite's own folder, of its name, lies or is made.

    Returns:
        ``folder / suite.name``, which holds ``datalist.json``.

    Raises:
        InputError: if published data are absent or unusable, or the folder cannot be made, or holds anything else or
            what other data or another version gave.
    """
    target = Path(folder) / suite.name
    if (target / DATALIST_NAME).is_file():
        _check_origin(suite, data, target)
        return target
    if target.exists():
        raise InputError(f"{target}: holds no {DATALIST_NAME}; remove it or name another folder.")
    if suite.needs and data is None:
        raise InputError(
            f"suite {suite.name}: is made from published data ({', '.join(suite.needs)}); "
            "name their folder with --data or MONAI_JSM_DATA."
        )
    data = Path(data or ".")
    for name in suite.needs:
        if not (data / name).is_dir():
            raise InputError(f"{data / name}: there is no such folder; name the one that holds it, --data.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = tempfile.TemporaryDirectory(prefix=f".{suite.name}-", dir=target.parent)
    except OSError as error:
        raise InputError(f"{target}: cannot be made ({error.strerror}); name a folder you may write to.") from error
    with building as place:
        draft = Path(place) / suite.name
        suite.prepare(data, draft)
        (draft / _ORIGIN).write_text("\n".join(_origin(suite, data)), encoding="utf-8")
        try:
            draft.rename(target)
        except OSError:
            if not (target / DATALIST_NAME).is_file():  # another process was not faster
                raise
    return target


def _check_origin(suite: Suite, data: Path | None, target: Path) -> None:
    try:
        told = (target / _ORIGIN).read_text(encoding="utf-8").split("\n")
    except OSError:
        told = []
    wanted = _origin(suite, data)
    if told[:1] != wanted[:1] or (data is not None and told[1:] != wanted[1:]):
        raise InputError(f"{target}: was made from other data or by another version; remove it, to have it made anew.")


def _origin(suite: Suite, data: Path | None) -> list[str]:
    """What decides a suite's files: a hash of the program, and one of the names and sizes of the files it reads."""
    package = Path(__file__).parents[1]
    own = [package / "benchmark" / name for name in ("suites.py", "known_motion.py")]
    program = [*own, *sorted(package.glob("data/p[hu]*.py"))]  # phantom and published
    digest = hashlib.sha256("".join(file_hash(path) for path in program).encode())
    files = [path for name in suite.needs for path in sorted((data or Path()).glob(f"{name}/**/*")) if path.is_file()]
    sizes = "".join(f"{path.relative_to(data or Path())} {path.stat().st_size}\n" for path in files)
    return [digest.hexdigest(), hashlib.sha256(sizes.encode()).hexdigest()]


def _prepare_digits(data: Path, folder: Path) -> None:
    """One draw of pairs serves the four parts of both digit suites, so that no image is used twice."""
    folder.mkdir()
    pairs, images, affine = _drawn_digits(data, folder / "pairs")
    cases: dict[str, list[Case]] = {}
    for number, (section, count) in enumerate(zip(("testing", "validation"), _DIGIT_PAIRS, strict=True)):
        cases[section] = [
            _write_motion(
                folder, f"{section}_motion_{i:03d}", images["motion", section][i], affine, [number, i], _family(i)
            )
            for i in range(count)
        ]
        cases[section] += [
            {key: value if key == "id" else f"pairs/{value}" for key, value in case.items()} for case in pairs[section]
        ]
    used = {case["id"] for section in pairs for case in pairs[section]}
    for path in (folder / "pairs").iterdir():
        if path.name not in used:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    description = "MNIST digits on 64x64 voxels: one digit moved by a known motion, and two digits of one class."
    write_datalist(folder, cases, description, spatial_dims=2, landmark_space="voxel0")


def _prepare_digits_outlier(data: Path, folder: Path) -> None:
    folder.mkdir()
    _, images, affine = _drawn_digits(data, folder / "pairs")
    shutil.rmtree(folder / "pairs")
    cases = {
        section: [
            _write_motion(
                folder,
                f"{section}_{STROKE_CHANGES[i % 2]}_{i:03d}",
                images["outlier", section][i],
                affine,
                [2 + number, i],
                _family(i),
                STROKE_CHANGES[i % 2],
            )
            for i in range(count)
        ]
        for number, (section, count) in enumerate(zip(("testing", "validation"), _DIGIT_PAIRS, strict=True))
    }
    description = "MNIST digits on 64x64 voxels moved by a known motion; the stroke of one is fractured or swollen."
    write_datalist(folder, cases, description, spatial_dims=2, landmark_space="voxel0")


def _drawn_digits(
    data: Path, folder: Path
) -> tuple[dict[str, list[Case]], dict[tuple[str, str], list[np.ndarray]], np.ndarray]:
    """Same-class pairs by section, single digits in [0, 1] by use and section, and their place; no image twice.

    ``folder`` is made, with the files of all pairs.
    """
    testing, validation = _DIGIT_PAIRS
    prepare_mnist(data / "mnist", folder, training=0, validation=0, testing=3 * (testing + validation))
    drawn = json.loads((folder / DATALIST_NAME).read_text(encoding="utf-8"))["testing"]
    parts, start = {}, 0
    for use in ("pairs", "motion", "outlier"):
        for section, count in zip(("testing", "validation"), _DIGIT_PAIRS, strict=True):
            parts[use, section] = drawn[start : start + count]
            start += count
    pairs = {section: parts.pop(("pairs", section)) for section in ("testing", "validation")}
    images = {
        part: [read_placed(folder / case["fixed_image"], 2)[0] / 255.0 for case in cases]
        for part, cases in parts.items()
    }
    return pairs, images, read_placed(folder / drawn[0]["fixed_image"], 2)[1]


def _prepare_phantom(data: Path, folder: Path) -> None:
    write_phantom(folder)
    path = folder / DATALIST_NAME
    datalist = json.loads(path.read_text(encoding="utf-8"))
    for case in (case for section in SECTIONS for case in datalist[section]):
        outlier = f"{case['id']}/outlier.nii.gz"
        if read_image(folder / outlier)[0].any():
            case["fixed_outlier"] = outlier  # the phantom draws it on that grid, whichever image carries it
    path.write_text(json.dumps(datalist, indent=2) + "\n", encoding="utf-8")


def _prepare_known_field(data: Path, folder: Path) -> None:
    folder.mkdir()
    cases = {}
    for section, name in (("testing", "known_field"), ("validation", "known_field_validation")):
        prepare_known_field(data / name, folder / section)
        path = folder / section / DATALIST_NAME
        cases[section] = [
            {
                key: value if key == "subject" else f"{section}{'_' if key == 'id' else '/'}{value}"
                for key, value in case.items()
            }
            for case in json.loads(path.read_text(encoding="utf-8"))["testing"]
        ]
        path.unlink()
    description = "Cine MR slices deformed by a known field; half of the cases show a structure in one image only."
    write_datalist(folder, cases, description, spatial_dims=2, landmark_space="voxel0")


def _prepare_cine(data: Path, folder: Path) -> None:
    prepare_sunnybrook(data / "sunnybrook_cine", folder)


def _prepare_histology(data: Path, folder: Path) -> None:
    prepare_birl(data / "histology", folder)


def _prepare_hippocampus(data: Path, folder: Path) -> None:
    source = data / "hippocampus_msd"
    names = sorted(path.name for path in (source / "images").glob("*.nii.gz"))
    if len(names) != _HIPPOCAMPUS_IMAGES:
        wanted = f"give the {_HIPPOCAMPUS_IMAGES} of this suite"
        raise InputError(f"{source / 'images'}: holds {len(names)} images; {wanted}.")
    parts = {"testing": names[-_HIPPOCAMPUS_HELD_OUT:], "validation": names[:-_HIPPOCAMPUS_HELD_OUT]}
    generator = np.random.default_rng(0)
    folder.mkdir()
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    cases: dict[str, list[Case]] = {}
    for (section, images), count in zip(parts.items(), _HIPPOCAMPUS_PAIRS, strict=True):
        ordered = [(fixed, moving) for fixed in images for moving in images if fixed != moving]
        cases[section] = []
        for index in generator.permutation(len(ordered))[:count]:
            sides = dict(zip(("fixed", "moving"), ordered[index], strict=True))
            names_of = {side: name.removesuffix(".nii.gz") for side, name in sides.items()}
            case = {"id": "_".join(names_of.values()), "subject": names_of["fixed"]}
            for side, name in sides.items():
                case |= {f"{side}_image": f"images/{name}", f"{side}_label": f"labels/{name}"}
            cases[section].append(case)
    for path in sorted(
        {
            value
            for part in cases.values()
            for case in part
            for key, value in case.items()
            if key not in ("id", "subject")
        }
    ):
        _write_centred(source / path, folder / path)
    description = (
        "Pairs of hippocampi, T1 MR, the middles of both images at the origin; labels 1 and 2. The source may hold "
        "both hippocampi of one person."
    )
    write_datalist(folder, cases, description, spatial_dims=3)


def _prepare_brain3d(data: Path, folder: Path) -> None:
    source = data / "brain3d_labels"
    evaluated = json.loads((source / "labels.json").read_text(encoding="utf-8"))["labels_evaluated"]
    folder.mkdir()
    arrays: dict[str, np.ndarray] = {}
    affines: dict[str, np.ndarray] = {}
    for side, subject in (("fixed", "A"), ("moving", "B")):
        image, affine = read_image(source / f"subj{subject}_t1.nii.gz", 3)
        label, _ = read_image(source / f"subj{subject}_labels.nii.gz", 3)
        arrays |= {f"{side}_image": image, f"{side}_label": np.where(np.isin(label, evaluated), label, 0)}
        affines |= {f"{side}_image": affine, f"{side}_label": affine}
    cases = [write_case(folder, "A_B", arrays, affines)]
    description = "Two people's brains, T1 MR, affinely pre-aligned by their publishers; 30 labels of FreeSurfer."
    write_datalist(folder, {"testing": cases}, description, spatial_dims=3)


def _prepare_brain_tumour(data: Path, folder: Path) -> None:
    """Two motions of each image, of two families and with two kinds of lesion; no two cases share two of the three."""
    source = data / "brain_tumour"
    images = {
        "testing": ("healthy_ch2_in_SRI24", "TCGA-DU-7294_t1", "TCGA-FG-6692_t1"),
        "validation": ("TCGA-DU-7294_t1c", "TCGA-FG-6692_t1c"),
    }
    folder.mkdir()
    cases: dict[str, list[Case]] = {section: [] for section in images}
    for number, (section, names) in enumerate(images.items()):
        for i in range(2 * len(names)):
            second, place = divmod(i, len(names))
            name, kind = names[place], LESIONS[(place + second) % 3]
            array, affine = _halved(*_brain(source / f"{name}.nii.gz"))
            cases[section].append(
                _write_motion(
                    folder,
                    f"{section}_{name}_{kind}",
                    array / np.percentile(array[array > 0], 99),
                    affine,
                    [4 + number, i],
                    _family(place + 2 * second),
                    kind,
                    longest=_BRAIN_MOTION,
                    floor=0.3,
                    wanted=60,
                )
                | {"subject": name.split("_t1")[0]}
            )
    description = "Brains on a 2 mm grid moved by a known motion; one image shows a lesion that the other does not."
    write_datalist(folder, cases, description, spatial_dims=3, landmark_space="voxel0")


def _prepare_lung(data: Path, folder: Path) -> None:
    folder.mkdir()
    cases = [_write_lung_masks(data / "lung_ct", folder)]
    description = "Masks of one patient's lung at two visits, with ten points that were found in both images."
    write_datalist(folder, {"testing": cases}, description, spatial_dims=3, landmark_space="voxel0")


def _prepare_lung_motion(data: Path, folder: Path) -> None:
    source = data / "lung_ct"
    folder.mkdir()
    with (source / "baseline_landmarks51.csv").open(newline="", encoding="utf-8-sig") as stream:
        points = np.array([[float(row[f"small_{axis}"]) for axis in "ijk"] for row in csv.DictReader(stream)])
    ct, affine = read_image(source / "3DCT_lung_baseline_small.mha", 3)
    low, high = _LUNG_WINDOW
    image = np.clip((ct - low) / (high - low), 0, 1)
    cases = [
        _write_motion(folder, f"motion_{i:03d}", image, affine, [6, i], _family(i), longest=_LUNG_MOTION, points=points)
        | {"subject": "baseline"}
        for i in range(_LUNG_CASES)
    ]
    description = "CT of one lung moved by a known motion, with its landmarks."
    write_datalist(folder, {"testing": cases}, description, spatial_dims=3, landmark_space="voxel0")


def _write_lung_masks(source: Path, folder: Path) -> Case:
    """The masks at half resolution, moving laid onto fixed by their centres of mass; landmarks have no part in it."""
    with (source / "baseline_followup_points10.csv").open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    arrays: dict[str, np.ndarray] = {}
    affines: dict[str, np.ndarray] = {}
    centres: list[np.ndarray] = []
    points: list[np.ndarray] = []
    for side, visit in (("fixed", "baseline"), ("moving", "followup")):
        full, full_affine = read_image(source / f"3DCT_lung_{visit}_mask.mha", 3)
        mask, affine = _halved(full.astype(np.float64), full_affine)
        centres.append(_to_world(np.array([ndimage.center_of_mass(mask)]), affine)[0])
        affine[:3, 3] += centres[0] - centres[-1]
        voxels = np.array([[float(row[f"{visit}_{axis}"]) for axis in "ijk"] for row in rows])
        points.append((voxels - 0.5) / 2)
        arrays[f"{side}_image"] = np.rint(255 * mask).astype(np.uint8)
        arrays[f"{side}_label"] = (mask > 0.5).astype(np.uint8)
        affines |= {f"{side}_{kind}": affine for kind in ("image", "label")}
    case = write_case(folder, "masks", arrays, affines)
    return (
        case
        | {"subject": "baseline"}
        | _write_points(folder, "masks", points, [affines["fixed_image"], affines["moving_image"]])
    )


def _write_motion(
    folder: Path,
    case_id: str,
    image: np.ndarray,
    affine: np.ndarray,
    seed: Sequence[int],
    family: str,
    outlier: str = "",
    longest: tuple[float, float] = _DIGIT_MOTION,
    floor: float = 0.5,
    wanted: int = 12,
    points: np.ndarray | None = None,
) -> Case:
    spacing = np.linalg.norm(affine[: image.ndim, : image.ndim], axis=0).tolist()
    generator = np.random.default_rng(seed)
    pair: KnownMotionPair = make_known_motion_pair(
        image, spacing, generator, longest, family, outlier, floor, wanted, points
    )
    arrays = {
        f"{side}_image": np.rint(_GREY * values).astype(np.int16)
        for side, values in (("fixed", pair.fixed), ("moving", pair.moving))
    }
    if pair.carrier:
        arrays[f"{pair.carrier}_outlier"] = pair.outlier.astype(np.uint8)
    case_id = f"{case_id}_{family}"
    case = write_case(folder, case_id, arrays, dict.fromkeys(arrays, affine))
    return case | _write_points(folder, case_id, [pair.fixed_landmarks, pair.moving_landmarks], [affine] * 2)


def _family(number: int) -> str:
    return WARP_FAMILIES[number % len(WARP_FAMILIES)]


def _write_points(folder: Path, case_id: str, points: Sequence[np.ndarray], affines: Sequence[np.ndarray]) -> Case:
    """Write landmarks of fixed and moving, (N, D), voxels, and return their entries of the case."""
    entries = {}
    for side, voxels, affine in zip(("fixed", "moving"), points, affines, strict=True):
        key = f"{side}_landmarks"
        entries[key] = f"{case_id}/{key}.csv"
        labels = tuple(str(number) for number in range(len(voxels)))
        write_landmarks(folder / entries[key], Landmarks(labels, _to_world(voxels, affine)), "voxel0", affine)
    return entries


def _to_world(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    dims = voxels.shape[1]
    return voxels @ affine[:dims, :dims].T + affine[:dims, -1]


def _brain(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A skull-stripped brain (1 mm) cut to its surroundings, float64, and its place."""
    array, affine = read_image(path, 3)
    inside = np.argwhere(array > 0)
    corner = np.maximum(inside.min(axis=0) - _BRAIN_MARGIN, 0)
    stop = inside.max(axis=0) + _BRAIN_MARGIN
    cut = array[tuple(slice(first, last) for first, last in zip(corner, stop, strict=True))]
    return cut.astype(np.float64), _moved_to(affine, corner)


def _halved(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of every 2x2x2 voxels, an odd last one left out, and its place."""
    even = array[tuple(slice(n // 2 * 2) for n in array.shape)]
    blocks = even.reshape([size for n in even.shape for size in (n // 2, 2)])
    halved = _moved_to(affine, np.full(array.ndim, 0.5))
    halved[:-1, :-1] *= 2
    return blocks.mean(axis=tuple(range(1, 2 * array.ndim, 2))), halved


def _moved_to(affine: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The place of an image whose first voxel lies at a voxel of another image, of the same spacing."""
    moved = affine.astype(np.float64)
    moved[:-1, -1] = _to_world(corner[None], affine)[0]
    return moved


def _write_centred(source: Path, target: Path) -> None:
    """Copy a NIfTI image with its middle at the origin of the world."""
    array, affine = read_image(source, 3)
    shift = -_to_world((np.array([array.shape]) - 1) / 2, affine)[0]
    centred = affine.astype(np.float64)
    centred[:3, 3] += shift
    nib.save(nib.Nifti1Image(array, centred), target)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "digits",
            "Digits",
            2,
            "voxel",
            "none",
            "40 pairs of one digit under a known motion and 40 pairs of two digits of one class, all of images from "
            "the test part of MNIST, which no method saw.",
            "digits",
            ("mnist",),
            _prepare_digits,
        ),
        Suite(
            "digits-outlier",
            "Digits with fractures and swellings",
            2,
            "voxel",
            "none",
            "40 pairs of one digit under a known motion, fractured or swollen in one image, all of images from the "
            "test part of MNIST, which no method saw.",
            "digits",
            ("mnist",),
            _prepare_digits_outlier,
        ),
        Suite(
            "phantom",
            "Phantom of the beating heart",
            2,
            "voxel",
            "none",
            "24 hearts of the phantom's testing split, which no method saw.",
            "cine",
            (),
            _prepare_phantom,
        ),
        Suite(
            "known-field",
            "Cine MR with known motion",
            2,
            "voxel",
            "none",
            "40 slices of the testing subjects 0, 5, 10, ... of the cine MR, half of them with a structure in one "
            "image only; no method saw these subjects, and settings were chosen on 24 slices of validation subjects.",
            "cine",
            ("known_field", "known_field_validation"),
            _prepare_known_field,
        ),
        Suite(
            "cine",
            "Cine MR, end-diastole to end-systole",
            2,
            "voxel",
            "none",
            "All 59 slices of the testing subjects 0, 5, 10, ..., which no method saw.",
            "cine",
            ("sunnybrook_cine",),
            _prepare_cine,
        ),
        Suite(
            "histology",
            "Histology in several stains",
            2,
            "voxel",
            "auto",
            "All 11 pairs of two tissues of one animal. No network was trained on them, but the affine pre-alignment "
            "was checked against their landmarks.",
            "cine",
            ("histology",),
            _prepare_histology,
        ),
        Suite(
            "hippocampus",
            "Hippocampus, one image to another",
            3,
            "mm",
            "auto",
            "20 ordered pairs of the last 14 of the 54 sorted images, on which no network was trained. The source may "
            "hold both hippocampi of one person, so that the two of a pair, or of testing and validation, may be one "
            "person's.",
            "",
            ("hippocampus_msd",),
            _prepare_hippocampus,
        ),
        Suite(
            "brain3d",
            "Brain between people",
            3,
            "mm",
            "none",
            "The one pair there is, on which no network was trained.",
            "",
            ("brain3d_labels",),
            _prepare_brain3d,
        ),
        Suite(
            "brain-tumour",
            "Brain with pasted lesions",
            3,
            "mm",
            "none",
            "6 known motions of a healthy brain and of the T1 of two patients, two of each. No network was trained on "
            "them, and settings are those of the 2D suites.",
            "",
            ("brain_tumour",),
            _prepare_brain_tumour,
        ),
        Suite(
            "lung",
            "Lung masks of two visits",
            3,
            "mm",
            "none",
            "One pair of one patient, whose shift is removed by the centres of mass, with 10 real points of both "
            "visits. Inside of a binary mask nothing shows where a point goes: the error there measures how a "
            "method fills in, its regulariser, and not how it matches. No network was trained on it.",
            "",
            ("lung_ct",),
            _prepare_lung,
        ),
        Suite(
            "lung-motion",
            "Lung CT with known motion",
            3,
            "mm",
            "none",
            "4 known motions of the CT of one patient. No network was trained on it, and settings are those of the 2D "
            "suites.",
            "",
            ("lung_ct",),
            _prepare_lung_motion,
        ),
    )
}

"""Published pairs of whole images, most with landmarks, become datalists.

Images, labels and masks are checked and copied as they are, to the place they have in the source, but for the raw
images of DIR-Lab, which become NIfTI. Landmarks are checked and written as plain CSV files, first voxel at 0.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from monai_jsm.data.datalist import SECTIONS, check_cases
from monai_jsm.data.errors import InputError
from monai_jsm.data.images import Grid, check_image, check_label, check_mask, check_voxels
from monai_jsm.data.progress import with_progress
from monai_jsm.data.published_folder import (
    Case,
    existing_folder,
    finished_folder,
    lps_affine,
    section_of,
    write_case,
    write_datalist,
    write_landmark_pair,
)

__all__ = ["prepare_birl", "prepare_bratsreg", "prepare_dirlab", "prepare_known_field", "prepare_learn2reg"]

_BRATSREG_MODALITIES = ("t1", "t1ce", "t2", "flair")
_LEARN2REG_FOLDERS = {"label": ("labels",), "mask": ("masks",), "landmarks": ("landmarks", "keypoints")}
_DIRLAB_GRIDS = {  # by the number of the case: voxels, edges in mm
    1: ((256, 256, 94), (0.97, 0.97, 2.5)),
    2: ((256, 256, 112), (1.16, 1.16, 2.5)),
    3: ((256, 256, 104), (1.15, 1.15, 2.5)),
    4: ((256, 256, 99), (1.13, 1.13, 2.5)),
    5: ((256, 256, 106), (1.10, 1.10, 2.5)),
    6: ((512, 512, 128), (0.97, 0.97, 2.5)),
    7: ((512, 512, 136), (0.97, 0.97, 2.5)),
    8: ((512, 512, 128), (0.88, 0.88, 2.5)),
    9: ((512, 512, 128), (0.97, 0.97, 2.5)),
    10: ((512, 512, 120), (0.97, 0.97, 2.5)),
}
_DIRLAB_OFFSET = 1024
_DIRLAB_PHASES = {"fixed": "00", "moving": "50"}
_BIRL_COLUMNS = (
    ("fixed", "moving", "fixed_landmarks", "moving_landmarks"),
    ("Target image", "Source image", "Target landmarks", "Source landmarks"),
)
_BIRL_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")

Side = dict[str, Path]
"""The files of one image of a pair: "image" and, where there are, "label", "mask" and "landmarks"."""


def prepare_known_field(source: str | Path, output: str | Path) -> None:
    """Pairs deformed by a known field become a datalist whose cases are all for testing.

    Files are copied as they are, with ``cases.csv`` and, where a case has one, ``outlier.nii.gz``: the region of a
    structure that only one of its images shows. It becomes the entry ``fixed_outlier`` or ``moving_outlier``.

    Args:
        source: folder of ``cases.csv``, whose column ``case`` names folders of ``fixed.nii.gz``, ``moving.nii.gz``
            (2D), ``fixed_landmarks.csv`` and ``moving_landmarks.csv`` (label,x,y in voxels, the first at 0). Its column
            ``carrier``, where it has one, says whether ``outlier.nii.gz`` belongs to "fixed" or "moving", or is empty
            where both images show the same; its column ``subject``, whom the pair is of.
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, or the output exists.
    """
    source = existing_folder(source, "cases.csv and a folder for each case")
    table = source / "cases.csv"
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        names = [row["case"] for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise InputError(f"{table}: must be a CSV table with a column case; name the folder that holds it.") from error
    if not names or len(set(names)) < len(names) or not all(re.fullmatch(r"\w[\w.-]*", name or "") for name in names):
        raise InputError(f"{table}: must name one or more folders, each once, in its column case; correct it.")
    carriers = [row.get("carrier") or "" for row in rows]
    if not set(carriers) <= {"", "fixed", "moving"}:
        raise InputError(f"{table}: must say fixed, moving or nothing in its column carrier; correct it.")
    suffixes = {"image": ".nii.gz", "landmarks": "_landmarks.csv"}
    files = {f"{side}_{kind}": side + suffixes[kind] for kind in suffixes for side in ("fixed", "moving")}
    cases = [
        {"id": name}
        | {key: f"{name}/{file}" for key, file in files.items()}
        | ({f"{carrier}_outlier": f"{name}/outlier.nii.gz"} if carrier else {})
        | ({"subject": row["subject"]} if row.get("subject") else {})
        for row, name, carrier in zip(rows, names, carriers, strict=True)
    ]
    check_cases(
        [
            {key: str(source / value) for key, value in case.items() if key not in ("id", "subject")}
            | {"landmark_space": "voxel0"}
            for case in cases
        ],
        spatial_dims=2,
    )
    with finished_folder(output) as folder:
        shutil.copyfile(table, folder / table.name)
        for name in names:
            (folder / name).mkdir()
            optional = ["outlier.nii.gz"] if (source / name / "outlier.nii.gz").exists() else []
            for file in [*files.values(), *optional]:
                shutil.copyfile(source / name / file, folder / name / file)
        description = "Cine MR slices deformed by a known field; half of the cases show a structure in one image only."
        write_datalist(folder, {"testing": cases}, description, spatial_dims=2, landmark_space="voxel0")


def prepare_learn2reg(source: str | Path, output: str | Path) -> None:
    """A task of the Learn2Reg challenge (3D) becomes a datalist with the challenge's own pairs and sections.

    ``registration_val`` becomes validation, ``registration_test`` testing and ``training_paired_images`` training,
    less every pair that shares an image with the two. Where a task lists no ``training_paired_images``, as between
    subjects, training pairs are made of ``training``: the two images of an entry that lists two, first fixed and second
    moving, or else each image (fixed) with the next (moving). Pairs in a folder that is absent, such as a separate
    download ``imagesTs``, are left out. A case is called as the challenge numbers its pair, NAME_FFFF_0000_MMMM_0001.

    Labels, masks and landmarks are those of the same name in ``labelsTr``, ``masksTr`` and ``landmarksTr`` or else
    ``keypointsTr`` (``Ts`` alike). Landmarks correspond row by row and are voxels, array-axis order, the first at 0.

    Args:
        source: folder of ``NAME_dataset.json`` and of ``imagesTr`` with ``NAME_FFFF_0000.nii.gz`` and so on.
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, an image has another shape than
            ``tensorImageShape`` or ``tensorImageSize`` lists, or the output exists.

    Reference:
        Hering et al.: Learn2Reg: comprehensive multi-task medical image registration challenge, dataset and evaluation
        in the era of deep learning. IEEE Trans. Med. Imaging 42(3), 2023, 697-712.
        https://doi.org/10.1109/TMI.2022.3213983
    """
    source = existing_folder(source, "NAME_dataset.json and imagesTr of a Learn2Reg task")
    table, content = _read_learn2reg_table(source)
    pairs = _learn2reg_pairs(source, table, content)
    grids: dict[Path, Grid] = {}
    sections: dict[str, list[Case]] = {section: [] for section in SECTIONS}
    with finished_folder(output) as folder:
        for section, fixed, moving in with_progress(pairs, "copying pairs"):
            stems = [path.name.removesuffix(".nii.gz") for path in (fixed, moving)]
            case_id = f"{stems[0]}_{stems[1].removeprefix(stems[0].split('_')[0] + '_')}"
            sides = _learn2reg_sides(fixed, moving)
            sections[section].append(_copy_pair(source, folder, case_id, sides, 3, grids, space="voxel0"))
            for image in (fixed, moving):
                _check_declared_shape(image, grids[image].shape, content)
        description = f"Learn2Reg task {content.get('name', table.name.removesuffix('_dataset.json'))}."
        write_datalist(folder, sections, description, spatial_dims=3, landmark_space="voxel0")


def prepare_bratsreg(source: str | Path, output: str | Path, modality: str = "t1ce") -> None:
    """The brain tumours of BraTS-Reg (3D) become pairs: follow-up is fixed, the pre-operative baseline moving.

    The challenge asks where the landmarks of the follow-up lie in the baseline, and here landmarks are carried from
    fixed to moving. Landmarks pair up by their number, and one that either file lacks is left out. A case without
    published baseline landmarks, as in the validation data, goes without landmarks.

    Of the sorted cases, numbers 0, 5, 10, ... are for testing and 1, 11, 21, ... for validation, the rest for
    training.

    Args:
        source: folder of folders ``BraTSReg_NNN`` with ``BraTSReg_NNN_00_0000_MODALITY.nii.gz`` (baseline),
            ``BraTSReg_NNN_01_DDDD_MODALITY.nii.gz`` (follow-up after so many days) and ``_landmarks.csv`` of both
            (Landmark,X,Y,Z, LPS, mm).
        output: the folder to make.
        modality: "t1", "t1ce", "t2" or "flair", which of the images to register.

    Raises:
        ValueError: if there is no such modality.
        InputError: if the source has another layout or an unusable file, or the output exists.

    Reference:
        Baheti et al.: The brain tumor sequence registration challenge: establishing correspondence between
        pre-operative and follow-up MRI scans of diffuse glioma patients. 2021. https://arxiv.org/abs/2112.06979
    """
    if modality not in _BRATSREG_MODALITIES:
        raise ValueError(f"modality must be one of {_BRATSREG_MODALITIES}, got {modality!r}.")
    source = existing_folder(source, "the folders BraTSReg_NNN")
    patients = sorted(path for path in source.glob("BraTSReg_*") if path.is_dir())
    if not patients:
        raise InputError(f"{source}: holds no folder BraTSReg_NNN; name the folder that holds them.")
    grids: dict[Path, Grid] = {}
    sections: dict[str, list[Case]] = {section: [] for section in SECTIONS}
    with finished_folder(output) as folder:
        for number, patient in with_progress(list(enumerate(patients)), "copying patients"):
            times = {"fixed": f"{patient.name}_01_*", "moving": f"{patient.name}_00_0000"}
            sides = {side: {"image": _only_file(patient, f"{time}_{modality}.nii.gz")} for side, time in times.items()}
            if (patient / f"{patient.name}_00_0000_landmarks.csv").is_file():
                for side, time in times.items():
                    sides[side]["landmarks"] = _only_file(patient, f"{time}_landmarks.csv")
            sections[section_of(number)].append(_copy_pair(source, folder, patient.name, sides, 3, grids, space="lps"))
        description = f"BraTS-Reg brain tumours, {modality}: follow-up (fixed) and pre-operative baseline (moving)."
        write_datalist(folder, sections, description, spatial_dims=3, landmark_space="voxel0")


def prepare_dirlab(source: str | Path, output: str | Path) -> None:
    """The 4DCT of DIR-Lab (3D) becomes pairs, all for testing: T00 (end of inhaling) is fixed, T50 (exhaled) moving.

    Raw images become NIfTI in Hounsfield units: the value less 1024. Voxel edges are those that the publishers list for
    the ten cases. The raw files do not say how the patient lay: axes are taken to point to the left, the back and the
    head, which does not change any length. Each case carries its 300 landmarks.

    Args:
        source: folder of one or more folders ``CaseNPack`` or ``CaseNDeploy``, N from 1 to 10, with the images
            ``caseN_T00*.img`` and ``caseN_T50*.img`` (16-bit, little-endian, without a header) and the landmarks
            ``CaseN_300_T00_xyz.txt`` and ``CaseN_300_T50_xyz.txt`` or ``caseN_dirLab300_T00_xyz.txt`` and so on
            (voxels, the first at 1), in whatever folder below (``Images``, ``ExtremePhases``). Upper and lower case are
            alike.
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, or the output exists.

    Reference:
        Castillo et al.: A framework for evaluation of deformable image registration spatial accuracy using large
        landmark point sets. Physics in Medicine and Biology 54(7), 2009, 1849-1870.
        https://doi.org/10.1088/0031-9155/54/7/001
    """
    source = existing_folder(source, "the folders CaseNPack of DIR-Lab")
    packs: dict[int, Path] = {}
    for path in sorted(source.iterdir()):
        match = re.fullmatch(r"case(\d+)(pack|deploy)", path.name, re.IGNORECASE)
        if match is None or not path.is_dir():
            continue
        number = int(match[1])
        if number not in _DIRLAB_GRIDS or number in packs:
            raise InputError(f"{path}: is not one of the ten 4DCT cases, or a case that came before; remove it.")
        packs[number] = path
    if not packs:
        raise InputError(f"{source}: holds no folder CaseNPack or CaseNDeploy; name the folder that holds them.")
    cases = []
    with finished_folder(output) as folder:
        for number, pack in with_progress(sorted(packs.items()), "converting cases"):
            cases.append(_write_dirlab_case(folder, number, pack))
        description = "DIR-Lab 4DCT in Hounsfield units, T00 (inhaled, fixed) and T50 (exhaled, moving)."
        write_datalist(folder, {"testing": cases}, description, spatial_dims=3, landmark_space="voxel0")


def prepare_birl(source: str | Path, output: str | Path) -> None:
    """Histology with landmarks, as BIRL and the ANHIR challenge publish it, becomes 2D pairs, all for testing.

    Images are copied as they are, in colour where they have it. Landmarks are pixels, x to the right and y downwards
    from the first at 0, and correspond by their number.

    Args:
        source: a folder with one CSV table, a row a pair, or with none.

            - A table of BIRL has the columns ``Target image`` (fixed), ``Source image`` (moving), ``Target landmarks``
              and ``Source landmarks``, paths relative to the folder. Where it has a column ``status``, pairs for
              "evaluation" are left out: their landmarks are not published.
            - A table with the columns ``fixed``, ``moving``, ``fixed_landmarks`` and ``moving_landmarks``, paths
              relative to the folder or to that of its column ``folder``, is read alike.
            - Without a table, every two images of a tissue are a pair, the first by name fixed. A tissue is a folder of
              images, each with a CSV of its name; of folders ``scale-XXpc`` below a tissue the smallest scale is taken.
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, or the output exists.

    Reference:
        Borovec et al.: ANHIR: automatic non-rigid histological image registration challenge.
        IEEE Trans. Med. Imaging 39(10), 2020, 3042-3052. https://doi.org/10.1109/TMI.2020.2986331
    """
    source = existing_folder(source, "a table of pairs, or folders of images and the CSV of each")
    tables = [path for path in sorted(source.glob("*.csv")) if _birl_columns(path)]
    if len(tables) > 1:
        raise InputError(f"{source}: holds several tables of pairs; leave the one to use.")
    pairs = _birl_table_pairs(source, tables[0]) if tables else _birl_folder_pairs(source)
    grids: dict[Path, Grid] = {}
    cases = []
    with finished_folder(output) as folder:
        for number, sides in with_progress(list(enumerate(pairs)), "copying pairs"):
            place = sides["fixed"]["image"].parent
            tissue = (place.parent if _scale(place) else place).name
            case_id = re.sub(r"\W", "_", f"{tissue}_{number:03d}", flags=re.ASCII)
            case = _copy_pair(source, folder, case_id, sides, 2, grids, space="voxel0")
            cases.append(case | {"subject": tissue})
        description = "Histology of neighbouring sections in several stains, with landmarks."
        write_datalist(folder, {"testing": cases}, description, spatial_dims=2, landmark_space="voxel0")


def _copy_pair(
    source: Path,
    folder: Path,
    case_id: str,
    sides: Mapping[str, Side],
    spatial_dims: int,
    grids: dict[Path, Grid],
    space: str,
) -> Case:
    """Check the files of a pair and copy them, each once; ``grids`` are those of the images checked so far."""
    case = {"id": case_id}
    for side, files in sides.items():
        image = files["image"]
        if image not in grids:
            grids[image] = check_image(image, spatial_dims)
        for kind in [kind for kind in files if kind != "landmarks"]:
            name = files[kind].relative_to(source)
            case[f"{side}_{kind}"] = name.as_posix()
            if (folder / name).exists():
                continue
            if kind != "image":
                (check_label if kind == "label" else check_mask)(files[kind], spatial_dims, grids[image])
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files[kind], folder / name)
    if "landmarks" in sides["fixed"]:
        paths, images = ([files[kind] for files in sides.values()] for kind in ("landmarks", "image"))
        case |= write_landmark_pair(folder, case_id, paths, [grids[image] for image in images], space)
    return case


def _only_file(folder: Path, pattern: str) -> Path:
    """The one file anywhere in a folder whose name is of a pattern with ``*``, upper and lower case alike."""
    found = sorted(path for path in folder.rglob("*") if fnmatch(path.name.lower(), pattern.lower()))
    if len(found) != 1:
        raise InputError(f"{folder}: holds {len(found)} files {pattern} where one must stand; give it as published.")
    return found[0]


def _inside(source: Path, name: str, table: Path) -> Path:
    """The file that a table names, which must lie inside of the source."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{table}: names {name!r}, which lies outside of its folder; correct the path.")
    return source / name


def _read_learn2reg_table(source: Path) -> tuple[Path, dict[str, Any]]:
    tables = sorted(source.glob("*dataset.json"))
    if len(tables) != 1:
        raise InputError(
            f"{source}: holds {len(tables)} files NAME_dataset.json where one must stand; "
            "name the folder of one Learn2Reg task."
        )
    try:
        content = json.loads(tables[0].read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{tables[0]}: cannot be read as JSON; give it as published.") from error
    if not isinstance(content, dict):
        raise InputError(f"{tables[0]}: holds no object; give it as published.")
    return tables[0], content


def _learn2reg_pairs(source: Path, table: Path, content: Mapping[str, Any]) -> list[tuple[str, Path, Path]]:
    """Section, fixed and moving image of every pair, no pair twice."""
    validation, testing, training = (
        _listed_pairs(source, table, content, key)
        for key in ("registration_val", "registration_test", "training_paired_images")
    )
    held_out = {image for pair in validation + testing for image in pair}
    if not training:
        training = _pairs_of_images(_listed_images(source, table, content), held_out)
    pairs = {
        pair: section
        for section, listed in (("training", training), ("testing", testing), ("validation", validation))
        for pair in listed
        if section != "training" or not held_out.intersection(pair)
    }
    if not pairs:
        raise InputError(f"{table}: lists no pair whose folder is here; give the task as published.")
    return [(section, *pair) for pair, section in pairs.items()]


def _listed_pairs(source: Path, table: Path, content: Mapping[str, Any], key: str) -> list[tuple[Path, Path]]:
    listed = content.get(key, [])
    if not isinstance(listed, list) or not all(
        isinstance(pair, dict) and all(isinstance(pair.get(side), str) for side in ("fixed", "moving"))
        for pair in listed
    ):
        raise InputError(f"{table}: its {key} must list pairs of fixed and moving images; give it as published.")
    pairs = [tuple(_learn2reg_image(source, pair[side], table) for side in ("fixed", "moving")) for pair in listed]
    return [(fixed, moving) for fixed, moving in pairs if fixed.parent.is_dir() and moving.parent.is_dir()]


def _listed_images(source: Path, table: Path, content: Mapping[str, Any]) -> list[list[Path]]:
    """The images of each entry of ``training``: one, or the two of a pair."""
    entries = content.get("training", [])
    if not isinstance(entries, list):
        raise InputError(f"{table}: its training must be a list of images; give it as published.")
    images = []
    for entry in entries:
        names = entry.get("image") if isinstance(entry, dict) else entry
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or len(names) not in (1, 2) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{table}: an entry of its training names no image or more than two; give it as published."
            )
        images.append([_learn2reg_image(source, name, table) for name in names])
    return images


def _pairs_of_images(entries: Sequence[Sequence[Path]], held_out: set[Path]) -> list[tuple[Path, Path]]:
    within = [(entry[0], entry[1]) for entry in entries if len(entry) == 2]
    single = [entry[0] for entry in entries if len(entry) == 1 and entry[0] not in held_out]
    return within + list(itertools.pairwise(single))


def _learn2reg_image(source: Path, name: str, table: Path) -> Path:
    path = _inside(source, name, table)
    if not path.parent.name.startswith("images") or not path.name.endswith(".nii.gz"):
        raise InputError(f"{table}: names {name!r} where imagesTr/NAME.nii.gz must stand; give it as published.")
    return path


def _learn2reg_sides(fixed: Path, moving: Path) -> dict[str, Side]:
    sides: dict[str, Side] = {"fixed": {"image": fixed}, "moving": {"image": moving}}
    for kind, folders in _LEARN2REG_FOLDERS.items():
        for name in folders:
            paths = [_companion(image, name, kind) for image in (fixed, moving)]
            there = [path for path in paths if path.is_file()]
            if len(there) == 1:
                absent = next(path for path in paths if path not in there)
                raise InputError(f"{absent}: there is no such file beside {there[0].name}; give both or none.")
            if there:
                sides["fixed"][kind], sides["moving"][kind] = paths
                break
    return sides


def _companion(image: Path, folder: str, kind: str) -> Path:
    name = image.name.removesuffix(".nii.gz") + ".csv" if kind == "landmarks" else image.name
    return image.parent.with_name(folder + image.parent.name.removeprefix("images")) / name


def _check_declared_shape(image: Path, shape: tuple[int, ...], content: Mapping[str, Any]) -> None:
    """Refuse an image of another shape than its task lists, by the number of its modality or for all."""
    declared = content.get("tensorImageShape", content.get("tensorImageSize"))
    modality = re.search(r"_(\d{4})\.nii\.gz$", image.name)
    if isinstance(declared, dict):
        declared = declared.get(str(int(modality[1]))) if modality else None
    if isinstance(declared, list) and tuple(declared) != shape:
        raise InputError(
            f"{image}: has the shape {shape} where its task lists {tuple(declared)}; give the image as published."
        )


def _write_dirlab_case(folder: Path, number: int, pack: Path) -> Case:
    shape, spacing = _DIRLAB_GRIDS[number]
    case_id = f"case_{number:02d}"
    affine = lps_affine(spacing)
    arrays, landmarks = {}, []
    for side, phase in _DIRLAB_PHASES.items():
        image = _only_file(pack, f"case{number}_T{phase}*.img")
        arrays[f"{side}_image"] = _read_dirlab_image(image, shape)
        check_voxels(str(image), arrays[f"{side}_image"], affine)
        landmarks.append(_only_file(pack, f"case{number}_*300_T{phase}_xyz.txt"))
    case = write_case(folder, case_id, arrays, dict.fromkeys(arrays, affine))
    return case | write_landmark_pair(folder, case_id, landmarks, [Grid(shape, affine)] * 2, space="voxel1")


def _read_dirlab_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Hounsfield units, (*S), int16."""
    size = 2 * int(np.prod(shape))
    if path.stat().st_size != size:
        raise InputError(
            f"{path}: has {path.stat().st_size} bytes where {' x '.join(map(str, shape))} voxels of 16 bits take "
            f"{size}; give the image as published."
        )
    raw = np.fromfile(path, "<i2").reshape(shape[::-1]).T  # the first axis runs fastest
    if raw.min() < np.iinfo(np.int16).min + _DIRLAB_OFFSET:
        raise InputError(f"{path}: holds no CT of 16 bits, little-endian; give the image as published.")
    return np.ascontiguousarray(raw - np.int16(_DIRLAB_OFFSET), dtype=np.int16)


def _birl_columns(path: Path) -> tuple[str, ...]:
    """The columns of fixed, moving and their landmarks, empty where the file is no table of pairs."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            header = set(next(csv.reader(stream), []))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV table; save it as one in UTF-8.") from error
    return next((columns for columns in _BIRL_COLUMNS if header.issuperset(columns)), ())


def _birl_table_pairs(source: Path, table: Path) -> list[dict[str, Side]]:
    columns = _birl_columns(table)
    with table.open(newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("status") != "evaluation"]
    if not rows:
        raise InputError(f"{table}: has no row with published landmarks; add one.")
    pairs = []
    for number, row in enumerate(rows):
        if not all(row[name] for name in columns):
            raise InputError(f"{table}: row {number + 1} does not name two images and their landmarks; complete it.")
        paths = [_inside(source, str(Path(row.get("folder") or "") / row[name]), table) for name in columns]
        pairs.append(
            {
                "fixed": {"image": paths[0], "landmarks": paths[2]},
                "moving": {"image": paths[1], "landmarks": paths[3]},
            }
        )
    return pairs


def _birl_folder_pairs(source: Path) -> list[dict[str, Side]]:
    tissues: dict[Path, list[Path]] = {}
    for path in [source, *sorted(source.rglob("*"))]:
        if path.is_dir() and any(image.suffix.lower() in _BIRL_IMAGES for image in path.iterdir()):
            tissues.setdefault(path.parent if _scale(path) else path, []).append(path)
    pairs = []
    for places in tissues.values():
        place = min(places, key=_scale)
        images = sorted(path for path in place.iterdir() if path.suffix.lower() in _BIRL_IMAGES)
        sides = [{"image": image, "landmarks": image.with_suffix(".csv")} for image in images]
        pairs += [{"fixed": fixed, "moving": moving} for i, fixed in enumerate(sides) for moving in sides[i + 1 :]]
    if not pairs:
        raise InputError(
            f"{source}: holds neither a table with the columns {', '.join(_BIRL_COLUMNS[1])} nor a folder of two "
            "images; name the folder of the data."
        )
    return pairs


def _scale(folder: Path) -> int:
    """The percentage that a folder's name tells, 0 where it tells none."""
    match = re.fullmatch(r"scale-(\d+)pc", folder.name)
    return int(match[1]) if match else 0

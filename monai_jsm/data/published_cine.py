"""Cine MR of the heart as published becomes 2D pairs: end-diastole is fixed, end-systole moving."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.io

from monai_jsm.data.datalist import SECTIONS
from monai_jsm.data.errors import InputError
from monai_jsm.data.images import check_voxels, read_image
from monai_jsm.data.progress import with_progress
from monai_jsm.data.published_folder import (
    Case,
    existing_folder,
    finished_folder,
    lps_affine,
    section_of,
    write_case,
    write_datalist,
)

__all__ = ["prepare_acdc", "prepare_lvquan", "prepare_sunnybrook"]

_WINDOW = 128
_ACDC_PARTS = ("training", "testing")
_ACDC_LABELS = (0, 1, 2, 3)
_ACDC_CAVITY = 3
_LVQUAN_SHAPE = (80, 80)
_LVQUAN_FRAMES = 20
_LVQUAN_KINDS = ("image", "endo", "epi")

Stack = tuple[np.ndarray, np.ndarray]
"""Voxels, (*S), and their voxel-to-world matrix, (4, 4), RAS, mm."""


def prepare_sunnybrook(source: str | Path, output: str | Path) -> None:
    """Sunnybrook cine MR becomes 2D pairs: end-diastole is fixed, end-systole moving.

    Every slice of every subject is a case, ``SUBJECT_sliceNN``, cut to the 128x128 window around the left ventricle:
    its middle is the rounded centre of mass of the cavity at end-diastole, moved only to stay inside the image. The
    four images of a case share the window and keep their spacing and place in the world.

    Labels are 1 in the cavity of the left ventricle and 0 elsewhere. The myocardium is left out, because it was
    outlined at end-diastole only.

    Of the sorted subjects, numbers 0, 5, 10, ... are for testing and 1, 11, 21, ... for validation, the rest for
    training, so that no subject is in two sections.

    Args:
        source: folder of ``SUBJECT_ED.nii.gz``, ``SUBJECT_ES.nii.gz``, ``SUBJECT_ED_label.nii.gz`` and
            ``SUBJECT_ES_label.nii.gz``, 3D stacks in which label 1 is the cavity of the left ventricle.
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, or the output exists.

    Reference:
        Radau et al.: Evaluation framework for algorithms segmenting short axis cardiac MRI.
        The MIDAS Journal, 2009. https://doi.org/10.54294/g80ruo
    """
    source = existing_folder(source, "SUBJECT_ED.nii.gz, SUBJECT_ES.nii.gz and their _label.nii.gz")
    subjects = sorted(path.name.removesuffix("_ED.nii.gz") for path in source.glob("*_ED.nii.gz"))
    if not subjects:
        raise InputError(f"{source}: holds no SUBJECT_ED.nii.gz; name the folder of the Sunnybrook stacks.")
    sections: dict[str, list[Case]] = {section: [] for section in SECTIONS}
    with finished_folder(output) as folder:
        for number, subject in with_progress(list(enumerate(subjects)), "preparing subjects"):
            sections[section_of(number)] += _write_sunnybrook_subject(folder, source, subject)
        description = (
            "Sunnybrook cine MR, end-diastole (fixed) and end-systole (moving), windows of 128x128 voxels around the "
            "left ventricle, nominal spacing; label 1 is the cavity of the left ventricle."
        )
        write_datalist(folder, sections, description, spatial_dims=2)


def prepare_acdc(source: str | Path, output: str | Path) -> None:
    """The cine MR of the ACDC challenge becomes 2D pairs: end-diastole is fixed, end-systole moving.

    The stacks have too few slices to be registered in 3D. Every slice that shows the cavity of the left ventricle in
    both phases is a case, ``patientNNN_sliceNN``, cut to the 128x128 window around that cavity at end-diastole as in
    :func:`prepare_sunnybrook`. Images keep their spacing. Their place does not fit into the two axes of a 2D image,
    so the first voxel of every uncut slice lies at the origin.

    Labels are the published ones: 1 the right ventricle, 2 the myocardium and 3 the cavity of the left ventricle.

    Patients of ``testing`` are for testing. Of the sorted patients of ``training``, numbers 1, 11, 21, ... are for
    validation and the rest for training; where there is no folder ``testing``, numbers 0, 5, 10, ... are for testing.

    Args:
        source: folder of ``training`` and, where it was downloaded, ``testing``, each with folders ``patientNNN`` of
            ``Info.cfg``, which names the frames ED and ES, ``patientNNN_frameMM.nii.gz`` and
            ``patientNNN_frameMM_gt.nii.gz`` of both. ``patientNNN_4d.nii.gz`` is not read.
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, or the output exists.

    Reference:
        Bernard et al.: Deep learning techniques for automatic MRI cardiac multi-structures segmentation and diagnosis:
        is the problem solved? IEEE Trans. Med. Imaging 37(11), 2018, 2514-2525.
        https://doi.org/10.1109/TMI.2018.2837502
    """
    source = existing_folder(source, "the folder training of ACDC and, if it was downloaded, testing")
    parts = {part: sorted(path for path in (source / part).glob("patient*") if path.is_dir()) for part in _ACDC_PARTS}
    if not parts["training"]:
        raise InputError(f"{source}: holds no training/patientNNN; name the folder that holds training of ACDC.")
    sections: dict[str, list[Case]] = {section: [] for section in SECTIONS}
    numbered = [(part, number, patient) for part in _ACDC_PARTS for number, patient in enumerate(parts[part])]
    with finished_folder(output) as folder:
        for part, number, patient in with_progress(numbered, "preparing patients"):
            section = part if part == "testing" else section_of(number)
            if part == "training" and section == "testing" and parts["testing"]:
                section = "training"
            sections[section] += _write_acdc_patient(folder, patient)
        description = (
            "ACDC cine MR, end-diastole (fixed) and end-systole (moving), windows of 128x128 voxels around the left "
            "ventricle; labels are 1 right ventricle, 2 myocardium, 3 cavity of the left ventricle."
        )
        write_datalist(folder, sections, description, spatial_dims=2)


def prepare_lvquan(source: str | Path, output: str | Path) -> None:
    """The cine MR of the LVQuan 2018 challenge becomes 2D pairs: end-diastole is fixed, end-systole moving.

    Each subject is a case of 80x80 voxels: end-diastole is the frame with the largest cavity of the left ventricle,
    end-systole that with the smallest. Spacing is nominally 1 mm, because the published images were turned, cut and
    resized: lengths are pixels of theirs. The images stand upright in a viewer.

    Labels are 1 in the cavity of the left ventricle and 2 in its myocardium.

    Of the subjects, in their order in the file or of the sorted files, numbers 0, 5, 10, ... are for testing and
    1, 11, 21, ... for validation, the rest for training.

    Args:
        source: folder of one MATLAB file with all subjects (``cardiac-dig.mat``, cases ``NAME_001``, ``NAME_002``,
            ...) or of one for each (case ``NAME``). A file holds arrays of 80 rows, 80 columns and 20 frames a
            subject: ``images_LV``, ``endo_LV`` and ``epi_LV``, also without ``_LV`` and with ``image``, where endo and
            epi are 1 inside of the inner and the outer contour and 0 outside. Other arrays are not read; the uncut
            images of LVQuan 2019 have another layout and are refused.
        output: the folder to make.

    Raises:
        InputError: if the source has another layout or an unusable file, or the output exists.

    Reference:
        Xue et al.: Full left ventricle quantification via deep multitask relationships learning.
        Medical Image Analysis 43, 2018, 54-65. https://doi.org/10.1016/j.media.2017.09.005
    """
    source = existing_folder(source, "cardiac-dig.mat or one .mat for each subject")
    files = sorted(source.glob("*.mat"))
    if not files:
        raise InputError(f"{source}: holds no .mat file; name the folder of cardiac-dig.mat.")
    sections: dict[str, list[Case]] = {section: [] for section in SECTIONS}
    number = 0
    with finished_folder(output) as folder:
        for path in with_progress(files, "preparing subjects"):
            if not re.fullmatch(r"\w[\w.-]*", path.stem, re.ASCII):
                raise InputError(f"{path}: its name cannot name a case; use letters, digits, '_', '-' and dots only.")
            arrays = _read_lvquan(path)
            subjects = arrays["image"].shape[2] // _LVQUAN_FRAMES
            for subject in range(subjects):
                case_id = path.stem if subjects == 1 else f"{path.stem}_{subject + 1:03d}"
                frames = slice(subject * _LVQUAN_FRAMES, (subject + 1) * _LVQUAN_FRAMES)
                cycle = {kind: array[..., frames] for kind, array in arrays.items()}
                sections[section_of(number)].append(_write_lvquan_subject(folder, path, case_id, cycle))
                number += 1
        description = (
            "LVQuan 2018 cine MR, end-diastole (fixed) and end-systole (moving), nominal spacing: 1 mm is a pixel; "
            "labels are 1 cavity and 2 myocardium of the left ventricle."
        )
        write_datalist(folder, sections, description, spatial_dims=2)


def _write_sunnybrook_subject(folder: Path, source: Path, subject: str) -> list[Case]:
    names = {"fixed_image": "ED", "moving_image": "ES", "fixed_label": "ED_label", "moving_label": "ES_label"}
    paths = {key: source / f"{subject}_{name}.nii.gz" for key, name in names.items()}
    stacks = _read_stacks(paths)
    for key in ("fixed_label", "moving_label"):
        stack, affine = stacks[key]
        stacks[key] = (stack == 1).astype(np.uint8), affine
    cases = []
    for index in range(stacks["fixed_label"][0].shape[2]):
        if not stacks["fixed_label"][0][..., index].any():
            raise InputError(f"{paths['fixed_label']}: has no label 1 in slice {index}; remove the slice.")
        case = _write_slice(folder, f"{subject}_slice{index:02d}", paths, stacks, index, cavity=1)
        cases.append(case | {"subject": subject})
    return cases


def _write_acdc_patient(folder: Path, patient: Path) -> list[Case]:
    frames = _acdc_frames(patient / "Info.cfg")
    paths = {
        f"{side}_{kind}": patient / f"{patient.name}_frame{frames[phase]:02d}{ending}.nii.gz"
        for side, phase in (("fixed", "ED"), ("moving", "ES"))
        for kind, ending in (("image", ""), ("label", "_gt"))
    }
    stacks = _read_stacks(paths)
    spacing = np.linalg.norm(stacks["fixed_image"][1][:3, :3], axis=0)
    for key, (stack, affine) in stacks.items():
        if not np.allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing, rtol=1e-3):
            raise InputError(f"{paths[key]}: has another spacing than {paths['fixed_image'].name}; correct its header.")
        if key.endswith("label"):
            if not np.isin(stack, _ACDC_LABELS).all():
                raise InputError(f"{paths[key]}: holds other values than the labels 0 to 3; give it as published.")
            stack = stack.astype(np.uint8)
        stacks[key] = stack, lps_affine(spacing.tolist())
    shown = [(stacks[key][0] == _ACDC_CAVITY).any(axis=(0, 1)) for key in ("fixed_label", "moving_label")]
    indices = np.flatnonzero(shown[0] & shown[1]).tolist()
    if not indices:
        raise InputError(f"{patient}: has no slice with label 3 in both phases; give the patient as published.")
    return [
        _write_slice(folder, f"{patient.name}_slice{i:02d}", paths, stacks, i, _ACDC_CAVITY) | {"subject": patient.name}
        for i in indices
    ]


def _acdc_frames(path: Path) -> dict[str, int]:
    """The frames ED and ES, counted from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: there is no such file or it is not text; give the patient as published.") from error
    frames = {phase: int(frame) for phase, frame in re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", text, re.MULTILINE)}
    if len(frames) < 2:
        raise InputError(f"{path}: lacks a line 'ED: NUMBER' or 'ES: NUMBER'; give the file as published.")
    return frames


def _read_stacks(paths: Mapping[str, Path]) -> dict[str, Stack]:
    stacks = {key: read_image(path, spatial_dims=3) for key, path in paths.items()}
    shape = stacks["fixed_image"][0].shape
    for key, (stack, _) in stacks.items():
        if stack.shape != shape or min(shape[:2]) < _WINDOW:
            raise InputError(
                f"{paths[key]}: has the shape {stack.shape} where the four stacks of a subject must share one of at "
                f"least {_WINDOW} x {_WINDOW} voxels a slice; give the stacks as published."
            )
    return stacks


def _write_slice(
    folder: Path, case_id: str, paths: Mapping[str, Path], stacks: Mapping[str, Stack], index: int, cavity: int
) -> Case:
    """One slice of each stack, cut to the window around the label ``cavity`` of the fixed label."""
    label = stacks["fixed_label"][0][..., index]
    middle = np.rint(np.argwhere(label == cavity).mean(axis=0)).astype(int)
    corner = np.clip(middle - _WINDOW // 2, 0, np.array(label.shape) - _WINDOW).tolist()
    window = tuple(slice(start, start + _WINDOW) for start in corner)
    arrays, affines = {}, {}
    for key, (stack, affine) in stacks.items():
        arrays[key] = stack[..., index][window]
        affines[key] = affine.copy()
        affines[key][:, 3] = affine @ [*corner, index, 1]
        if key.endswith("image"):
            check_voxels(f"{paths[key]}, slice {index}", arrays[key], affines[key])
    return write_case(folder, case_id, arrays, affines)


def _read_lvquan(path: Path) -> dict[str, np.ndarray]:
    """Arrays (80, 80, 20 times subjects) by their kind."""
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
        names = {
            kind: [name for name in shapes if re.fullmatch(f"{kind}s?(_LV)?", name, re.IGNORECASE)]
            for kind in _LVQUAN_KINDS
        }
        content = scipy.io.loadmat(path, variable_names=[name for found in names.values() for name in found])
    except NotImplementedError as error:
        raise InputError(f"{path}: is of MATLAB's version 7.3; save it in MATLAB with the option -v7.") from error
    except Exception as error:  # the reader has many exceptions for damaged files
        raise InputError(f"{path}: is damaged or not a MATLAB file; give the file as published.") from error
    if any(len(found) != 1 for found in names.values()):
        listed = ", ".join(sorted(shapes)) or "nothing"
        raise InputError(
            f"{path}: holds {listed[:200]} where images_LV, endo_LV and epi_LV must stand; "
            "give LVQuan 2018 as published."
        )
    arrays = {kind: content[name] for kind, (name,) in names.items()}
    shape = arrays["image"].shape
    for kind, array in arrays.items():
        frames = shape[2] if len(shape) == 3 and shape[:2] == _LVQUAN_SHAPE else 0
        if array.shape != shape or not frames or frames % _LVQUAN_FRAMES:
            raise InputError(
                f"{path}: its {names[kind][0]} has the shape {array.shape} where three alike of 80 x 80 x 20 frames a "
                "subject must stand; give LVQuan 2018 as published."
            )
        if array.dtype.kind not in "buif" or (kind != "image" and not np.isin(array, (0, 1)).all()):
            raise InputError(
                f"{path}: its {names[kind][0]} holds other values than "
                f"{'numbers' if kind == 'image' else '0 and 1'}; give LVQuan 2018 as published."
            )
    return arrays


def _write_lvquan_subject(folder: Path, path: Path, case_id: str, cycle: Mapping[str, np.ndarray]) -> Case:
    endo, epi = cycle["endo"] > 0, cycle["epi"] > 0
    if (endo & epi).sum() < endo.sum() / 2:  # also where contours came as lines
        raise InputError(f"{path}: the endo of {case_id} does not fill the inside of its epi; give it as published.")
    areas = endo.sum(axis=(0, 1))
    if areas.min() == 0 or areas.min() == areas.max():
        raise InputError(
            f"{path}: the cavity of {case_id} is absent from a frame or has one size in all; give it as published."
        )
    image, affine = cycle["image"], lps_affine((1, 1, 1))
    arrays = {}
    for side, frame in (("fixed", areas.argmax()), ("moving", areas.argmin())):
        # MATLAB holds rows first.
        arrays[f"{side}_image"] = image[..., frame].T.astype(np.float32)
        check_voxels(f"{path}, {case_id}", arrays[f"{side}_image"], affine)
        arrays[f"{side}_label"] = np.where(endo, 1, np.where(epi, 2, 0))[..., frame].T.astype(np.uint8)
    return write_case(folder, case_id, arrays, dict.fromkeys(arrays, affine))

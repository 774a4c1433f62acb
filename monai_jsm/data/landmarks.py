"""Landmark files: a label and a position a row, turned into RAS world coordinates as they are read."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from monai_jsm.data.errors import InputError
from monai_jsm.geometry import voxel_to_world, world_to_voxel

__all__ = ["LANDMARK_SPACES", "Landmarks", "check_inside", "match_landmarks", "read_landmarks", "write_landmarks"]

LANDMARK_SPACES = ("lps", "ras", "voxel0", "voxel1")
"""Frames a file may be in: mm in LPS or RAS axes, or voxels in array-axis order with the first voxel at 0 or at 1."""

_AXES = ("x", "y", "z")


class Landmarks(NamedTuple):
    """Named points of one image.

    Attributes:
        labels: one name a landmark, all different.
        positions: (N, D), float64, RAS, mm.
    """

    labels: tuple[str, ...]
    positions: np.ndarray


def read_landmarks(path: str | os.PathLike[str], space: str, affine: np.ndarray) -> Landmarks:
    """Read a CSV file of landmarks.

    The first line names the columns: ``label,x,y`` or ``label,x,y,z``, in any order. Without a ``label`` column the
    labels are the row numbers from "0". Columns may be parted by commas, semicolons or tabs; a decimal comma is
    understood where commas do not part columns.

    Args:
        path: the file, UTF-8.
        space: the frame of its numbers, one of ``LANDMARK_SPACES``. A CSV file does not say it, so it must be declared.
        affine: voxel-to-world matrix of the image that the landmarks belong to (RAS, mm), (D+1, D+1) or 4x4.

    Returns:
        The landmarks in the order of the file.

    Raises:
        InputError: if the frame is not declared, or the file is absent or empty, has other columns or no header, text
            or NaN where a number must stand, a missing or repeated label, or not D coordinates a row.
    """
    if space not in LANDMARK_SPACES:
        known = ", ".join(LANDMARK_SPACES)
        raise InputError(
            f"{path}: the frame of its landmarks is "
            + (f'"{space}", which is unknown' if space else "not declared")
            + f"; declare landmark_space in datalist.json as one of {known}."
        )
    labels, points = _read_table(Path(path))
    control = next((label for label in labels if any(unicodedata.category(sign) == "Cc" for sign in label)), None)
    if control is not None:
        raise InputError(f"{path}: the label {control!r} holds a control character; rename the landmark.")
    dims = points.shape[1]
    if affine.shape not in ((dims + 1, dims + 1), (4, 4)):
        raise InputError(
            f"{path}: has {dims} coordinates a row where its image has {affine.shape[0] - 1} axes; "
            "give the landmarks of this image."
        )
    return Landmarks(labels, _to_world(points, space, affine))


def write_landmarks(path: str | os.PathLike[str], landmarks: Landmarks, space: str, affine: np.ndarray) -> None:
    """Write landmarks as a CSV file that :func:`read_landmarks` reads back to within 1e-6 mm.

    Args:
        path: the file to write.
        landmarks: labels and positions, (N, D), RAS, mm.
        space: the frame to write, one of ``LANDMARK_SPACES``.
        affine: voxel-to-world matrix of the image that the landmarks belong to (RAS, mm), (D+1, D+1) or 4x4.

    Raises:
        ValueError: if ``space`` is unknown.
    """
    if space not in LANDMARK_SPACES:
        raise ValueError(f"space must be one of {LANDMARK_SPACES}, got {space!r}.")
    points = _from_world(landmarks.positions, space, affine)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["label", *_AXES[: points.shape[1]]])
        writer.writerows(
            [label, *map(repr, point)] for label, point in zip(landmarks.labels, points.tolist(), strict=True)
        )


def match_landmarks(fixed: Landmarks, moving: Landmarks) -> tuple[Landmarks, Landmarks]:
    """Pair two sets of landmarks by label.

    Returns:
        Both sets in the order of ``fixed``, every landmark of either in them.

    Raises:
        InputError: if a label occurs twice in one set or only in one of the two.

    Example:
        >>> fixed = Landmarks(("apex", "base"), np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> moving = Landmarks(("base", "apex"), np.array([[3.5, 4.5], [1.5, 2.5]]))
        >>> match_landmarks(fixed, moving)[1].positions.tolist()
        [[1.5, 2.5], [3.5, 4.5]]
    """
    for name, landmarks in (("fixed", fixed), ("moving", moving)):
        if (repeated := _repeated(landmarks.labels)) is not None:
            raise InputError(f"the {name} landmarks hold the label {repeated!r} twice; give each its own label.")
    alone = [label for label in fixed.labels if label not in set(moving.labels)]
    alone += [label for label in moving.labels if label not in set(fixed.labels)]
    if alone:
        raise InputError(
            f"{len(fixed.labels)} fixed and {len(moving.labels)} moving landmarks do not pair up: "
            f"{_listed(alone)} in one set only; mark the same landmarks in both images."
        )
    rows = {label: row for row, label in enumerate(moving.labels)}
    order = [rows[label] for label in fixed.labels]
    return fixed, Landmarks(fixed.labels, moving.positions[order])


def check_inside(landmarks: Landmarks, shape: Sequence[int], affine: np.ndarray) -> None:
    """Refuse landmarks that lie more than half a voxel outside of their image.

    Beyond that a displacement field says nothing, and ITK silently returns zero there.

    Args:
        landmarks: positions (N, D), RAS, mm.
        shape: the D spatial sizes of the image.
        affine: its voxel-to-world matrix (RAS, mm), (D+1, D+1) or 4x4.

    Raises:
        InputError: naming the landmarks outside and, where most are, the frame as the likely reason.
    """
    voxels = _from_world(landmarks.positions, "voxel0", affine)  # (N, D)
    slack = 0.5 + 1e-6
    inside = np.all((voxels >= -slack) & (voxels <= np.asarray(shape) - 1 + slack), axis=1)
    outside = [landmarks.labels[row] for row in np.flatnonzero(~inside)]
    if outside:
        most = len(outside) > len(landmarks.labels) / 2
        raise InputError(
            f"{len(outside)} of {len(landmarks.labels)} landmarks lie outside of the image ({_listed(outside)}); "
            + ("check the declared landmark_space first." if most else "correct or remove them.")
        )


def _read_table(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Labels and numbers, (N, D), as the file holds them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; correct the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text; save it as a CSV file in UTF-8.") from error
    first_line = text.split("\n", 1)[0]
    delimiter = next((candidate for candidate in ";\t" if candidate in first_line), ",")
    try:
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [row for row in table if any(field.strip() for field in row)]
    except csv.Error as error:
        raise InputError(f"{path}: is not a CSV file ({error}); save it as one.") from error
    if len(rows) < 2:
        raise InputError(f"{path}: holds no landmarks; give a header line and one row a landmark.")
    header = [name.strip().lower() for name in rows[0]]
    axes = _AXES[: 3 if "z" in header else 2]
    if sorted(header) not in (sorted(axes), sorted(("label", *axes))):
        raise InputError(
            f"{path}: its first line is {delimiter.join(rows[0])[:80]!r} where the columns must be named label,x,y or "
            "label,x,y,z; name them so."
        )
    labels, points = [], []
    for number, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise InputError(
                f"{path}: landmark {number + 1} has {len(row)} fields where the header has {len(header)}; "
                "correct the row, and part columns by semicolons where numbers have a decimal comma."
            )
        fields = dict(zip(header, row, strict=True))
        labels.append(fields.get("label", str(number)).strip())
        points.append([_number(path, number, fields[axis], delimiter) for axis in axes])
    if "" in labels:
        raise InputError(f"{path}: landmark {labels.index('') + 1} has no label; label every landmark or none.")
    if (repeated := _repeated(labels)) is not None:
        raise InputError(f"{path}: holds the label {repeated!r} twice; give each landmark its own label.")
    return tuple(labels), np.array(points, dtype=np.float64)


def _number(path: Path, number: int, field: str, delimiter: str) -> float:
    text = field.strip() if delimiter == "," else field.strip().replace(",", ".")
    try:
        value = float("nan") if "_" in text else float(text)  # float would take 1_0 for 10
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(
            f"{path}: landmark {number + 1} has {field.strip()!r} where a finite number must stand; correct the row."
        )
    return value


def _to_world(points: np.ndarray, space: str, affine: np.ndarray) -> np.ndarray:
    if space.startswith("voxel"):
        return voxel_to_world(torch.from_numpy(points - int(space[-1])), torch.from_numpy(affine)).numpy()
    return points * _ras_signs(points, space)


def _from_world(positions: np.ndarray, space: str, affine: np.ndarray) -> np.ndarray:
    if space.startswith("voxel"):
        return world_to_voxel(torch.from_numpy(positions), torch.from_numpy(affine)).numpy() + int(space[-1])
    return positions * _ras_signs(positions, space)


def _ras_signs(points: np.ndarray, space: str) -> np.ndarray:
    """LPS and RAS differ in the sign of x and y."""
    return np.where((space == "lps") & (np.arange(points.shape[1]) < 2), -1.0, 1.0)


def _repeated(labels: Sequence[str]) -> str | None:
    label, count = Counter(labels).most_common(1)[0]
    return label if count > 1 else None


def _listed(labels: Sequence[str]) -> str:
    names = ", ".join(repr(label) for label in labels[:5])
    return names + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")

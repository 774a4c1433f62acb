"""What a method did on one case, kept on disk so that a benchmark can go on where it stopped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CaseResult", "read_result", "whole_file", "write_result"]


@dataclass(frozen=True)
class CaseResult:
    """One method on one case.

    Attributes:
        method: name of the row.
        case: id of the case.
        measures: name to value, units as in :data:`monai_jsm.metrics.UNITS`, and ``image_error`` (mean absolute
            difference of fixed and warped, intensities in [0, 1]); only what the case has labels or landmarks for.
        landmarks: a row each: ``label``, ``before_voxel``, ``after_voxel``, ``before_mm``, ``after_mm``,
            ``outlier_distance`` (voxels to the nearest one that only one image shows, None where the case has none) and
            ``trust`` (of the registered pair there, in [0, 1]).
        seconds: that the method and the pre-alignment it starts from took, without reading and measuring; NaN where it
            failed.
        peak_memory: MiB that the method's process grew by while it worked, libraries and weights not counted; NaN where
            the platform cannot tell.
        failure: why there is no field, in a sentence; empty where there is one.
        warnings: of the pair and of the method, a sentence each.
        subject: whom the pair is of; pairs of one subject are not independent. Empty where that is not known.
        made: how the seconds came about: ``threads`` a process, ``jobs`` at the same time, ``version`` and ``commit``
            (empty where that is not known) of monai_jsm.
        fingerprint: of the settings, weights and files; a result of another one is done again.
    """

    method: str
    case: str
    measures: dict[str, float] = field(default_factory=dict)
    landmarks: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = math.nan
    peak_memory: float = math.nan
    failure: str = ""
    warnings: list[str] = field(default_factory=list)
    subject: str = ""
    made: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside a file to write to; what lies there takes the file's place once it is whole."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield building
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


def write_result(result: CaseResult, path: Path) -> None:
    """Write a result so that a file, once there, is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as building:
        building.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")


def read_result(path: Path) -> CaseResult | None:
    """The result in a file; None where there is none, or another program's."""
    try:
        return CaseResult(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None

"""Files become tensors and back: datalists, landmarks, images, published data sets and the phantom.

Names are loaded at first use, so that naming :class:`InputError` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DATALIST_NAME": "datalist",
    "LANDMARK_SPACES": "landmarks",
    "SECTIONS": "datalist",
    "SMALLEST_SIZE": "images",
    "Series": "dicom",
    "Grid": "images",
    "InputError": "errors",
    "Landmarks": "landmarks",
    "PhantomPair": "phantom",
    "check_case": "datalist",
    "check_cases": "datalist",
    "check_image": "images",
    "check_inside": "landmarks",
    "check_label": "images",
    "check_mask": "images",
    "check_voxels": "images",
    "find_series": "dicom",
    "datalist_spatial_dims": "datalist",
    "landmark_layout": "landmarks",
    "load_cases": "datalist",
    "load_datalist": "datalist",
    "load_pairs": "datalist",
    "make_pair": "phantom",
    "match_landmarks": "landmarks",
    "prepare_acdc": "published",
    "prepare_birl": "published",
    "prepare_bratsreg": "published",
    "prepare_dirlab": "published",
    "prepare_known_field": "published",
    "prepare_learn2reg": "published",
    "prepare_lvquan": "published",
    "prepare_mnist": "published",
    "prepare_sunnybrook": "published",
    "read_image": "images",
    "read_landmarks": "landmarks",
    "read_series": "dicom",
    "with_progress": "progress",
    "write_landmarks": "landmarks",
    "write_phantom": "phantom",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

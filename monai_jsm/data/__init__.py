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
    "Grid": "images",
    "InputError": "errors",
    "Landmarks": "landmarks",
    "PhantomPair": "phantom",
    "check_cases": "datalist",
    "check_image": "images",
    "check_inside": "landmarks",
    "check_label": "images",
    "check_mask": "images",
    "datalist_spatial_dims": "datalist",
    "load_cases": "datalist",
    "load_datalist": "datalist",
    "make_pair": "phantom",
    "match_landmarks": "landmarks",
    "prepare_known_field": "published",
    "prepare_mnist": "published",
    "prepare_sunnybrook": "published",
    "read_image": "images",
    "read_landmarks": "landmarks",
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

"""Data sets as their authors publish them become folders with a ``datalist.json``.

Each function reads one published layout and writes one new folder, which appears under its name only when complete.
"""

from __future__ import annotations

from monai_jsm.data.published_cine import prepare_acdc, prepare_lvquan, prepare_sunnybrook
from monai_jsm.data.published_landmarks import (
    prepare_birl,
    prepare_bratsreg,
    prepare_dirlab,
    prepare_known_field,
    prepare_learn2reg,
)
from monai_jsm.data.published_mnist import prepare_mnist

__all__ = [
    "prepare_acdc",
    "prepare_birl",
    "prepare_bratsreg",
    "prepare_dirlab",
    "prepare_known_field",
    "prepare_learn2reg",
    "prepare_lvquan",
    "prepare_mnist",
    "prepare_sunnybrook",
]

"""Registration of medical images that do not fully correspond, for MONAI.

Rooms (``monai_jsm.networks``, ``monai_jsm.losses``, ...) carry MONAI's names. They and the blocks below are
loaded at first use, so that ``import monai_jsm`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = (
    "apps",
    "baselines",
    "benchmark",
    "data",
    "engines",
    "geometry",
    "handlers",
    "losses",
    "metrics",
    "networks",
    "prealignment",
    "pyramid",
    "refinement",
    "registration",
    "report",
    "saliency",
    "transforms",
)
_BLOCKS = {
    "GlobalToLocalNet": "networks",
    "JointSaliencyBlock": "saliency",
    "Registration": "registration",
    "TargetRegistrationErrorMetric": "metrics",
    "register": "registration",
}

__all__ = [*_ROOMS, *_BLOCKS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _BLOCKS:
        return getattr(importlib.import_module(f"{__name__}.{_BLOCKS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

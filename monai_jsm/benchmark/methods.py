"""The rows of a benchmark: comparators, ablations and what monai_jsm ships, each as one way from a pair to a field."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from monai_jsm.baselines.learned import trained_weights
from monai_jsm.baselines.syn import PACKAGE_DEFAULT
from monai_jsm.data.errors import InputError
from monai_jsm.data.results import file_hash
from monai_jsm.networks import released_weights
from monai_jsm.registration import RefineFieldd, Registrar

__all__ = ["METHODS", "PUBLISHED_METHODS", "REFERENCE", "Method", "choose_methods"]

REFERENCE = "ours"  # the row that all others are compared with: what `monai-jsm register` does by default
_OURS = ("registration", "networks", "saliency", "refinement", "geometry")  # files that decide our own field


@dataclass(frozen=True)
class Method:
    """A row of a benchmark.

    Attributes:
        name: what the command line calls it.
        title: what tables call it.
        module: of :mod:`monai_jsm.baselines`; empty for what ``monai-jsm register`` runs.
        settings: passed to the module's ``register``.
        affine: pre-alignment of this row where it is not that of the suite.
        refine: whether instance optimisation, the same as ours, goes on from its field.
        learned: name of a network that was trained for this benchmark; empty for other rows.
    """

    name: str
    title: str
    module: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    affine: str = ""
    refine: bool = False
    learned: str = ""

    def runner(self, data: str, weights: Path | None = None) -> Callable[[Mapping[Hashable, Any]], dict[Hashable, Any]]:
        """What adds ``pred``, (D, *S), voxels, to a pair that :func:`monai_jsm.registration.preprocessing` made.

        Args:
            data: on which the learned rows were trained.
            weights: of our own row; the released ones if left out.
        """
        if not self.module:
            return Registrar(refine=self.refine, weights=weights, device="cpu").find_field
        register = importlib.import_module(f"monai_jsm.baselines.{self.module}").register
        settings = dict(self.settings) | ({"network": self.learned, "data": data} if self.learned else {})

        def run(pair: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
            dims = pair["fixed_image"].dim() - 1  # an affine of MONAI has four rows in 2D too
            spacing = torch.linalg.vector_norm(pair["fixed_image"].affine[:dims, :dims], dim=0).tolist()
            fixed, moving = (pair[f"{side}_image"].as_tensor().float()[None] for side in ("fixed", "moving"))
            found = {**pair, "pred": register(fixed, moving, spacing, **settings)[0]}
            return RefineFieldd()(found) if self.refine else found

        return run

    def fingerprint(self, data: str, weights: Path | None = None) -> str:
        """Of all that decides this row's field but the pair: settings, weights, source."""
        package = Path(__file__).parents[1]
        ours = not self.module or self.learned or self.refine
        sources = [f"{name}.py" for name in _OURS if ours] + ([f"baselines/{self.module}.py"] if self.module else [])
        used = trained_weights(self.learned, data) if self.learned else None if self.module else weights
        if not self.module and used is None:
            used = released_weights(2)
        told = [self.module, dict(self.settings), self.refine, self.learned, data if self.learned else ""]
        hashes = [file_hash(package / name) for name in sources] + ([file_hash(used)] if used else [])
        return hashlib.sha256(json.dumps([told, hashes]).encode()).hexdigest()[:16]


def _with_refinement(method: Method) -> list[Method]:
    refined = Method(
        f"{method.name}-io",
        f"{method.title} + our refinement",
        method.module,
        method.settings,
        "",
        True,
        method.learned,
    )
    return [method, refined]


def _learned(name: str, title: str, refined: bool = True) -> list[Method]:
    method = Method(name, title, "learned", learned=name.replace("-", "_"))
    return _with_refinement(method) if refined else [method]


_ROWS = [
    Method("identity", "No registration", "identity", affine="none"),
    Method("affine", "Affine pre-alignment alone", "identity", affine="auto"),
    Method("jsm-mi", "JSM-MI-style, affine (re-implementation)", "jsm_mi"),
    Method("syn-cc", "SyN (CC, 100x70x50x20)", "syn"),
    Method("syn-default", "SyN (ANTsPy default: MI, 40x20x0)", "syn", PACKAGE_DEFAULT),
    Method("demons", "Diffeomorphic Demons", "demons"),
    Method("elastix", "elastix B-spline", "elastix"),
    Method("dramms", "DRAMMS-style (re-implementation)", "dramms"),
    Method("js-askr", "JS-ASKR-style (re-implementation)", "js_askr"),
    *_learned("dirnet", "DIRNet (re-implementation)", refined=False),
    *_learned("voxelmorph-mse", "VoxelMorph, MSE"),
    *_learned("voxelmorph-ncc", "VoxelMorph, NCC"),
    *_learned("published", "Published global-to-local network", refined=False),
    *_learned("ours-plain", "Ours without saliency"),
    *_learned("ours-saliency", "Ours, saliency as input"),
    *_learned("ours-trust", "Ours, trust in the loss"),
    *_learned("ours-both", "Ours, saliency as input and trust in the loss"),
    Method("ours-untrained", "Ours, refinement alone (no network)", "identity", refine=True),
    Method("ours-network", "Ours, released network alone"),
    Method("ours", "Ours, released (network and refinement)", refine=True),
]
METHODS: dict[str, Method] = {method.name: method for method in _ROWS}

PUBLISHED_METHODS = ("dramms", "syn-cc", "demons", "dirnet", "voxelmorph-mse", "published", "ours")  # of its figure


def choose_methods(names: str) -> list[Method]:
    """The rows that ``all`` or names with commas between them ask for, in the order of the table.

    Raises:
        InputError: for a name that no row has.

    Example:
        >>> [method.name for method in choose_methods("demons,identity")]
        ['identity', 'demons']
    """
    if names == "all":
        return list(METHODS.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in METHODS]
    if unknown or not wanted:
        raise InputError(
            f"--methods {names}: {unknown[0] if unknown else 'nothing'} is no method; choose from "
            f"{', '.join(METHODS)}, or give all."
        )
    return [method for method in METHODS.values() if method.name in wanted]

"""The rows of a benchmark: comparators, ablations and what monai_jsm ships, each as one way from a pair to a field."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
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
_FIELD = ("networks", "losses", "engines", "refinement")  # what makes our own field, and those of rows that import it
_NO_MATTER = (  # neither for a field nor for a measure
    *("handlers", "__main__", "apps/*", "report/*", "benchmark/*", "baselines/*"),
    *("data/phantom", "data/published*", "data/progress", "data/results", "data/dicom_objects"),
)
_LIBRARIES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "antspyx", "itk-elastix")


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

    def fingerprint(self, suite_data: str, spatial_dims: int, weights: Path | None = None) -> str:
        """Of all that decides this row's results but the pair: settings, weights, source of the package, libraries.

        Args:
            suite_data: on which the learned rows were trained.
            spatial_dims: D.
            weights: of our own row; the released ones if left out.
        """
        if self.module:
            used = trained_weights(self.learned, suite_data) if self.learned else None
        else:
            used = weights or released_weights(spatial_dims)
        told = [self.name, self.module, dict(self.settings), self.affine, self.refine, self.learned]
        hashes = [file_hash(path) for path in self._sources()] + ([file_hash(used)] if used else [])
        return hashlib.sha256(json.dumps([told, hashes, _versions()]).encode()).hexdigest()[:16]

    def _sources(self) -> list[Path]:
        """The files of this package that decide the row's results."""
        package = Path(__file__).parents[1]
        own = _baseline_sources(self.module)
        text = "".join(path.read_text(encoding="utf-8") for path in own)
        ours = not self.module or self.refine
        others = [] if ours else [name for name in _FIELD if f"monai_jsm.{name} " not in text]
        if self.learned:
            others = [name for name in others if name == "refinement"]  # losses and engines trained it
        shared = [
            path
            for path in package.rglob("*.py")
            if not any(path.match(f"monai_jsm/{pattern}.py") for pattern in (*_NO_MATTER, *others))
        ]
        return sorted([*shared, package / "benchmark" / "run.py", *own])


def _baseline_sources(module: str) -> set[Path]:
    """The file of a baseline and those of other baselines that it imports."""
    folder = Path(__file__).parents[1] / "baselines"
    found: set[Path] = set()
    left = [folder / f"{module}.py"] if module else []
    while left:
        path = left.pop()
        found.add(path)
        names = re.findall(r"monai_jsm\.baselines\.(\w+)", path.read_text(encoding="utf-8"))
        left += [folder / f"{name}.py" for name in names if folder / f"{name}.py" not in found]
    return found


@cache
def _versions() -> dict[str, str]:
    installed = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


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
    Method("syn-cc", "SyN (CC radius 3, 100x70x50x20)", "syn"),
    Method("syn-cc2", "SyN (CC radius 2, 100x70x50x20)", "syn", {"sampling": 2}),
    Method("syn-default", "SyN (ANTsPy default: MI, 40x20x0)", "syn", PACKAGE_DEFAULT),
    Method("demons", "Diffeomorphic Demons", "demons"),
    Method("elastix", "elastix B-spline", "elastix"),
    Method("dramms", "DRAMMS-style (re-implementation)", "dramms"),
    Method("js-askr", "JS-ASKR-style (re-implementation)", "js_askr"),
    *_learned("dirnet", "DIRNet-style (re-implementation)", refined=False),
    *_learned("voxelmorph-mse", "VoxelMorph, MSE"),
    *_learned("voxelmorph-ncc", "VoxelMorph, NCC"),
    *_learned("published", "Published network (digit layers)", refined=False),
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


def choose_methods(names: str, spatial_dims: int = 2, own_weights: bool = False) -> list[Method]:
    """The rows that ``all`` or names with commas between them ask for, in the order of the table.

    Args:
        names: of rows.
        spatial_dims: D; where no network is released for it, the title of our row says so.
        own_weights: whether our rows take a user's weights in place of the released ones; their titles then say so.

    Raises:
        InputError: for a name that no row has.

    Example:
        >>> [method.name for method in choose_methods("demons,identity")]
        ['identity', 'demons']
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in METHODS and name != "all"]
    if unknown or not wanted:
        raise InputError(
            f"--methods {names}: {unknown[0] if unknown else 'nothing'} is no method; choose from "
            f"{', '.join(METHODS)}, or give all."
        )
    rows = [method for method in METHODS.values() if method.name in wanted or "all" in wanted]
    if own_weights:
        return [row if row.module else replace(row, title=row.title.replace("released", "given")) for row in rows]
    if released_weights(spatial_dims) is None:
        title = "Ours (refinement alone, as no network is released)"
        rows = [replace(row, title=title) if row.name == REFERENCE else row for row in rows]
    return rows

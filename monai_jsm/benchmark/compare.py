"""A benchmark from the names of its suites and methods to tables and plots."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import monai_jsm
from monai_jsm.benchmark.methods import METHODS, PUBLISHED_METHODS, REFERENCE, choose_methods
from monai_jsm.benchmark.plots import published_figure, write_plots
from monai_jsm.benchmark.run import run_suite
from monai_jsm.benchmark.suites import SUITES, Suite, suite_folder
from monai_jsm.benchmark.tables import Head, write_tables
from monai_jsm.data import DATALIST_NAME, datalist_spatial_dims
from monai_jsm.data.errors import InputError

__all__ = ["describe", "named_suites", "own_suite", "run_benchmark"]

logger = logging.getLogger(__name__)

PUBLISHED = "published"  # ten cases of digits and ten of cine MR with known motion
_PUBLISHED_SUITES = ("digits", "known-field")
_PUBLISHED_CASES = 10
_PREALIGNMENT = {"none": "none: the images overlap as they are", "auto": "affine, found by monai_jsm"}


def describe() -> str:
    """Names and titles of all suites and methods, a line each."""
    lines = ["suites:", *(f"  {suite.name:18}{suite.title}" for suite in SUITES.values())]
    lines += [f"  {PUBLISHED:18}ten cases each of {' and '.join(_PUBLISHED_SUITES)}, as in the published figure"]
    lines += ["", "methods:", *(f"  {method.name:18}{method.title}" for method in METHODS.values())]
    return "\n".join(lines)


def named_suites(names: str) -> list[Suite]:
    """The suites of a command line: names with commas between them, ``2d``, ``3d``, or ``published``.

    Raises:
        InputError: for a name that no suite has.

    Example:
        >>> [suite.name for suite in named_suites("phantom,cine")]
        ['phantom', 'cine']
    """
    if names == PUBLISHED:
        return [SUITES[name] for name in _PUBLISHED_SUITES]
    if names in ("2d", "3d"):
        return [suite for suite in SUITES.values() if f"{suite.spatial_dims}d" == names]
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in SUITES]
    if unknown:
        raise InputError(
            f"--suite {unknown[0]}: is no suite; choose from {', '.join(SUITES)}, or give 2d, 3d, published or speed."
        )
    return [SUITES[name] for name in dict.fromkeys(wanted)]


def own_suite(folder: Path, affine: str) -> Suite:
    """The suite of a folder with a ``datalist.json``.

    Args:
        folder: of the datalist.
        affine: pre-alignment of all rows, ``auto`` or ``none``.

    Raises:
        InputError: if there is no datalist that can be used.
    """
    return Suite(
        name=folder.resolve().name,
        title=f"{folder.resolve().name} (own data)",
        spatial_dims=datalist_spatial_dims(folder),
        unit="mm",
        affine=affine,
        split="What the datalist says; nobody but its author knows what the released weights have seen of it.",
        weights="cine",
        needs=(),
        prepare=_there_already,
    )


def _there_already(data: Path, folder: Path) -> None:
    raise InputError(f"{folder}: has no {DATALIST_NAME}; give a folder that has one.")


def run_benchmark(
    suites: Sequence[Suite],
    methods: str,
    output: Path,
    *,
    data: Path | None = None,
    dataset_dir: Path | None = None,
    section: str = "testing",
    limit: int | None = None,
    published: bool = False,
    jobs: int = 1,
    weights: Path | None = None,
    allow_outside: bool = False,
) -> str:
    """Run suites and write their tables and plots; what is done already is taken up.

    Args:
        suites: one writes into ``output``, several into a folder each in it.
        methods: names with commas between them, or ``all``.
        output: folder, made if need be.
        data: folder of the published data sets that suites are made of.
        dataset_dir: folder of the datalist of the one suite, where it is the user's own.
        section: of the datalists.
        limit: only the first so many cases of each suite.
        published: only cases with landmarks, ten a suite, and the published figure of them.
        jobs: processes at once.
        weights: of our own rows; the released ones if left out.
        allow_outside: whether a user's datalist may name files outside of its folder.

    Returns:
        The tables in Markdown.

    Raises:
        InputError: if data or names cannot be used.
    """
    rows = choose_methods(methods or (",".join(PUBLISHED_METHODS) if published else "all"))
    if output.is_file():
        raise InputError(f"{output}: is a file; give a folder for the results.")
    texts, found = [], {}
    for suite in suites:
        folder = output / suite.name if len(suites) > 1 else output
        source = dataset_dir or suite_folder(suite, data, output / "data")
        results = run_suite(
            suite,
            rows,
            source,
            folder,
            section=section,
            limit=_PUBLISHED_CASES if published else limit,
            with_landmarks=published,
            jobs=jobs,
            weights=weights,
            allow_outside=allow_outside,
        )
        named = [(method.name, method.title) for method in rows]
        texts.append(write_tables(folder, results, named, _head(suite, section, jobs), REFERENCE))
        write_plots(folder, results, named, suite.unit)
        found[suite.title] = results
        for failed in sorted({result.method for result in results if result.failure}):
            logger.warning("%s: %s could not run on every case; the table says why.", suite.name, failed)
    if published:
        published_figure(output / "published.png", found, [(method.name, method.title) for method in rows])
    return "\n".join(texts)


def _head(suite: Suite, section: str, jobs: int) -> Head:
    return Head(
        suite=suite.title,
        split=suite.split if section == "testing" else f"The section {section}, on which methods are tuned.",
        unit=suite.unit,
        prealignment=_PREALIGNMENT[suite.affine],
        command=shlex.join(["monai-jsm", *sys.argv[1:]]),
        version=monai_jsm.__version__,
        commit=_commit(),
        threads=torch.get_num_threads() if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs),
        jobs=jobs,
    )


def _commit() -> str:
    """Of the source, where it is a clone; with a plus sign where it was changed since."""
    command = ["git", "-C", str(Path(__file__).parents[2]), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

"""A benchmark from the names of its suites and methods to tables and plots."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_jsm.benchmark.methods import METHODS, PUBLISHED_METHODS, REFERENCE, choose_methods
from monai_jsm.benchmark.plots import published_figure, write_plots
from monai_jsm.benchmark.results import whole_file
from monai_jsm.benchmark.run import run_suite
from monai_jsm.benchmark.suites import SUITES, Suite, suite_folder
from monai_jsm.benchmark.tables import Head, write_tables
from monai_jsm.data import DATALIST_NAME, datalist_spatial_dims, load_cases, load_datalist
from monai_jsm.data.errors import InputError
from monai_jsm.networks import GlobalToLocalNet, load_weights, released_weights

__all__ = ["describe", "named_suites", "own_suite", "run_benchmark"]

logger = logging.getLogger(__name__)

PUBLISHED = "published"  # ten cases of digits and ten of cine MR with known motion
_PUBLISHED_SUITES = ("digits", "known-field")
_PUBLISHED_CASES = 10
_PREALIGNMENT = {
    "none": "none, as the images overlap; the affine row alone has one",
    "auto": "affine, found by monai_jsm, the same for all rows but that without registration",
}
_TRAINED_ON = {"cine": "cine MR of other people", "digits": "other digits of MNIST"}
_MARK = "suite.json"  # what a folder of results is of


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
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in SUITES]
    if unknown or not wanted:
        raise InputError(
            f"--suite {names}: {unknown[0] if unknown else 'nothing'} is no suite to give here; choose from "
            f"{', '.join(SUITES)}, or give 2d, 3d, published or speed alone."
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
        split="a section of the user's datalist; what a network saw of it in training, only the user knows",
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
    command: str = "",
) -> str:
    """Run suites and write their tables and plots; results that are there already are taken up.

    Args:
        suites: one writes into ``output``, several into a folder each in it.
        methods: names with commas between them, or ``all``; empty takes all, or those of the published figure.
        output: folder, made if need be. Tables and plots are of the methods asked for.
        data: folder of the published data sets that suites are made of.
        dataset_dir: folder of the datalist of the one suite, where it is the user's own.
        section: of the datalists.
        limit: only the first so many cases of each suite.
        published: only cases with landmarks, at most ten a suite, and the published figure of them.
        jobs: processes at once.
        weights: of our own rows; the released ones if left out.
        allow_outside: whether a user's datalist may name files outside of its folder.
        command: that the tables tell.

    Returns:
        The tables in Markdown.

    Raises:
        InputError: if data, names or folders cannot be used, or no method gave a single result.
    """
    names = methods or (",".join(PUBLISHED_METHODS) if published else "all")
    choose_methods(names)
    if weights:
        for dims in {suite.spatial_dims for suite in suites}:
            load_weights(GlobalToLocalNet(dims), weights)
    folders = {suite.name: output / suite.name if len(suites) > 1 else output for suite in suites}
    if len(suites) > 1 and (output / _MARK).exists():
        raise InputError(f"{output}: holds the results of one suite; give another folder for several.")
    sources = {}
    marks = {suite.name: _mark(folders[suite.name], suite, dataset_dir, section) for suite in suites}
    for suite in suites:
        sources[suite.name] = dataset_dir or suite_folder(suite, data, output / "data")
        if dataset_dir:  # the files of a suite are ours
            load_cases(dataset_dir, section, suite.spatial_dims, allow_outside)
    for suite in suites:  # all that can be refused has been refused, and nothing of ours left behind
        _claim(folders[suite.name], marks[suite.name])
    commit, texts, found = _commit(), [], {}
    for suite in suites:
        rows = choose_methods(names, suite.spatial_dims, weights is not None)
        folder, source = folders[suite.name], sources[suite.name]
        results = run_suite(
            suite,
            rows,
            source,
            folder,
            section=section,
            limit=min(limit or _PUBLISHED_CASES, _PUBLISHED_CASES) if published else limit,
            with_landmarks=published,
            jobs=jobs,
            weights=weights,
            allow_outside=allow_outside,
            commit=commit,
        )
        named = [(method.name, method.title) for method in rows]
        head = Head(
            suite=suite.title,
            split=suite.split if section == "testing" or dataset_dir else f"the section {section}, for tuning",
            unit=suite.unit,
            prealignment=_PREALIGNMENT[suite.affine],
            training=_training(suite),
            cases_in_split=_count(load_datalist(source, section, allow_outside), published),
            command=command,
        )
        texts.append(write_tables(folder, results, named, head, REFERENCE))
        write_plots(folder, results, named, suite.unit)
        found[suite.title] = results
        for failed in sorted({result.method for result in results if result.failure}):
            logger.warning("%s: %s could not run on every case; the table says why.", suite.name, failed)
    if published:
        published_figure(output / "published.png", found, named)
    elif len(suites) > 1:
        (output / "published.png").unlink(missing_ok=True)
    if all(result.failure for results in found.values() for result in results):
        raise InputError(f"{output}: no method gave a result; {next(iter(found.values()))[0].failure}")
    return "\n".join(texts)


def _mark(folder: Path, suite: Suite, dataset_dir: Path | None, section: str) -> dict[str, str]:
    """What a folder of results is of; refuses one that holds anything else."""
    mark = {"suite": suite.name, "section": section, "affine": suite.affine}
    mark |= {"datalist": str(dataset_dir.resolve())} if dataset_dir else {}
    path = folder / _MARK
    try:
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        others = folder.is_dir() and any(entry.name != "data" for entry in folder.iterdir())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"its {_MARK} is damaged"
        raise InputError(f"{folder}: cannot be used ({reason}); give another folder.") from error
    if held is None and others:
        raise InputError(f"{folder}: holds other files, which would be written over; give a new folder.")
    if held is not None and held != mark:
        raise InputError(f"{folder}: holds the results of other pairs; give another folder.")
    return mark


def _claim(folder: Path, mark: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / _MARK) as building:
            building.write_text(json.dumps(mark), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}); give another folder.") from error


def _count(cases: Sequence[Mapping[str, str]], with_landmarks: bool) -> int:
    return sum("fixed_landmarks" in case or not with_landmarks for case in cases)


def _training(suite: Suite) -> str:
    """On what the networks among the rows were trained."""
    released = "the released network on cine MR" if released_weights(suite.spatial_dims) else "no network is released"
    if not suite.weights:
        return f"{released} for so many axes, and no other is trained"
    return f"learned rows on {_TRAINED_ON[suite.weights]}; {released}"


def _commit() -> str:
    """Of the source, where it is a clone; with a plus sign where it was changed since."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True) if (root / ".git").exists() else None
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip() if done else ""

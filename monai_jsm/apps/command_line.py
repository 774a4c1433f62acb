"""The program ``monai-jsm``: parse, call the library, print where the results lie.

Exit status: 0 done; 2 the input or the command is unusable, said in one sentence on standard error; 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import monai_jsm
from monai_jsm.data.errors import InputError

__all__ = ["main"]

# What the commands need is imported when they run: torch and MONAI take seconds, --help should not.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; those of the process if left out.

    Returns:
        The exit status. A command that cannot be parsed ends the program with status 2, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        arguments.run(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="monai-jsm",
        description="Register medical images that do not fully correspond.",
        epilog=f"example:\n  {_REGISTER_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {monai_jsm.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_register(commands)
    _add_transform(commands)
    _add_evaluate(commands)
    _add_prepare(commands)

    _add_benchmark(commands)

    report = _add_command(
        commands,
        "report",
        "(re)build report.html of a finished registration or evaluation, and print its measures",
        "monai-jsm report result",
        _report,
    )
    report.add_argument("folder", type=Path, metavar="DIR", help="folder of the results")
    return parser


_REGISTER_EXAMPLE = "monai-jsm register --fixed before.nii.gz --moving after.nii.gz --output result"
_FORMATS = ("mha", "nrrd", "h5", "fsl", "learn2reg", "dicom")
_SPACES = ("lps", "ras", "voxel0", "voxel1")
_IMAGE_KINDS = "NIfTI, MHA, NRRD, PNG, JPEG, TIFF, DICOM (a folder of slices, or a file)"


def _add_register(commands: argparse._SubParsersAction) -> None:
    register = _add_command(
        commands, "register", "bring the moving image onto the fixed one, which stays", _REGISTER_EXAMPLE, _register
    )
    register.add_argument("--fixed", metavar="IMAGE", help=f"image that stays: {_IMAGE_KINDS}")
    register.add_argument("--moving", metavar="IMAGE", help="image that is brought onto it")
    register.add_argument(
        "--pairs",
        type=Path,
        metavar="TABLE.csv",
        help="many pairs instead of one: columns id,fixed,moving and, as they are needed, fixed_label, moving_label, "
        "fixed_mask, moving_mask, fixed_landmarks, moving_landmarks, landmark_space, fixed_series, moving_series; "
        "paths relative to the table; pairs that are done already are skipped",
    )
    register.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make (of pairs: DIR/ID)")
    _add_pair_options(register)
    for side in ("fixed", "moving"):
        register.add_argument(f"--{side}-mask", metavar="IMAGE", help=f"where to look in the {side} image")
    register.add_argument(
        "--affine", choices=["auto", "none"], default="auto", help="affine pre-alignment, or trust in the headers"
    )
    register.add_argument("--no-refine", action="store_true", help="the network alone, without instance optimisation")
    register.add_argument("--weights", type=Path, metavar="FILE", help="of a training; by default the released ones")
    register.add_argument("--device", metavar="DEVICE", help="cpu or cuda; by default cuda where it is")
    register.add_argument("--seed", type=_count, default=0, metavar="N", help="of the affine pre-alignment (default 0)")
    register.add_argument(
        "--formats",
        nargs="+",
        choices=_FORMATS,
        default=[],
        metavar="FORMAT",
        help=f"write the field in further formats: {', '.join(_FORMATS)}",
    )
    register.add_argument(
        "--dicom-out", action="store_true", help="also write the warped image as a DICOM series (two DICOM series)"
    )


def _add_transform(commands: argparse._SubParsersAction) -> None:
    transform = _add_command(
        commands,
        "transform",
        "apply a saved field: an image or label goes from moving to fixed, landmarks go from fixed to moving",
        "monai-jsm transform --field result/field.nii.gz --image after.nii.gz --reference before.nii.gz "
        "--output warped.nii.gz",
        _transform,
    )
    _add_field_option(transform)
    what = transform.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", metavar="IMAGE", help="image to resample, linearly")
    what.add_argument("--label", metavar="IMAGE", help="label to resample, one-hot and linearly")
    what.add_argument("--landmarks", metavar="FILE", help="landmarks to carry")
    transform.add_argument(
        "--reference", metavar="IMAGE", help="image whose grid the output has; of landmarks: that they are carried to"
    )
    transform.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    transform.add_argument(
        "--inverse", action="store_true", help="the other way: images from fixed to moving, landmarks to fixed"
    )
    transform.add_argument("--source", metavar="IMAGE", help="image that landmarks in voxels lie on")
    _add_space_option(transform)
    transform.add_argument("--series", default="", metavar="UID", help="DICOM series, where the folder holds several")
    transform.add_argument("--reference-series", default="", metavar="UID", help="the same of the reference")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = _add_command(
        commands,
        "evaluate",
        "measure a saved field, whoever wrote it: TRE, Dice, HD95, Jacobian, inverse consistency",
        "monai-jsm evaluate --field result/field.nii.gz --fixed before.nii.gz --moving after.nii.gz",
        _evaluate,
    )
    _add_field_option(evaluate)
    evaluate.add_argument(
        "--inverse-field",
        action="append",
        default=[],
        metavar="FILE",
        help="from moving to fixed, for inverse consistency; by default the inverse is computed",
    )
    evaluate.add_argument("--fixed", required=True, metavar="IMAGE", help=f"fixed image: {_IMAGE_KINDS}")
    evaluate.add_argument("--moving", required=True, metavar="IMAGE", help="moving image")
    _add_pair_options(evaluate)
    evaluate.add_argument("--output", type=Path, metavar="DIR", help="folder for metrics.json and landmarks.csv")


def _add_field_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--field",
        action="append",
        required=True,
        metavar="FILE",
        help="ITK displacement field (.nii.gz, .mha, .nrrd), ITK or ANTs transform (.h5, .tfm, .mat, .txt) or DICOM "
        "registration object (.dcm); several are passed from first to last, as in ANTs",
    )


def _add_pair_options(parser: argparse.ArgumentParser) -> None:
    for side in ("fixed", "moving"):
        parser.add_argument(f"--{side}-landmarks", metavar="FILE", help=f"landmarks of the {side} image")
    _add_space_option(parser)
    for side in ("fixed", "moving"):
        parser.add_argument(f"--{side}-label", metavar="IMAGE", help=f"segmentation of the {side} image")
    parser.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="UID",
        help="DICOM series to read where a folder holds several; twice where both do, that of fixed first",
    )


def _add_space_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--landmark-space",
        choices=_SPACES,
        default="",
        help="frame of landmark files that do not say it: mm in LPS or RAS axes, or voxels whose first is 0 or 1",
    )


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser(
        "prepare",
        help="turn a data set as its authors publish it into a folder with a datalist.json",
        description="Turn a data set as its authors publish it into a folder with a datalist.json.",
        epilog="example:\n  monai-jsm prepare mnist downloads/mnist data/mnist --training 500",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data_sets = prepare.add_subparsers(metavar="DATA_SET", required=True)
    parsers = {name: _add_data_set(data_sets, name, purpose) for name, purpose in _DATA_SETS.items()}
    for section, pairs in (("training", 2000), ("validation", 100), ("testing", 200)):
        parsers["mnist"].add_argument(
            f"--{section}", type=_count, default=pairs, metavar="N", help=f"{section} pairs (default {pairs})"
        )
    parsers["mnist"].add_argument(
        "--seed", type=_count, default=0, metavar="N", help="of the draw of pairs (default 0)"
    )
    parsers["bratsreg"].add_argument(
        "--modality", choices=["t1", "t1ce", "t2", "flair"], default="t1ce", help="images to pair (default t1ce)"
    )


_DATA_SETS = {
    "sunnybrook": "cardiac cine MR, end-diastole to end-systole, 2D",
    "acdc": "ACDC cardiac cine MR, end-diastole to end-systole, 2D",
    "lvquan": "LVQuan cardiac cine MR in .mat files, end-diastole to end-systole, 2D",
    "mnist": "pairs of handwritten digits of one class, 2D",
    "known-field": "cine MR slices deformed by a known field, 2D",
    "learn2reg": "a task of Learn2Reg, 3D",
    "bratsreg": "BraTS-Reg brain tumours, before and after the operation, 3D",
    "dirlab": "DIR-Lab 4D CT of the lung with 300 landmarks, 3D",
    "birl": "BIRL and ANHIR histology with landmarks, 2D",
}


def _add_data_set(data_sets: argparse._SubParsersAction, name: str, purpose: str) -> argparse.ArgumentParser:
    example = f"monai-jsm prepare {name} downloads/{name} data/{name}"
    parser = _add_command(data_sets, name, purpose, example, _prepare)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the data set as published")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make; must not exist")
    parser.set_defaults(data_set=name)
    return parser


def _add_benchmark(commands: argparse._SubParsersAction) -> None:
    benchmark = _add_command(
        commands,
        "benchmark",
        "measure us and the methods that others use on the same pairs",
        "monai-jsm benchmark --suite phantom --methods identity,demons,ours --output runs/benchmark",
        _benchmark,
    )
    benchmark.add_argument(
        "--suite",
        metavar="S",
        help="names with commas between them (see --list); 2d or 3d for all of these; published for the ten and ten "
        "cases of the published figure; or speed, the time of our pieces against their budgets",
    )
    benchmark.add_argument("--dataset-dir", type=Path, metavar="DIR", help="instead: a folder with a datalist.json")
    benchmark.add_argument(
        "--methods", metavar="A,B", help="rows, with commas between them, or all (default; see --list)"
    )
    benchmark.add_argument("--list", action="store_true", help="print the names of suites and methods, and end")
    benchmark.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of tables and plots; what is done already in it is kept"
    )
    benchmark.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("MONAI_JSM_DATA"),
        metavar="DIR",
        help="published data sets that suites are made of (default: the environment's MONAI_JSM_DATA)",
    )
    benchmark.add_argument(
        "--section", choices=["testing", "validation"], default="testing", help="of the datalist (default testing)"
    )
    benchmark.add_argument("--cases", type=_positive, metavar="N", help="only the first N cases of each suite")
    benchmark.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes at once (default 1)")
    benchmark.add_argument(
        "--affine", choices=["auto", "none"], help="pre-alignment of all rows on a --dataset-dir (default auto)"
    )
    benchmark.add_argument("--weights", type=Path, metavar="FILE", help="of our own rows; by default the released ones")
    benchmark.add_argument(
        "--allow-outside", action="store_true", help="a datalist may name files outside of its folder"
    )


def _add_command(
    commands: argparse._SubParsersAction,
    name: str,
    purpose: str,
    example: str,
    run: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    description = f"{purpose[:1].upper()}{purpose[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example stays one line, to be pasted
    )
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    number = _count(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number


def _register(arguments: argparse.Namespace) -> None:
    from monai_jsm.data import load_pairs
    from monai_jsm.registration import Registrar, check_output, register_pairs
    from monai_jsm.report import measures_table

    _check_device(arguments.device)
    if arguments.weights and not arguments.weights.is_file():
        raise InputError(f"{arguments.weights}: there is no such file; give the model.pt that a training wrote.")
    registrar = Registrar(
        arguments.affine, not arguments.no_refine, arguments.weights, arguments.device, arguments.seed
    )
    if arguments.pairs:
        single = ("fixed", "moving", *_PAIR_OPTIONS, "fixed_mask", "moving_mask", "landmark_space", "series")
        given = [name for name in single if getattr(arguments, name)]
        if given:
            raise InputError(f"--{given[0].replace('_', '-')}: is for one pair; put it into the table of --pairs.")
        cases = load_pairs(arguments.pairs)
        failed = register_pairs(cases, arguments.output, registrar, arguments.formats, arguments.dicom_out)
        print(arguments.output / "pairs.csv")
        if failed:
            lines = [f"{name}: {fault}" for name, fault in failed.items()]
            head = f"{len(failed)} of {len(cases)} pairs failed; mend them and run again, the others are done:"
            raise InputError("\n".join([head, *lines]))
        return
    if not (arguments.fixed and arguments.moving):
        raise InputError("monai-jsm register: needs two images; give --fixed and --moving, or --pairs.")
    case = _case(arguments)
    check_output(arguments.output, case, arguments.formats, arguments.dicom_out)
    registrar(case).save(arguments.output, arguments.formats, arguments.dicom_out)
    print(measures_table(arguments.output))
    print(arguments.output / "report.html")


def _check_device(name: str | None) -> None:
    import torch

    try:
        if torch.empty(0, device=name).device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("no device to compute on")
    except (RuntimeError, AssertionError) as error:  # unknown, not there, or torch was built without it
        raise InputError(
            f"--device {name}: is no device of this machine; give cpu or cuda, or leave it out."
        ) from error


_PAIR_OPTIONS = ("fixed_landmarks", "moving_landmarks", "fixed_label", "moving_label")


def _case(arguments: argparse.Namespace) -> dict[str, str]:
    """What the command line says of one pair, as a case of a datalist."""
    paths = {"fixed_image": arguments.fixed, "moving_image": arguments.moving}
    paths |= {key: getattr(arguments, key, None) for key in (*_PAIR_OPTIONS, "fixed_mask", "moving_mask")}
    case = {"id": "pair", "landmark_space": arguments.landmark_space}
    case |= {key: os.path.abspath(path) for key, path in paths.items() if path}
    return case | _chosen_series(arguments)


def _chosen_series(arguments: argparse.Namespace) -> dict[str, str]:
    """The series of each side: of those given, the one that its folder holds; of one folder, the first is fixed's."""
    from monai_jsm.data.dicom import series_uids

    chosen, left, there = {}, list(arguments.series), []
    for side in ("fixed", "moving"):
        folder = getattr(arguments, side)
        held = series_uids(folder) if left and os.path.isdir(folder) else []
        there += held
        uid = next((uid for uid in left if uid in held), None)
        if uid is not None:
            chosen[f"{side}_series"] = uid
            left.remove(uid)
    if left:
        remedy = f"choose from {', '.join(there)}" if there else "give a folder of DICOM series"
        raise InputError(f"--series {left[0]}: is in neither folder; {remedy}.")
    return chosen


def _transform(arguments: argparse.Namespace) -> None:
    from monai_jsm.registration import apply_transform, carry_landmarks

    if arguments.landmarks:
        carry_landmarks(
            arguments.field,
            arguments.landmarks,
            arguments.output,
            arguments.inverse,
            arguments.landmark_space,
            arguments.source,
            arguments.reference,
        )
    elif not arguments.reference:
        raise InputError("monai-jsm transform: needs the grid to write on; give --reference.")
    else:
        apply_transform(
            arguments.field,
            arguments.image or arguments.label,
            arguments.reference,
            arguments.output,
            label=bool(arguments.label),
            inverse=arguments.inverse,
            series=arguments.series,
            reference_series=arguments.reference_series,
        )
    print(arguments.output)


def _evaluate(arguments: argparse.Namespace) -> None:
    from monai_jsm.data.results import check_folder, file_hash, write_evaluation
    from monai_jsm.metrics import summarise
    from monai_jsm.registration import evaluate_transform
    from monai_jsm.report import record_table

    if arguments.output:
        check_folder(arguments.output)
    record = evaluate_transform(arguments.field, _case(arguments), arguments.inverse_field)
    for warning in record["warnings"]:
        logging.getLogger(__name__).warning(warning)
    if arguments.output:
        given = [*arguments.field, *arguments.inverse_field]
        fields = {"fields": [{"path": os.path.abspath(path), "sha256": file_hash(path)} for path in given]}
        write_evaluation(arguments.output, [record], summarise([record]), fields)
    print(record_table(record))


def _prepare(arguments: argparse.Namespace) -> None:
    from monai_jsm import data

    prepare = getattr(data, f"prepare_{arguments.data_set.replace('-', '_')}")
    options = ("training", "validation", "testing", "seed", "modality")
    prepare(arguments.source, arguments.output, **{k: v for k, v in vars(arguments).items() if k in options})
    print(arguments.output)


def _benchmark(arguments: argparse.Namespace) -> None:
    from monai_jsm.benchmark import describe, named_suites, own_suite, run_benchmark, speed_suite

    if arguments.list:
        print(describe())
        return
    if bool(arguments.suite) == bool(arguments.dataset_dir):
        raise InputError("monai-jsm benchmark: needs data to measure on; give either --suite or --dataset-dir.")
    if arguments.suite == "speed":
        given = [name for name in ("methods", "cases", "affine", "weights") if getattr(arguments, name)]
        if given:
            raise InputError(f"--{given[0]}: has no meaning for the suite speed; leave it out.")
        print(speed_suite(arguments.output))
        return
    if not arguments.output:
        raise InputError("monai-jsm benchmark: needs a folder for the results; give --output.")
    if arguments.affine and arguments.suite:
        raise InputError("--affine: is for --dataset-dir, since a suite states its own pre-alignment; leave it out.")
    if arguments.methods is not None and not arguments.methods.strip():
        raise InputError("--methods: names nothing; give names with commas between them, or all.")
    if arguments.weights and not arguments.weights.is_file():
        raise InputError(f"{arguments.weights}: there is no such file; give the model.pt that a training wrote.")
    if arguments.suite:
        suites = named_suites(arguments.suite)
    else:
        suites = [own_suite(arguments.dataset_dir, arguments.affine or "auto")]
    tables = run_benchmark(
        suites,
        arguments.methods or "",
        arguments.output,
        data=arguments.data,
        dataset_dir=arguments.dataset_dir,
        section=arguments.section,
        limit=arguments.cases,
        published=arguments.suite == "published",
        jobs=arguments.jobs,
        weights=arguments.weights,
        allow_outside=arguments.allow_outside,
        command=shlex.join(["monai-jsm", *sys.argv[1:]]),
    )
    print(tables)


def _report(arguments: argparse.Namespace) -> None:
    from monai_jsm.report import measures_table, write_report

    page = write_report(arguments.folder)
    print(measures_table(arguments.folder))
    print(page)

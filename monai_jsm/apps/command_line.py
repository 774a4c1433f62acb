"""The program ``monai-jsm``: parse, call the library, print where the results lie.

Exit status: 0 done; 2 the input or the command is unusable, said in one sentence on standard error; 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
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
        epilog="example: monai-jsm prepare sunnybrook ~/sunnybrook_cine data/sunnybrook",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {monai_jsm.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_prepare(commands)

    benchmark = _add_command(
        commands,
        "benchmark",
        "time our pieces beside the methods they are measured against",
        "monai-jsm benchmark --suite speed --output runs/speed",
        _benchmark,
    )
    benchmark.add_argument("--suite", choices=["speed"], required=True, help="what to measure")
    benchmark.add_argument("--output", type=Path, metavar="DIR", help="folder to write the table to as well")

    report = _add_command(
        commands,
        "report",
        "(re)build report.html of a finished registration or evaluation, and print its measures",
        "monai-jsm report results/pair_0",
        _report,
    )
    report.add_argument("folder", type=Path, metavar="DIR", help="folder of the results")
    return parser


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser(
        "prepare",
        help="turn a data set as its authors publish it into a folder with a datalist.json",
        description="Turn a data set as its authors publish it into a folder with a datalist.json.",
        epilog="example: monai-jsm prepare mnist ~/mnist data/mnist --training 500",
    )
    data_sets = prepare.add_subparsers(metavar="DATA_SET", required=True)
    _add_data_set(data_sets, "sunnybrook", "cardiac cine MR, end-diastole to end-systole, 2D", _prepare_sunnybrook)
    mnist = _add_data_set(data_sets, "mnist", "pairs of handwritten digits of one class, 2D", _prepare_mnist)
    for section, pairs in (("training", 2000), ("validation", 100), ("testing", 200)):
        mnist.add_argument(
            f"--{section}", type=_count, default=pairs, metavar="N", help=f"{section} pairs (default {pairs})"
        )
    mnist.add_argument("--seed", type=_count, default=0, metavar="N", help="of the draw of pairs (default 0)")
    _add_data_set(data_sets, "known-field", "cine MR slices deformed by a known field, 2D", _prepare_known_field)


def _add_data_set(
    data_sets: argparse._SubParsersAction, name: str, purpose: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser = _add_command(data_sets, name, purpose, f"monai-jsm prepare {name} ~/downloads/{name} data/{name}", run)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the data set as published")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make; must not exist")
    return parser


def _add_command(
    commands: argparse._SubParsersAction,
    name: str,
    purpose: str,
    example: str,
    run: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    description = f"{purpose[:1].upper()}{purpose[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=purpose, description=description, epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number


def _prepare_sunnybrook(arguments: argparse.Namespace) -> None:
    from monai_jsm.data import prepare_sunnybrook

    prepare_sunnybrook(arguments.source, arguments.output)
    print(arguments.output)


def _prepare_mnist(arguments: argparse.Namespace) -> None:
    from monai_jsm.data import prepare_mnist

    counts = {section: getattr(arguments, section) for section in ("training", "validation", "testing")}
    prepare_mnist(arguments.source, arguments.output, **counts, seed=arguments.seed)
    print(arguments.output)


def _prepare_known_field(arguments: argparse.Namespace) -> None:
    from monai_jsm.data import prepare_known_field

    prepare_known_field(arguments.source, arguments.output)
    print(arguments.output)


def _benchmark(arguments: argparse.Namespace) -> None:
    from monai_jsm.benchmark import speed_suite

    print(speed_suite(arguments.output))


def _report(arguments: argparse.Namespace) -> None:
    from monai_jsm.report import measures_table, write_report

    page = write_report(arguments.folder)
    print(measures_table(arguments.folder))
    print(page)

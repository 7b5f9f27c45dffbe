"""The command line: ``python -m minicompress``, or ``minicompress``.

Without a subcommand it trains a small CNN, compresses it by every method, and prints a table and a
paragraph that says what the table shows. This file reads arguments and prints; the experiments
themselves are in `minicompress.experiments`.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryFile
from typing import Any, NoReturn

from minicompress.tables import wrap
from minicompress.datasets import Images, load_digits, load_mnist
from minicompress.errors import CompressionError
from minicompress.experiments.budget import format_search, searched
from minicompress.experiments.certification import format_certificates, run_certification
from minicompress.experiments.comparison import (
    EPOCHS,
    Progress,
    Setup,
    compare,
    retraining_epochs,
    setup,
)
from minicompress.experiments.figures import need_matplotlib
from minicompress.experiments.file_evaluation import evaluate_file, format_evaluation
from minicompress.experiments.page import html_page
from minicompress.experiments.report import gather
from minicompress.experiments.table import format_table, legend, read_table
from minicompress.interchange.c import export_c_file
from minicompress.interchange.onnx_file import save_onnx
from minicompress.storage.container import load
from minicompress.storage.files import write_file

CALIBRATION = 512
"""How many training images set the ranges of activations when C is exported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 with one line on stderr for bad input.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the name of the program; those of the process by default.
    """
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        command = words.pop(0) if words and words[0] in COMMANDS else ""
        arguments = _parser(command).parse_args(words)
        arguments.run(arguments)
        sys.stdout.flush()
    except (CompressionError, MemoryError) as error:
        print(f"minicompress: error: {str(error) or 'not enough memory'}", file=sys.stderr)
        return 2
    except OSError as error:  # from standard output; files have messages of their own
        if not isinstance(error, BrokenPipeError):
            print(f"minicompress: error: {error.strerror or error}", file=sys.stderr)
        # Discard what is still buffered, or Python reports a second error when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except KeyboardInterrupt:
        return 130  # as a shell reports it
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CompressionError(message)  # one line; argparse would print the usage as well


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser of one command. With subparsers, a mistyped option would get a wrong message."""
    about, run, add_options = COMMANDS[command]
    listed = [f"{name:10} {text}" for name, (text, _, _) in COMMANDS.items() if name]
    parser = _Parser(
        prog=f"minicompress {command}".strip(),
        allow_abbrev=False,
        description=about,
        epilog=None if command else "\n".join(["commands, each with its own --help:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add_options(parser)
    return parser


def _image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        choices=("digits", "mnist"),
        default="digits",
        help="the data set (default: digits, which comes with the package)",
    )
    parser.add_argument("--folder", metavar="DIR", help="the folder with MNIST's four files")


def _training_options(parser: argparse.ArgumentParser) -> None:
    defaults = ", ".join(f"{epochs} for {data}" for data, epochs in EPOCHS.items())
    _image_options(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed of every random generator (default: 0)"
    )
    parser.add_argument("--epochs", type=int, help=f"epochs of training (default: {defaults})")


def _loader(arguments: argparse.Namespace) -> Callable[[str], Images]:
    """The function that loads a split of the chosen data set."""
    if (arguments.folder is not None) != (arguments.data == "mnist"):
        raise CompressionError("--data mnist and --folder DIR go together")
    return partial(load_mnist, arguments.folder) if arguments.data == "mnist" else load_digits


def _training(arguments: argparse.Namespace) -> tuple[Setup, dict[str, Any]]:
    """What every experiment takes: the data, and the keywords `seed` and `epochs`."""
    data = setup(arguments.data, _loader(arguments))
    epochs = data.epochs if arguments.epochs is None else arguments.epochs
    return data, {"seed": arguments.seed, "epochs": epochs}


def _compare_options(parser: argparse.ArgumentParser) -> None:
    _training_options(parser)
    parser.add_argument("--wide", action="store_true", help="print all columns of the table")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file")


def _compare(arguments: argparse.Namespace) -> None:
    data, options = _training(arguments)
    if arguments.json is not None:
        _check_output(arguments.json)
    with _progress_line() as progress:
        rows = compare(data, **options, progress=progress)
    reading = read_table(rows, len(data.test[0]))
    if arguments.json is not None:
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        figures = {
            "data": arguments.data,
            **options,
            "images": {split: len(labels) for split, (_, labels) in splits.items()},
            "rows": [row._asdict() for row in rows],
            "reading": reading,
        }
        try:
            text = json.dumps(figures, indent=2, allow_nan=False)
        except ValueError as error:  # JSON has no word for NaN and infinity
            raise CompressionError(f"the figures cannot be written: {error}") from None
        with _writing(arguments.json):
            write_file(arguments.json, f"{text}\n".encode())
    explained = legend(retraining_epochs(options["epochs"]), wide=arguments.wide)
    print("\n\n".join([format_table(rows, wide=arguments.wide), wrap(explained), wrap(reading)]))


def _certify_options(parser: argparse.ArgumentParser) -> None:
    _training_options(parser)
    parser.add_argument(
        "--inputs", type=int, default=100, help="how many test images get a ball (default: 100)"
    )


def _certify(arguments: argparse.Namespace) -> None:
    data, options = _training(arguments)
    with _progress_line() as progress:
        accuracy, rows = run_certification(
            data, **options, inputs=arguments.inputs, progress=progress
        )
    print(format_certificates(accuracy, rows, min(arguments.inputs, len(data.test[0]))))


def _search_options(parser: argparse.ArgumentParser) -> None:
    _training_options(parser)
    parser.add_argument(
        "--max-bytes",
        default="10%",
        help="the largest file: bytes, or a share of the weights as float32 (default: 10%%)",
    )


def _search(arguments: argparse.Namespace) -> None:
    data, options = _training(arguments)
    with _progress_line() as progress:
        found = searched(data, **options, max_bytes=arguments.max_bytes, progress=progress)
    print(format_search(found))


def _report_options(parser: argparse.ArgumentParser) -> None:
    _training_options(parser)
    parser.add_argument("--out", metavar="FILE.html", required=True, help="the page to write")


def _report(arguments: argparse.Namespace) -> None:
    need_matplotlib()  # before all the training
    data, options = _training(arguments)
    _check_output(arguments.out)
    with _progress_line() as progress:
        page = html_page(gather(data, arguments.data, **options, progress=progress))
    with _writing(arguments.out):
        write_file(arguments.out, page.encode())
    print(f"{arguments.out}: {len(page):,} bytes")


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .mcz file")
    _image_options(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    load_split = _loader(arguments)
    print(format_evaluation(evaluate_file(arguments.file, *load_split("test"))))


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .mcz file")
    parser.add_argument("--target", choices=("c", "onnx"), required=True, help="what to write")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--name", default="predict", help="C: name of the function (predict)")
    parser.add_argument("--bits", type=int, default=8, help="C: bits of a weight (default: 8)")
    _image_options(parser)


def _export(arguments: argparse.Namespace) -> None:
    images, _ = _loader(arguments)("train")
    with _writing(arguments.out):
        if arguments.target == "onnx":
            size = save_onnx(load(arguments.file), arguments.out, images.shape[1:])
            print(f"{arguments.out}: {size:,} bytes")
        else:
            made = export_c_file(
                arguments.file,
                images[:CALIBRATION],
                arguments.out,
                name=arguments.name,
                num_bits=arguments.bits,
            )
            print(made)


COMMANDS = {
    "": (
        "Train a small CNN, compress it by every method, and print one table:\n"
        "size, work, accuracy, and how far the weights can be from the original.",
        _compare,
        _compare_options,
    ),
    "certify": (
        "what is proven of original and compressed network, beside what a search finds",
        _certify,
        _certify_options,
    ),
    "search": (
        "find the best plan for a file size: which method for which layer",
        _search,
        _search_options,
    ),
    "report": (
        "write all results as one page with figures (needs matplotlib)",
        _report,
        _report_options,
    ),
    "evaluate": (
        "read a model from its file: how many bytes, how many errors",
        _evaluate,
        _evaluate_options,
    ),
    "export": (
        "write a model as C for a small device (integers only), or as ONNX",
        _export,
        _export_options,
    ),
}


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CompressionError(f"cannot write {name!r}: {error.strerror or error}") from None


def _check_output(name: str) -> None:
    """Fail before the training where a file cannot be written."""
    with _writing(name):
        if os.path.isdir(name or "."):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        TemporaryFile(dir=os.path.dirname(name) or ".").close()


@contextmanager
def _progress_line() -> Iterator[Progress | None]:
    """One line that is written over and over, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return

    def progress(name: str, done: float) -> None:
        sys.stderr.write(f"\r\x1b[K{name}: {done:4.0%}")
        sys.stderr.flush()

    try:
        yield progress
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

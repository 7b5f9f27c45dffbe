"""The command line: ``python -m minicompress``, or ``minicompress``.

Without a subcommand it trains a small CNN, compresses it every way there is, and prints one table
and a paragraph that reads it. Here arguments become values and values become text; what is done
between them stands in `minicompress.pipeline`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from typing import NoReturn, TextIO

from minicompress.analysis.tables import wrap
from minicompress.datasets import Images, load_digits, load_mnist
from minicompress.errors import CompressionError
from minicompress.experiments.budget import format_search, searched
from minicompress.experiments.certification import certify, format_certificates
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
from minicompress.storage.files import replacing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 with one line on stderr for bad input.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the name of the program; those of the process unless given.
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
    except OSError as error:  # of standard output: files have messages of their own
        if not isinstance(error, BrokenPipeError):
            print(f"minicompress: error: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
        return 2
    except KeyboardInterrupt:
        return 130  # as a shell reports it
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The usage that argparse would print first makes two lines and more of one mistake.
        raise CompressionError(message)


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser of one command; subparsers would take what follows a mistyped option for one."""
    about, run, options = COMMANDS[command]
    listed = [f"{name:10} {text}" for name, (text, _, _) in COMMANDS.items() if name]
    parser = _Parser(
        prog=f"minicompress {command}".strip(),
        allow_abbrev=False,
        description=about,
        epilog=None if command else "\n".join(["commands, with options of their own:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    options(parser)
    return parser


def _compare_options(parser: argparse.ArgumentParser) -> None:
    _data_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well, in full")


def _certify_options(parser: argparse.ArgumentParser) -> None:
    _data_options(parser)
    parser.add_argument(
        "--inputs", type=int, default=100, help="test images with a ball each (default: 100)"
    )


def _image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", choices=("digits", "mnist"), default="digits", help="images (default: digits)"
    )
    parser.add_argument("--folder", metavar="DIR", help="where MNIST's four files lie")


def _data_options(parser: argparse.ArgumentParser) -> None:
    defaults = ", ".join(f"{epochs} on {data}" for data, epochs in EPOCHS.items())
    _image_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: 0)")
    parser.add_argument("--epochs", type=int, help=f"of training (default: {defaults})")


def _loading(arguments: argparse.Namespace) -> Callable[[str], Images]:
    """The function that loads a split of the images that were asked for."""
    if (arguments.folder is not None) != (arguments.data == "mnist"):
        raise CompressionError("--data mnist and --folder DIR go together")
    return partial(load_mnist, arguments.folder) if arguments.data == "mnist" else load_digits


def _data(arguments: argparse.Namespace) -> Setup:
    return setup(arguments.data, _loading(arguments))


def _certify(arguments: argparse.Namespace) -> None:
    data = _data(arguments)
    with _progress_line() as progress:
        accuracy, rows = certify(
            data,
            seed=arguments.seed,
            epochs=arguments.epochs,
            inputs=arguments.inputs,
            progress=progress,
        )
    print(format_certificates(accuracy, rows, min(arguments.inputs, len(data.test[0]))))


def _compare(arguments: argparse.Namespace) -> None:
    data = _data(arguments)
    epochs = data.epochs if arguments.epochs is None else arguments.epochs
    with _replacing(arguments.json) as file, _progress_line() as progress:
        rows = compare(data, seed=arguments.seed, epochs=epochs, progress=progress)
        reading = read_table(rows, len(data.test[0]))
        if file is not None:
            figures = {
                "data": arguments.data,
                "seed": arguments.seed,
                "epochs": epochs,
                "images": {
                    "train": len(data.train[0]),
                    "validation": len(data.validation[0]),
                    "test": len(data.test[0]),
                },
                "rows": [row._asdict() for row in rows],
                "reading": reading,
            }
            try:
                text = json.dumps(figures, indent=2, allow_nan=False)
            except ValueError as error:  # JSON has no word for NaN and infinity
                raise CompressionError(f"the figures cannot be written: {error}") from None
            file.write(f"{text}\n")
    explained = legend(retraining_epochs(epochs))
    print("\n\n".join([format_table(rows), wrap(explained), wrap(reading)]))


def _search_options(parser: argparse.ArgumentParser) -> None:
    _data_options(parser)
    parser.add_argument(
        "--max-bytes",
        default="10%",
        help="of the file: bytes, or a share of the weights as float32 (default: 10%%)",
    )


def _search(arguments: argparse.Namespace) -> None:
    data = _data(arguments)
    with _progress_line() as progress:
        found = searched(
            data,
            max_bytes=arguments.max_bytes,
            seed=arguments.seed,
            epochs=arguments.epochs,
            progress=progress,
        )
    print(format_search(found))


def _report_options(parser: argparse.ArgumentParser) -> None:
    _data_options(parser)
    parser.add_argument("--out", metavar="FILE.html", required=True, help="the page to write")


def _report(arguments: argparse.Namespace) -> None:
    need_matplotlib()  # before all the training
    data = _data(arguments)
    with _replacing(arguments.out) as file, _progress_line() as progress:
        found = gather(
            data, arguments.data, seed=arguments.seed, epochs=arguments.epochs, progress=progress
        )
        page = html_page(found)
        assert file is not None  # --out is required
        file.write(page)
    print(f"{arguments.out}: {len(page):,} bytes")


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .mcz file")
    _image_options(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    load_split = _loading(arguments)
    print(format_evaluation(evaluate_file(arguments.file, *load_split("test"))))


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .mcz file")
    parser.add_argument("--target", choices=("c", "onnx"), required=True, help="what to write")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--name", default="predict", help="C: of the network (default: predict)")
    parser.add_argument("--bits", type=int, default=8, help="C: of a weight (default: 8)")
    _image_options(parser)


def _export(arguments: argparse.Namespace) -> None:
    images, _ = _loading(arguments)("train")
    try:
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
    except OSError as error:
        raise CompressionError(
            f"cannot write {arguments.out!r}: {error.strerror or error}"
        ) from None


COMMANDS = {
    "": (
        "Train a small CNN, compress it every way there is, and print one table:\n"
        "sizes, work, accuracy, and how far the weights can be from the original.",
        _compare,
        _compare_options,
    ),
    "certify": (
        "original against compressed: what is proven, beside what a search finds",
        _certify,
        _certify_options,
    ),
    "search": (
        "the best plan for so many bytes: which method for which layer",
        _search,
        _search_options,
    ),
    "report": (
        "all of it as one page to look at, with figures (needs matplotlib)",
        _report,
        _report_options,
    ),
    "evaluate": (
        "a model from its file alone: how many bytes, how many errors",
        _evaluate,
        _evaluate_options,
    ),
    "export": (
        "a model as C for a small device, in integers alone, with its flash and RAM; or as ONNX",
        _export,
        _export_options,
    ),
}

# As many images tell the ranges of the activations.
CALIBRATION = 512


@contextmanager
def _replacing(name: str | None) -> Iterator[TextIO | None]:
    """A file that is written atomically; opened now, so that a bad name fails early."""
    if name is None:
        yield None
        return
    try:
        with replacing(name) as (file,), TextIOWrapper(file, encoding="utf-8") as text:
            yield text
    except OSError as error:
        raise CompressionError(f"cannot write {name!r}: {error.strerror or error}") from None


@contextmanager
def _progress_line() -> Iterator[Progress | None]:
    """One line that is written over and over, for a reader at a terminal only."""
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

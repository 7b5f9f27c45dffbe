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
from inspect import getdoc
from tempfile import TemporaryFile
from typing import Any, NoReturn, TypeAlias

from minicompress.analysis.array_sizes import summary_of_arrays
from minicompress.datasets import Images, load_digits, load_mnist
from minicompress.errors import CompressionError
from minicompress.experiments.budget import format_search, searched
from minicompress.experiments.budgeted_file import searched_methods
from minicompress.experiments.certification import format_certificates, run_certification
from minicompress.experiments.comparison import (
    EPOCHS,
    Progress,
    Setup,
    compare,
    retraining_epochs,
    setup,
)
from minicompress.experiments.compressing import (
    compress_file,
    decompress_file,
    format_compressed,
    read_plan,
)
from minicompress.experiments.figures import need_matplotlib
from minicompress.experiments.file_evaluation import evaluate_file, format_evaluation
from minicompress.experiments.model_files import read_inputs, read_labels, read_weights, suffix_of
from minicompress.experiments.page import html_page
from minicompress.experiments.report import gather
from minicompress.experiments.table import format_table, legend, read_table
from minicompress.interchange.c import export_c_file
from minicompress.interchange.onnx_file import save_onnx
from minicompress.storage.container import load
from minicompress.storage.files import write_file
from minicompress.tables import wrap

# From the arguments and where to tell the progress to what is printed.
Command: TypeAlias = Callable[[argparse.Namespace, Progress | None], str]

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
        run, _ = COMMANDS[command]
        arguments = _parser(command).parse_args(words)
        with _progress_line() as progress:
            text = run(arguments, progress)
        print(text, flush=True)
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
    run, options = COMMANDS[command]
    listed = [f"{name:10} {getdoc(run)}" for name, (run, _) in COMMANDS.items() if name]
    parser = _Parser(
        prog=f"minicompress {command}".strip(),
        allow_abbrev=False,
        description=getdoc(run),
        epilog=None if command else "\n".join(["commands, each with its own --help:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option in options.split():
        parser.add_argument(option, **OPTIONS[option])
    return parser


def _loader(arguments: argparse.Namespace) -> Callable[[str], Images]:
    """The function that loads a split of the chosen data set."""
    if (arguments.folder is not None) != (arguments.data == "mnist"):
        raise CompressionError("--data mnist and --folder DIR go together")
    return partial(load_mnist, arguments.folder) if arguments.data == "mnist" else load_digits


def _setup(arguments: argparse.Namespace, progress: Progress | None) -> Setup:
    """What every experiment takes."""
    return setup(
        arguments.data,
        _loader(arguments),
        seed=arguments.seed,
        epochs=arguments.epochs,
        progress=progress,
    )


def _compare(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """Train a small CNN, compress it by every method, and print one table:
    size, work, accuracy, and how far the weights can be from the original.
    """
    data = _setup(arguments, progress)
    if arguments.json is not None:
        _check_output(arguments.json)
    rows = compare(data)
    reading = read_table(rows, data.images["test"])
    if arguments.json is not None:
        figures = {
            "data": data.name,
            "seed": data.seed,
            "epochs": data.epochs,
            "images": data.images,
            "rows": [row._asdict() for row in rows],
            "reading": reading,
        }
        try:
            text = json.dumps(figures, indent=2, allow_nan=False)
        except ValueError as error:  # JSON has no word for NaN and infinity
            raise CompressionError(f"the figures cannot be written: {error}") from None
        with _writing(arguments.json):
            write_file(arguments.json, f"{text}\n".encode())
    explained = legend(retraining_epochs(data.epochs), wide=arguments.wide)
    return "\n\n".join([format_table(rows, wide=arguments.wide), wrap(explained), wrap(reading)])


def _certify(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """what is proven of original and compressed network, beside what a search finds"""
    data = _setup(arguments, progress)
    found = run_certification(data, inputs=arguments.inputs)
    return format_certificates(*found, min(arguments.inputs, data.images["test"]))


def _search(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """find the best plan for a file size: which method for which layer"""
    return format_search(
        searched(_setup(arguments, progress), max_bytes=arguments.max_bytes or "10%")
    )


def _report(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """write all results as one page with figures (needs matplotlib)"""
    need_matplotlib()  # before all the training
    data = _setup(arguments, progress)
    _check_output(arguments.out)
    page = html_page(gather(data))
    with _writing(arguments.out):
        write_file(arguments.out, page.encode())
    return f"{arguments.out}: {len(page):,} bytes"


def _evaluate(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """read a network from its file: how many bytes, how many errors"""
    if (arguments.calibration is None) != (arguments.labels is None):
        raise CompressionError("--calibration X.npy and --labels Y.npy go together")
    load_split = _loader(arguments)
    if arguments.calibration is None:
        images = load_split("test")
    else:
        images = read_inputs(arguments.calibration), read_labels(arguments.labels)
    return format_evaluation(evaluate_file(arguments.file, *images))


def _compress(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """compress the weights of any model: .onnx, .npz, .safetensors or .mcz"""
    given = (arguments.method, arguments.plan, arguments.max_bytes)
    if sum(option is not None for option in given) != 1:
        raise CompressionError("give one of --method METHOD, --plan PLAN.json and --max-bytes N")
    if arguments.labels is not None and arguments.max_bytes is None:
        raise CompressionError("--labels Y.npy goes with --max-bytes")
    plan = {"*": arguments.method} if arguments.plan is None else read_plan(arguments.plan)
    for file in (arguments.model, arguments.out):
        suffix_of(file)
    _check_output(arguments.out)
    x = None if arguments.calibration is None else read_inputs(arguments.calibration)
    if arguments.max_bytes is not None:
        if x is None:
            raise CompressionError("--max-bytes needs --calibration X.npy")
        y = None if arguments.labels is None else read_labels(arguments.labels)
        plan = searched_methods(
            arguments.model, arguments.out, arguments.max_bytes, x, y, progress=progress
        )
    with _writing(arguments.out):
        found = compress_file(arguments.model, arguments.out, plan, x=x, progress=progress)
    return format_compressed(found)


def _decompress(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """write a compressed file again with plain arrays: the way back"""
    for file in (arguments.model, arguments.out):
        suffix_of(file)
    _check_output(arguments.out)
    with _writing(arguments.out):
        sizes = decompress_file(arguments.model, arguments.out, original=arguments.original)
    return f"{arguments.out}: {sizes[0]:,} bytes, {arguments.model}: {sizes[1]:,}"


def _summary(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """say what the weights of a file take, array by array"""
    return repr(summary_of_arrays(read_weights(arguments.model).arrays))


def _export(arguments: argparse.Namespace, progress: Progress | None) -> str:
    """write a model as C for a small device (integers only), or as ONNX"""
    file, out = arguments.file, arguments.out
    images, _ = _loader(arguments)("train")
    with _writing(out):
        if arguments.target == "onnx":
            return f"{out}: {save_onnx(load(file), out, images.shape[1:]):,} bytes"
        some = images[:CALIBRATION]
        return str(export_c_file(file, some, out, name=arguments.name, num_bits=arguments.bits))


METHOD_HELP = (
    "int8, int4, int4/32 (blocks of 32), prune80, prune80+int8, rank50%%+int8, cluster16, ...: see "
    "minicompress.search.methods"
)
DEFAULT_EPOCHS = ", ".join(f"{epochs} for {data}" for data, epochs in EPOCHS.items())
OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"metavar": "FILE", "help": "a .mcz file (evaluate: or .onnx)"},
    "--data": {
        "choices": ("digits", "mnist"),
        "default": "digits",
        "help": "the data set (default: digits, which comes with the package)",
    },
    "--folder": {"metavar": "DIR", "help": "the folder with MNIST's four files"},
    "--seed": {"type": int, "default": 0, "help": "seed of every random generator (default: 0)"},
    "--epochs": {"type": int, "help": f"epochs of training (default: {DEFAULT_EPOCHS})"},
    "--wide": {"action": "store_true", "help": "print all columns of the table"},
    "--json": {"metavar": "FILE", "help": "also write all figures to this file"},
    "--inputs": {"type": int, "default": 100, "help": "test images that get a ball (default: 100)"},
    "--max-bytes": {
        "help": "the largest file: bytes, or a share; of the weights as float32 (search; default: "
        "10%%), of the file (compress)",
    },
    "model": {"metavar": "FILE", "help": "a .onnx, .npz, .safetensors or .mcz file"},
    "--method": {"help": METHOD_HELP},
    "--plan": {"metavar": "FILE", "help": "JSON: names or patterns of arrays, and their methods"},
    "--calibration": {
        "metavar": "X.npy",
        "help": "inputs of a network, as the .onnx file takes them or channels last: compress "
        "compares the outputs before and after on them",
    },
    "--labels": {"metavar": "Y.npy", "help": "the classes of these inputs"},
    "--original": {"metavar": "FILE", "help": "the .onnx file whose graph the arrays belong to"},
    "--target": {"choices": ("c", "onnx"), "required": True, "help": "what to write"},
    "--out": {"metavar": "FILE", "required": True, "help": "the file to write"},
    "--name": {"default": "predict", "help": "C: name of the function (predict)"},
    "--bits": {"type": int, "default": 8, "help": "C: bits of a weight (default: 8)"},
}
TRAINING = "--data --folder --seed --epochs"
COMMANDS: dict[str, tuple[Command, str]] = {
    "": (_compare, f"{TRAINING} --wide --json"),
    "certify": (_certify, f"{TRAINING} --inputs"),
    "search": (_search, f"{TRAINING} --max-bytes"),
    "report": (_report, f"{TRAINING} --out"),
    "evaluate": (_evaluate, "file --calibration --labels --data --folder"),
    "compress": (_compress, "model --out --method --plan --max-bytes --calibration --labels"),
    "decompress": (_decompress, "model --out --original"),
    "summary": (_summary, "model"),
    "export": (_export, "file --target --out --name --bits --data --folder"),
}
"""The function of each command, whose docstring is its help, and its options."""


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

    show = partial(print, end="", file=sys.stderr, flush=True)
    try:
        yield lambda name, done: show(f"\r\x1b[K{name}: {done:4.0%}")
    finally:
        show("\r\x1b[K")

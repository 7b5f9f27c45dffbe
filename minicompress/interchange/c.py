"""An integer model as C99 that a microcontroller runs: the same codes, bit for bit.

One file and its header: integers only, no heap, nothing but stdint.h. Weights are const arrays, and
all that lies between the layers shares one static array.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from minicompress.analysis.tables import aligned
from minicompress.arrays import Array
from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError
from minicompress.integer.conversion import to_integer
from minicompress.integer.model import IntegerModel
from minicompress.integer.stateless import IntegerFlatten
from minicompress.interchange.c_layers import fits, layer_code
from minicompress.interchange.c_plan import Plan, lead, plan
from minicompress.interchange.c_text import header_text, source_text
from minicompress.nn.network import Sequential
from minicompress.representation import Clustered, Rep, Sparse, decode
from minicompress.rewrite.structure import fold_batch_norm
from minicompress.search.weights import weights, with_weights
from minicompress.storage.container import load


class CLayer(NamedTuple):
    """One layer of the C file.

    Parameters
    ----------
    kind : str
    output_shape : tuple of int
    form : str
        What its weights are stored as.
    flash_bytes : int
        Of its constants.
    """

    kind: str
    output_shape: tuple[int, ...]
    form: str
    flash_bytes: int


class CExport(NamedTuple):
    """What `export_c` wrote.

    Parameters
    ----------
    source, header : Path
    flash_bytes : int
        Of all const arrays; the program's own code comes on top, and is the compiler's.
    ram_bytes : int
        Of all static variables: one array. The stack, a few numbers deep, is the compiler's.
    layers : tuple of CLayer
        Without Flatten, which is nothing in C.
    """

    source: Path
    header: Path
    flash_bytes: int
    ram_bytes: int
    layers: tuple[CLayer, ...]

    def __str__(self) -> str:
        """The layers as a table, then the sums."""
        return (
            f"{_table(self.layers)}\n\n"
            f"{self.flash_bytes:,} bytes of constants in flash, {self.ram_bytes:,} bytes of RAM"
        )


def export_c(
    model: IntegerModel, path: str | os.PathLike[str], *, name: str = "predict"
) -> CExport:
    """Write an integer model as a C99 file and its header.

    Parameters
    ----------
    model : IntegerModel
    path : str or path-like, ending in ".c"
        Of the file; the header lies beside it and ends in ".h". Both are written beside and
        renamed, the header first: what was there before stays until the new files are whole.
    name : str
        First part of all names in C: letters, digits and single underscores between them.
        ``int name_class(const int8_t *input)`` returns the class: the place of the largest code of
        the logits, of equally large ones the first. ``const int8_t *name_logits(const int8_t
        *input)`` returns the codes of the logits, which stay until the next call. The sizes are
        ``name_INPUTS``, ``name_OUTPUTS``, ``name_FLASH_BYTES`` and ``name_RAM_BYTES``.

    Returns
    -------
    CExport

    Raises
    ------
    CompressionError
        A layer has no C form, `name` is not as above, or `path` does not end in ".c".
    OSError
        A file cannot be written. Nothing is left behind.

    Notes
    -----
    The input is codes of int8 in C order, channels last: what `IntegerModel.quantize_input` gives.

    Weights of a layer are stored in the smallest of three forms, and decoded one by one where the
    loops use them, which takes no memory: codes, in as many bits as they need; indices of a
    codebook; and values that are not 0 with the lengths of the runs of zeros between, walked once
    for every pixel of the output. Biases and multipliers are int32, shifts uint8.

    RAM is one array, in which outputs overwrite inputs that are not needed any more: see `plan`.
    No function can be entered twice at a time, therefore.

    The code relies on nothing that C leaves open: no shift of a negative number, no overflow. It is
    C++ too.

    Any two networks with different names fit in one program. All that a file defines is called
    ``name_part``, and no part ends in ``_`` and another part. So ``first_part`` equals
    ``second_part`` only where `first` is `second`. Macros keep the case of the name: ``net`` and
    ``Net`` are two names. No name is a bare one, so ``class`` or ``time`` is as good as any.

    ``name_PLACEMENT`` is a macro in the definition of every constant, ``static const name_PLACEMENT
    int8_t ...``, and empty by default. To place the constants in a section, compile with
    ``-D'name_PLACEMENT=__attribute__((section(".weights")))'``. They are read as plain arrays, and
    no pointer to one is made. So on AVR use ``__flash`` (or ``__memx`` for more than 64 KB), with
    which avr-gcc reads from flash by itself, in C with ``-std=gnu99``. ``PROGMEM`` gives wrong
    results there: it places constants in flash, but without ``pgm_read_byte`` RAM is read.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from minicompress.datasets import load_digits
    >>> from minicompress.nn.architectures import digits_cnn
    >>> network = digits_cnn(np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = export_c(to_integer(network, load_digits("train")[0][:9]), folder + "/net.c")
    >>> made.flash_bytes, made.ram_bytes, 4 * 9930
    (10394, 751, 39720)
    """
    if not isinstance(model, IntegerModel):
        raise CompressionError(
            f"model must be an IntegerModel, as to_integer makes one, not {type(model).__name__}"
        )
    source = _source_path(path)
    _check_name(name)
    fits(math.prod(model.input_shape))
    codes, leads = [], []
    shape = model.input_shape
    for index, layer in enumerate(model.layers):
        if type(layer) is not IntegerFlatten:
            try:
                codes.append(layer_code(layer, shape, index, name))
            except CompressionError as error:
                raise CompressionError(
                    f"layer {index} ({type(layer).__name__}): {error}"
                ) from error
            leads.append(lead(layer, shape))
        shape = layer.output_shape(shape)
    sizes = [math.prod(code.output_shape) for code in codes]
    memory = plan(sizes, leads) if codes else Plan(0, ())
    made = CExport(
        source,
        source.with_suffix(".h"),
        sum(code.nbytes for code in codes),
        memory.size,
        tuple(
            CLayer(c.kind, c.output_shape, "" if c.weights is None else str(c.weights), c.nbytes)
            for c in codes
        ),
    )
    _write(
        (made.header, header_text(model, name, codes, memory.size, _table(made.layers))),
        (made.source, source_text(made.header.name, name, codes, memory, math.prod(shape))),
    )
    return made


def export_c_file(
    file: str | os.PathLike[str],
    calibration: Array,
    path: str | os.PathLike[str],
    *,
    name: str = "predict",
    num_bits: int = 8,
    activation_bits: int = 8,
    method: str = "minmax",
) -> CExport:
    """From a .mcz file to a C file.

    Parameters
    ----------
    file : str or path-like
        A model as `save` wrote it.
    calibration : (N, ...) ndarray
        Inputs such as will come.
    path, name
        As for `export_c`.
    num_bits, activation_bits, method
        As for `to_integer`, which `num_bits` does not matter to where weights are quantized.

    Returns
    -------
    CExport

    Raises
    ------
    FileFormatError
        As `load`.
    CompressionError
        A layer has no integer form, or what `export_c` says.
    OSError
        A file cannot be written.

    Notes
    -----
    Batch normalization is folded into the layer before it. Clustered weights get one scale for the
    whole of them, not one for each output, which would make other codes of the same value: so the
    codebook stays one.
    """
    model = _one_codebook(fold_batch_norm(load(file)), num_bits)
    integer_model = to_integer(
        model, calibration, num_bits=num_bits, activation_bits=activation_bits, method=method
    )
    return export_c(integer_model, path, name=name)


def _one_codebook(model: Sequential, num_bits: int) -> Sequential:
    """The model with its clustered weights quantized, each with a single scale."""
    return with_weights(
        model,
        {
            index: quantize(decode(rep), num_bits=num_bits).rep
            for index, rep in weights(model).items()
            if _is_clustered(rep)
        },
    )


def _is_clustered(rep: Rep) -> bool:
    return isinstance(rep.values if isinstance(rep, Sparse) else rep, Clustered)


def _source_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).endswith(".c"):
        raise CompressionError(f'path must be the name of a file that ends in ".c", not {path!r}')
    source = Path(path)
    # The C file includes the header by its name, in which C allows all but these.
    if re.search(r'["\\\n\r\0]', source.name) or source.name == ".c":
        raise CompressionError(f"path must be a name that #include takes, not {path!r}")
    return source


def _check_name(name: str) -> None:
    # C++ keeps names with two underscores in a row for itself, and `name` is followed by one.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", name):
        raise CompressionError(
            f"name must be a letter, then letters, digits and single underscores between them, "
            f"not {name!r}"
        )


def _table(layers: Sequence[CLayer]) -> str:
    return aligned(
        [
            ("layer", "output", "bytes", "weights"),
            *((c.kind, str(c.output_shape), f"{c.flash_bytes:,}", c.form) for c in layers),
        ]
    )


def _write(*files: tuple[Path, str]) -> None:
    """All files or none: each is whole before the first takes its name."""
    mark = secrets.token_hex(4)
    with ExitStack() as undo:
        parts = []
        for path, _ in files:
            if path.is_dir():  # seen now, not when the other one has been replaced
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for path, text in files:
            part = path.with_name(f"{path.name}.{mark}.part")
            undo.callback(_remove, part)
            with open(part, "x", encoding="utf-8", newline="\n") as file:
                file.write(text)
            parts.append(part)
        for part, (path, _) in zip(parts, files, strict=True):
            os.replace(part, path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()

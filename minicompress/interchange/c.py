"""An integer model as C99 for a microcontroller: the same codes, bit for bit.

One file and its header: integers only, no heap, and stdint.h is the only include. Weights are const
arrays. The values between the layers share one static array.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minicompress.arrays import Array
from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError
from minicompress.integer.conversion import to_integer
from minicompress.integer.model import IntegerModel
from minicompress.integer.stateless import IntegerFlatten
from minicompress.interchange.c_layers import CLayer, fits, layer_code
from minicompress.interchange.c_plan import lead, plan
from minicompress.interchange.c_text import Output, header_text, source_text
from minicompress.nn.network import naming_layer, value_shapes
from minicompress.representation import Clustered, Sparse, decode
from minicompress.rewrite.batch_norm import fold_batch_norm
from minicompress.search.weights import weights, with_weights
from minicompress.storage.container import load
from minicompress.storage.files import replacing
from minicompress.tables import aligned


class CExport(NamedTuple):
    """What `export_c` wrote.

    Parameters
    ----------
    source, header : Path
    flash_bytes : int
        The size of all const arrays, exactly. The machine code comes on top, and depends on the
        compiler.
    ram_bytes : int
        The size of the one static array, exactly. The stack depends on the compiler, and is small.
    layers : tuple of CLayer
        Without Flatten, which takes no code in C.
    """

    source: Path
    header: Path
    flash_bytes: int
    ram_bytes: int
    layers: tuple[CLayer, ...]

    def __str__(self) -> str:
        """The layers as a table, and the sums."""
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
        The C file. The header is written beside it and ends in ".h". Both are written atomically:
        temporary files, then renames, the header first.
    name : str
        The first part of all names in C: letters, digits and single underscores between them.
        ``int name_class(const int8_t *input)`` returns the class: the index of the largest logit,
        the first of equal ones. ``const int8_t *name_logits(const int8_t *input)`` returns the
        codes of the logits, which are valid until the next call. The sizes are ``name_INPUTS``,
        ``name_OUTPUTS``, ``name_FLASH_BYTES`` and ``name_RAM_BYTES``. Both functions speak of the
        first output. If there are several, ``void name_run(const int8_t *input, const int8_t
        **outputs)`` sets ``outputs[k]`` to the ``name_OUTPUTS_k`` codes of output k.

    Returns
    -------
    CExport

    Raises
    ------
    CompressionError
        A layer has no C form, `name` is invalid, or `path` does not end in ".c".
    OSError
        A file cannot be written. Older files stay as they were.

    Notes
    -----
    The input is int8 codes in C order, channels last, as `IntegerModel.quantize_input` gives them.

    The weights of a layer are stored in the smallest of three forms: codes, in as many bits as
    they need; indices into a codebook; or the values that are not 0, with the lengths of the runs
    of zeros between them. The loops decode them one by one, which takes no memory. Biases and
    multipliers are int32, shifts uint8.

    RAM is one array, in which outputs overwrite inputs that are not needed any more. In a chain it
    is as small as its largest layer allows; otherwise values are placed greedily.
    So the functions are not reentrant.

    The code does not depend on anything that the C standard leaves open: it has no shift of a
    negative number and no overflow. It is also valid C++.

    Networks with different names fit in one program. Everything that a file defines is called
    ``name_part``, and no part is ``x_`` followed by another part. So ``first_part`` equals
    ``second_part`` only if `first` equals `second`. Macros keep the case of the name: ``net`` and
    ``Net`` are different names. Since a suffix always follows, even ``class`` is a valid name.

    ``name_PLACEMENT`` is a macro in the definition of every constant, ``static const name_PLACEMENT
    int8_t ...``, and empty by default. To place the constants in a section, compile with
    ``-D'name_PLACEMENT=__attribute__((section(".weights")))'``. The code reads the constants as
    plain arrays, and takes no pointer to them. So on AVR use ``__flash`` (or ``__memx`` for more
    than 64 KB) and ``-std=gnu99``: avr-gcc then reads them from flash. Do not use ``PROGMEM``: it
    places constants in flash, but the code would read RAM at their addresses.

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
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).endswith(".c"):
        raise CompressionError(f'path must be the name of a file that ends in ".c", not {path!r}')
    source = Path(path)
    # The C file includes the header by its name, which must not have these characters.
    if re.search(r'["\\\n\r\0]', source.name) or source.name == ".c":
        raise CompressionError(f"path must be a name that #include takes, not {path!r}")
    # C++ reserves names with two underscores in a row, and an underscore follows `name`.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", name):
        raise CompressionError(
            f"name must be a letter, then letters, digits and single underscores between them, "
            f"not {name!r}"
        )
    network = model.network
    shapes = value_shapes(network, model.input_shape)
    fits(*(math.prod(shapes[value]) for value in (0, *network.outputs)))
    codes, reads, leads = [], [], []
    place = [0]  # of each value: 0 is the caller's input, k + 1 what codes[k] makes
    for index, (layer, inputs) in enumerate(zip(model.layers, network.inputs, strict=True)):
        read = [shapes[value] for value in inputs]
        if type(layer) is IntegerFlatten:
            place.append(place[inputs[0]])
            continue
        with naming_layer(network, index, read):
            codes.append(layer_code(layer, read, index, name))
        reads.append([place[value] for value in inputs])
        leads.append(lead(layer, *read))
        place.append(len(codes))
    layers = tuple(code.layer for code in codes)
    sizes = [math.prod(layer.output_shape) for layer in layers]
    outputs = [place[value] for value in network.outputs]
    memory = plan(sizes, reads, leads, outputs)
    flash = sum(layer.flash_bytes for layer in layers)
    made = CExport(source, source.with_suffix(".h"), flash, memory.size, layers)
    results = [
        Output(memory.steps[k - 1].target if k else None, math.prod(shapes[value]), q)
        for k, value, q in zip(outputs, network.outputs, model.output_qparams, strict=True)
    ]
    texts = (
        header_text(model, name, codes, results, memory.size, _table(made.layers)),
        source_text(made.header.name, name, codes, memory, results),
    )
    with replacing(made.header, made.source) as files:
        for file, text in zip(files, texts):
            file.write(text.encode())
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
    """Convert a .mcz file to a C file.

    Parameters
    ----------
    file : str or path-like
        A model that `save` wrote.
    calibration : (N, ...) ndarray
        Typical inputs.
    path, name
        As for `export_c`.
    num_bits, activation_bits, method
        As for `to_integer`. Weights that are quantized already ignore `num_bits`.

    Returns
    -------
    CExport

    Raises
    ------
    FileFormatError
        As `load`.
    CompressionError
        A layer has no integer form, or as for `export_c`.
    OSError
        A file cannot be written.

    Notes
    -----
    Batch normalization is folded by `fold_batch_norm`. Clustered weights get one scale for all
    outputs. With one scale for each output, equal values would get different codes, and the
    codebook would grow.
    """
    model = fold_batch_norm(load(file))
    one_scale = {
        index: quantize(decode(rep), num_bits=num_bits).rep
        for index, rep in weights(model).items()
        if isinstance(rep.values if isinstance(rep, Sparse) else rep, Clustered)
    }
    integer_model = to_integer(
        with_weights(model, one_scale),
        calibration,
        num_bits=num_bits,
        activation_bits=activation_bits,
        method=method,
    )
    return export_c(integer_model, path, name=name)


def _table(layers: Sequence[CLayer]) -> str:
    rows = [(c.kind, str(c.output_shape), f"{c.flash_bytes:,}", c.form) for c in layers]
    return aligned([("layer", "output", "bytes", "weights"), *rows])

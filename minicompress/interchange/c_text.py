"""The text of the C file and its header, from the text of the layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from minicompress.integer.model import IntegerModel
from minicompress.interchange.c_layers import LayerCode
from minicompress.interchange.c_plan import Plan
from minicompress.interchange.c_weights import reader
from minicompress.qparams import QParams


def header_text(
    model: IntegerModel, name: str, codes: Sequence[LayerCode], ram: int, table: str
) -> str:
    """The header: declarations and sizes, and a comment for people."""
    inputs, shape = math.prod(model.input_shape), model.input_shape
    outputs = math.prod(codes[-1].layer.output_shape) if codes else inputs
    flash = sum(code.layer.flash_bytes for code in codes)
    logits = model.output_qparams
    listed = "\n".join(f" *   {line}".rstrip() for line in table.splitlines())
    return f"""/* {name}: a network of integers, written by minicompress.
 *
 * Input: {inputs} codes of int8, shape {shape} in C order.
 *   code = {_code(model.input_qparams)}
 * Output: {outputs} codes of int8, the logits.
 *   logit = (code - ({logits.zero_point})) * {float(logits.scale)!r}
 *
 * Flash: exactly {flash} bytes of const arrays. The program's code, and a few bytes that align the
 *   arrays, come on top; they depend on the compiler.
 * RAM: exactly {ram} bytes of static variables, one array that all layers share. The stack depends
 *   on the compiler: some dozens of bytes, for there are no arrays on it. No heap.
 * Not reentrant: one call at a time.
 *
{listed}
 */
#ifndef {name}_HEADER
#define {name}_HEADER

#include <stdint.h>

#define {name}_INPUTS {inputs}
#define {name}_OUTPUTS {outputs}
#define {name}_FLASH_BYTES {flash}
#define {name}_RAM_BYTES {ram}

#ifdef __cplusplus
extern "C" {{
#endif

/* The class of an input: the index of the largest logit, of equally large ones the first. */
int {name}_class(const int8_t *input);

/* The {name}_OUTPUTS codes of the logits. They stay until the next call. */
const int8_t *{name}_logits(const int8_t *input);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _code(q: QParams) -> str:
    """The formula that turns a real number into a code, with functions of C's <math.h>."""
    return (
        f"rint(x / {float(q.scale)!r}) + ({q.zero_point}), clamped to [{q.qmin}, {q.qmax}]; "
        f"x in {q.scale.dtype}"
    )


def source_text(
    header: str, name: str, codes: Sequence[LayerCode], memory: Plan, outputs: int
) -> str:
    calls = "\n    ".join(_calls(name, codes, memory))
    parts = [
        f"""/* {name}: see {header}. Written by minicompress.
 *
 * In the loops (y, x) is the pixel of the output and o its channel, (p, q) the place in the window,
 * and c the channel of the input. Every channel of an output has a bias, which its sum starts at,
 * and a multiplier and a shift, which turn the sum into a code.
 */
#include "{header}"

/* Part of the definition of every constant. Compile with -D{name}_PLACEMENT=... to place them: it
 * may be __attribute__((section(".weights"))), or on AVR __flash. */
#ifndef {name}_PLACEMENT
#define {name}_PLACEMENT
#endif""",
        *_helpers(name, codes, memory),
        *(code.text for code in codes),
    ]
    if codes:
        parts.append(f"""/* The outputs of all layers. A layer's output overwrites inputs that no
 * layer reads any more. */
static int8_t {name}_arena[{memory.size}];""")
    parts.append(f"""const int8_t *{name}_logits(const int8_t *input)
{{
    {calls}
}}

int {name}_class(const int8_t *input)
{{
    const int8_t *logits = {name}_logits(input);
    int32_t best = 0;
    for (int32_t i = 1; i < {outputs}; i++) {{
        if (logits[i] > logits[best]) {{
            best = i;
        }}
    }}
    return (int)best;
}}""")
    return "\n\n".join(parts) + "\n"


def _helpers(name: str, codes: Sequence[LayerCode], memory: Plan) -> Iterator[str]:
    """The functions that layers share, if they are called: compilers warn of unused ones."""
    text = "".join(code.text for code in codes)
    if f"{name}_requantize(" in text:
        yield f"""/* A sum as a code: sum * multiplier / 2^shift, halves up, plus zero, clamped. */
static int8_t {name}_requantize(
    int32_t sum, int32_t multiplier, int32_t shift, int32_t zero, int32_t low, int32_t high)
{{
    const int64_t n = (int64_t)sum * multiplier + ((int64_t)1 << (shift - 1));
    /* n >> shift, rounded down. In C a shift of a negative n is up to the compiler; ~n is not
     * negative. */
    const int64_t code = (n < 0 ? ~(~n >> shift) : n >> shift) + zero;
    return (int8_t)(code < low ? low : code > high ? high : code);
}}"""
    for bits in sorted(set(re.findall(rf"\b{name}_read_(\d)\(", text))):
        yield reader(int(bits), name)
    if any(step.moved_from is not None for step in memory.steps):
        yield f"""/* Move codes to a place farther on; the two places may overlap. */
static void {name}_move(const int8_t *from, int8_t *to, int32_t count)
{{
    while (count > 0) {{
        count -= 1;
        to[count] = from[count];
    }}
}}"""


def _calls(name: str, codes: Sequence[LayerCode], memory: Plan) -> Iterator[str]:
    """The calls of all layers in order."""
    arena, source = f"{name}_arena", "input"
    for i, (code, step) in enumerate(zip(codes, memory.steps, strict=True)):
        if i:
            source = f"{arena} + {step.source}"
        if step.moved_from is not None:
            count = math.prod(codes[i - 1].layer.output_shape)
            yield f"{name}_move({arena} + {step.moved_from}, {source}, {count});"
        yield f"{code.name}({source}, {arena} + {step.target});"
        source = f"{arena} + {step.target}"
    yield f"return {source};"

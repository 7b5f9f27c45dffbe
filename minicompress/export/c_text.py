"""The C file and its header as text, from layers that are written already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from minicompress.export.c_layers import LayerCode
from minicompress.export.c_plan import Plan
from minicompress.export.c_weights import reader
from minicompress.nn.integer_model import IntegerModel
from minicompress.qparams import QParams


def header_text(
    model: IntegerModel, name: str, codes: Sequence[LayerCode], ram: int, table: str
) -> str:
    """What a program needs to know, and what a person wants to."""
    upper = name.upper()
    inputs, shape = math.prod(model.input_shape), model.input_shape
    outputs = math.prod(codes[-1].output_shape) if codes else inputs
    flash = sum(code.nbytes for code in codes)
    logits = model.output_qparams
    listed = "\n".join(f" *   {line}".rstrip() for line in table.splitlines())
    return f"""/* {name}: a network of integers, written by minicompress.
 *
 * Input: {inputs} codes of int8, shape {shape} in C order.
 *   code = {_code(model.input_qparams)}
 * Output: {outputs} codes of int8, the logits.
 *   logit = (code - ({logits.zero_point})) * {float(logits.scale)!r}
 *
 * Flash: {flash} bytes of const arrays, exactly. The code comes on top and is the compiler's; so
 *   are the few bytes that align the arrays.
 * RAM: {ram} bytes of static variables, exactly: one array that all layers share. The stack is the
 *   compiler's: some dozens of bytes, for there are no arrays on it. No heap.
 * Not reentrant: one call at a time.
 *
{listed}
 */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#define {upper}_INPUTS {inputs}
#define {upper}_OUTPUTS {outputs}
#define {upper}_FLASH_BYTES {flash}
#define {upper}_RAM_BYTES {ram}

#ifdef __cplusplus
extern "C" {{
#endif

/* The class of an input: the largest of the logits, of equally large ones the first. */
int {name}(const int8_t *input);

/* The codes of the logits, {upper}_OUTPUTS of them; they stay until the next call. */
const int8_t *{name}_logits(const int8_t *input);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _code(q: QParams) -> str:
    """How a real number becomes a code, in words of C's <math.h>."""
    return (
        f"rint(x / {float(q.scale)!r}) + ({q.zero_point}), clamped to [{q.qmin}, {q.qmax}]; "
        f"x in {q.scale.dtype}"
    )


def source_text(
    header: str, name: str, codes: Sequence[LayerCode], memory: Plan, outputs: int
) -> str:
    parts = [
        f'/* {name}: see {header}. Written by minicompress. */\n#include "{header}"',
        *_helpers(name, codes, memory),
    ]
    for code in codes:
        parts += [array.declaration() for array in code.arrays]
        parts.append(code.function)
    if codes:
        parts.append(
            f"/* All that lies between the layers; outputs overwrite inputs that were read for the "
            f"last time. */\nstatic int8_t {name}_arena[{memory.size}];"
        )
    parts.append(
        f"const int8_t *{name}_logits(const int8_t *input)\n{{\n"
        + "".join(f"    {line}\n" for line in _calls(name, codes, memory))
        + "}"
    )
    parts.append(f"""int {name}(const int8_t *input)
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
    """The functions that layers share; no more than are called, for a compiler warns of others."""
    if any(f"{name}_requantize(" in code.function for code in codes):
        yield f"""/* A sum's code: round(sum * multiplier / 2^shift), ties up, + zero, clamped. */
static int8_t {name}_requantize(int32_t sum, int32_t multiplier, int32_t shift, int32_t zero,
                                int32_t low, int32_t high)
{{
    const int64_t n = (int64_t)sum * multiplier + ((int64_t)1 << (shift - 1));
    /* The shift rounds down. C leaves that of a negative n to the compiler, but ~n is positive. */
    const int64_t code = (n < 0 ? ~(~n >> shift) : n >> shift) + zero;
    return (int8_t)(code < low ? low : code > high ? high : code);
}}"""
    widths = {
        numbers.bits
        for code in codes
        if code.weights is not None
        for numbers in code.weights
        if numbers is not None and numbers.bits < 8
    }
    for bits in sorted(widths):
        yield reader(bits, name)
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
    """Layer after layer, each from its place to its place."""
    arena, source = f"{name}_arena", "input"
    for i, (code, step) in enumerate(zip(codes, memory.steps, strict=True)):
        if i:
            source = f"{arena} + {step.source}"
        if step.moved_from is not None:
            count = math.prod(codes[i - 1].output_shape)
            yield f"{name}_move({arena} + {step.moved_from}, {source}, {count});"
        yield f"{code.name}({source}, {arena} + {step.target});"
        source = f"{arena} + {step.target}"
    yield f"return {source};"

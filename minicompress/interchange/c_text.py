"""The text of the C file and its header, from the text of the layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minicompress.integer.model import IntegerModel
from minicompress.interchange.c_layers import LayerCode
from minicompress.interchange.c_plan import Plan
from minicompress.interchange.c_weights import reader
from minicompress.qparams import QParams


class Output(NamedTuple):
    """An output of the network: its place in the array (None: the input), size and scale."""

    place: int | None
    size: int
    qparams: QParams


def header_text(
    model: IntegerModel,
    name: str,
    codes: Sequence[LayerCode],
    outputs: Sequence[Output],
    ram: int,
    table: str,
) -> str:
    """The header: declarations and sizes, and a comment for people."""
    inputs, shape = math.prod(model.input_shape), model.input_shape
    flash = sum(code.layer.flash_bytes for code in codes)
    listed = "\n".join(f" *   {line}".rstrip() for line in table.splitlines())
    (_, count, logits), *others = outputs
    more = "".join(
        f"\n * Output {k}: {size} codes of int8.\n *   number = {_number(q)}"
        for k, (_, size, q) in enumerate(others, 1)
    )
    sizes = "".join(
        f"\n#define {name}_OUTPUTS_{k} {size}" for k, (_, size, _) in enumerate(outputs)
    )
    several = f"""
/* Every output: outputs[k] becomes the place of {name}_OUTPUTS_k codes, which stay until the next
 * call. The logits are output 0. */
void {name}_run(const int8_t *input, const int8_t **outputs);
"""
    sizes, several = (sizes, several) if others else ("", "")
    return f"""/* {name}: a network of integers, written by minicompress.
 *
 * Input: {inputs} codes of int8, shape {shape} in C order.
 *   code = {_code(model.input_qparams)}
 * Output: {count} codes of int8, the logits.
 *   logit = {_number(logits)}{more}
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
#define {name}_OUTPUTS {count}{sizes}
#define {name}_FLASH_BYTES {flash}
#define {name}_RAM_BYTES {ram}

#ifdef __cplusplus
extern "C" {{
#endif

/* The class of an input: the index of the largest logit, of equally large ones the first. */
int {name}_class(const int8_t *input);

/* The {name}_OUTPUTS codes of the logits. They stay until the next call. */
const int8_t *{name}_logits(const int8_t *input);
{several}
#ifdef __cplusplus
}}
#endif

#endif
"""


def _number(q: QParams) -> str:
    """The formula that turns a code into a real number."""
    return f"(code - ({q.zero_point})) * {float(q.scale)!r}"


def _code(q: QParams) -> str:
    """The formula that turns a real number into a code, with functions of C's <math.h>."""
    return (
        f"rint(x / {float(q.scale)!r}) + ({q.zero_point}), clamped to [{q.qmin}, {q.qmax}]; "
        f"x in {q.scale.dtype}"
    )


def source_text(
    header: str,
    name: str,
    codes: Sequence[LayerCode],
    memory: Plan,
    outputs: Sequence[Output],
) -> str:
    places = [_place(name, output.place) for output in outputs]
    calls = "\n    ".join([*_calls(name, codes, memory), f"return {places[0]};"])
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
    for (int32_t i = 1; i < {outputs[0].size}; i++) {{
        if (logits[i] > logits[best]) {{
            best = i;
        }}
    }}
    return (int)best;
}}""")
    if len(outputs) > 1:
        rest = "".join(f"\n    outputs[{k}] = {at};" for k, at in enumerate(places) if k)
        parts.append(f"""void {name}_run(const int8_t *input, const int8_t **outputs)
{{
    outputs[0] = {name}_logits(input);{rest}
}}""")
    return "\n\n".join(parts) + "\n"


def _helpers(name: str, codes: Sequence[LayerCode], memory: Plan) -> Iterator[str]:
    """The functions that layers share, if they are called: compilers warn of unused ones."""
    text = "".join(code.text for code in codes)
    requantized = f"{name}_requantize(" in text
    if requantized or f"{name}_code(" in text:
        yield f"""/* n / 2^shift as a code: halves up, plus zero, clamped. */
static int8_t {name}_code(
    int64_t number, int32_t shift, int32_t zero, int32_t low, int32_t high)
{{
    const int64_t n = number + ((int64_t)1 << (shift - 1));
    /* n >> shift, rounded down. In C a shift of a negative n is up to the compiler; ~n is not
     * negative. */
    const int64_t code = (n < 0 ? ~(~n >> shift) : n >> shift) + zero;
    return (int8_t)(code < low ? low : code > high ? high : code);
}}"""
    if requantized:
        yield f"""/* A sum as a code: sum * multiplier / 2^shift. */
static int8_t {name}_requantize(
    int32_t sum, int32_t multiplier, int32_t shift, int32_t zero, int32_t low, int32_t high)
{{
    return {name}_code((int64_t)sum * multiplier, shift, zero, low, high);
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
    for i, (code, step) in enumerate(zip(codes, memory.steps, strict=True)):
        sources = [_place(name, source) for source in step.sources]
        if step.moved_from is not None:
            count = math.prod(codes[i - 1].layer.output_shape)
            yield f"{name}_move({_place(name, step.moved_from)}, {sources[0]}, {count});"
        yield f"{code.name}({', '.join(sources)}, {_place(name, step.target)});"


def _place(name: str, at: int | None) -> str:
    return "input" if at is None else f"{name}_arena + {at}"

"""C from an integer model: its names in a program with others, C++, and where constants lie."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from integer_oracles import with_layers
from test_c import compiled, moving, needs_cc

from minicompress.errors import CompressionError
from minicompress.interchange.c import export_c

CXX = shutil.which("g++") or shutil.which("clang++")

needs_cxx = pytest.mark.skipif(CXX is None, reason="there is no C++ compiler (g++, clang++) here")

WARNINGS = ("-Wall", "-Wextra", "-pedantic", "-Werror")

C99, CPP = ("-std=c99", *WARNINGS), ("-std=c++20", *WARNINGS)


def every_kind():
    """A network whose C has all kinds of arrays and helpers, and inputs for it."""
    model, codes = moving()
    first, second, third = model.layers
    pruned = np.zeros(100, np.int8)
    pruned[::9], pruned[::27] = 99, -99
    layers = (
        first,
        dataclasses.replace(second, weight=second.weight // 16),
        dataclasses.replace(third, weight=pruned.reshape(10, 10)),
    )
    return with_layers(model, layers), codes[:20]


MODEL, CODES = every_kind()


@cache
def export(name, model=MODEL):
    """The header and the C file of a network of that name, in "<name>.h" and "<name>.c"."""
    with tempfile.TemporaryDirectory() as folder:
        made = export_c(model, Path(folder) / f"{name}.c", name=name)
        return made.header.read_text(), made.source.read_text()


def write(folder, name, texts):
    for text, ending in zip(texts, (".h", ".c"), strict=True):
        (folder / f"{name}{ending}").write_text(text)


def names_of(texts):
    """Macros, and what is declared or defined outside of functions: so begins a line with it."""
    text = "\n".join(texts)
    macros = re.findall(r"^# *(?:define|ifdef|ifndef) +(\w+)", text, re.MULTILINE)
    declared = re.findall(r"^[a-z][\w *]*?(\w+)[\[(]", text, re.MULTILINE)
    return {*macros, *declared} - {"__cplusplus"}


# names that do not clash --------------------------------------------------------------------------


def law_apart(make, first, second):
    """Two networks share no name in C."""
    assert not names_of(make(first)) & names_of(make(second))


def cuts(name):
    """The beginnings of all that is in the C of a name: the names that might clash with it."""
    parts = [other.split("_") for other in names_of(export(name))]
    return sorted({"_".join(p[:n]) for p in parts for n in range(1, len(p) + 1)} - {name})


PARTS = sorted({part for other in names_of(export("net")) for part in other.split("_")})

NAMES = st.builds(
    lambda first, rest: "_".join([first, *rest]),
    st.sampled_from(["n", "N", *(part for part in PARTS if part[0].isalpha())]),
    st.lists(st.sampled_from(PARTS), max_size=3),
)


@given(st.data())
def test_drawn_names_are_apart(data):
    first = data.draw(NAMES)
    others = [first.upper(), first.lower(), first.swapcase(), *cuts(first)]
    second = data.draw(NAMES | st.sampled_from(others))
    assume(first != second)
    law_apart(export, first, second)


def test_no_part_of_a_name_ends_in_another():
    """Why they are apart: if `a_part` is `b_other`, one of the parts ends in "_" and the other."""
    names = names_of(export("net"))
    assert len(names) > 25
    assert all(name.startswith("net_") for name in names)
    parts = [name.removeprefix("net_") for name in names]
    assert not [(a, b) for a in parts for b in parts if a.endswith("_" + b)]
    for other in cuts("net"):
        law_apart(export, "net", other)


# programs of several networks ---------------------------------------------------------------------

WORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int
long register restrict return short signed sizeof static struct switch typedef union unsigned void
volatile while main
alignas alignof and and_eq asm bitand bitor bool catch char8_t char16_t char32_t class compl concept
const_cast consteval constexpr constinit co_await co_return co_yield decltype delete dynamic_cast
explicit export false final friend import module mutable namespace new noexcept not not_eq nullptr
operator or or_eq override private protected public reinterpret_cast requires static_assert
static_cast template this thread_local throw true try typeid typename using virtual wchar_t xor
xor_eq
exp printf malloc time read NULL EOF assert errno offsetof
int8_t uint8_t int_fast16_t intptr_t uintmax_t INT8_MAX INT64_C SIZE_MAX WCHAR_MIN
"""
"""The words of C99 and of C++20, and some names of their libraries."""

LIBRARY = """
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
"""


def law_words(make, words, folder, *, cpp=True):
    """Networks with these names are declared in one file of C, and in one of C++."""
    (folder / "all.c").write_text(LIBRARY + "".join(f'#include "{name}.h"\n' for name in words))
    for name in words:
        write(folder, name, make(name))
    compiled(folder, *C99, "-c", "all.c")
    if cpp:
        compiled(folder, *CPP, "-x", "c++", "-c", "all.c", compiler=CXX)


@needs_cc
@needs_cxx
def test_every_word_of_c_and_of_cpp_is_a_name(tmp_path):
    law_words(export, WORDS.split(), tmp_path)


HARD = ["net", "Net", "NET", "net_class", "net_logits", "net_0", "net_read", "net_layer_0", "class",
        "not_eq", "int8_t", "INT8_MAX", "while", "main", "exp", "HEADER", "PLACEMENT"]  # fmt: skip

CALL = """
#include <cstdio>
@INCLUDES@
template <typename Class, typename Logits>
static void run(Class *classify, Logits *logits, const int8_t (&input)[3], int outputs)
{
    const int found = classify(input);
    for (int i = 0; i < outputs; i++) std::printf("%d ", logits(input)[i]);
    std::printf("%d\\n", found);
}
int main() { @CALLS@ }
"""


@needs_cc
@needs_cxx
def test_networks_with_hard_names_in_one_program_of_cpp(tmp_path):
    """Every network answers as its own model does in Python."""
    calls, expected = "", ""
    for i, (name, codes) in enumerate(zip(HARD, CODES, strict=False)):
        layer = MODEL.layers[0]
        first = dataclasses.replace(layer, bias=layer.bias + 500 * np.arange(i, i + 2, dtype="i4"))
        model = with_layers(MODEL, (first, *MODEL.layers[1:]))
        write(tmp_path, name, export(name, model))
        values = f"{{{', '.join(map(str, codes))}}}"
        calls += f"run({name}_class, {name}_logits, {values}, {name}_OUTPUTS);\n"
        logits = model.run(codes[None])[0]
        expected += f"{' '.join(map(str, logits))} {logits.argmax()}\n"
    files = [f"{name}.c" for name in HARD]
    includes = "".join(f'#include "{name}.h"\n' for name in HARD)
    (tmp_path / "call.cpp").write_text(
        CALL.replace("@INCLUDES@", includes).replace("@CALLS@", calls)
    )
    compiled(tmp_path, *C99, "-c", *files)
    objects = [f"{name}.o" for name in HARD]
    compiled(tmp_path, *CPP, "call.cpp", *objects, "-o", "call", compiler=CXX)
    done = subprocess.run([tmp_path / "call"], capture_output=True, text=True, timeout=60)
    assert done.stdout == expected
    assert len(set(expected.splitlines())) > len(HARD) / 2
    # All of them in one file, too, as C++.
    (tmp_path / "one.c").write_text("".join(f'#include "{file}"\n' for file in files))
    compiled(tmp_path, *CPP, "-x", "c++", "-c", "one.c", compiler=CXX)


# where the constants lie --------------------------------------------------------------------------

SECTION = """-Dnet_PLACEMENT=__attribute__((section(".weights")))"""


def law_placed(make, folder):
    """With the macro defined, every constant lies in its section; else none does."""
    if not (sys.platform == "linux" and shutil.which("objdump")):
        pytest.skip("there is no objdump for ELF here")
    write(folder, "net", make("net"))
    for flags, section in (([], ".rodata"), ([SECTION], ".weights")):
        compiled(folder, *C99, *flags, "-c", "net.c")
        table = subprocess.run(
            ["objdump", "-t", folder / "net.o"], capture_output=True, text=True, check=True
        ).stdout
        found = re.findall(r" O (\S+)\s+(\w+) (\w+)", table)
        assert {name for _, _, name in found} >= {"net_0_bias", "net_2_weight_codebook"}
        for where, _, name in found:
            assert where == (".bss" if name == "net_arena" else section)


@needs_cc
def test_constants_lie_where_the_macro_says(tmp_path):
    law_placed(export, tmp_path)


def law_no_pointers(make, folder):
    """Constants may be in an address space of their own, as flash is on AVR.

    No other pointer takes the address of what lies in it, so the compiler finds every one.
    """
    (folder / "probe.c").write_text("static const __seg_gs int x[1] = {0};\nint main(void) {}\n")
    try:
        compiled(folder, "-std=gnu99", "-w", "probe.c", "-o", "probe")
    except AssertionError:
        pytest.skip("the compiler has no address space for a test")
    write(folder, "net", make("net"))
    compiled(folder, "-std=gnu99", "-Dnet_PLACEMENT=__seg_gs", "-c", "net.c")


@needs_cc
def test_constants_may_have_an_address_space_of_their_own(tmp_path):
    law_no_pointers(export, tmp_path)


# planted wrong exports ----------------------------------------------------------------------------


def edited(pattern, new):
    """The right files, then what matches replaced; NAME in both is the network's name."""

    def make(name):
        texts = export(name)
        old = pattern.replace("NAME", name)
        wrong = tuple(re.sub(old, new.replace("NAME", name), text) for text in texts)
        assert wrong != texts
        return wrong

    return make


def upper_cased(name):
    return tuple(
        re.sub(rf"\b{name}_([A-Z_]+)\b", rf"{name.upper()}_\1", text) for text in export(name)
    )


BARE = edited(r"\bNAME_class\b", "NAME")

OF_PAIR = {
    "macros in upper case": (upper_cased, "net", "Net"),
    "a function by the bare name": (BARE, "net", "net_logits"),
    "parts that end in others": (edited("NAME_0_bias", "NAME_0_class"), "net", "net_0"),
    "helpers that are shared": (edited("NAME_requantize", "requantize"), "net", "other"),
    "one include guard for all": (edited("NAME_HEADER", "PREDICT_HEADER"), "net", "other"),
}

PLANTED = {
    **{
        name: lambda make, folder, a=first, b=second: law_apart(make, a, b)
        for name, (_, first, second) in OF_PAIR.items()
    },
    "a list of keywords without C++20's": lambda make, folder: law_words(
        make, ["co_await", "requires"], folder
    ),
    "a name of the library": lambda make, folder: law_words(make, ["exp"], folder, cpp=False),
    "biases without the macro": law_placed,
    "codebooks without the macro": law_placed,
    "a macro that forgets the user's": law_placed,
    "a pointer to constants": law_no_pointers,
}

WRONG = {
    **{name: wrong for name, (wrong, _, _) in OF_PAIR.items()},
    "a list of keywords without C++20's": BARE,
    "a name of the library": BARE,
    "biases without the macro": edited("NAME_PLACEMENT int32_t", "int32_t"),
    "codebooks without the macro": edited(r"NAME_PLACEMENT (int8_t \w+_codebook)", r"\1"),
    "a macro that forgets the user's": edited(
        "#ifndef NAME_PLACEMENT", "#undef NAME_PLACEMENT\n#if 1"
    ),
    "a pointer to constants": edited(
        r"NAME_read_4\((\w+),", r"NAME_read_4(((const uint8_t *)\1 + 0),"
    ),
}  # fmt: skip


@needs_cc
@needs_cxx
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_name_or_place_is_caught(name, tmp_path):
    law = PLANTED[name]
    law(export, tmp_path)
    with pytest.raises(AssertionError):
        law(WRONG[name], tmp_path)


@needs_cc
def test_the_words_of_cpp_are_free_in_c(tmp_path):
    """So it is C++ alone that catches the planted list of keywords."""
    law_words(BARE, ["co_await", "requires"], tmp_path, cpp=False)


@pytest.mark.parametrize(
    "name", ["", "9f", "f-g", "_f", "f_", "f__g", "é", "f\n", "f g", None, b"f"]
)
def test_names_that_are_refused(name, tmp_path):
    with pytest.raises(CompressionError, match="name must be a letter, then letters, digits and"):
        export_c(MODEL, tmp_path / "net.c", name=name)
    assert not list(tmp_path.iterdir())

"""The lesson in one file computes what the library computes, and stays one short file.

Planted faults are changes of its text: the file is read, altered, and run again under the same law.
"""

import ast
import re
import sys
from fractions import Fraction
from math import ceil, hypot, sqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_svd import lapack_slack

import minicompress as mc
from minicompress.norms import UNIT, gamma
from minicompress.testing.strategies import weights

FILE = Path(__file__).parents[1] / "examples" / "00_in_one_file.py"
SOURCE = FILE.read_text()
FLOATS = [np.dtype("f8"), np.dtype("f4")]


def load(source):
    """The file as a module that is not the main one."""
    names = {"__name__": "in_one_file", "__file__": str(FILE)}
    exec(compile(source, str(FILE), "exec"), names)
    return SimpleNamespace(**names)


LESSON = load(SOURCE)


SINGLES = st.floats(-4, 4, width=32)


def drawn(shape, elements=SINGLES):
    return arrays(np.float64, shape, elements=elements, fill=st.nothing())


@st.composite
def conv_cases(draw):
    side = st.integers(1, 3)
    kh, kw, c, o, n, stride = (draw(side) for _ in range(6))
    padding = draw(st.sampled_from(["valid", "same"]))
    h, width = kh + draw(st.integers(0, 3)), kw + draw(st.integers(0, 3))
    g = mc.nn.kernels.windows.geometry((h, width), (kh, kw), stride, padding)
    shapes = (n, h, width, c), (kh, kw, c, o), (o,), (n, *g.output, o)
    return *(draw(drawn(shape)) for shape in shapes), {"stride": stride, "padding": padding}


@st.composite
def pool_cases(draw):
    size, n, c, oh, ow = (draw(st.integers(1, 3)) for _ in range(5))
    more = draw(st.integers(0, size - 1))  # rows and columns that fill no block
    small = st.integers(-2, 2)  # so that many are equal
    shapes = (n, size * oh + more, size * ow + more, c), (n, oh, ow, c)
    return *(draw(drawn(shape, small)) for shape in shapes), size


def close(ours, theirs, terms, magnitudes):
    """A sum of so many products errs by gamma_terms of their magnitudes' sum, in whatever order.

    Two of them differ by twice that; and as the magnitudes were summed up in floats too, it is
    2 gamma_k / (1 - gamma_k) = gamma_(2 k) of what came out (Higham, *Accuracy and Stability of
    Numerical Algorithms*, section 3.1). Products of float32 numbers do not underflow in float64.
    """
    assert ours.shape == theirs.shape
    assert (abs(ours - theirs) <= gamma(2 * terms) * magnitudes).all()


def law_conv(lesson, case):
    x, w, b, dy, options = case
    y, backward = lesson.conv(x, w, b, **options)
    size = mc.nn.conv2d(abs(x), abs(w), abs(b), **options)
    close(y, mc.nn.conv2d(x, w, b, **options), w[..., 0].size + 1, size)
    theirs = mc.nn.conv2d_vjp(dy, x, w, **options)
    sizes = mc.nn.conv2d_vjp(abs(dy), abs(x), abs(w), **options)
    pixels = dy[..., 0].size
    terms = w[:, :, 0].size, pixels, pixels
    for arguments in zip(backward(dy), theirs, terms, sizes, strict=True):
        close(*arguments)


def law_dense(lesson, case):
    x, w, b, dy = case
    y, backward = lesson.dense(x, w, b)
    close(y, mc.nn.dense(x, w, b), len(w) + 1, mc.nn.dense(abs(x), abs(w), abs(b)))
    theirs, sizes = mc.nn.dense_vjp(dy, x, w), mc.nn.dense_vjp(abs(dy), abs(x), abs(w))
    for arguments in zip(backward(dy), theirs, (len(b), len(x), len(x)), sizes, strict=True):
        close(*arguments)


def law_pool(lesson, case):
    x, dy, size = case
    y, backward = lesson.max_pool(x, size)
    np.testing.assert_array_equal(y, mc.nn.max_pool2d(x, size))
    np.testing.assert_array_equal(backward(dy), mc.nn.max_pool2d_vjp(dy, x, size))


def law_weightless(lesson, case):
    x, dy = case
    for ours, value, vjp in (
        (lesson.relu, mc.nn.relu, mc.nn.relu_vjp),
        (lesson.flatten, mc.nn.flatten, mc.nn.flatten_vjp),
    ):
        y, backward = ours(x)
        np.testing.assert_array_equal(y, value(x))
        dy = dy.reshape(y.shape)
        np.testing.assert_array_equal(backward(dy), vjp(dy, x))


def law_network(lesson, seed):
    """On small integers every sum is exact in float64: at most 512 * 2 * 11,000 < 2**53."""
    rng = np.random.default_rng(seed)
    shapes = [p.shape for p in lesson.new_network(rng)]
    w1, b1, w2, b2, w3, b3 = parameters = [rng.integers(-2, 3, s).astype(float) for s in shapes]
    x, dy = rng.integers(0, 3, (2, 8, 8, 1)).astype(float), rng.integers(-2, 3, (2, 10)) + 0.0
    model = mc.Sequential(
        (
            mc.Conv2D(w1, b1, padding="same"),
            mc.ReLU(),
            mc.MaxPool2D(2),
            mc.Conv2D(w2, b2, padding="same"),
            mc.ReLU(),
            mc.Flatten(),
            mc.Dense(w3, b3),
        )
    )
    scores, backward = lesson.network(parameters, x)
    y, pullback = mc.nn.vjp(model, x)
    np.testing.assert_array_equal(scores, y)
    _, gradients = pullback(dy)
    theirs = [layer[name] for layer in gradients if layer for name in ("weight", "bias")]
    for ours, other in zip(backward(dy), theirs, strict=True):
        np.testing.assert_array_equal(ours, other)


def law_svd(lesson, case):
    w, rank = case
    left, size, bound = lesson.truncated_svd(w, rank)
    rep, cert = mc.truncated_svd(w, rank=rank)
    slack = lapack_slack(w)
    assert abs(hypot(*(w - left).ravel()) - bound) <= slack
    assert abs(cert.measured - bound) <= slack
    assert cert.bound >= bound - slack
    assert 8 * size == mc.storage_bits(rep)


def law_prune(lesson, case):
    w, amount = case
    before = w.copy()
    left, size, bound = lesson.prune(w, amount)
    rep, cert = mc.prune_magnitude(w, amount=amount)
    same(left, mc.decode(rep))
    same(w, before)
    assert size == ceil(w.size / 8) + rep.values.nbytes
    # Both are roots of sums of at most n squares; the library goes 64 units up from there.
    slack = gamma(w.size + 100)
    assert abs(bound - cert.bound) <= slack * cert.bound
    share = round(amount * w.size) / w.size
    assert bound <= sqrt(share) * hypot(*w.ravel()) * (1 + slack)


def law_quantize(lesson, case):
    w, bits = case
    left, size, bound = lesson.quantize(w, bits)
    rep, cert = mc.quantize(w, num_bits=bits)
    same(left, mc.decode(rep))
    assert 8 * size == mc.storage_bits(rep)
    assert bound == sqrt(w.size) * float(rep.scale) / 2
    # The library adds to half a step what rounding can: 13 units in the last place of an entry, and
    # of the sum n + 100. And it knows that a zero does not move.
    slack = sqrt(w.size) * 8 * float(np.finfo(w.dtype).eps * abs(w).max())
    assert cert.bound <= (bound + slack) * (1 + gamma(w.size + 100))
    assert cert.bound >= bound or not w.all()


def law_both(lesson, case):
    w, amount, bits = case
    left, size, bound = lesson.prune_then_quantize(w, amount, bits)
    pruned, _, dropped = lesson.prune(w, amount)
    rep, _ = mc.quantize(pruned, num_bits=bits)
    same(left, mc.decode(rep))
    kept = np.count_nonzero(pruned)
    assert size == ceil(w.size / 8) + ceil(kept * bits / 8) + w.itemsize
    # A square root, a product and `hypot`: 4 units in the last place each, or the last subnormal.
    exact = Fraction(dropped) ** 2 + kept * Fraction(float(rep.scale)) ** 2 / 4
    low, high = (Fraction(bound * (1 + e) + e * 1e-307) for e in (-12 * UNIT, 12 * UNIT))
    assert max(low, 0) ** 2 <= exact <= high**2


def same(ours, theirs):
    """Bit for bit, but for the sign of a zero."""
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def some(**domain):
    return weights(kinds=["integers", "ordinary", "zeros", "ties"], empty=False, **domain)


two = st.integers(1, 3)
amounts, bits = st.floats(0, 1), st.integers(2, 8)
flat = some(dtypes=FLOATS, min_ndim=1)
LAWS = {
    law_conv: conv_cases(),
    law_dense: st.tuples(two, two, two).flatmap(
        lambda s: st.tuples(*map(drawn, ((s[0], s[1]), (s[1], s[2]), (s[2],), (s[0], s[2]))))
    ),
    law_pool: pool_cases(),
    law_weightless: st.tuples(*[drawn((2, 2, 3, 2), st.integers(-2, 2))] * 2),
    law_network: st.integers(0, 1000),
    law_svd: some(dtypes=FLOATS[:1], min_ndim=2, max_ndim=2).flatmap(
        lambda w: st.tuples(st.just(w), st.integers(0, min(w.shape)))
    ),
    law_prune: st.tuples(flat, amounts),
    law_quantize: st.tuples(flat, bits),
    law_both: st.tuples(flat, amounts, bits),
}


@pytest.mark.parametrize("law", LAWS)
@given(st.data())
def test_it_computes_what_the_library_computes(law, data):
    law(LESSON, data.draw(LAWS[law]))


# A law, what stands in the file, and what is put there instead.
PLANTED = {
    "a flipped kernel": (law_conv, "(pixels, w[at], 1)", "(pixels, w[::-1, ::-1][at], 1)"),
    "SAME padding at the top": (law_conv, "zeros[0] // 2,", "-(-zeros[0] // 2),"),
    "SAME padding that ignores the stride": (law_conv, "(ceil(n / stride) - 1) * stride", "n - 1"),
    "taps without a stride": (law_conv, "p + stride * rows : stride,", "p + rows,"),
    "a convolution's bias forgotten": (law_conv, "y = b + sum(", "y = 0 * b + sum("),
    "a kernel not transposed on the way back": (law_conv, "w[at].T, 1", "w[at].T[::-1], 1"),
    "a gradient that overwrites": (law_conv, "dpixels += np.t", "dpixels[...] = np.t"),
    "a gradient still with its frame": (law_conv, "dpadded[:, top : top + h", "dpadded[:, : h"),
    "a mean for the bias's gradient": (law_conv, "dy.sum((0, 1, 2))", "dy.mean((0, 1, 2))"),
    "a dense bias's gradient along the wrong axis": (law_dense, "dy.sum(0)", "dy.sum(0)[::-1]"),
    "every maximum gets the gradient": (law_pool, "waiting &= pixels != y", "pass"),
    "relu lets zero through": (law_weightless, "dy * (x > 0)", "dy * (x >= 0)"),
    "no gradient for the first layer": (law_network, "pool_back(d))", "0 * pool_back(d))"),
    "a relu left out on the way back": (law_network, "relu2_back(fl", "(fl"),
    "s_r for s_(r+1)": (law_svd, "hypot(*s[rank:])", "hypot(*s[rank + 1 :])"),
    "an L1 tail": (law_svd, "hypot(*s[rank:])", "float(sum(s[rank:]))"),
    "singular values in both factors": (law_svd, "], v[:rank]", "], s[:rank, None] * v[:rank]"),
    "ties that drop too many": (law_prune, "pruned.flat[dropped] = 0",
                                "pruned[abs(w) <= abs(w.flat[dropped]).max(initial=-1)] = 0"),
    "ties that drop the last": (law_prune, 'np.argsort(abs(w), axis=None, kind="stable")',
                                'w.size - 1 - np.argsort(abs(w.ravel()[::-1]), kind="stable")'),
    "a count rounded down": (law_prune, "round(amount * w.size)", "int(amount * w.size)"),
    "pruning in place": (law_prune, "pruned = w.copy()", "pruned = w"),
    "the bitmap forgotten": (law_prune, "ceil(w.size / 8) + (w.size", "(w.size"),
    "pruning by value": (law_prune, "abs(w), axis=None", "w, axis=None"),
    "half away from zero": (law_quantize, "np.rint(w.astype(float) / step)",
                            "np.trunc(w.astype(float) / step + np.copysign(0.5, w))"),
    "scale / 2 ** (b - 1)": (law_quantize, "2 ** (bits - 1) - 1", "2 ** (bits - 1)"),
    "a quotient in float32": (law_quantize, "w.astype(float) / step", "w / step"),
    "a doubled bound": (law_quantize, "float(step) / 2", "float(step)"),
    "a step that is not stored": (law_quantize, " + step.itemsize", ""),
    "no step for zeros": (law_quantize, "np.finfo(w.dtype).tiny)", "w.dtype.type(0.5))"),
    "bounds added, not their squares": (law_both, "hypot(dropped, rounded)", "dropped + rounded"),
    "codes for the zeros too": (law_both, "kept = pruned != 0", "kept = pruned == pruned"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, right, wrong = PLANTED[name]
    assert SOURCE.count(right) == 1
    lesson = load(SOURCE.replace(right, wrong))

    @settings(max_examples=200, phases=[Phase.generate], report_multiple_bugs=False)
    @given(LAWS[law])
    def broken(case):
        law(lesson, case)

    with pytest.raises(AssertionError):
        broken()


def test_it_is_numpy_alone_and_does_nothing_when_it_is_imported():
    tree = ast.parse(SOURCE)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    assert {name.split(".")[0] for name in modules} <= {"numpy"} | sys.stdlib_module_names
    *body, last = tree.body[1:]
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) for node in body)
    assert ast.unparse(last).startswith("if __name__ == '__main__':")


def test_its_table(capsys):
    LESSON.main(FILE.parents[1] / "minicompress" / "data" / "digits.csv.gz")
    head, *lines, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["method", "bytes", "accuracy", "error", "bound"]
    # Pruned weights that are pruned once more stay as they are: without a note that looks wrong.
    assert "the last two rows: from the retrained ones" in note
    rows = {}
    for line in lines:
        name, *cells = re.split(r"  +", line)
        rows[name] = [float(cell.replace(",", "").rstrip("%")) for cell in cells]
    assert len(rows) == 9
    # What the file says is to be seen.
    for name, (size, _, error, bound) in rows.items():
        assert size <= 4 * 9930 == rows["float32"][0]
        # To the digits that are printed; what is an equality in the law is one here.
        assert error < bound or (error == bound and "bits" not in name)
    assert rows["8 bits"][0] == 4 * 58 + 9872 + 3 * 4
    assert rows["4 bits"][0] == 4 * 58 + 9872 / 2 + 3 * 4
    assert rows["8 bits"][1] > 97
    assert rows["80% pruned, more training"][1] > rows["80% pruned"][1] + 5
    assert rows["the same, 4 bits"][0] < 39720 / 15
    assert rows["the same, 4 bits"][1] > 95

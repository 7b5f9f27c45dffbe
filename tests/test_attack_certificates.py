"""The attack on certificates beats none of the library's, and does beat those that are wrong."""

import dataclasses
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minicompress as mc
from minicompress.certify.certificates import DomainCertificate

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

import attack_certificates as attack
from attacks.exact import exact, run_exactly
from attacks.inputs import ball_ends

SEED = 2  # with which no planted fault takes many cases to find


def is_beaten(why, cases=300):
    """Whether a certificate is beaten in this way in one of so many cases."""
    for number in range(cases):
        _, results, _ = attack.run_case(SEED, number)
        if any(why == found for r in results for found, _ in r.beaten):
            return True
    return False


def test_the_command_beats_no_certificate(capsys):
    assert attack.main(["--attacks", "3000", "--seed", str(SEED)]) == 0
    printed = capsys.readouterr().out
    assert "\n0 attacks beat a certificate" in printed
    promised = next(
        line for line in printed.splitlines() if line.startswith("a class was promised")
    )
    assert int(promised.split()[5].replace(",", "")) > 1000
    rows = {line[:18].strip(): line[18:].split() for line in printed.splitlines()}
    for name in ("ball", "domain", "real"):  # most of them say something
        made, finite, *_ = (int(n.replace(",", "")) for n in rows[name][:2])
        assert finite > made / 2


def test_one_case_is_shown_and_is_always_the_same(capsys):
    shown = []
    for _ in range(2):
        assert attack.main(["--seed", str(SEED), "--case", "3"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "f: " in shown[0]
    assert "attacks on" in shown[0]


# Wrong certificates, each by one fault ------------------------------------------------------------


def wrong(patch, change):
    """Certificates of both kinds, changed."""
    ball, domain = attack.ball_certificates, attack.domain_certificate
    patch.setattr(attack, "ball_certificates", lambda *a, **o: tuple(map(change, ball(*a, **o))))
    patch.setattr(attack, "domain_certificate", lambda *a, **o: change(domain(*a, **o)))


def nine_tenths(patch):
    wrong(patch, lambda c: dataclasses.replace(c, lower=0.9 * c.lower, upper=0.9 * c.upper))


def real_for_floats(patch):
    def run(certify):
        def certified(f, g, x, *rest, **options):
            native = certify(f, g, x, *rest, **options)
            found = certify(f, g, x, *rest, **options | {"arithmetic": "real"})
            if isinstance(found, tuple):
                return tuple(
                    dataclasses.replace(c, arithmetic=n.arithmetic)
                    for c, n in zip(found, native, strict=True)
                )
            return dataclasses.replace(found, arithmetic=native.arithmetic)

        return certified

    for name in ("ball_certificates", "domain_certificate"):
        patch.setattr(attack, name, run(getattr(attack, name)))


def box_ignored(patch):
    patch.setattr(DomainCertificate, "covers", lambda c, x: np.ones(len(x), bool))


def overflow_ignored(patch):
    def finite(c):
        return dataclasses.replace(c, lower=np.nan_to_num(c.lower), upper=np.nan_to_num(c.upper))

    wrong(patch, finite)


def everything_promised(patch):
    def promised(c):
        return c if isinstance(c, DomainCertificate) else dataclasses.replace(c, same_class=True)

    wrong(patch, promised)


def margins_ignored(patch):
    patch.setattr(DomainCertificate, "keeps", lambda c, logits, x: c.covers(x))


def real_is_narrower(patch):
    def change(c):
        return c if c.arithmetic != "real" else dataclasses.replace(c, upper=c.upper - c.bound / 64)

    wrong(patch, change)


def norms_too_small(patch):
    right = attack.output_bound
    patch.setattr(attack, "output_bound", lambda *a, **o: right(*a, **o) / 64)


def convolutions_too_small(patch):
    right = attack.conv_norm_upper
    patch.setattr(attack, "conv_norm_upper", lambda *a, **o: right(*a, **o) * (1 - 2.0**-20))


def compressors_too_sure(patch):
    right = attack.compared

    def compared(rng, f):
        f, g, found = right(rng, f)
        less = [
            (w, (c.rep, c.cert._replace(bound=c.cert.bound * (1 - 2.0**-20)))) for w, c in found
        ]
        return f, g, less

    patch.setattr(attack, "compared", compared)


PLANTED = {
    "nine tenths of the bounds": (nine_tenths, "a difference beyond the bounds"),
    "real arithmetic taken for floats": (real_for_floats, "a difference beyond the bounds"),
    "the box is ignored": (box_ignored, "a promise outside of the box"),
    "overflow is ignored": (overflow_ignored, "an overflow under a finite bound"),
    "every ball is promised": (everything_promised, "a class that changes in the ball"),
    "margins are ignored": (margins_ignored, "a class that changes in the box"),
    "a real bound too narrow": (real_is_narrower, "an exact difference beyond the bounds"),
    "a share of the norms": (norms_too_small, "an exact norm beyond the bound"),
    "a convolution's norm too small": (
        convolutions_too_small,
        "a convolution's norm beyond the bound",
    ),
    "compressors too sure": (compressors_too_sure, "a weight's error beyond its bound"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name, monkeypatch):
    plant, why = PLANTED[name]
    plant(monkeypatch)
    assert is_beaten(why)


# The tools ----------------------------------------------------------------------------------------


@given(
    st.sampled_from(attack.DTYPES),
    st.floats(-1, 1),
    st.integers(-20, 14),
    st.floats(0, 1),
    st.integers(-20, 14),
)
def test_the_ends_of_a_ball_lie_in_it_and_the_next_numbers_do_not(dtype, x, p, eps, q):
    x, eps = np.array([x * 2.0**p], dtype), eps * 2.0**q
    low, high = ball_ends(x, eps, None)
    center, top = Fraction(float(x[0])), float(np.finfo(dtype).max)
    for end, sign in ((low, -1), (high, 1)):
        assert end.dtype == dtype
        assert sign * (Fraction(float(end[0])) - center) <= Fraction(eps)
        beyond = float(np.nextafter(end, dtype.type(sign * np.inf))[0])
        assert abs(beyond) > top or sign * (Fraction(beyond) - center) > Fraction(eps)


def test_exact_networks_are_those_of_the_engine():
    """Small integers, which float64 computes exactly but for the averages by 6 and by 3."""
    rng = np.random.default_rng(0)

    def whole(*shape):
        return rng.integers(-4, 5, shape).astype(np.float64)

    options = {"stride": (1, 2), "padding": ((2, 0), (1, 1)), "dilation": (2, 1), "groups": 2}
    f = mc.Sequential(
        (
            mc.Conv2D(whole(2, 3, 2, 6), whole(6), **options),
            mc.nn.LeakyReLU(0.25),
            mc.MaxPool2D(2, 1, "same"),
            mc.AvgPool2D((2, 3), (2, 1), 1),
            mc.AvgPool2D((3, 1), 1, "same", count_include_pad=True),
            mc.ReLU(),
            mc.Dropout(0.5),
            mc.Flatten(),
        )
    )
    x = whole(3, 5, 6, 4)
    f = mc.Sequential((*f.layers, mc.Dense(whole(f(x).shape[1], 3), whole(3))))
    for model in (f, mc.Sequential((*f.layers[:4], mc.GlobalAvgPool2D()))):
        y = run_exactly(model, x)
        found = np.array([[float(n * y.unit) for n in row] for row in y.n])
        np.testing.assert_allclose(found, model(x), rtol=2.0**-45, atol=2.0**-45)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_exact_numbers_are_the_floats(values):
    found = exact(np.array(values))
    assert [n * found.unit for n in found.n] == list(map(Fraction, values))

"""What a test may take in each profile of Hypothesis (see conftest.py)."""

from hypothesis import settings


def contract_seconds():
    """For `check_compressor`: 0.25 by default, in which nearly every cell is visited once."""
    return min(settings.default.max_examples / 60, 20.0)


def at_most(examples):
    """Settings of a property whose examples are slow: no more of them than this."""
    return settings(max_examples=min(examples, settings.default.max_examples))

"""Hypothesis profiles: which examples the property tests draw, and how many.

- "default" draws the same 15 examples on every run, so that a suite that passed keeps passing.
- "ci" draws the same 60 examples on every run; `.ci/run` uses it.
- "thorough" draws 5,000 new ones each time.

The profile is named by a variable or by an option; the option goes first:

    HYPOTHESIS_PROFILE=ci python -m pytest
    python -m pytest --hypothesis-profile=thorough
"""

import os

# Before numpy is loaded: the arrays here are tiny, and threads that wait for each other on a busy
# machine take a hundred times as long as the products they share.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# How long an example takes depends on the machine and says nothing about the law that is tested.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("default", UNTIMED, max_examples=15, derandomize=True, database=None)
settings.register_profile("ci", UNTIMED, max_examples=60, derandomize=True, database=None)
settings.register_profile("thorough", UNTIMED, max_examples=5_000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

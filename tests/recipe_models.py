"""What the tests of recipes share."""

from pathlib import Path


def law_changes_are_seen(make, plain, changed):
    """Every step of a recipe has the same settings, and other ones when anything is changed."""
    settings = []
    for change in ({}, *changed):
        (one,) = {step.settings for step in make(**{**plain, **change})}
        settings.append(one)
    assert len(set(settings)) == len(settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

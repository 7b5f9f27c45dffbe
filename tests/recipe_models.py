"""What the tests of recipes share."""

from pathlib import Path


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

"""Files are written atomically: several at once, or none of them."""

import os
from contextlib import contextmanager

import pytest

from minicompress.errors import CompressionError, FileFormatError
from minicompress.storage.files import read_file, replacing, write_file


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def law_all_or_none(write, folder):
    """An error in the block leaves the folder as it was; without one, all files are new."""
    old, new = {"a": b"old a", "b": b"old b"}, {"a": b"new a", "b": b"new b"}
    for name, blob in old.items():
        (folder / name).write_bytes(blob)
    with pytest.raises(ZeroDivisionError), write(folder / "a", folder / "b") as files:  # noqa: PT012
        files[0].write(b"new a")
        _ = 1 / 0
    assert content(folder) == old
    with write(folder / "a", folder / "b") as files:
        for file, blob in zip(files, new.values(), strict=True):
            file.write(blob)
        assert all((folder / name).read_bytes() == blob for name, blob in old.items())
    assert content(folder) == new


def test_all_files_or_none(tmp_path):
    law_all_or_none(replacing, tmp_path)


@contextmanager
def in_place(*paths):
    files = [open(path, "wb") for path in paths]  # noqa: SIM115
    try:
        yield files
    finally:
        for file in files:
            file.close()


@contextmanager
def one_after_the_other(first, second):
    with in_place(first) as a, replacing(second) as b:
        yield [*a, *b]


@contextmanager
def renamed_always(*paths):
    try:
        with in_place(*(f"{path}.part" for path in paths)) as files:
            yield files
    finally:
        for path in paths:
            os.replace(f"{path}.part", path)


@pytest.mark.parametrize("write", [in_place, one_after_the_other, renamed_always])
def test_the_law_catches_files_that_are_not_atomic(write, tmp_path):
    with pytest.raises(AssertionError):
        law_all_or_none(write, tmp_path)


@pytest.mark.parametrize("name", ["", ".", "folder", "none/file"])
def test_a_bad_path_fails_before_the_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"Is a directory|No such file"), replacing("first", name):
        pytest.fail("the block ran")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(CompressionError, match="path must be the name of a file"):
        write_file("a\0b", b"")


def test_errors_of_parsing_name_the_file(tmp_path):
    path = tmp_path / "data"
    assert write_file(path, b"12") == 2
    assert read_file(path, int, 0) == 12

    def refuse(blob):
        raise FileFormatError("it is damaged")

    with pytest.raises(FileFormatError, match=r"data: it is damaged"):
        read_file(path, refuse, 0)

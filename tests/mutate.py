"""Mutation testing: how many small faults in the compressors and their foundation the suite kills.

    python -m pip install cosmic-ray
    python tests/mutate.py --sample 400 --seed 0

cosmic-ray makes the mutants: an operator exchanged, a number moved, a comparison turned, a branch
inverted. A sample is drawn from all of them; each is written into a copy of the project, and the
tests of its module run until one fails, then those of its room. A mutant that survives is printed
with its line. Mutants of annotations, which nobody runs, and those that are no Python are left out.
The figures of the last run are in MUTATION.md beside this file.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minicompress"
FOUNDATION = "arrays norms representation integers qparams"
COMPRESSORS = (
    "svd tucker pruning prune_channels schedules quantization rounding clustering chaining float16"
)
# The tests of each room, quick ones first. Those of the module itself run before them.
ROOMS = {
    "": f"{FOUNDATION} svd pruning quantization clustering chaining not_finite public datasets cli",
    "compressors/bounds": f"{COMPRESSORS} norms public",
    "compressors": f"{COMPRESSORS} {FOUNDATION} not_finite public",
    "nn/kernels": "winograd convolution pooling layers network",
    "nn": "activations losses optimizers architectures pooling network layers training convolution "
    "unknown_layers not_finite public in_one_file",
    "integer": "requantization integer_layers conversion unknown_layers public",
    "storage": "format entropy container damaged_files not_finite public",
    "analysis": "accounting sensitivities table unknown_layers public",
    "certify": "lipschitz certificates certified_programs certification unknown_layers public",
    "rewrite": "structure smaller_kernels compensation bias_correction equalization "
    "unknown_layers not_finite public",
    "search": "plan searching sensitivities public",
    "recipes": "structure recipe rate rate_price rate_recipe dead_units deep_compression public",
    "early_exit": "exits exit_networks exit_file exit_training thresholds public",
    "interchange": "c_memory c_names c onnx_graph onnx_weights onnx_layers onnx_faults onnx_file "
    "onnx_import onnx_spellings onnx_round array_names state_dict state_dict_programs "
    "unknown_layers public",
    "testing": "checks",
    "experiments": "table comparison certification report cli examples",
}
# Of modules that are tested in the file of another one.
ELSEWHERE = {
    "subscripts": "representation",
    "randomized": "svd",
    "factors": "layers",
    "tables": "table",
    "zonotope": "certificates",
    "following": "certificates",
    "margins": "certificates",
    "huffman": "entropy",
    "range_coder": "entropy",
    "strategies": "checks",
    "laws": "checks",
    "__main__": "cli",
}


def checked_by(file: str) -> list[str]:
    """The test files that a mutant of this file has to get past, its own first."""
    path = Path(file)
    room = "" if len(path.parts) == 1 else path.parent.as_posix()
    own = ELSEWHERE.get(path.stem, path.stem)
    names = dict.fromkeys([own, *ROOMS[room].split()])
    return [f"tests/test_{t}.py" for t in names if (ROOT / f"tests/test_{t}.py").exists()]


def compressors() -> list[str]:
    """What is mutated unless told: the compressors and what they are built on."""
    files = [*PACKAGE.glob("*.py"), *(PACKAGE / "compressors").rglob("*.py")]
    others = {"__init__", "__main__", "cli", "datasets", "errors"}
    return sorted(f.relative_to(PACKAGE).as_posix() for f in files if f.stem not in others)


SECONDS = 60
"""Of processor time, which does not depend on what else runs: a mutant that needs more never ends.

A run in which every test passes takes half of it.
"""

ONLY_HERE = f"""
import resource
from hypothesis import Phase

resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
settings.register_profile(
    "mutants", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("mutants")
"""
"""Goes behind tests/conftest.py in the copies: an example that kills need not be made small."""


def without_annotations(source: str) -> str:
    """The program as it runs: a mutant that looks the same here is none."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def mutants(file: str) -> list[tuple[str, str, int]]:
    """All mutants of a file: its name, the operator, and where it strikes."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = (PACKAGE / file).read_text()
    original, found = without_annotations(source), []
    for name in sorted(operator_names()):
        if "Variable" in name:  # they ask for names of variables to exchange
            continue
        for occurrence in range(10_000):
            changed = mutate_code(source, get_operator(name)(), occurrence)
            if changed is None:
                break
            try:
                runs = without_annotations(changed)
            except SyntaxError:  # such as "+" for the "*" of keyword-only arguments
                continue
            if runs != original:
                found.append((file, name, occurrence))
    return found


def broken(copy: Path, tests: list[str]) -> str:
    """The first test that fails in a copy, or another reason why the tests do not pass."""
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "default"},
            capture_output=True,
            text=True,
            timeout=60 * SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "did not end"
    if done.returncode == 0:
        return ""
    failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
    return (failed or ["did not start" if done.returncode > 0 else "did not end"])[0]


def run(mutant: tuple[str, str, int], copy: Path) -> dict:
    """Whether the tests kill a mutant, and how it differs."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    file, name, occurrence = mutant
    target = copy / "minicompress" / file
    source = (PACKAGE / file).read_text()
    changed = mutate_code(source, get_operator(name)(), occurrence)
    assert changed is not None
    target.write_text(changed)
    start = time.monotonic()
    killed = broken(copy, checked_by(file))
    target.write_text(source)
    lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0)
    diff = [line for line in lines if line[:1] in "-+@" and line[:3] not in ("---", "+++")]
    seconds = round(time.monotonic() - start, 1)
    return {"mutant": mutant, "killed": killed, "seconds": seconds, "diff": diff}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--only", nargs="*", default=compressors(), help="files under minicompress/"
    )
    parser.add_argument("--log", type=Path, help="a line of JSON for each mutant")
    options = parser.parse_args()
    everything = [m for file in options.only for m in mutants(file)]
    drawn = random.Random(options.seed).sample(everything, min(options.sample, len(everything)))
    print(f"{len(drawn)} of {len(everything)} mutants, seed {options.seed}", flush=True)
    copies: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.workers):
            copy = Path(folder) / str(i)
            ignored = shutil.ignore_patterns(
                ".git", "__pycache__", "*.egg-info", "build", ".*cache"
            )
            shutil.copytree(ROOT, copy, ignore=ignored)
            with (copy / "tests" / "conftest.py").open("a") as conftest:
                conftest.write(ONLY_HERE)
            copies.put(copy)
        for room in {Path(file).parent for file in options.only}:
            tests = checked_by(next(f for f in options.only if Path(f).parent == room))
            if failed := broken(copy, tests):
                sys.exit(f"without any mutant: {failed}")

        def job(mutant: tuple[str, str, int]) -> dict:
            copy = copies.get()
            try:
                return run(mutant, copy)
            finally:
                copies.put(copy)

        killed = done = 0
        with ThreadPoolExecutor(options.workers) as pool:
            for result in pool.map(job, drawn):
                done += 1
                killed += bool(result["killed"])
                if options.log:
                    with options.log.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                if not result["killed"]:
                    print("survived:", *result["mutant"], *result["diff"], sep="\n    ", flush=True)
    print(f"{killed} of {done} mutants killed: {killed / max(done, 1):.1%}")


if __name__ == "__main__":
    main()

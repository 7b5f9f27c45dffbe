"""Mutation testing: how many small faults in the compressors and their foundation the suite kills.

    python -m pip install cosmic-ray
    python tests/mutate.py --sample 400 --seed 0

cosmic-ray makes the mutants: an operator exchanged, a number moved, a comparison turned, a branch
inverted. A sample is drawn from all of them; each is written into a copy of the project, and the
tests of its module run until one fails, then those of the modules that build on it. What survives
is printed with its line. Mutants of annotations, which nobody runs, and those that are no Python
are left out. What came out of it last is in MUTATION.md beside this file.
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

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
TESTS = {
    "arrays.py": "arrays representation",
    "norms.py": "norms lowrank",
    "integers.py": "integers quantization",
    "qparams.py": "qparams quantization",
    "subscripts.py": "representation",
    "representation.py": "representation",
    "compressors/svd.py": "lowrank",
    "compressors/tucker.py": "tucker",
    "compressors/pruning.py": "pruning prune_channels",
    "compressors/schedules.py": "schedules",
    "compressors/quantization.py": "quantization rounding",
    "compressors/rounding.py": "rounding",
    "compressors/clustering.py": "clustering",
    "compressors/chaining.py": "chain",
}
# What a survivor of its own tests still has to get past.
WIDER = "arrays norms integers qparams representation lowrank pruning quantization chain public"

SECONDS = 60
"""Of processor time, which does not depend on what else runs: a mutant that needs more never ends.

Each of the two runs takes half of it where nothing is wrong.
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
    source = (ROOT / "minicompress" / file).read_text()
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


def run(mutant: tuple[str, str, int], copy: Path) -> dict:
    """Whether the tests kill a mutant, and how it differs."""
    file, name, occurrence = mutant
    target = copy / "minicompress" / file
    source = (ROOT / "minicompress" / file).read_text()
    changed = mutate_code(source, get_operator(name)(), occurrence)
    assert changed is not None
    target.write_text(changed)
    start, killed = time.monotonic(), ""
    own = [f"tests/test_{t}.py" for t in TESTS[file].split()]
    wider = [f"tests/test_{t}.py" for t in WIDER.split() if f"tests/test_{t}.py" not in own]
    for tests in (own, wider):
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-B",
                    "-m",
                    "pytest",
                    "-x",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    *tests,
                ],
                cwd=copy,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=60 * SECONDS,
            )
            failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
            ended = "did not start" if done.returncode > 0 else "did not end"
            killed = (failed or [ended])[0] if done.returncode else ""
        except subprocess.TimeoutExpired:
            killed = "did not end"
        if killed:
            break
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
    parser.add_argument("--only", nargs="*", default=list(TESTS), help="files under minicompress/")
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

"""The rooms of the house: who imports whom, how long a file is, what a bare import brings."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutate import ELSEWHERE, checked_by

PACKAGE = Path(__file__).parents[1] / "minicompress"

ORDER = {
    "": "errors arrays tables norms subscripts integers qparams representation datasets",
    "compressors/bounds": "svd tucker pruning clustering quantization chaining",
    "compressors": "svd randomized tucker pruning schedules quantization stochastic "
    "compensated exact_clustering clustering chaining",
    "nn/kernels": "windows direct winograd",
    "nn": "convolution pooling activations rearranging losses factors layer joins pointwise "
    "stateless normalization layers network composition parameters gradient statistics "
    "optimizers training architectures",
    "integer": "requantization stateless joins layers model forms conversion",
    "storage": "bits huffman range_coder entropy matrices sections coding networks files container "
    "named_arrays",
    "analysis": "array_sizes accounting sensitivities",
    "certify": "pairs curves operator_norms lipschitz zonotope following float_error margins "
    "certificates attacks",
    "search": "weights plan methods knapsack choices searching",
    "rewrite": "batch_norm channel_names channels dense low_rank replacing smaller_kernels "
    "compensation bias_correction equalization",
    "recipes": "structure recipe deep_compression latent rate dead_units rate_recipe",
    "early_exit": "exits training thresholds file",
    "interchange": "c_weights c_plan c_expressions c_windows c_pointwise c_layers c_text c "
    "onnx_graph onnx_layers onnx_integer onnx_file onnx_import_constants onnx_import_file "
    "onnx_import_draft onnx_import_nodes onnx_import_layers onnx_import_pointwise onnx_import "
    "onnx_rewriting onnx_decoding layouts array_names state_dict tensor_files",
    "testing": "strategies models laws checks",
    "experiments": "comparison table certification model_files file_evaluation compressing budget "
    "budgeted_file report figures page",
    " ": "cli __main__",
}
# From the foundation upward: a module imports only from those named before it.
ROOMS = [f"{room}/{m}".lstrip(" /") for room, names in ORDER.items() for m in names.split()]

FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
MODULES = [f.removesuffix(".py") for f in FILES if not f.endswith("__init__.py")]
DOORS = {file.removesuffix("/__init__.py") for file in FILES if file.endswith("/__init__.py")}
LONGEST = 400


def imports(source, package):
    """The modules that a source imports, as dotted names; relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def broken_rules(module, source):
    """What a module imports that its room forbids."""
    above = ROOMS[: ROOMS.index(module)]
    room = module.split("/")[0]
    for name in imports(source, ".".join(["minicompress", *module.split("/")[:-1]])):
        parts = name.split(".")
        if parts[0] == "hypothesis" and room != "testing":
            yield f"{module} imports {name}: only minicompress.testing may"
        if parts[0] in {"pytest", "torch", "tensorflow", "sklearn"}:
            yield f"{module} imports {name}: numpy and scipy are all there is at run time"
        if parts[0] != "minicompress":
            continue
        path = "/".join(parts[1:])
        target = next((m for m in (path, path.rpartition("/")[0]) if m in ROOMS), None)
        if target and target not in above:
            yield f"{module} imports {target}, which stands below it"
        if target is None and name != "minicompress.__version__":
            yield f"{module} imports {name} through a door, not from the file that has it"
        target_room = path.split("/")[0]
        if target_room == "experiments" and room not in {"experiments", "cli"}:
            yield f"{module} imports {path}: only cli imports experiments"
        if {room, target_room} == {"nn", "compressors"}:
            yield f"{module} imports {path}: nn and compressors know nothing of each other"
        if target_room == "testing" and room not in {"testing", "cli"}:
            yield f"{module} imports {path}: nobody needs hypothesis at run time"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_the_rooms_above_it(module):
    assert module in ROOMS, f"{module} has no place in the list of rooms"
    assert list(broken_rules(module, (PACKAGE / f"{module}.py").read_text())) == []


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_long(file):
    assert len((PACKAGE / file).read_text().splitlines()) <= LONGEST


def test_the_list_of_rooms_names_each_once():
    assert len(set(ROOMS)) == len(ROOMS)


def names_of(door):
    """What stands in the `__all__` of a door; None if it has none."""
    for node in ast.parse((PACKAGE / door / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


# Nobody enters these from outside: the door of compressors and of nn has their names, cli has main.
WITHOUT_NAMES = {"compressors/bounds", "nn/kernels", "experiments"}


@pytest.mark.parametrize("door", sorted(DOORS))
def test_every_room_has_a_door_with_names(door):
    assert bool(names_of(door)) == (door not in WITHOUT_NAMES)
    assert importlib.import_module(f"minicompress.{door.replace('/', '.')}").__doc__


def test_no_function_has_the_name_of_a_room():
    rooms = {door.rpartition("/")[2] for door in DOORS}
    for module in MODULES:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        assert not rooms & {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, module


@pytest.mark.parametrize("module", MODULES)
def test_a_mutant_of_every_module_is_tested(module):
    """By a file that has its name, or one that `mutate.py` tells, and by those of its room."""
    tests = checked_by(f"{module}.py")
    own = ELSEWHERE.get(module.rpartition("/")[2])
    assert own is None or tests[0] == f"tests/test_{own}.py"
    assert tests


WRONG = {
    "nn/layers": "from minicompress.compressors.lowrank import truncated_svd",
    "compressors/pruning": "from minicompress.nn import layers",
    "arrays": "import minicompress.representation",
    "norms": "def f():\n    from minicompress import integers",
    "nn/pooling": "from .layers import Conv2D",
    "analysis/accounting": "from hypothesis import given",
    "compressors/chaining": "from minicompress.testing.strategies import weights",
    "search/searching": "import torch.nn",
    "recipes/recipe": "from minicompress.storage import save",
    "certify/attacks": "import minicompress.nn",
    "__main__": "from minicompress.experiments import budget",
}


@pytest.mark.parametrize("module", WRONG)
def test_a_planted_import_is_caught(module):
    assert list(broken_rules(module, WRONG[module]))


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_a_bare_import_brings_neither_test_nor_plot_packages():
    loaded = run("import minicompress, sys; print(*sys.modules)").split()
    assert "minicompress" in loaded
    assert not {"hypothesis", "pytest", "matplotlib", "onnx"} & {m.split(".")[0] for m in loaded}


def seeded_draws(source):
    """Property tests and strategies that make a generator: arrays that could not shrink."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
            if re.search(r"\b(given|composite)\b", decorators):
                body = "\n".join(lines[node.lineno : node.end_lineno])
                if re.search(r"default_rng\((?!\d+\))|RandomState|randoms\(|random_module", body):
                    yield node.name


def test_no_strategy_draws_a_seed_and_no_test_is_a_class():
    paths = [*Path(__file__).parent.glob("*.py"), *(PACKAGE / "testing").glob("*.py")]
    assert len(paths) > 10
    for path in paths:
        source = path.read_text()
        assert list(seeded_draws(source)) == [], path.name
        classes = [n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)]
        assert not [name for name in classes if name.startswith("Test")], path.name


def test_a_planted_seed_is_caught():
    planted = "@given(st.integers())\ndef test_it(seed):\n    np.random.default_rng(seed).random(3)"
    assert list(seeded_draws(planted)) == ["test_it"]

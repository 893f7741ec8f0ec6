"""The law of imports: a module of cropreg imports only what stands before it, and heavy packages only where they are at home.

The sources are parsed, not imported, so the law also holds for imports inside functions.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Place:
    """Where a module stands: what it may import is decided by the order of this table and by these two lists."""

    name: str  # a module, or a folder of modules that may import each other
    heavy: tuple[str, ...] = ()  # packages it may import at its top
    late: tuple[str, ...] = field(default=())  # packages it may import inside functions only


CV, TORCH, RAY = ("cv2",), ("torch", "torchvision"), ("ray",)

PLACES = [
    # 0 words
    Place("errors"),
    Place("settings"),
    Place("faults"),
    Place("logs", late=("rich",)),
    Place("boxes"),
    Place("spill"),
    # 1 files
    Place("images", heavy=("cv2", "PIL"), late=("pyvips", "rawpy", "pi_heif", "tifffile", "imagecodecs")),
    Place("storage", heavy=("pyarrow",)),
    Place("watching"),
    Place("reviews", heavy=("pyarrow",)),
    Place("schema", heavy=("pyarrow",)),
    # 2 pairs -> boxes
    Place("pairs", heavy=("pyarrow",)),
    Place("known"),
    Place("matching", heavy=CV),
    Place("labels", heavy=("cv2", "pyarrow")),
    Place("child", heavy=CV),
    Place("content", heavy=CV),
    Place("isolation", heavy=CV),
    # 3 boxes -> examples
    Place("splits", heavy=("pyarrow",)),
    Place("groups", heavy=("pyarrow",)),
    Place("augment"),
    Place("strips", heavy=CV),
    Place("cache"),
    Place("proxies", heavy=("pyarrow",)),
    Place("dataset", heavy=("cv2", "pyarrow", *TORCH)),
    Place("loading", heavy=TORCH),
    # 4 model
    Place("trimming", heavy=TORCH),
    Place("refiner", heavy=TORCH),
    Place("edges", heavy=TORCH),
    Place("model", heavy=(*TORCH, "safetensors")),
    Place("losses", heavy=TORCH),
    Place("checkpoint", heavy=(*TORCH, "safetensors")),
    Place("proportions", heavy=TORCH),
    # 5 learning, judging
    Place("metrics", heavy=TORCH),
    Place("training", heavy=TORCH),
    Place("tracking", late=("tensorboardX", "mlflow", "wandb")),
    Place("runs", heavy=TORCH),
    Place("calibration", heavy=TORCH),
    Place("promise", heavy=TORCH),
    Place("novelty", heavy=TORCH),
    Place("doubt", heavy=TORCH),
    Place("evaluation", heavy=("cv2", "pyarrow", *TORCH)),
    # 6 using
    Place("prediction", heavy=("cv2", "pyarrow", *TORCH)),
    Place("learning", heavy=("cv2", "pyarrow", *TORCH)),
    Place("judging", heavy=TORCH),
    Place("champion", heavy=TORCH),
    Place("constraints"),
    Place("writing", heavy=("cv2", "PIL"), late=("pyvips",)),
    Place("interchange", heavy=("pyarrow",)),
    Place("cropping"),
    Place("output"),
    Place("corrections"),
    Place("export", heavy=TORCH, late=("onnx", "onnxruntime", "onnxscript")),
    Place("report", heavy=("cv2", "pyarrow"), late=("matplotlib", "jinja2")),
    Place("curve", heavy=TORCH),
    Place("review", heavy=("cv2", "pyarrow", "fastapi", "uvicorn")),
    # 7 pipelines: one file a verb; they never import each other
    Place("pipelines", heavy=("cv2", "pyarrow", "uvicorn", *TORCH, *RAY), late=("PIL",)),
    # 8 doors
    Place("demo", heavy=CV, late=("matplotlib", "pyarrow")),
    Place("cli", heavy=("cyclopts",), late=("rich", "pyarrow")),
]
ORDER = {place.name: i for i, place in enumerate(PLACES)}
HEAVY = {package for place in PLACES for package in (*place.heavy, *place.late)} | {"pandas"}  # pandas is at home nowhere
EMPTY_WORDS = ("util", "utils", "helper", "helpers", "misc", "common", "manager", "managers")
MAX_DOOR_LINES = 25
FOR_ALL_PIPELINES = {"cluster"}  # starts and ends Ray for every verb


def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``cropreg``: ``pairs``, ``matching/place``; packages by their folder."""
    files = sorted((ROOT / "cropreg").rglob("*.py"))
    names = [path.relative_to(ROOT / "cropreg").with_suffix("").as_posix() for path in files]
    return {name.removesuffix("/__init__").replace("__init__", ""): path for name, path in zip(names, files, strict=True)}


def place_of(module: str) -> Place | None:
    """The row of the table a module belongs to: its own, or its folder's."""
    head = module.split("/")[0]
    return next((place for place in PLACES if place.name == head), None)


def imports(source: str) -> Iterator[tuple[str, bool, int]]:
    """Yields every imported name, whether the import runs when the module is imported, and its line.

    ``from a.b import c`` yields ``a.b.c``: c may be a module.  An import under ``if TYPE_CHECKING`` never runs, but says what the
    module knows of, so it counts as one inside a function.
    """
    yield from _imports(ast.parse(source).body, top=True)


def _imports(nodes: list[ast.stmt], top: bool) -> Iterator[tuple[str, bool, int]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, top, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", top, node.lineno) for alias in node.names)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(node)
            for _, block in ast.iter_fields(node):
                if isinstance(block, list):
                    statements = [item for item in block if isinstance(item, ast.stmt)]
                    nested = [item.body for item in block if isinstance(item, ast.ExceptHandler | ast.match_case)]
                    yield from _imports(statements + [stmt for body in nested for stmt in body], top and not inside)


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def complaints(module: str, source: str) -> list[str]:
    """Says everything that is unlawful about the imports of one module."""
    place = place_of(module)
    if place is None:
        return [f"cropreg/{module}.py has no place: name it in the table of tests/test_floors.py, where it belongs"]
    found = []
    for name, top, line in imports(source):
        where = f"cropreg/{module}.py:{line}"
        package = name.split(".")[0]
        if name.startswith("."):
            found.append(f"{where} imports {name}: write the full name, cropreg.…")
        elif name.endswith(".*"):
            found.append(f"{where} imports * from {name[:-2]}: name what you need")
        elif package == "cropreg":
            found += [f"{where} {fault}" for fault in _inner_faults(module, place, name)]
        elif package in HEAVY and package not in (*place.heavy, *place.late):
            found.append(f"{where} imports {package}, which is not at home in {place.name}")
        elif package in HEAVY and top and package not in place.heavy:
            found.append(f"{where} imports {package} when it is imported itself: import it inside the function that needs it")
    return list(dict.fromkeys(found))  # `from a import b, c` breaks one law once


def _inner_faults(module: str, place: Place, name: str) -> Iterator[str]:
    parts = name.split(".")[1:]
    other = place_of(parts[0]) if parts else None
    if other is None:  # `from cropreg import __version__`, or a public name that only its home may give
        if parts and parts[0] != "__version__":
            yield f"imports {parts[0]} from the package's root: import it from the module it lives in"
    elif ORDER[other.name] > ORDER[place.name]:
        yield f"imports cropreg.{parts[0]}, which stands above it"
    elif module.startswith("pipelines/") and other is place and not set(parts[1:2]) <= FOR_ALL_PIPELINES:
        yield f"imports {parts[1]}: pipelines never import each other, they meet in a table"


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Every module that can reach itself through imports that run when a module is imported."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        stack = list(graph.get(start, ()))
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                stack += graph.get(name, ())
        return seen

    return sorted(name for name in graph if name in reach(name))


def import_graph(folder: str) -> dict[str, set[str]]:
    """Which modules of one folder of cropreg import which others of it, anywhere in their source."""
    inside = {name: path for name, path in modules().items() if name.startswith(folder + "/")}
    graph: dict[str, set[str]] = {}
    for module, path in inside.items():
        targets = ("/".join(name.split(".")[1:3]) for name, _, _ in imports(path.read_text()))
        graph[module] = {target for target in targets if target in inside}
    return graph


def test_every_module_has_a_place_in_the_table() -> None:
    homeless = [name for name in modules() if name and place_of(name) is None]
    assert not homeless, f"name them in the table of tests/test_floors.py, where they belong: {homeless}"


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_module_imports_only_what_stands_before_it(module: str) -> None:
    found = complaints(module, modules()[module].read_text())
    assert not found, "\n" + "\n".join(found)


def test_package_root_imports_nothing_when_it_is_imported() -> None:
    ran = [name for name, top, _ in imports(modules()[""].read_text()) if top]
    assert {name.split(".")[0] for name in ran} <= set(sys.stdlib_module_names), ran


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in modules() if "/" in name}))
def test_folder_has_no_cycles_of_imports(folder: str) -> None:
    assert cycles(import_graph(folder)) == []


def test_no_module_has_an_empty_name() -> None:
    empty = [name for name in modules() if set(name.replace("_", "/").split("/")) & set(EMPTY_WORDS)]
    assert not empty, f"a name says what is inside; these do not: {empty}"


def test_doors_for_ray_jobs_are_short_and_know_no_heavy_package() -> None:
    for path in sorted((ROOT / "ray_jobs").glob("*.py")):
        source = path.read_text()
        assert len(source.splitlines()) <= MAX_DOOR_LINES, f"{path.name} is a door of at most {MAX_DOOR_LINES} lines"
        heavy = [name for name, _, _ in imports(source) if name.split(".")[0] in HEAVY]
        assert not heavy, f"{path.name} only parses, runs and prints; it needs no {heavy}"


def loaded_by(*names: str) -> set[str]:
    """Which heavy packages a fresh Python holds after importing some modules of cropreg."""
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif("cli" not in modules(), reason="there is no command line yet")
def test_command_line_is_imported_without_heavy_packages() -> None:
    assert loaded_by("cropreg.cli") <= {"cyclopts", "rich"}  # cyclopts brings rich; more, and `cropreg --help` is slow


def test_words_files_and_matching_are_imported_without_torch_or_ray() -> None:
    low = [name for name in modules() if name and (place := place_of(name)) and ORDER[place.name] <= ORDER["splits"]]
    assert loaded_by(*(f"cropreg.{name.replace('/', '.')}" for name in low)) <= {"cv2", "PIL", "pyarrow"}


@pytest.mark.skipif("pipelines/match" not in modules(), reason="there is no matching pipeline yet")
def test_matching_worker_starts_without_torch() -> None:
    assert not loaded_by("cropreg.pipelines.match") & {"torch", "torchvision", "matplotlib", "pyvips"}


# The checker itself: a law that cannot be broken says nothing.
@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("boxes", "from cropreg.pairs import Pair", "stands above it"),
        ("boxes", "def f():\n    import cropreg.pairs", "stands above it"),
        ("boxes", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cropreg.pairs import Pair", "stands above it"),
        ("boxes", "try:\n    import x\nexcept ImportError:\n    import torch", "not at home"),
        ("boxes", "from . import errors", "write the full name"),
        ("boxes", "from cropreg.errors import *", "name what you need"),
        ("boxes", "from cropreg import find", "from the package's root"),
        ("matching/place", "import torch", "not at home"),
        ("matching/place", "from cropreg import labels", "stands above it"),
        ("dataset", "import ray.data", "not at home"),
        ("report", "import matplotlib.pyplot as plt", "inside the function"),
        ("report", "class A:\n    from jinja2 import Template", "inside the function"),
        ("writing", "import pyvips", "inside the function"),
        ("pipelines/train", "from cropreg.pipelines.match import match", "never import each other"),
        ("pipelines/train", "from cropreg.pipelines import match", "never import each other"),
        ("schema", "import pandas as pd", "not at home"),
        ("pipelines/train", "from cropreg import cli", "stands above it"),
        ("cli", "import ray", "not at home"),
        ("tools", "", "no place"),
    ],
)
def test_checker_complains_when_the_law_is_broken(module: str, source: str, complaint: str) -> None:
    found = complaints(module, source)
    assert len(found) == 1, found
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pairs", "from cropreg.boxes import Box\nfrom cropreg import errors\nimport numpy as np"),
        ("matching/find", "import cv2\nfrom cropreg.matching.place import place\nfrom cropreg.images import read"),
        ("report", "def plot():\n    import matplotlib.pyplot as plt"),
        ("pipelines/match", "import ray\nfrom cropreg.labels import label"),
        ("pipelines/match", "from cropreg.pipelines import cluster"),
    ],
)
def test_checker_is_silent_when_the_law_is_kept(module: str, source: str) -> None:
    assert complaints(module, source) == []


def test_checker_finds_cycles() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]

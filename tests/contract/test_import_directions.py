"""Who may import whom: every import of both packages, those inside functions too, against one table.

The table is design and law at once: a new edge between rooms is a decision, made here and explained in docs/route.md.
"""

import ast
import graphlib
import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dinov2", "vet_extensions")

CORE_BOTTOM = {"dinov2.utils", "dinov2.distributed"}
CORE_BELOW_TRAIN = {
    *CORE_BOTTOM,
    "dinov2.configs",
    "dinov2.logging",
    "dinov2.layers",
    "dinov2.loss",
    "dinov2.models",
    "dinov2.data",
    "dinov2.fsdp",
    "dinov2.utils.config",
}
VET_BOTTOM = {"vet_extensions.schema", "vet_extensions.errors"}
EVERYTHING = {"*"}

# Room -> rooms it may import, besides itself. A module belongs to the room with the longest name that it begins with.
# `dinov2.utils.errors` and `dinov2.utils.registry` are the floor: every room that may use `dinov2` at all may use them.
ALLOWED: dict[str, set[str]] = {
    "dinov2": set(),
    "dinov2.utils": set(),
    "dinov2.distributed": {"dinov2.utils"},
    "dinov2.logging": CORE_BOTTOM,
    "dinov2.layers": {"dinov2.distributed"},
    "dinov2.loss": CORE_BOTTOM,
    "dinov2.models": {"dinov2.layers", "dinov2.utils"},
    "dinov2.data": CORE_BOTTOM,
    "dinov2.fsdp": CORE_BOTTOM,
    "dinov2.configs": set(),
    "dinov2.utils.config": {*CORE_BOTTOM, "dinov2.configs", "dinov2.logging"},
    "dinov2.train": {*CORE_BELOW_TRAIN, "dinov2.eval"},
    "dinov2.eval": {*CORE_BOTTOM, "dinov2.data", "dinov2.models", "dinov2.logging", "dinov2.utils.config"},
    "dinov2.hub": {"dinov2.models", "dinov2.utils"},
    "dinov2.run": {*CORE_BELOW_TRAIN, "dinov2.train", "dinov2.eval"},
    "vet_extensions": {"vet_extensions.data", "vet_extensions.routing"},
    "vet_extensions.schema": set(),
    "vet_extensions.errors": {"dinov2.utils.errors"},
    "vet_extensions.progress": set(),
    "vet_extensions.phantom": VET_BOTTOM,
    "vet_extensions.manifest": VET_BOTTOM,
    "vet_extensions.shards": VET_BOTTOM,
    "vet_extensions.intake": {*VET_BOTTOM, "vet_extensions.manifest", "vet_extensions.shards"},
    "vet_extensions.routing": {*VET_BOTTOM, "dinov2.loss"},
    "vet_extensions.data": {
        *VET_BOTTOM,
        "vet_extensions.manifest",
        "vet_extensions.shards",
        "dinov2.data",
        "dinov2.loss",
        "dinov2.utils",
    },
    "vet_extensions.evaluation": {
        *VET_BOTTOM,
        *CORE_BOTTOM,
        "vet_extensions.manifest",
        "vet_extensions.shards",
        "vet_extensions.intake",
        "vet_extensions.data",
        "dinov2.eval",
        "dinov2.models",
        "dinov2.data",
        "dinov2.utils.config",
    },
    "vet_extensions.export": {*VET_BOTTOM, "vet_extensions", "dinov2.models", "dinov2.eval", "dinov2.utils"},
    "vet_extensions.analysis": {*VET_BOTTOM, "vet_extensions.manifest", "vet_extensions.evaluation"},
    "vet_extensions.ablation": {
        *VET_BOTTOM,
        "vet_extensions.manifest",
        "vet_extensions.evaluation",
        "vet_extensions.analysis",
        "dinov2.run",
        "dinov2.configs",
        "dinov2.data",
        "dinov2.loss",
        "dinov2.distributed",
        "dinov2.utils",
        "dinov2.utils.config",
    },
    "vet_extensions.demo": EVERYTHING,
    "vet_extensions.commands": EVERYTHING,
    "vet_extensions.cli": EVERYTHING,
}
FLOOR = {"dinov2.utils.errors", "dinov2.utils.registry"}

# Narrower than a whole room: of that room, only these modules.
ONLY = {
    ("dinov2.train", "dinov2.eval"): {"dinov2.eval.knn", "dinov2.eval.utils"},
    ("vet_extensions.data", "dinov2.loss"): {"dinov2.loss.routing"},
    ("vet_extensions.routing", "dinov2.loss"): {"dinov2.loss.routing"},
    ("vet_extensions.export", "dinov2.eval"): {"dinov2.eval.setup", "dinov2.eval.run_folder"},
    ("vet_extensions.evaluation", "vet_extensions.intake"): {
        *(
            f"vet_extensions.intake.{name}"
            for name in ("decode", "dicom", "image", "opening", "options", "pixels", "refusal")
        ),
        *(
            f"vet_extensions.intake.sources.{name}"
            for name in (
                *("base", "chexpert", "image_folder", "labelling", "listing"),
                *("mimic_cxr", "mura", "nih_cxr14", "tables", "vindr_mammo"),
            )
        ),
    },
    ("vet_extensions.analysis", "vet_extensions.evaluation"): {"vet_extensions.evaluation.features"},
    ("vet_extensions.ablation", "vet_extensions.analysis"): {
        "vet_extensions.analysis.curves",
        "vet_extensions.analysis.pictures",
        "vet_extensions.analysis.pages",
    },
}

WITHOUT_TORCH = (
    "vet_extensions.schema",
    "vet_extensions.errors",
    "vet_extensions.progress",
    "vet_extensions.phantom",
    "vet_extensions.intake",
    "vet_extensions.manifest",
    "vet_extensions.shards",
)
LIGHT = {*VET_BOTTOM, "vet_extensions", "vet_extensions.progress", "vet_extensions.commands", "dinov2.run", "typer"}


@dataclass(frozen=True)
class Import:
    """One import statement's target. `at_load` is false for imports inside functions and under TYPE_CHECKING."""

    importer: str
    target: str
    line: int
    at_load: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_names() -> dict[str, Path]:
    """Every module of both packages: dotted name -> file."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(source: str, *, module: str, is_package: bool, known: set[str]) -> list[Import]:
    """All imports of a source text; `from package import name` counts as the module `package.name` where that is one."""
    found: list[Import] = []

    def visit(node: ast.AST, *, at_load: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_typing_guard(child)
            if isinstance(child, ast.Import):
                found.extend(Import(module, name.name, child.lineno, at_load) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = _base_of(child, module=module, is_package=is_package)
                for name in child.names:
                    dotted = f"{base}.{name.name}"
                    found.append(Import(module, dotted if dotted in known else base, child.lineno, at_load))
            visit(child, at_load=at_load and not inside)

    visit(ast.parse(source), at_load=True)
    return found


def _is_typing_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _base_of(node: ast.ImportFrom, *, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def room_of(module: str) -> str:
    """The room a module of ours belongs to (without a row in the table: itself); for others, their package."""
    parts = module.split(".")
    for end in range(len(parts), 1, -1):
        if ".".join(parts[:end]) in ALLOWED:
            return ".".join(parts[:end])
    return module if parts[0] in PACKAGES else parts[0]


def is_allowed(edge: Import) -> bool:
    """Whether the table permits this import."""
    here, there = room_of(edge.importer), room_of(edge.target)
    if here == there or ALLOWED[here] == EVERYTHING:
        return True
    if edge.target in FLOOR and (here.startswith("dinov2") or any(room.startswith("dinov2") for room in ALLOWED[here])):
        return True
    narrow = ONLY.get((here, there))
    return there in ALLOWED[here] and (narrow is None or edge.target in narrow)


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    return module_names()


@pytest.fixture(scope="module")
def imports(modules: dict[str, Path]) -> list[Import]:
    found = []
    for name, path in modules.items():
        text = path.read_text(encoding="utf-8")
        found += imports_of(text, module=name, is_package=path.name == "__init__.py", known=set(modules))
    return found


def ours(imports: list[Import]) -> list[Import]:
    return [edge for edge in imports if edge.target.split(".")[0] in PACKAGES]


def test_every_module_belongs_to_a_room(modules: dict[str, Path]) -> None:
    homeless = sorted({room_of(name) for name in modules} - set(ALLOWED))
    assert not homeless, f"rooms without a row in the table: {homeless}"


def test_rooms_import_only_what_the_table_allows(imports: list[Import]) -> None:
    wrong = [str(edge) for edge in ours(imports) if room_of(edge.importer) in ALLOWED and not is_allowed(edge)]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle_between_rooms(imports: list[Import]) -> None:
    graph: dict[str, set[str]] = {}
    for edge in ours(imports):
        here, there = room_of(edge.importer), room_of(edge.target)
        if here != there:
            graph.setdefault(here, set()).add(there)
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_core_never_names_the_extensions() -> None:
    texts = [path for path in (ROOT / "dinov2").rglob("*") if path.suffix in {".py", ".yaml", ".yml", ".md", ".txt"}]
    naming = [str(path.relative_to(ROOT)) for path in texts if "vet_extensions" in path.read_text(encoding="utf-8")]
    assert not naming, f"dinov2 must not know vet_extensions; named in {naming}"


def test_rooms_that_read_archives_never_import_torch(imports: list[Import], modules: dict[str, Path]) -> None:
    """Neither by themselves, inside a function, nor through a module of ours that they load."""
    loads: dict[str, set[str]] = {}
    for edge in imports:
        if edge.at_load:
            loads.setdefault(edge.importer, set()).update(_with_parents(edge.target))
    wrong = [str(edge) for edge in imports if _is_torch(edge.target) and edge.importer.startswith(WITHOUT_TORCH)]
    for name in modules:
        if name.startswith(WITHOUT_TORCH):
            reached = _reach(name, loads)
            wrong += [
                f"{name} loads {via}, which loads torch" for via in reached if any(map(_is_torch, loads.get(via, ())))
            ]
    assert not wrong, "\n".join(wrong)


def _is_torch(target: str) -> bool:
    return target.split(".")[0] == "torch"


def _with_parents(target: str) -> set[str]:
    parts = target.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def _reach(start: str, loads: dict[str, set[str]]) -> set[str]:
    seen, todo = set(), list(_with_parents(start))
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += loads.get(name, ())
    return seen


def test_the_command_line_loads_nothing_heavy(imports: list[Import]) -> None:
    front = [edge for edge in imports if room_of(edge.importer) in {"vet_extensions.cli", "vet_extensions.commands"}]
    heavy = [
        str(edge)
        for edge in front
        if edge.at_load
        and edge.target.split(".")[0] not in sys.stdlib_module_names
        and room_of(edge.target) not in LIGHT
    ]
    assert front, "the command line was not found"
    assert not heavy, "import these inside the verb:\n" + "\n".join(heavy)


def test_launchers_load_train_and_eval_only_inside_functions(imports: list[Import]) -> None:
    early = [
        str(edge)
        for edge in imports
        if edge.at_load
        and edge.importer.startswith("dinov2.run")
        and room_of(edge.target) in {"dinov2.train", "dinov2.eval"}
    ]
    assert not early, "\n".join(early)


def test_every_third_party_import_is_a_declared_dependency(imports: list[Import]) -> None:
    requirements = re.findall(r'"([A-Za-z0-9_-]+)(?:\[[a-z]+\])?>=', (ROOT / "setup.py").read_text(encoding="utf-8"))
    declared = {_canonical(name) for name in requirements}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for edge in imports:
        top = edge.target.split(".")[0]
        if top in sys.stdlib_module_names or top in PACKAGES:
            continue
        if not {_canonical(name) for name in [top, *distributions.get(top, [])]} & declared:
            undeclared.add(f"{edge.importer} imports {top}")
    assert not undeclared, "add to setup.py: " + ", ".join(sorted(undeclared))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_walk_sees_relative_imports_and_those_inside_functions() -> None:
    source = "from . import attention\nfrom ..loss import DINOLoss\ndef f():\n    import vet_extensions.schema\n"
    known = {"dinov2.layers.attention"}
    found = imports_of(source, module="dinov2.layers", is_package=True, known=known)
    assert [(edge.target, edge.at_load) for edge in found] == [
        ("dinov2.layers.attention", True),
        ("dinov2.loss", True),
        ("vet_extensions.schema", False),
    ]
    assert [is_allowed(edge) for edge in found] == [True, False, False]

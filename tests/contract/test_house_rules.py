"""The style card's rules that a machine can check, over every source file of the house."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("dinov2", "vet_extensions")
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 80
UNDOCUMENTED_LINES = 8
"""Public functions longer than this have a docstring."""

READS_ENVIRONMENT = {"dinov2/distributed/launch.py"}
MAY_PRINT = {"vet_extensions/cli.py", "vet_extensions/progress.py"}
"""And so may modules that are programs themselves: those with an `if __name__ == "__main__"`."""

MACHINE_PATH = re.compile(r"""(?<![\w.~-])/(?:home|root|work|tmp|mnt|scratch|Users|data\d*)/\w""")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=relative(path))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public_functions(node: ast.Module | ast.ClassDef) -> Iterator[Function]:
    """Functions and methods that others may call: no underscore in the way, and not local to another function."""
    for child in node.body:
        if isinstance(child, Function | ast.ClassDef) and child.name.startswith("_"):
            continue
        if isinstance(child, Function):
            yield child
        elif isinstance(child, ast.ClassDef):
            yield from public_functions(child)


def n_lines(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def called_name(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_no_file_is_longer_than_one_room() -> None:
    counts = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*LIBRARIES)}
    long = {name: count for name, count in counts.items() if count > MAX_FILE_LINES}
    assert counts, "no sources were found"
    assert not long


def test_no_function_is_longer_than_one_look() -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name}: {n_lines(node)} lines"
        for path in sources(*LIBRARIES, "tests", "benchmarks")
        for node in functions(parsed(path))
        if n_lines(node) > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_public_functions_of_some_length_say_what_they_do() -> None:
    silent = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in sources(*LIBRARIES)
        for node in public_functions(parsed(path))
        if n_lines(node) > UNDOCUMENTED_LINES and ast.get_docstring(node) is None
    ]
    assert not silent, "\n".join(silent)


def test_every_module_with_code_opens_with_a_paragraph() -> None:
    silent = [
        relative(path)
        for path in sources(*LIBRARIES)
        if (tree := parsed(path)).body and ast.get_docstring(tree) is None
    ]
    assert not silent, "\n".join(silent)


def test_no_error_is_swallowed() -> None:
    swallowed = []
    for path in sources(*LIBRARIES, "tests", "benchmarks"):
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            is_broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            if node.type is None or (is_broad and all(isinstance(line, ast.Pass) for line in node.body)):
                swallowed.append(f"{relative(path)}:{node.lineno}")
    assert not swallowed, "\n".join(swallowed)


def test_no_path_of_one_machine_is_written_down() -> None:
    texts = [
        path
        for folder in ("dinov2", "vet_extensions", "tests", "benchmarks", "configs", "slurm", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".yml", ".md", ".toml", ".sh", ".html", ".json"}
    ]
    texts += [
        path for path in ROOT.iterdir() if path.suffix in {".py", ".md", ".toml", ".txt"} or path.name == "Makefile"
    ]
    found = [
        f"{relative(path)}:{number}: {line.strip()[:100]}"
        for path in texts
        if path.name != Path(__file__).name
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "is_found"), [("cd /home/me/x", True), ("a/work/b", False), ("/tmp/x", True), ("~/data/x", False)]
)
def test_the_search_for_machine_paths_can_tell(line: str, is_found: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is is_found


def test_nothing_moves_to_an_unnamed_cuda_device() -> None:
    bare = [
        f"{relative(path)}:{node.lineno}"
        for path in sources(*LIBRARIES, "benchmarks")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
    ]
    assert not bare, "take the device from the configuration:\n" + "\n".join(bare)


def test_environment_variables_are_read_in_one_file() -> None:
    readers = {
        relative(path)
        for path in sources(*LIBRARIES)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv", "os.putenv"}
    }
    assert readers <= READS_ENVIRONMENT, f"only {sorted(READS_ENVIRONMENT)} may; found in {sorted(readers)}"


def test_libraries_log_and_only_the_command_line_prints() -> None:
    printing = [
        f"{relative(path)}:{node.lineno}"
        for path in sources(*LIBRARIES)
        if relative(path) not in MAY_PRINT and "__main__" not in path.read_text(encoding="utf-8")
        for node in ast.walk(parsed(path))
        if called_name(node) == "print"
    ]
    assert not printing, "\n".join(printing)


def test_nothing_unfinished_is_left_behind() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = [
        f"{relative(path)}:{number}"
        for path in sources(*LIBRARIES, "tests", "benchmarks")
        if path.name != Path(__file__).name
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert not found, "\n".join(found)


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports test modules by base name: two of one name hide each other."""
    names = [path.name for path in sources("tests") if path.name.startswith("test_")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{relative(page)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert pages, "no pages were found"
    assert not broken, "\n".join(broken)

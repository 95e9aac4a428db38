"""The rooms of the package: what imports what, and what lies at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "xlsr_transducer"
# From the top down: a room imports those after it.
ROOMS = ["serving", "evaluation", "exporting", "training", "recognition", "search", "model"]
ROOMS += ["loss", "data", "core"]
COMMANDS = sorted((ROOT / PACKAGE).glob("[!_]*.py"))
LONGEST_COMMAND = 120  # lines


def modules(folder: Path) -> dict[str, Path]:
    """Returns the files of all modules in a folder, by full name."""
    paths = sorted(folder.rglob("*.py"))
    names = [".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths)}


def imports(source: str, known: set[str]) -> Iterator[str]:
    """Yields the known modules that a module imports, also those inside its functions."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield from [n for n in (name, name.rpartition(".")[0]) if n in known][:1]


def graph(folder: Path) -> dict[str, set[str]]:
    """Returns what each module in a folder imports of the others."""
    files = modules(folder)
    return {
        name: set(imports(path.read_text(), files.keys())) - {name} for name, path in files.items()
    }


def room_of(module: str) -> int:
    """Returns the place of a module's room in ``ROOMS``; -1 for commands."""
    parts = module.split(".")
    return -1 if len(parts) < 3 and parts[-1] not in ROOMS else ROOMS.index(parts[1])


def upward(found: dict[str, set[str]]) -> list[str]:
    """Returns the imports that lead from a room to one above it, or from command to command."""
    pairs = [(a, b) for a, others in found.items() for b in others if b != PACKAGE]
    return sorted(f"{a} imports {b}" for a, b in pairs if room_of(b) < max(room_of(a), 0))


def circle(found: dict[str, set[str]]) -> list[str]:
    """Returns the modules of a circle of imports, if there is one."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as e:
        return e.args[1]
    return []


@pytest.mark.parametrize("folder", [PACKAGE, "local", "benchmarks"])
def test_no_modules_import_each_other_in_a_circle(folder: str) -> None:
    assert circle(graph(ROOT / folder)) == []


def test_rooms_import_downwards_only() -> None:
    assert upward(graph(ROOT / PACKAGE)) == []


def test_a_wrong_import_is_found(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    for room, text in (
        ("core", "def f():\n    from xlsr_transducer.data import x\n"),
        ("data", "import xlsr_transducer.core.x\n"),
        ("search", "from xlsr_transducer.loss.x import y\nimport xlsr_transducer.decode\n"),
        ("loss", ""),
    ):
        (package / room).mkdir(parents=True)
        (package / room / "x.py").write_text(text)
    (package / "decode.py").write_text("from xlsr_transducer.search import x\n")
    found = graph(package)
    assert upward(found) == [
        "xlsr_transducer.core.x imports xlsr_transducer.data.x",
        "xlsr_transducer.search.x imports xlsr_transducer.decode",
    ]
    assert len(circle(found)) == 3


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert folders <= set(ROOMS)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_at_the_top_lie_short_commands_alone(path: Path) -> None:
    text = path.read_text()
    assert "\ndef main(argv" in text and text.endswith("run_command(main)\n")
    assert len(text.splitlines()) < LONGEST_COMMAND

"""The direction of imports: a room may import rooms of its own floor or of the floors above it in this list."""

import ast
from pathlib import Path

import pytest

import monai_jsm

FLOORS = [
    ("geometry",),
    ("saliency", "data", "pyramid"),
    ("losses", "metrics", "networks", "transforms"),
    ("prealignment", "refinement", "engines", "handlers", "report"),
    ("registration", "baselines"),
    ("benchmark",),
    ("apps",),
]
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
PACKAGE = Path(monai_jsm.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.stem.startswith("__"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[str, str]]:
    """(module of monai_jsm, name) of every import anywhere in a file; relative ones made absolute."""
    package = ["monai_jsm", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(module, alias.name) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] == "monai_jsm"]


def room_imported(module: str, name: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_never_to_private_names_of_another_room(path):
    room = room_of(path)
    for module, name in imports_of(path):
        other = room_imported(module, name)
        if other in ("", "__version__"):  # the package itself
            continue
        assert FLOOR_OF[other] <= FLOOR_OF[room], f"{room} imports {other}, which lies above it"
        assert other == room or not name.startswith("_"), f"{room} imports the private {module}.{name}"


def test_every_file_stands_in_a_room_that_has_a_floor():
    assert {room_of(path) for path in FILES} <= set(FLOOR_OF)


def test_the_test_itself_sees_relative_and_absolute_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tests.test_imports.PACKAGE" if __name__.startswith("tests.") else f"{__name__}.PACKAGE", tmp_path
    )
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "x.py"
    file.write_text(
        "from .landmarks import a\nfrom .. import apps\nfrom monai_jsm.report import b\nimport monai_jsm.losses\n"
    )
    assert [room_imported(m, n) for m, n in imports_of(file)] == ["data", "apps", "report", "losses"]

"""The repository's shape: links, folders, who imports whom, file sizes, what each tool sees.

`python tests/test_layout.py` prints the figures: rooms, arrows between them, and files.
"""

import ast
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from parallax._links import LINKED_FOLDERS, refuse_text_links

ROOT = Path(__file__).resolve().parent.parent

# Lowest first; a room may import itself and the rooms on earlier lines. Rooms of one line do not
# import each other. A new file or folder of the package has to be given its line here.
ROOMS = [
    {"_links", "codec", "distributed", "meshes", "kernels", "workload", "bounds", "compression"},
    {"hlo", "parallel", "rules"},
    {"cost", "models", "strategy"},
    {"placement", "strategies", "programs"},
    {"analytic", "results"},
    {"papers", "lenses"},
    {"requests", "explanations"},
    {"search"},
    {"report"},
    {"program"},
    {"engine", "commands"},
    {"studies"},
    {"experiments", "__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}

# Below others in the list and yet not to be known to them: the first three take any JAX program, a
# report renders values and computes none. A room with a dot is one module of it.
MAY_ONLY_IMPORT = {
    "hlo": {"bounds"},
    "cost": {"hlo", "meshes", "bounds", "codec"},
    "parallel": {"meshes", "kernels", "bounds", "compression"},
    "report": {
        "codec",
        "results",
        "workload",
        "meshes.cluster",
        "models.config",
        "papers.paper",
        "papers.results",
        "search.results",
        "search.train_results",
        "explanations.facts",
        "explanations.findings",
        "explanations.source_lines",
    },
}


def python_files(*folders, followlinks=True):
    return sorted(
        file
        for folder in folders
        for parent, children, names in os.walk(ROOT / folder, followlinks=followlinks)
        for file in (Path(parent, name) for name in names)
        if file.suffix == ".py" and "__pycache__" not in parent
        if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
    )


PACKAGE_FILES = python_files("parallax")


def imported_modules(tree):
    """Every absolute module that an import statement may reach, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def upward_imports(source, room):
    """Lines of a file of `room` that import what it may not."""
    allowed = MAY_ONLY_IMPORT.get(room, {r for r in RANK if RANK[r] < RANK[room]})
    found = []
    for line, module in imported_modules(ast.parse(source)):
        parts = module.split(".")
        if parts[0] == "parallax" and (
            len(parts) == 1 or (parts[1] != room and not {parts[1], ".".join(parts[1:3])} & allowed)
        ):
            found.append(f"line {line}: {module}")
    return found


def room_of(file):
    """The first name below `parallax`; None for `parallax/__init__.py`, which may name all."""
    relative = file.relative_to(ROOT / "parallax")
    return None if relative == Path("__init__.py") else relative.parts[0].removesuffix(".py")


def arrows():
    """(room, room it imports) of all rooms, each pair once."""
    found = set()
    for file in PACKAGE_FILES:
        room = room_of(file)
        for _, module in imported_modules(ast.parse(file.read_text(encoding="utf-8"))):
            parts = module.split(".")
            if room and parts[0] == "parallax" and len(parts) > 1 and parts[1] != room:
                found.add((room, parts[1]))
    return found


def circles(pairs):
    """Rooms that can reach themselves; none if the arrows have an order."""
    left = set(pairs)
    while ends := {b for _, b in left} - {a for a, _ in left}:
        left = {(a, b) for a, b in left if b not in ends}
    return {room for pair in left for room in pair}


def file_lengths():
    """Lines of each Python file of the package, tests and benchmarks."""
    files = {f.resolve(): f for f in python_files("parallax", "tests", "benchmarks")}
    return {f: len(f.read_text(encoding="utf-8").splitlines()) for f in files.values()}


def figures():
    """What the house measures, one figure a line."""
    pairs, lengths = arrows(), file_lengths()
    code = {f: n for f, n in lengths.items() if not f.is_relative_to(ROOT / "tests")}
    upward = [(a, b) for a, b in pairs if RANK[b] >= RANK[a]]
    return {
        "rooms": len({room_of(f) for f in PACKAGE_FILES} - {None}),
        "floors": len(ROOMS),
        "arrows": len(pairs),
        "upward arrows": len(upward),
        "rooms in circles": len(circles(pairs)),
        "longest file, lines": max(lengths.values()),
        "files": sum(f.name != "__init__.py" for f in code),
        "files under 40 lines": sum(n < 40 and f.name != "__init__.py" for f, n in code.items()),
        "lines outside tests": sum(code.values()),
    }


def test_the_house_stays_small(capsys):
    measured = figures()
    with capsys.disabled():
        print("", *(f"{name}: {value:,}" for name, value in measured.items()), sep="\n  ")
    assert measured["rooms"] <= 32
    assert measured["arrows"] <= 190
    assert measured["upward arrows"] == measured["rooms in circles"] == 0
    assert measured["longest file, lines"] <= 400
    assert measured["files under 40 lines"] <= measured["files"] / 8


def test_circles_are_seen():
    assert circles({("a", "b"), ("b", "c")}) == set()
    assert circles({("a", "b"), ("b", "c"), ("c", "b")}) >= {"b", "c"}


@pytest.mark.parametrize("name", LINKED_FOLDERS)
def test_links_resolve_to_the_top_level_folders(name):
    link = ROOT / "parallax" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.resolve(strict=True) == ROOT / name


@pytest.mark.parametrize("name", LINKED_FOLDERS)
def test_linked_folders_are_no_top_level_packages(name):
    assert not (ROOT / name / "__init__.py").exists()


def test_a_link_checked_out_as_text_is_one_clear_line(tmp_path):
    (tmp_path / "kernels").mkdir()
    refuse_text_links(tmp_path)
    (tmp_path / "meshes").write_text("../meshes")
    with pytest.raises(ImportError, match=r"meshes is a text file, .*core\.symlinks true"):
        refuse_text_links(tmp_path)


@pytest.mark.parametrize("name", ["kernels", "meshes"])
@pytest.mark.parametrize("in_root", [True, False], ids=["from the root", "from elsewhere"])
def test_top_level_names_are_not_ours(name, in_root, tmp_path):
    """`kernels` and `meshes` belong to other distributions.

    From elsewhere nothing of this tree may answer to the name. From the root Python makes the bare
    folder a namespace package: that runs none of our code and gives way to an installed package,
    which a folder with an `__init__.py` would not.
    """
    code = (
        f"import importlib.util as u; s = u.find_spec({name!r}); "
        "print(s.origin if s else None, *(s and s.submodule_search_locations or ()), sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT if in_root else tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    origin, *places = run.stdout.splitlines()
    assert not origin.startswith(str(ROOT))
    if not in_root:
        assert not [place for place in places if Path(place).is_relative_to(ROOT / name)]


@pytest.mark.parametrize("file", PACKAGE_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_downwards(file):
    room = room_of(file)
    if room is None:
        return  # The surface: it may name every room.
    assert room in RANK, f"{file}: give the room {room!r} its line in ROOMS"
    assert not upward_imports(file.read_text(encoding="utf-8"), room)


@pytest.mark.parametrize(
    ("statement", "room", "is_refused"),
    [
        ("from parallax.strategies import ring", "models", True),
        ("from parallax import strategies", "models", True),
        ("import parallax.rules as rules", "hlo", True),
        ("import parallax", "meshes", True),
        ("def f():\n  from parallax.program import Program", "parallel", True),
        ("from parallax.meshes.mesh import MeshSpec", "hlo", True),
        ("from parallax.models.config import ModelConfig", "models", False),
        ("import parallax_other", "meshes", False),
        ("from parallax.papers.results import Findings", "report", False),
        ("from parallax.papers.scaling import scale_rows", "report", True),
        ("from parallax.search import results", "report", False),
        ("from parallax.search.ranking import rank", "report", True),
    ],
)
def test_the_import_rule_itself(statement, room, is_refused):
    assert bool(upward_imports(statement, room)) == is_refused


def test_only_absolute_imports():
    relative = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in python_files("parallax", "tests", "benchmarks")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not relative


@pytest.mark.parametrize("tool", ["ruff", "pyright"])
def test_each_file_is_seen_once(tool):
    """By the tools' configuration; `.ci/run` asks the tools themselves."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    if tool == "ruff":
        excluded = [ROOT / path for path in config["ruff"]["extend-exclude"]]
        seen = [
            file
            for file in python_files(".")
            if not any(file.is_relative_to(path) for path in excluded)
        ]
    else:
        seen = python_files(*config["pyright"]["include"], followlinks=False)
    assert sorted(file.resolve() for file in seen) == sorted(
        file.resolve() for file in python_files("parallax", "tests", "benchmarks")
    )


def test_pytest_collects_each_file_once(request):
    collected = {item.path for item in request.session.items}
    assert len({path.resolve() for path in collected}) == len(collected)
    assert all(path.is_relative_to(ROOT / "tests") for path in collected)


def test_the_package_is_found_in_this_tree():
    spec = importlib.util.find_spec("parallax")
    assert spec is not None
    assert Path(str(spec.origin)).resolve() == ROOT / "parallax" / "__init__.py"


if __name__ == "__main__":
    for name, value in figures().items():
        print(f"{name}: {value:,}")

"""The project's files agree with each other: dependencies, versions, entry points."""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import mlarray_xr

ROOT = Path(__file__).parents[1]
with (ROOT / "pyproject.toml").open("rb") as file:
    PYPROJECT: dict[str, Any] = tomllib.load(file)
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CONDA_NAMES = {"dask": "dask-core", "msgpack": "msgpack-python"}
FOR_DEVELOPERS = {"bench", "docs", "test"}


def name_and_floor(requirement: str) -> tuple[str, str]:
    parsed = Requirement(requirement)
    return canonicalize_name(parsed.name), str(parsed.specifier)


def test_environment_agrees_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    (editable,) = [entry for entry in pip if entry.startswith("-e ")]
    pip.remove(editable)

    from_conda = dict(name_and_floor(entry) for entry in conda)
    from_pip = dict(name_and_floor(entry) for entry in pip)
    assert from_conda.pop("python") == PROJECT["requires-python"]
    assert from_conda.pop("pip") == ""
    assert not from_conda.keys() & from_pip.keys()

    needed = dict(name_and_floor(entry) for entry in PROJECT["dependencies"])
    wanted = {
        name if name in from_pip else CONDA_NAMES.get(name, name): floor
        for name, floor in needed.items()
    }
    assert from_conda | from_pip == wanted

    asked = Requirement(editable.removeprefix("-e .").join(["project", ""])).extras
    assert asked == {"all"} | FOR_DEVELOPERS
    assert environment["name"] == PROJECT["name"]


def test_all_means_every_extra_for_users() -> None:
    assert flatten("all") == {
        entry for extra in EXTRAS.keys() - FOR_DEVELOPERS - {"all"} for entry in flatten(extra)
    }


def flatten(extra: str) -> set[str]:
    """Return the requirements of an extra, following extras that name others."""
    found = set()
    for entry in EXTRAS[extra]:
        parsed = Requirement(entry)
        if parsed.name == PROJECT["name"]:
            found |= {inner for name in parsed.extras for inner in flatten(name)}
        else:
            found.add(entry)
    return found


def test_one_requirement_has_one_floor() -> None:
    entries = [*PROJECT["dependencies"], *(entry for extra in EXTRAS for entry in flatten(extra))]
    floors: dict[str, set[str]] = {}
    for entry in entries:
        name, floor = name_and_floor(entry)
        floors.setdefault(name, set()).add(floor)
    # Developers may pin one release, which then has to satisfy the floor.
    for extra in FOR_DEVELOPERS:
        for entry in EXTRAS[extra]:
            pin = re.fullmatch(r"==([\d.]+)", str(Requirement(entry).specifier))
            name, floor = name_and_floor(entry)
            if pin and len(floors[name]) > 1:
                floors[name].remove(floor)
                assert all(SpecifierSet(other).contains(pin[1]) for other in floors[name])
    assert not {name: found for name, found in floors.items() if len(found) > 1}


def imported_distributions() -> set[str]:
    """Return the distributions that the package imports anywhere in its source."""
    tops = set()
    for path in (ROOT / "mlarray_xr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                tops.add(node.module.partition(".")[0])
    owners = packages_distributions()
    foreign = tops - sys.stdlib_module_names - {"mlarray_xr"}
    return {canonicalize_name(owners.get(top, [top])[0]) for top in foreign}


def test_imports_are_declared() -> None:
    core = {name_and_floor(entry)[0] for entry in PROJECT["dependencies"]}
    optional = {name_and_floor(entry)[0] for entry in flatten("all")}
    imported = imported_distributions()
    assert imported
    assert not imported - core - optional, "imported without being declared"
    assert not core - imported, "declared without being imported"


def test_python_floor_is_the_same_everywhere() -> None:
    floor = PROJECT["requires-python"].removeprefix(">=")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == floor
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + floor.replace(".", "")


@pytest.mark.parametrize(
    "target", [PROJECT["entry-points"]["xarray.backends"]["mlarray"], PROJECT["scripts"]["mla"]]
)
def test_entry_points_exist(target: str) -> None:
    module, _, name = target.partition(":")
    assert callable(getattr(import_module(module), name))


def test_changelog_starts_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line for line in changelog.splitlines() if line.startswith("## ")]
    assert headings[0] == f"## {mlarray_xr.__version__}"


def test_contributor_guide_fits_on_one_page() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 75


def test_ci_can_be_typed() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

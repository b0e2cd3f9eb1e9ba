"""The documentation is true: its code runs, its output is real, its links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mlarray_xr
import mlarray_xr.cli
import mlarray_xr.errors
from tests.package_source import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
# Those that train: tests/test_training_examples.py.
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if "train_" not in path.name]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
MEASURED = re.compile(r"<!-- numbers differ -->\s*\Z")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
OBJECT = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
DECIMAL = re.compile(r"(?<![\d.])\d+\.\d+(?![\d.])")
SPEED = re.compile(r"\d\s?(?:x|ms|MB/s|GB/s)\b|\d times\b")
REMOTE_ASSET = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>"
)
OUTPUT = doctest.OutputChecker()
OUTPUT_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None
    """Why it is not run; None when it is."""
    is_measured: bool
    """Whether its output holds numbers that differ from run to run."""
    shown: str | None
    """The output that the page shows below it; None without any."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path) -> Iterator[Fence]:
    """Iterate over the blocks of a page, each with the ``text`` block that follows it directly."""
    text = read(page)
    found = list(FENCE.finditer(text))
    for match, after in zip_longest(found, found[1:]):
        reason = NOT_RUN.search(text[: match.start()])
        is_followed = after is not None and not text[match.end() : after.start()].strip()
        yield Fence(
            page=page,
            line=text.count("\n", 0, match.start()) + 2,
            language=match[1],
            text=match[2],
            reason=reason[1] if reason else None,
            is_measured=MEASURED.search(text[: match.start()]) is not None,
            shown=after[2] if after is not None and is_followed and after[1] == "text" else None,
        )


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", read(page))


RUNNABLE = ("python", "console")
FENCES = [fence for page in PAGES for fence in fences(page) if fence.language in RUNNABLE]
RUN_PAGES = sorted({fence.page for fence in FENCES if fence.reason is None})
SKIPPED = [fence for fence in FENCES if fence.reason is not None]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty folder that holds ``brain.nii.gz``: 100 x 120 x 120 voxels, RAS, in mm."""
    nibabel = pytest.importorskip("nibabel")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    ramp = np.add.outer(np.add.outer(np.arange(100), np.arange(120)), np.arange(120))
    image = nibabel.Nifti1Image(ramp.astype(np.int16), np.diag([1.0, 1.0, 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, "brain.nii.gz")
    return tmp_path


def run_python(fence: Fence, namespace: dict[str, Any]) -> str:
    """Run a block in the namespace of its page and return what it printed."""
    # Padded so that a traceback shows the line of the page.
    code = compile("\n" * (fence.line - 1) + fence.text, str(fence), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)
    return printed.getvalue()


def run_console(fence: Fence) -> None:
    """Run the ``mla`` commands of a block and compare what each prints with what the page shows."""
    start, *commands = re.split(r"^\$ ", fence.text, flags=re.MULTILINE)
    assert not start, f"{fence}: a console block starts with '$ '"
    for entry in commands:
        command, _, shown = entry.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "mla", f"{fence}: only mla is run, not {program}"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = mlarray_xr.cli.main(arguments)
        assert code == shown.startswith("mla: error: "), f"{fence}: {command} ends with {code}"
        check_output(fence, printed=printed.getvalue(), shown=shown)


def check_output(fence: Fence, *, printed: str, shown: str) -> None:
    if fence.is_measured:
        printed, shown = (NUMBER.sub("0", text) for text in (printed, shown))
    assert OUTPUT.check_output(shown, printed, OUTPUT_OPTIONS), (
        f"{fence} shows\n{shown}\nand prints\n{printed}"
    )


@pytest.mark.parametrize("page", RUN_PAGES, ids=page_id)
def test_the_blocks_of_a_page_run_one_after_another(page: Path, workplace: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    if page != README and page.name not in {"tutorial.md", "cli.md", "convert.md"}:
        mlarray_xr.convert("brain.nii.gz", "brain.mla", patch=64)
    for fence in fences(page):
        if fence.reason is not None or fence.language not in RUNNABLE:
            continue
        if fence.language == "console":
            run_console(fence)
            continue
        printed = run_python(fence, namespace)
        if printed or fence.shown is not None:
            check_output(fence, printed=printed, shown=fence.shown or "")


@pytest.mark.parametrize("fence", SKIPPED, ids=str)
def test_blocks_that_are_not_run_say_why(fence: Fence) -> None:
    compile(fence.text, str(fence), "exec")
    pytest.skip(f"{fence}: {fence.reason}")


def test_few_blocks_are_not_run() -> None:
    assert len(FENCES) > 20
    assert len(SKIPPED) <= 3


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_names_its_language(page: Path) -> None:
    assert not [str(fence) for fence in fences(page) if not fence.language]
    assert read(page).count("\n```") % 2 == 0


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page: those of its headings and of the objects it documents."""
    found = set(OBJECT.findall(read(page)))
    for heading in HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        words = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", words))
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_internal_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in slugs(there)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"([\w/-]+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE))
    assert named == {page.relative_to(DOCS).as_posix() for page in PAGES if page != README}


def documented() -> set[str]:
    return {
        name for page in (DOCS / "reference").glob("*.md") for name in OBJECT.findall(read(page))
    }


def test_every_public_name_has_a_reference() -> None:
    assert documented() >= {f"mlarray_xr.{name}" for name in mlarray_xr.__all__}
    assert documented() >= {
        "mlarray_xr.dask.from_mla",
        "mlarray_xr.accessor.MlaAccessor",
        "mlarray_xr.backend.MlaBackendEntrypoint",
        *(f"mlarray_xr.errors.{name}" for name in mlarray_xr.errors.__all__),
    }


def test_the_reference_documents_what_exists() -> None:
    for name in documented():
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


def test_the_tree_of_errors_is_that_of_the_classes() -> None:
    (tree,) = fences(DOCS / "reference" / "errors.md")
    parents: dict[int, str] = {}
    shown = {}
    for line in tree.text.splitlines():
        indent, name, other = re.match(r"([│├└─ ]*)(\w+)(?: \((\w+)\))?", line).groups()  # type: ignore[union-attr]
        parents[len(indent)] = name
        shown[name] = {found for found in (parents.get(len(indent) - 4), other) if found}
    real = {
        name: {base.__name__ for base in getattr(mlarray_xr.errors, name).__bases__}
        for name in mlarray_xr.errors.__all__
    }
    assert shown == {**real, "MlaError": set()}


def test_the_architecture_page_shows_the_layers_of_the_contributor_guide() -> None:
    guide, page = (
        next(fence.text for fence in fences(page) if fence.text.startswith("errors\n"))
        for page in (ROOT / "CONTRIBUTING.md", DOCS / "explanation" / "architecture.md")
    )
    shown = [line.split()[0] for line in page.splitlines()]
    assert shown == [name for name in re.findall(r"\w+", guide) if name in shown]
    assert {line.split()[0].rstrip("/") for line in guide.splitlines() if "/" in line} <= {*shown}


def commands() -> list[str]:
    return INDENTED.findall(prose(README))


def extras(text: str) -> set[str]:
    """Return the extras that a command installs."""
    return set(re.search(r'-e "?\.\[([\w,]+)\]', text)[1].split(","))  # type: ignore[index]


def test_readme_holds_two_commands_that_make_an_environment_and_use_it() -> None:
    demo, test = commands()
    for command in (demo, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert demo.endswith(" && .venv/bin/mla demo")
    assert test.endswith(" && .venv/bin/python -m pytest")
    assert test in read(ROOT / "CONTRIBUTING.md").splitlines()


def test_ci_runs_the_commands_of_the_readme() -> None:
    ci = read(ROOT / ".ci" / "run")
    with (ROOT / "pyproject.toml").open("rb") as file:
        known = tomllib.load(file)["project"]["optional-dependencies"]
    made = extras(ci) | {name for entry in known["all"] for name in re.findall(r"\w+", entry)}
    for command in commands():
        assert extras(command) <= known.keys()
        assert extras(command) <= made
    (pytest_step,) = re.findall(r'^step "tests" (.+)$', ci, re.MULTILINE)
    assert pytest_step.endswith("/bin/python -m pytest")


def test_readme_repeats_no_measured_number() -> None:
    measured = {
        number
        for line in read(DOCS / "benchmarks.md").splitlines()
        if line.startswith("|")
        for number in DECIMAL.findall(line)
    }
    text = prose(README)
    assert not measured & set(DECIMAL.findall(text))
    assert not SPEED.findall(text)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_say_what_they_do_and_do_it(example: Path, workplace: Path) -> None:
    assert ast.get_docstring(ast.parse(read(example)))
    command = [sys.executable, "-W", "error", str(example)]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert {path.name for path in workplace.iterdir()} == {"brain.nii.gz"}


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {
        "convert_folder",
        "open_and_compute",
        "random_patches",
    }


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for library in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed: the extra docs")
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(site),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1
    assert not {tag for page in pages for tag in REMOTE_ASSET.findall(read(page))}

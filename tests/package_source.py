"""The source of the package as the architecture tests see it: modules, imports, lengths."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlarray_xr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module: ours as ``mlarray_xr.<name>``, others by their full name."""

    target: str
    line: int
    in_function: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One source file; ``name`` is relative to the package and empty for its root."""

    name: str
    path: Path
    source: str
    tree: ast.Module

    @property
    def is_folder(self) -> bool:
        return self.path.name == "__init__.py" and self.name != ""

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


def load_modules() -> dict[str, Module]:
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        source = path.read_text(encoding="utf-8")
        modules[name] = Module(name=name, path=path, source=source, tree=ast.parse(source))
    return modules


def is_own_module(name: str) -> bool:
    """Whether a dotted name is a file or folder of the package, and not a thing inside one."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_relative_to(PACKAGE) and (path.is_dir() or path.with_suffix(".py").exists())


def targets_of(node: ast.AST) -> list[str]:
    """Return what one statement or call imports; a name known only at run time is ``?``."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(level=0, module=str(module), names=names):
            inner = [f"{module}.{alias.name}" for alias in names]
            return [name if is_own_module(name) else module for name in inner]
        case ast.ImportFrom():
            return ["?"]
        case ast.Call(
            func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[*arguments],
        ):
            match arguments:
                case [ast.Constant(value=str(name))]:
                    return [name]
            return ["?"]
    return []


def imports_of(tree: ast.AST, *, in_function: bool = False) -> list[Import]:
    found = []
    for node in ast.iter_child_nodes(tree):
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        line = getattr(node, "lineno", 0)
        found += [
            Import(target=target, line=line, in_function=in_function)
            for target in dict.fromkeys(targets_of(node))
        ]
        found += imports_of(node, in_function=inside)
    return found


def own_name(target: str) -> str | None:
    """Return the name inside the package, or None for a foreign module."""
    top, _, rest = target.partition(".")
    return rest if top == "mlarray_xr" else None


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function, signature included and docstring left out."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is None:
        return total
    return total - ((first.end_lineno or first.lineno) - first.lineno + 1)


def restores_objects(tree: ast.Module) -> list[int]:
    """Return the lines that could run code hidden in data."""
    machines = {"_pickle", "cloudpickle", "dill", "marshal", "pickle", "shelve"}
    loaders = {"Unpickler", "_Unpickler", "_load", "_loads", "load", "loads", "open"}
    lines = []
    aliases = set(machines)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {a.asname for a in node.names if a.name in machines and a.asname}
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module in machines:
                bad = any(alias.name in {*loaders, "*"} for alias in names)
            case ast.Attribute(value=ast.Name(id=owner), attr=attr) if owner in aliases:
                bad = attr in loaders
            case ast.Attribute(attr="read_pickle"):
                bad = True
            case ast.keyword(arg="allow_pickle", value=value):
                bad = not (isinstance(value, ast.Constant) and value.value is False)
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                bad = True
            case _:
                bad = False
        if bad:
            lines.append(getattr(node, "lineno", 0))
    return lines

"""Run the notebooks of the documentation: ``python -m notebooks [--smoke] [--only NAME]``."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import nbformat

from notebooks.outputs import machine_traces, pictures, tidy
from notebooks.run import DOCS, SMOKE, execute, notebook_paths, read
from notebooks.screenshots import take_screenshots


def main() -> None:
    """Execute every notebook, and write it and its pictures into the documentation."""
    parser = argparse.ArgumentParser(prog="python -m notebooks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small sizes, as the tests do")
    parser.add_argument(
        "--only", choices=SMOKE, action="append", metavar="NAME", help=f"one of {', '.join(SMOKE)}"
    )
    parser.add_argument(
        "--into", type=Path, default=DOCS, metavar="FOLDER", help="gets notebooks/ and images/"
    )
    parser.add_argument(
        "--no-screenshots", action="store_true", help="leave out what needs JupyterLab and Chromium"
    )
    options = parser.parse_args()
    if options.smoke and options.into == DOCS:
        parser.error("--smoke makes small pictures, not those of the documentation: name --into")
    for path in notebook_paths():
        if options.only is None or path.stem in options.only:
            begin = time.perf_counter()
            _run(
                path,
                into=options.into,
                parameters=SMOKE[path.stem] if options.smoke else {},
                has_screenshots=not options.no_screenshots,
            )
            print(f"{path.stem}: {time.perf_counter() - begin:.0f} s", flush=True)


def _run(path: Path, *, into: Path, parameters: dict[str, object], has_screenshots: bool) -> None:
    """Execute one notebook and write what came of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = execute(read(path), folder=folder, parameters=parameters)
        screenshots = take_screenshots(done, folder=folder) if has_screenshots else {}
        tidy(done, folder=folder, screenshots=screenshots)
    if traces := machine_traces(done):
        raise SystemExit(f"{path.name}: its outputs name this machine: {traces}")
    for subfolder in ("notebooks", "images"):
        (into / subfolder).mkdir(parents=True, exist_ok=True)
    nbformat.write(done, into / "notebooks" / path.name)
    for file_name, content in [*pictures(done), *((f"{n}.png", p) for n, p in screenshots.items())]:
        (into / "images" / file_name).write_bytes(content)


if __name__ == "__main__":
    main()

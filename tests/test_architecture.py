"""The shape of the package: layers, doors, sizes and names, read from its source.

A failure here is a question about the design, not about the line it names. ``LAYERS`` and ``DOORS``
are the design; CONTRIBUTING.md shows the same list.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mlarray_xr
import mlarray_xr.errors
from tests.package_source import (
    ROOT,
    code_lines,
    imports_of,
    load_modules,
    own_name,
    restores_objects,
)


def folder(name: str, modules: str) -> tuple[str, ...]:
    return tuple(f"{name}.{module}" for module in modules.split())


# A module imports only from rows above its own; inside a row any direction without a cycle.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("html_table",),
    folder(
        "format",
        "limits pickle_machine pickle_numpy plain_pickle pickle_arrays plain_msgpack metadata "
        "entry generations metadata_codec cursor frame trailer chunk chunk_form block_layout "
        "column integrity block_index planning_entry",
    ),
    folder(
        "planning",
        "byte_amount byte_ranges grid selection point_groups interpolation point_plan shaped "
        "assignment region codec codec_cost cache_probes caches sizes access touching read_cost "
        "explanation nodes layout reference_rules blosc2_choice layout_score layout_search "
        "layout_plan layout_request codec_choice write_plan chunk_fetch "
        "draw sample_space patch_place padding foreground recorded_foreground sampling "
        "random_patches foreground_patches slices patch_weights grid_patches epoch_order "
        "overview_levels overview_parts reduction contrast plane_samples plane_request",
    ),
    folder(
        "storage",
        "source remote_source piece retry remote_dialects remote_options transport_failures "
        "transport_fsspec transport_obstore transport page_file disk_cache read_settings counters "
        "request_pool interleaved remote_file random_access libblosc2 portable chunks tiles "
        "thin_boxes read_pool frame_sections frame_file frame_entries block_request block_cache "
        "mapped_blocks mapped chunk_load ranged handles address point_gather slab_cache gather "
        "planning_record encode ordered_tasks trial publication json_record process_identity "
        "staging segments frame_template frame_ends joining assembly frame_lock editable "
        "frame_edit edit job canvas inspection chunk_pick chunk_box upload upload_notes "
        "portions multipart multipart_job",
    ),
    ("axes", "geometry"),
    ("file_array", "points"),
    (
        "attributes",
        "record",
        "placement",
        "coordinates",
        "array",
        "dataset",
        "overview_record",
        "overview_metadata",
        "overview_siblings",
        "overview_write",
    ),
    ("dask", "dask_caches", "dask_points", "dask_write", "dask_overviews", "merged"),
    (
        "template",
        "progress",
        "opened_file",
        "backend",
        "read",
        "report",
        "subject",
        "prepared",
        "file_write",
        "region_write",
        "remote_write",
        "overview_files",
    ),
    ("overviews", "write", "creation", "verification", "labelled_points"),
    folder("series", "axis frames folds gradients originals resampling scratch"),
    folder(
        "ml",
        "class_counts foreground_parts counts_file foreground_index volume subject_record "
        "alignment nnunet collection_folder collection_files collection_table collection_split "
        "collection_steps collection_pending collection_views collection subject_volumes "
        "patch_samples overlap_mean prediction_metadata prediction_writer aggregator "
        "inference_source scaling torch_slots torch_batch torch_dataset torch_sampler "
        "torch_stream torch_loading torch_loaders torch_inference torch monai_region monai_reader "
        "monai_loading monai_samples monai torchio_volume torchio_tensor torchio_sampler torchio",
    ),
    folder(
        "foreign",
        "image origin scratch reopened raw packed streamed positions labelled "
        "sidecar_files bids_sidecar bids_timing gradient_files "
        "nifti_header nifti_metadata nifti_series nifti_sidecars nifti nifreeze "
        "nrrd_fields nrrd_header nrrd_space nrrd_metadata nrrd npy "
        "hdf5_file hdf5 netcdf "
        "ngff multiscales ome zarr_store zarr_labels zarr_group zarr_folder zarr "
        "tiff_pages tiff_chain tiff_ome tiff_metadata tiff_folder tiff_file tiff codestream "
        "dicom_header dicom_pixels dicom_frames dicom_geometry dicom_series dicom "
        "formats recipe comparison conversion case case_folder collection",
    ),
    folder(
        "explore",
        "phantom picture orientation scale_bar file_plane plane_reading central_planes preview "
        "html_preview layout_plot plane_cache plane_worker plane_picture plane_source "
        "label_overlay scene viewer_state readout slice_canvas viewer_controls viewer view "
        "view_page demo patch_boxes machine_speed patch_timing",
    ),
    ("accessor_series", "accessor_views", "accessor"),
    folder(
        "zarr_view",
        "codec_form chunk_runs chunk_reading array_codec chunk_codec numcodec chunk_table "
        "stored_chunks hierarchy store parser virtual_store shard chunk_target copied_image "
        "zarr_export given_store stored_objects encoded_array zarr_import",
    ),
    ("zarr",),
    folder(
        "serving",
        "url_path byte_range conditions request answer admission catalogue stored_box "
        "served_chunks raw_file zarr_file index_page app connection server",
    ),
    (
        "cli_text",
        "cli_arguments",
        "cli_signals",
        "cli_info",
        "cli_convert",
        "cli_verify",
        "cli_demo",
        "cli_plan",
        "cli_bench",
        "cli_overviews",
        "cli_preview",
        "cli_view",
        "cli_serve",
        "cli",
    ),
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
FOLDERS = {name.partition(".")[0] for name in ROW if "." in name}
FROM_DATASET_DOWN = tuple(name for name in ROW if ROW[name] >= ROW["dataset"])

# How the names of the modules start that may import a library; without a row, none may.
DOORS: dict[str, tuple[str, ...]] = {
    "numpy": ("",),
    "msgpack": ("format.plain_msgpack",),
    "blosc2": ("storage.", "planning.blosc2_choice"),
    "ctypes": ("storage.libblosc2",),
    "obstore": ("storage.transport_obstore", "storage.upload"),
    "fsspec": ("storage.transport_fsspec",),
    "boto3": ("storage.transport_obstore",),
    "xarray": FROM_DATASET_DOWN,
    "pandas": FROM_DATASET_DOWN,
    "dask": ("dask",),
    "distributed": ("dask",),
    "nibabel": ("foreign.nifti",),
    "h5py": ("foreign.hdf5",),
    "netCDF4": ("foreign.netcdf",),
    "zarr": ("foreign.zarr", "foreign.ome", "zarr", "serving."),
    "numcodecs": ("zarr_view.numcodec", "serving.served_chunks"),
    "virtualizarr": ("zarr_view.parser", "zarr_view.virtual_store"),
    "google_crc32c": ("zarr_view.shard",),
    "uvicorn": ("serving.",),
    "tifffile": ("foreign.tiff",),
    "pydicom": ("foreign.dicom",),
    "tqdm": ("progress",),
    "isal": ("foreign.packed",),
    "scipy": ("series.resampling",),
    "PIL": ("explore.picture",),
    "anywidget": ("explore.slice_canvas",),
    "ipywidgets": ("explore.view",),
    "torch": ("ml.torch", "ml.monai"),
    "monai": ("ml.monai",),
    "torchio": ("ml.torchio",),
}
# Only here may a function import our own modules: everything else imports them at its top.
LAZY_DOORS = ("", "accessor", "accessor_series", "accessor_views", "cli", "zarr_view.parser")
# Decisions and codecs see values only.
PURE = ("format", "planning")
# The one module of them that looks at the machine.
LOOKS_AROUND = "planning.cache_probes"
FILE_ACCESS = {
    "fcntl",
    "glob",
    "mmap",
    "os",
    "pathlib",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
}

EXPORTS = {
    "CacheSizes",
    "Layout",
    "Metadata",
    "MlaArray",
    "ReadStats",
    "WriteReport",
    "build_overviews",
    "choose_codec",
    "cluster_caches",
    "configure",
    "convert",
    "convert_folder",
    "create",
    "detect_caches",
    "leave_one_out",
    "measure",
    "open_mla",
    "plan_layout",
    "scratch",
    "stats",
    "to_mla",
    "verify",
}
NEVER_ON_IMPORT = {
    "PIL",
    "anywidget",
    "blosc2",
    "dask",
    "distributed",
    "fsspec",
    "ipywidgets",
    "nibabel",
    "obstore",
    "scipy",
    "torch",
    "uvicorn",
    "virtualizarr",
    "zarr",
}
VAGUE_NAMES = {"api", "base", "common", "core", "helper", "helpers", "lib", "misc", "util", "utils"}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

MODULES = load_modules()
IMPORTS = [
    (module, found, own_name(found.target))
    for module in MODULES.values()
    for found in imports_of(module.tree)
]


def test_every_module_has_a_place_in_the_design() -> None:
    places = {"", *FOLDERS, *ROW}
    unknown = sorted(MODULES.keys() - places)
    assert not unknown, f"modules without a row in LAYERS: {unknown}"
    assert "errors" in MODULES


def test_folders_hold_a_docstring_and_nothing_else() -> None:
    busy = [m.at(1) for m in MODULES.values() if m.is_folder and len(m.tree.body) != 1]
    assert not busy, "importing one module of a folder would import others"


def test_modules_import_only_from_layers_above() -> None:
    wrong = []
    for module, found, target in IMPORTS:
        if target is None or module.name not in ROW:
            continue
        if target not in ROW or ROW[target] > ROW[module.name]:
            wrong.append(f"{module.at(found.line)} imports {found.target}")
    assert not wrong


def test_imports_hold_no_cycle() -> None:
    waiting: dict[str, set[str]] = {name: set() for name in MODULES if name}
    for module, _, target in IMPORTS:
        if target and module.name:
            waiting[module.name].add(target)
    while free := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert not waiting, f"these modules import each other: {sorted(waiting)}"


def test_own_modules_are_imported_at_the_top_except_at_lazy_doors() -> None:
    wrong = [
        f"{module.at(found.line)} imports {found.target} in a function"
        for module, found, target in IMPORTS
        if target is not None and found.in_function and module.name not in LAZY_DOORS
    ]
    assert not wrong


def test_imports_are_absolute_and_name_a_module() -> None:
    wrong = [m.at(f.line) for m, f, _ in IMPORTS if f.target == "?" and m.name not in LAZY_DOORS]
    assert not wrong


def test_libraries_are_imported_only_at_their_doors() -> None:
    wrong = []
    for module, found, target in IMPORTS:
        library = found.target.partition(".")[0]
        if target is not None or library == "?":
            continue
        if library in sys.stdlib_module_names and library not in DOORS:
            continue
        if not module.name.startswith(DOORS.get(library, ("?",))):
            wrong.append(f"{module.at(found.line)} imports {library}")
    assert not wrong


def test_codecs_and_plans_touch_no_file() -> None:
    pure = [
        module
        for module in MODULES.values()
        if module.name.startswith(PURE) and module.name != LOOKS_AROUND
    ]
    wrong = [
        f"{module.at(found.line)} imports {found.target}"
        for module, found, _ in IMPORTS
        if module in pure and found.target.partition(".")[0] in FILE_ACCESS
    ]
    for module in pure:
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Name(id="open") | ast.Attribute(attr="open")):
                    wrong.append(f"{module.at(node.lineno)} opens a file")
    assert pure
    assert not wrong


def test_modules_fit_on_a_few_screens() -> None:
    lengths = {m.at(1): len(m.source.splitlines()) for m in MODULES.values()}
    assert not {place: n for place, n in lengths.items() if n > MAX_MODULE_LINES}


def test_functions_fit_on_one_screen() -> None:
    lengths = {
        f"{module.at(node.lineno)} {node.name}": code_lines(node)
        for module in MODULES.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {place: n for place, n in lengths.items() if n > MAX_FUNCTION_LINES}


def test_modules_are_named_after_what_they_hold() -> None:
    vague = [m.at(1) for m in MODULES.values() if VAGUE_NAMES & set(m.name.split("."))]
    assert not vague


def test_nothing_restores_objects_from_data() -> None:
    wrong = [m.at(line) for m in MODULES.values() for line in restores_objects(m.tree)]
    assert not wrong


def test_nothing_is_left_for_later() -> None:
    marks = ("TO" + "DO", "FIX" + "ME")
    files = [
        path
        for folder in ("mlarray_xr", "tests", "docs", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".md", ".py"}
    ]
    assert Path(__file__) in files
    assert not [p for p in files if any(mark in p.read_text(encoding="utf-8") for mark in marks)]


def test_exports_are_pinned() -> None:
    assert sorted(mlarray_xr.__all__) == sorted(EXPORTS)


def run_python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def test_exports_survive_importing_every_module() -> None:
    """A submodule named like an export takes its place on the package once imported."""
    code = (
        "import importlib, sys, types, mlarray_xr\n"
        "names, modules = sys.argv[1].split(','), sys.argv[2].split(',')\n"
        "for module in modules: importlib.import_module(module)\n"
        "print([n for n in names if isinstance(getattr(mlarray_xr, n), types.ModuleType)])"
    )
    modules = ",".join(f"mlarray_xr.{name}" for name in sorted(MODULES) if name)
    printed = run_python(code, ",".join(sorted(EXPORTS)), modules)
    assert printed == "[]"


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_exports_show_an_example(name: str) -> None:
    assert "Examples\n--------" in (inspect.getdoc(getattr(mlarray_xr, name)) or "")


def test_the_accessor_shows_an_example() -> None:
    accessor = importlib.import_module("mlarray_xr.accessor")
    public = [
        value
        for name, value in vars(accessor).items()
        if inspect.isclass(value)
        and value.__module__ == accessor.__name__
        and not name.startswith("_")
    ]
    assert public
    assert all("Examples\n--------" in (inspect.getdoc(value) or "") for value in public)


def test_errors_lists_every_class_it_defines() -> None:
    defined = {node.name for node in MODULES["errors"].tree.body if isinstance(node, ast.ClassDef)}
    assert set(mlarray_xr.errors.__all__) == defined
    assert not defined & EXPORTS


@pytest.mark.parametrize(
    "name", [name for name in ("mlarray_xr", "mlarray_xr.backend") if name[11:] in MODULES]
)
def test_importing_stays_light(name: str) -> None:
    code = f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"
    loaded = {module.partition(".")[0] for module in json.loads(run_python(code))}
    assert "mlarray_xr" in loaded
    assert not loaded & NEVER_ON_IMPORT


def test_the_contributor_guide_shows_these_layers() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = guide.partition("## Layers")[2].partition("```text\n")[2].partition("```")[0]
    shown: list[tuple[str, ...]] = []
    for line in block.splitlines():
        first, *names = line.split()
        if line.startswith(" "):  # a row that goes on
            shown[-1] += folder(shown[-1][0].partition(".")[0], line)
        elif first.endswith("/"):
            shown.append(folder(first.removesuffix("/"), " ".join(names)))
        else:
            shown.append((first, *names))
    assert shown == list(LAYERS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import zarr.storage", [("zarr.storage", False)]),
        ("if TYPE_CHECKING:\n    import dask", [("dask", False)]),
        ("def f():\n    from mlarray_xr import errors", [("mlarray_xr.errors", True)]),
        ("from mlarray_xr import to_mla", [("mlarray_xr", False)]),
        ("from mlarray_xr.errors import MlaError", [("mlarray_xr.errors", False)]),
        ("from . import errors", [("?", False)]),
        ("x = import_module('torch')", [("torch", False)]),
        ("class A:\n    def f(self): return importlib.import_module(name)", [("?", True)]),
    ],
)
def test_the_walk_sees_every_kind_of_import(source: str, expected: list[tuple[str, bool]]) -> None:
    found = imports_of(ast.parse(source))
    assert [(item.target, item.in_function) for item in found] == expected


@pytest.mark.parametrize(
    "source",
    [
        "pickle.loads(data)",
        "import pickle as p\np.Unpickler(file)",
        "from pickle import load",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "eval(text)",
    ],
)
def test_the_walk_sees_what_restores_objects(source: str) -> None:
    assert restores_objects(ast.parse(source))
    assert not restores_objects(ast.parse("pickle.dumps(x)\nnp.load(path, allow_pickle=False)"))

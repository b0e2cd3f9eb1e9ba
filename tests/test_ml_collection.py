"""Collections: whose file is whose, what views keep, and what is refused."""

from __future__ import annotations

import math
import os
import pickle
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr import MlaArray
from mlarray_xr.errors import ConversionError, GeometryError, MlaWarning, SourceError
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.ml.alignment import check_aligned
from mlarray_xr.ml.collection import Collection
from mlarray_xr.ml.collection_folder import FilePattern
from mlarray_xr.ml.subject_record import SubjectRecord, named_errors, natural_order
from mlarray_xr.ml.volume import Volume
from mlarray_xr.storage.handles import open_readers
from mlarray_xr.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    OnCollection: TypeAlias = Callable[[Collection], Collection]
    OnList: TypeAlias = Callable[[list[int]], list[int]]


def study(n: int = 12, *, modalities: tuple[str, ...] = ("ct", "seg")) -> Collection:
    """Subjects 0 to n - 1 with their number as label, in an order that is not sorted."""
    numbers = random.Random(0).sample(range(n), n)
    files = {f"s{i}": {m: f"/data/s{i}/{m}.mla" for m in modalities} for i in numbers}
    return Collection.from_files(files).join({f"s{i}": i for i in range(n)}, name="age")


def numbers(collection: Collection) -> list[int]:
    return [record.labels["age"] for record in collection]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def relative(collection: Collection, folder: Path) -> dict[str, dict[str, str]]:
    return {
        record.subject: {m: os.path.relpath(f, folder) for m, f in record.files.items()}
        for record in collection
    }


def bound(collection: Collection) -> bool:
    """Whether every file is that of its subject and modality, by its own name."""
    return all(
        file.endswith(f"/{record.subject}/{modality}.mla")
        for record in collection
        for modality, file in record.files.items()
    )


# Records


def test_a_record_keeps_its_own_mappings() -> None:
    files, labels = {"ct": "/a.mla"}, {"age": 3}
    record = SubjectRecord(subject="a", files=files, labels=labels)
    files["ct"] = labels["age"] = "changed"  # type: ignore[assignment]
    assert record.files == {"ct": "/a.mla"}
    assert record.labels == {"age": 3}
    assert "3" not in repr(record)
    assert pickle.loads(pickle.dumps(record)) == record


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subject": ""}, "a text is needed"),
        ({"subject": 7}, "To fix: str"),
        ({"files": {}}, "a path or URL of each modality"),
        ({"files": {"ct": 3}}, "as text"),
        ({"files": {"": "a.mla"}}, "modality '' of 'a'"),
        ({"labels": {1: 2}}, "label 1 of 'a'"),
        ({"labels": {"subject": 2}}, "that is the index"),
    ],
)
def test_records_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"subject": "a", "files": {"ct": "a.mla"}}
    with pytest.raises(ValueError, match=message):
        SubjectRecord(**{**valid, **changed})


def test_a_modality_that_is_not_there_is_named() -> None:
    record = SubjectRecord(subject="a", files={"ct": "a.mla"})
    assert record.file("ct") == "a.mla"
    with pytest.raises(ConversionError, match="'a' has no 'seg', only ct"):
        record.file("seg")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (FileNotFoundError(2, "gone"), FileNotFoundError, "there is no such file"),
        (GeometryError("bad affine"), GeometryError, "bad affine"),
        (IsADirectoryError(21, "a folder"), SourceError, "a folder"),
        (OSError("odd"), SourceError, "odd"),
    ],
)
def test_errors_say_whose_file_it_is(error: Exception, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"subject 'a', modality 'ct', x.mla: {message}"):  # noqa: SIM117
        with named_errors("a", "ct", "x.mla"):
            raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError), named_errors("a", "ct", "x.mla"):
        raise ZeroDivisionError


@given(st.lists(st.text("ab019", max_size=5)))
def test_natural_order_is_total_and_counts(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_order) == sorted(backwards, key=natural_order)
    assert sorted([f"x{n}" for n in range(30)], key=natural_order) == [f"x{n}" for n in range(30)]


# From files


@given(st.permutations(["b10", "b9", "a", "c"]), st.permutations(["t1", "seg", "t2"]))
def test_identifiers_and_files_stay_together(subjects: list[str], modalities: list[str]) -> None:
    given_files = {s: {m: f"/d/{s}/{m}.mla" for m in modalities} for s in subjects}
    collection = Collection.from_files(given_files)
    assert collection.subjects == tuple(subjects)
    assert collection.modalities == tuple(modalities)
    assert bound(collection)


def test_files_are_named_in_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/sub-2.mla"
    listed = Collection.from_files(["x/sub-10.mla", url, tmp_path / "sub-1.b2nd"])
    assert [(r.subject, r.files) for r in listed] == [
        ("sub-10", {"image": str(tmp_path / "x/sub-10.mla")}),
        ("sub-2", {"image": url}),
        ("sub-1", {"image": str(tmp_path / "sub-1.b2nd")}),
    ]
    assert Collection.from_files({"a": "1.mla"}, modality="ct")["a"].files == {
        "ct": str(tmp_path / "1.mla")
    }
    nested = Collection.from_files({"a": {"ct": f"file://{tmp_path}/1.mla"}})
    assert nested["a"].file("ct") == str(tmp_path / "1.mla")


def test_files_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ConversionError, match="1 subjects occur twice: a"):
        Collection.from_files(["x/a.mla", "y/a.mla"])
    with pytest.raises(TypeError, match="from_folder takes folders"):
        Collection.from_files("x/a.mla")
    with pytest.raises(ConversionError, match="2 subjects occur twice: a, b"):
        Collection([SubjectRecord(subject=s, files={"ct": "x"}) for s in "abcba"])


def test_missing_modalities_are_explicit() -> None:
    files = {"a": {"ct": "1"}, "b": {"ct": "2", "seg": "3"}, "c": {"seg": "4"}}
    with pytest.raises(ConversionError, match=r"2 of 3 subjects lack a modality.*: a, c"):
        Collection.from_files(files)
    assert Collection.from_files(files, missing="drop").subjects == ("b",)
    kept = Collection.from_files(files, missing="keep")
    assert kept.subjects == ("a", "b", "c")
    assert kept.modalities == ("ct", "seg")
    assert kept.select(modalities="seg", missing="drop").subjects == ("b", "c")
    with pytest.raises(ConversionError, match="'drop' leaves"):
        _ = kept.select(modalities="seg").records
    with pytest.raises(ConversionError, match="1 of 3 subjects lack"):
        _ = kept.select(modalities=["seg"], missing="keep").records
    with pytest.raises(ValueError, match="missing='ignore' is none of"):
        Collection.from_files(files, missing="ignore")  # type: ignore[arg-type]


# From a folder


@pytest.mark.parametrize(
    ("pattern", "names", "expected"),
    [
        (
            "{subject}/{modality}.mla",
            ["s10/ct.mla", "s9/ct.mla", "s9/seg.mla", "s10/seg.mla", "notes.txt", "s9/old/ct.mla"],
            {s: {m: f"{s}/{m}.mla" for m in ("ct", "seg")} for s in ("s9", "s10")},
        ),
        (
            "{subject}_{modality}.mla",
            ["sub_1_ct.mla", "sub_1_seg.mla"],
            {"sub_1": {"ct": "sub_1_ct.mla", "seg": "sub_1_seg.mla"}},
        ),
        ("{subject}.mla", ["b.mla", "a.mla", "c/d.mla"], {s: {"image": f"{s}.mla"} for s in "ab"}),
        (
            "**/{subject}.b2nd",
            ["b.b2nd", "x/a.b2nd", "x/y/c.b2nd"],
            {"a": {"image": "x/a.b2nd"}, "b": {"image": "b.b2nd"}, "c": {"image": "x/y/c.b2nd"}},
        ),
        (
            "raw/{subject}/ses-*/{modality}_v*.mla",
            ["raw/a/ses-1/ct_v2.mla", "raw/a/ct_v2.mla", "a/ses-1/ct_v2.mla"],
            {"a": {"ct": "raw/a/ses-1/ct_v2.mla"}},
        ),
        (
            "{modality}/{subject}[1].mla",
            ["ct/a[1].mla", "ct/a1.mla"],
            {"a": {"ct": "ct/a[1].mla"}},
        ),
    ],
)
def test_patterns_find_files(
    tmp_path: Path, pattern: str, names: list[str], expected: dict[str, dict[str, str]]
) -> None:
    touch(tmp_path, *names)
    found = Collection.from_folder(tmp_path, pattern)
    assert relative(found, tmp_path) == expected
    assert found.subjects == tuple(expected)


def test_hidden_and_unfinished_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a/ct.mla", "a/.ct.mla", ".b/ct.mla", "a/seg.mla.parts/0.mla")
    assert relative(Collection.from_folder(tmp_path), tmp_path) == {"a": {"ct": "a/ct.mla"}}
    deep = Collection.from_folder(tmp_path, "**/{subject}.mla")
    assert relative(deep, tmp_path) == {"ct": {"image": "a/ct.mla"}}


def test_modalities_are_chosen_and_ordered(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{s}_{m}.mla" for s in ("s_1", "s_2") for m in ("t1", "t1_seg", "seg")))
    names = ("t1_seg", "seg", "t1")
    found = Collection.from_folder(tmp_path, "{subject}_{modality}.mla", modalities=names)
    assert found.modalities == names
    assert found.subjects == ("s_1", "s_2")
    only = Collection.from_folder(tmp_path, "{subject}_{modality}.mla", modalities="t1")
    assert relative(only, tmp_path)["s_2"] == {"t1": "s_2_t1.mla"}
    named = Collection.from_folder(tmp_path, "{subject}_t1.mla", modalities="mr")
    assert named.modalities == ("mr",)
    with pytest.raises(ValueError, match="finds one modality"):
        Collection.from_folder(tmp_path, "{subject}.mla", modalities=names)


def test_other_fields_become_labels(tmp_path: Path) -> None:
    touch(tmp_path, "north/a/ct.mla", "north/a/seg.mla", "south/b/ct.mla", "south/b/seg.mla")
    pattern = "{site}/{subject}/{modality}.mla"
    found = Collection.from_folder(tmp_path, pattern)
    assert found.table["site"].to_dict() == {"a": "north", "b": "south"}
    touch(tmp_path, "south/a/pet.mla")
    with pytest.raises(ConversionError, match="other files of 'a' say"):
        Collection.from_folder(tmp_path, pattern)


def test_missing_and_repeated_files_in_a_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/ct.mla", "a/seg.mla", "b/ct.mla")
    with pytest.raises(ConversionError, match=r"1 of 2 subjects lack a modality.*: b"):
        Collection.from_folder(tmp_path)
    assert Collection.from_folder(tmp_path, missing="drop").subjects == ("a",)
    with pytest.raises(ConversionError, match=r"are both 'image' of '(ct|a)'"):
        Collection.from_folder(tmp_path, "{subject}/*.mla")
    with pytest.raises(ConversionError, match="no file fits"):
        Collection.from_folder(tmp_path, "{subject}.nii")


@pytest.mark.parametrize(
    "pattern",
    [
        *("{modality}.mla", "{subject}{modality}.mla", "{subject}*", "{subject", "subject}", "{}"),
        *("{subject}/{a b}", "{subject}/{subject}.mla", "{subject}/{1}.mla", "{subject}***/x"),
    ],
)
def test_patterns_that_are_unclear_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        FilePattern.of(pattern, modalities=None)


def test_links_are_followed_inside_the_folder_only(tmp_path: Path) -> None:
    touch(tmp_path, "in/store/x.mla", "in/a/ct.mla", "out/y.mla")
    (tmp_path / "in/b").mkdir()
    (tmp_path / "in/b/ct.mla").symlink_to(tmp_path / "in/store/x.mla")
    pattern = "{subject}/ct.mla"
    assert Collection.from_folder(tmp_path / "in", pattern).subjects == ("a", "b")
    (tmp_path / "in/readme").symlink_to(tmp_path / "out/y.mla")  # fits no pattern
    assert len(Collection.from_folder(tmp_path / "in", pattern)) == 2
    (tmp_path / "in/b/ct.mla").unlink()
    (tmp_path / "in/b/ct.mla").symlink_to(tmp_path / "out/y.mla")
    with pytest.raises(SourceError, match=r"b/ct.mla: a link that leads to .* outside"):
        Collection.from_folder(tmp_path / "in", pattern)
    (tmp_path / "out/y.mla").unlink()
    with pytest.raises(SourceError, match="to no file"):
        Collection.from_folder(tmp_path / "in", pattern)


def test_linked_folders_are_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/ct.mla", "out/ct.mla")
    (tmp_path / "in/b").symlink_to(tmp_path / "out")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")  # deeper than the pattern looks
    with pytest.warns(MlaWarning, match="1 linked folders are not entered: b"):
        found = Collection.from_folder(tmp_path / "in")
    assert found.subjects == ("a",)


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Collection.from_folder(tmp_path / "none")
    with pytest.raises(SourceError, match="remote folders are not listed"):
        Collection.from_folder("s3://bucket/study")


# From a table


def test_rows_become_subjects(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "subject": ["b", "a"],
            "ct": ["b/ct.mla", "s3://x/a.mla"],
            "mask": [str(tmp_path / "m.mla"), "a/m.mla"],
            "age": [41, 40],
            "sex": ["f", None],
        }
    )
    found = Collection.from_table(table, files={"ct": "ct", "seg": "mask"}, folder=tmp_path)
    assert found.subjects == ("b", "a")
    assert found["b"].files == {"ct": str(tmp_path / "b/ct.mla"), "seg": str(tmp_path / "m.mla")}
    assert found["a"].files == {"ct": "s3://x/a.mla", "seg": str(tmp_path / "a/m.mla")}
    assert found["a"].labels == {"age": 40, "sex": None}
    assert type(found["a"].labels["age"]) is int
    pd.testing.assert_series_equal(found.table["age"], table.set_index("subject")["age"])
    same = Collection.from_table(table.set_index("subject"), files=["ct", "mask"], folder=tmp_path)
    assert same.modalities == ("ct", "mask")
    renamed = table.rename(columns={"subject": "id"}).set_index("id")
    assert Collection.from_table(renamed, files="ct", subject=None).subjects == ("b", "a")


def test_empty_cells_are_missing_modalities() -> None:
    table = pd.DataFrame({"ct": ["1", "2"], "seg": ["3", None]}, index=["a", "b"])
    make = Collection.from_table
    with pytest.raises(ConversionError, match="1 of 2 subjects lack"):
        make(table, files=["ct", "seg"], subject=None)
    assert make(table, files=["ct", "seg"], subject=None, missing="drop").subjects == ("a",)
    kept = make(table, files=["ct", "seg"], subject=None, missing="keep")
    assert list(kept["b"].files) == ["ct"]


@pytest.mark.parametrize("ids", [[7, 3], np.array([7, 3], "u2"), ["7", "3"]])
def test_whole_numbers_become_text(ids: Any) -> None:
    table = pd.DataFrame({"subject": ids, "ct": ["x", "y"]})
    assert Collection.from_table(table, files="ct").subjects == ("7", "3")


@pytest.mark.parametrize(
    ("columns", "files", "message"),
    [
        ({"subject": [1.0, 2.0], "ct": "x"}, "ct", "1.0 of the table is a float"),
        ({"subject": ["a", "a"], "ct": "x"}, "ct", "several rows for 1 subjects: a"),
        ({"subject": ["a", None], "ct": "x"}, "ct", "1 rows of the table name no subject"),
        ({"subject": ["a", "b"], "ct": "x"}, "mr", "columns mr of the table's ct"),
        ({"subject": ["a", "b"], "ct": "x"}, [], "files: columns  of"),
        ({"id": ["a", "b"], "ct": "x"}, "ct", "no column 'subject'"),
        ({"subject": ["a", "b"], 3: "x"}, "ct", "columns of a table of labels need names"),
        ({"subject": ["a", "b"], "ct": ["x", None]}, "ct", "'b' has no file in columns ct"),
    ],
)
def test_tables_that_make_no_sense_are_refused(
    columns: dict[Any, Any], files: Any, message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        Collection.from_table(pd.DataFrame(columns), files=files)


# Views


@st.composite
def steps(draw: st.DrawFn) -> tuple[OnCollection, OnList]:
    """Draw a step on a collection, and what it does to a list of numbers."""
    n = draw(st.integers(0, 8))
    kind = draw(st.sampled_from(["head", "tail", "query", "function", "take", "modalities"]))
    match kind:
        case "head":
            return (lambda c: c.head(n)), (lambda rows: rows[:n])
        case "tail":
            return (lambda c: c.tail(n)), (lambda rows: rows[-n:] if n else [])
        case "query":
            return (lambda c: c.filter(f"age % 3 != {n % 3}")), (
                lambda rows: [row for row in rows if row % 3 != n % 3]
            )
        case "function":
            return (lambda c: c.filter(lambda r: r.labels["age"] >= n)), (
                lambda rows: [row for row in rows if row >= n]
            )
        case "take":
            picks = draw(st.lists(st.floats(-1, 0.999), max_size=6))

            def chosen(count: int) -> list[int]:
                return [math.floor(pick * count) for pick in picks if count]

            return (lambda c: c.take(chosen(len(c)))), (
                lambda rows: [rows[position] for position in chosen(len(rows))]
            )
        case _:
            return (lambda c: c.select(modalities=["ct"])), (lambda rows: rows)


@given(st.lists(steps(), max_size=5))
def test_steps_do_what_they_do_to_lists_in_the_order_written(program: list[Any]) -> None:
    collection = study()
    rows = numbers(collection)
    for on_collection, on_list in program:
        collection, rows = on_collection(collection), on_list(rows)
    assert numbers(collection) == rows
    assert bound(collection)
    assert collection.table.index.tolist() == [f"s{row}" for row in rows]


def test_head_of_a_filter_is_not_the_filter_of_a_head() -> None:
    collection = study()
    first = [row for row in numbers(collection) if row > 5][:2]
    assert numbers(collection.filter("age > 5").head(2)) == first
    assert numbers(collection.head(2).filter("age > 5")) == [
        row for row in numbers(collection)[:2] if row > 5
    ]


def test_functions_are_called_on_first_use_and_once() -> None:
    calls: Counter[str] = Counter()

    def is_even(record: SubjectRecord) -> bool:
        calls[record.subject] += 1
        return bool(record.labels["age"] % 2 == 0)

    even = study().filter(is_even)
    views = [even.head(2), even.tail(1), even.select(modalities="ct")]
    assert not calls
    assert "not evaluated yet: join, filter, head" in repr(views[0])
    assert not calls
    assert [len(view) for view in views] == [2, 1, 6]
    assert len(even) == 6
    assert calls == dict.fromkeys(study().subjects, 1)


def test_threads_may_look_at_once() -> None:
    for _ in range(20):
        view = study(50).filter(lambda record: record.labels["age"] % 2 == 0)
        views = [view.head(n) for n in range(1, 9)]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(len, views)) == [*range(1, 9)]


def test_a_function_may_open_files(tmp_path: Path) -> None:
    for name, extent in (("a", 4), ("b", 9)):
        mlarray_xr.to_mla(np.zeros((extent, 4, 4), "u1"), tmp_path / f"{name}.mla")
    found = Collection.from_folder(tmp_path, "{subject}.mla")
    assert found.filter(
        lambda record: mlarray_xr.MlaArray(record.file("image")).shape[0] > 5
    ).subjects == ("b",)


def test_a_long_chain_of_steps_needs_no_deep_stack() -> None:
    collection = study()
    for _ in range(5000):
        collection = collection.head(20)
    assert len(collection) == 12


def test_positions_keep_order_and_repeats() -> None:
    collection = study()
    view = collection.take([3, 0, 3, -1])
    rows = numbers(collection)
    assert numbers(view) == [rows[3], rows[0], rows[3], rows[-1]]
    assert view.table.index.tolist() == list(view.subjects)
    assert numbers(view.filter("age >= 0")) == numbers(view)
    assert numbers(collection.take(np.array([1, 1]))) == [rows[1]] * 2
    parts = collection.take([0, 0, 1, 2]).split({"a": 0.5, "b": 0.5})
    assert not {*parts["a"].subjects} & {*parts["b"].subjects}
    assert len(parts["a"]) + len(parts["b"]) == 4
    with pytest.raises(IndexError, match="positions 12, -13 of 12"):
        _ = collection.take([12, 0, -13]).records
    for mask in ([True, False], [1.0]):
        with pytest.raises(TypeError, match="flatnonzero"):
            collection.take(mask)  # type: ignore[arg-type]


def test_subjects_are_selected_in_the_order_named() -> None:
    found = study().select(subjects=["s4", "s2"], modalities=["seg", "ct"])
    assert found.subjects == ("s4", "s2")
    assert found.modalities == ("seg", "ct")
    assert bound(found)
    with pytest.raises(ConversionError, match="2 subjects are not there: x, y"):
        _ = study().select(subjects=["x", "s1", "y"]).records
    with pytest.raises(ConversionError, match="modalities pet were asked for; there are ct, seg"):
        _ = study().select(modalities="pet").records
    with pytest.raises(TypeError, match="a list of names"):
        study().select(subjects="s1")
    for wrong in ([], ["ct", "ct"]):
        with pytest.raises(ValueError, match="one name or more"):
            study().select(modalities=wrong)


@pytest.mark.parametrize("n", [-1, 1.5, True])
@pytest.mark.parametrize("method", ["head", "tail", "sample"])
def test_counts_are_whole_numbers(method: str, n: Any) -> None:
    with pytest.raises(ValueError, match=rf"{method}\({n}\): a whole number"):
        getattr(study(), method)(n)


def test_records_are_found_by_subject() -> None:
    collection = study()
    assert collection["s3"].labels["age"] == 3
    assert "s3" in collection
    assert "s99" not in collection
    assert len(collection.head(4)) == 4
    with pytest.raises(KeyError, match="no subject 's99' among 12"):
        collection["s99"]


# Filters


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("age > 1 and sex == 'f'", ["c"]),
        ("site in ['n']", ["a", "c"]),
        ("subject != 'a'", ["b", "c", "d"]),
        ("sex.str.startswith('f')", ["a", "c"]),
        ("sex != 'm'", ["a", "c"]),
        ("well", ["a"]),
        ("not (age > 1)", ["a"]),
        ("`due date` > '2026-01-01'", ["b"]),
        ("3 > 2", ["a", "b", "c", "d"]),
    ],
)
def test_queries_are_those_of_pandas_and_unknown_labels_fulfil_nothing(
    query: str, expected: list[str]
) -> None:
    table = pd.DataFrame(
        {
            "age": [1, 2, 3, None],
            "sex": ["f", "m", "f", None],
            "site": ["n", "s", "n", "s"],
            "well": [True, False, None, None],
            "due date": [None, pd.Timestamp("2026-06-01"), pd.Timestamp("2025-06-01"), None],
        },
        index=list("abcd"),
    )
    collection = Collection.from_files([f"{s}.mla" for s in "abcd"]).join(table, missing="fill")
    found = collection.filter(query).subjects
    if query == "not (age > 1)":
        assert set(found) <= {"a", "d"}
    elif query == "sex != 'm'":
        assert set(expected) <= set(found)
    else:
        assert list(found) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("weight > 3", "weight.*The columns are subject, age"),
        ("age >", "SyntaxError"),
        ("age > @limit", "limit"),
        ("age > @table", "table"),
        ("age", "does not give true or false"),
        ("age > 'x'", "filter"),
    ],
)
def test_queries_that_fail_are_explained(query: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        _ = study().filter(query).records


def test_filters_of_nothing_give_nothing() -> None:
    nothing = study().head(0)
    assert nothing.filter("age > 3").subjects == ()
    assert nothing.table.empty
    assert repr(nothing) == "<Collection of 0 subjects; modalities none>"
    with pytest.raises(TypeError, match="a query or a function"):
        study().filter(3)  # type: ignore[arg-type]


# Samples and splits


def test_a_sample_depends_on_seed_and_identifiers_alone() -> None:
    collection = study(40)
    drawn = collection.sample(10, seed=3)
    assert len({*drawn.subjects}) == 10
    backwards = collection.take(range(39, -1, -1)).sample(10, seed=3)
    assert backwards.subjects == drawn.subjects[::-1]
    assert {*collection.sample(10, seed=4).subjects} != {*drawn.subjects}
    assert [s for s in collection.subjects if s in drawn] == list(drawn.subjects)
    with pytest.raises(ValueError, match=r"sample\(13\) of 12 subjects"):
        _ = study().sample(13).records
    with pytest.raises(ValueError, match="seed=-1"):
        study().sample(3, seed=-1)


SHARES = [
    {"all": 1.0},
    {"train": 0.7, "val": 0.15, "test": 0.15},
    {"train": 0.8, "test": 0.2},
    {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3},
]


@given(
    st.integers(0, 60),
    st.sampled_from(SHARES),
    st.integers(0, 2**64 - 1),
    st.randoms(use_true_random=False),
)
def test_a_split_divides_the_subjects_by_their_shares(
    n: int, shares: dict[str, float], seed: int, shuffle: random.Random
) -> None:
    collection = study(n)
    parts = collection.split(shares, seed=seed)
    found = [subject for part in parts.values() for subject in part.subjects]
    assert sorted(found) == sorted(collection.subjects)
    for name, part in parts.items():
        assert abs(len(part) - shares[name] * n) < 1
        assert list(part.subjects) == [s for s in collection.subjects if s in part]
        assert bound(part)
    order = list(range(n))
    shuffle.shuffle(order)
    again = collection.take(order).split(shares, seed=seed)
    assert all({*again[name].subjects} == {*part.subjects} for name, part in parts.items())


@given(
    st.lists(st.sampled_from(["x", "y", "z", 1]), min_size=1, max_size=60),
    st.sampled_from(SHARES),
    st.integers(0, 1000),
)
def test_a_stratified_split_divides_every_value(
    grades: list[Any], shares: dict[str, float], seed: int
) -> None:
    collection = study(len(grades)).join(
        {f"s{i}": grade for i, grade in enumerate(grades)}, name="grade"
    )
    parts = collection.split(shares, seed=seed, stratify="grade")
    for name, part in parts.items():
        assert abs(len(part) - shares[name] * len(grades)) < 1
        counts = Counter(record.labels["grade"] for record in part)
        for grade, n in Counter(grades).items():
            assert abs(counts[grade] - shares[name] * n) < 2


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.sampled_from(SHARES),
    st.booleans(),
    st.integers(0, 1000),
)
def test_groups_stay_together(
    patients: list[int], shares: dict[str, float], stratified: bool, seed: int
) -> None:
    table = pd.DataFrame(
        {"patient": patients, "grade": [p % 2 for p in patients]},
        index=[f"s{i}" for i in range(len(patients))],
    )
    collection = study(len(patients)).join(table)
    stratify = "grade" if stratified else None
    parts = collection.split(shares, seed=seed, stratify=stratify, group="patient")
    assert sum(map(len, parts.values())) == len(patients)
    whose = [{record.labels["patient"] for record in part} for part in parts.values()]
    assert sum(map(len, whose)) == len({*patients})
    largest = max(Counter(patients).values())
    for name, part in parts.items():
        assert len(part) - shares[name] * len(patients) < largest


def test_every_subject_comes_to_every_part_as_often_as_its_share() -> None:
    collection = study(10)
    seeds = range(400)
    counts = Counter(
        record.subject
        for seed in seeds
        for record in collection.split(SHARES[2], seed=seed)["test"]
    )
    # Binomial with 400 x 0.2: five standard deviations are 40.
    assert all(abs(counts[subject] - 80) < 40 for subject in collection.subjects)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"a": 0.5, "b": 0.4}, "add up to 0.9"),
        ({"a": 70, "b": 30}, "add up to 100"),
        ({"a": 1.0, "b": 0.0}, "a positive number"),
        ({"a": math.nan}, "a positive number"),
        ({}, "a positive number"),
    ],
)
def test_shares_add_up_to_one(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study().split(shares)


def test_labels_that_split_must_be_known() -> None:
    partly = study(4).join({"s0": "x", "s1": "y"}, name="grade", missing="fill")
    for option in ("stratify", "group"):
        parts = partly.split({"a": 0.5, "b": 0.5}, **{option: "grade"})  # type: ignore[arg-type]
        with pytest.raises(ConversionError, match=r"'grade' is missing of 2 of 4.*age, grade"):
            _ = parts["a"].records


# Labels


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ({"a": 1, "b": 2, "c": 3}, {"name": "grade"}),
        (pd.Series({"c": 3, "b": 2, "a": 1}), {"name": "grade"}),
        (pd.Series({"c": 3, "b": 2, "a": 1}, name="grade"), {}),
        (pd.DataFrame({"grade": [2, 1]}, index=["b", "a"]), {}),
        (pd.DataFrame({"who": ["b", "a", "x"], "grade": [2, 1, 9]}), {"on": "who"}),
        (pd.Series({"a": np.int8(1), "b": np.int8(2)}, dtype=object), {"name": "grade"}),
    ],
)
def test_labels_are_joined_by_subject(labels: Any, options: dict[str, Any]) -> None:
    collection = Collection.from_files(["b.mla", "a.mla"]).join(labels, **options)
    assert [record.labels for record in collection] == [{"grade": 2}, {"grade": 1}]
    assert {type(record.labels["grade"]) for record in collection} == {int}
    assert collection.table["grade"].dtype == np.int64


def test_missing_labels_are_refused_filled_or_dropped() -> None:
    files = Collection.from_files(["a.mla", "b.mla", "c.mla"])
    table = pd.DataFrame({"age": [40, None], "sex": ["f", "m"]}, index=["a", "b"])
    with pytest.raises(ConversionError, match=r"labels age, sex are missing of 2 of 3 .*: b, c"):
        _ = files.join(table).records
    filled = files.join(table, missing="fill", fill_value=-1)
    assert [record.labels for record in filled] == [
        {"age": 40, "sex": "f"},
        {"age": -1, "sex": "m"},
        {"age": -1, "sex": -1},
    ]
    unknown = files.join(table, missing="fill")
    assert unknown["c"].labels == {"age": None, "sex": None}
    assert unknown.table["age"].isna().tolist() == [False, True, True]
    assert files.join(table, missing="drop").subjects == ("a",)
    assert files.join(table[["sex"]], missing="drop").subjects == ("a", "b")
    with pytest.raises(ValueError, match="missing='keep' is none of"):
        files.join(table, missing="keep")  # type: ignore[arg-type]


def test_an_error_names_few_of_many_subjects() -> None:
    with pytest.raises(ConversionError, match=r"500 of 500 .* and 490 more") as caught:
        _ = study(500).join({}, name="grade").records
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (pd.Series([1, 2], index=["a", "a"]), {}, "several rows for 1 subjects: a"),
        (pd.Series([1, 2], index=[7, 8]), {}, r"holds int, such as 7.*astype\(str\)"),
        ({7: 1}, {}, "holds int, such as 7"),
        (pd.DataFrame({"who": [1.0, 2.0], "x": 1}), {"on": "who"}, "column 'who' .* holds float"),
        (pd.DataFrame({"x": [1]}), {"on": "who"}, "no column 'who'; the table has x"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"], index=["a"]), {}, "columns x occur twice"),
        (pd.DataFrame({"x": [1, 2]}, index=["a", None]), {}, "1 rows of the table name no subject"),
        (pd.DataFrame({"x": 1}, index=pd.MultiIndex.from_tuples([("a", 1)])), {}, "holds tuple"),
    ],
)
def test_tables_that_cannot_be_joined_are_refused_at_once(
    labels: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        Collection.from_files(["a.mla"]).join(labels, **options)


def test_other_things_are_no_labels() -> None:
    with pytest.raises(TypeError, match="a DataFrame, a Series or a dict is needed, got list"):
        study().join([1, 2])
    with pytest.raises(ConversionError, match="columns age are there already"):
        _ = study().join({"s1": 3}, name="age", missing="fill").records


def test_later_changes_of_a_table_do_not_count() -> None:
    table = pd.DataFrame({"grade": [1, 2]}, index=["a", "b"])
    joined = Collection.from_files(["a.mla", "b.mla"]).join(table)
    table.loc["a", "grade"] = 9
    assert joined["a"].labels == {"grade": 1}


def test_a_table_keeps_types() -> None:
    table = pd.DataFrame(
        {
            "age": [1, 2],
            "weight": [1.5, None],
            "sex": ["f", "m"],
            "when": pd.to_datetime(["2026-01-01", "2026-02-01"]),
            "box": [[1, 2], [3, 4]],
        },
        index=pd.Index(["a", "b"], name="subject"),
    )
    found = Collection.from_files(["a.mla", "b.mla"]).join(table, missing="fill").table
    pd.testing.assert_frame_equal(found, table, check_index_type=False)


# Files


def write(path: Path, *, dims: str = "zyx", scale: float = 1.0, **attrs: Any) -> str:
    """Write zeros; extents follow from the names of the dimensions."""
    extents = {"z": 6, "y": 7, "x": 8, "c": 2, "t": 3}
    extents.update(attrs.pop("extents", {}))
    names = {"c": "channel", "t": "time"}
    array = xr.DataArray(
        np.zeros([extents[d] for d in dims], "i2"),
        dims=[names.get(d, d) for d in dims],
        coords={d: attrs.pop(f"{d}0", 0.0) + scale * np.arange(extents[d]) for d in "zyx"},
        attrs=attrs,
    )
    mlarray_xr.to_mla(array, path)
    return str(path)


def aligned(a: str, b: str, **options: Any) -> None:
    check_aligned("p", {"ct": Volume(a), "seg": Volume(b)}, **options)


def test_the_same_grid_is_aligned_whatever_surrounds_it(tmp_path: Path) -> None:
    image = write(tmp_path / "ct.mla", dims="tczyx", scale=0.5, coord_system="RAS")
    mask = write(tmp_path / "seg.mla", scale=0.5, x0=0.0004, coord_system="RAS+")
    aligned(image, mask)
    with pytest.raises(GeometryError, match=r"'seg' .* has the origin"):
        aligned(image, mask, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dims": "xyz"}, r"has the spatial axes \('x', 'y', 'z'\), .* has \('z', 'y', 'x'\)"),
        ({"extents": {"y": 9}}, "has 9 voxels along 'y', .* has 7"),
        ({"scale": 2.0}, r"has the step along 'z' \(.*2.0.*\), .* has \(.*1.0.*\)"),
        ({"x0": 5.0}, r"has the origin \(.*5.0.*\), "),
        ({"coord_system": "MNI"}, "lies in the coordinate system 'MNI'.* in None"),
    ],
)
def test_misaligned_files_are_named_with_numbers(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    image = write(tmp_path / "ct.mla", dims="czyx")
    mask = write(tmp_path / "seg.mla", **changed)
    with pytest.raises(GeometryError, match=message) as caught:
        aligned(image, mask)
    for part in ("subject 'p'", image, mask, "To fix"):
        assert part in str(caught.value)


def test_a_file_without_geometry_is_not_aligned_with_one_that_has(tmp_path: Path) -> None:
    image = write(tmp_path / "ct.mla", scale=2.0)
    bare = str(tmp_path / "seg.mla")
    mlarray_xr.to_mla(np.zeros((6, 7, 8), "u1"), bare)
    with pytest.raises(GeometryError, match=r"seg.mla\) does not say where its voxels lie"):
        aligned(image, bare)
    aligned(bare, bare)


def test_opposite_systems_of_one_grid_are_aligned(tmp_path: Path) -> None:
    ras = np.diag([2.0, 3.0, 4.0, 1.0])
    for name, system, affine in (
        ("ct", "RAS", ras),
        ("seg", "LPS", np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras),
    ):
        spatial = Spatial(
            affine=tuple(map(tuple, affine.tolist())),
            coord_system=system,
            axis_labels=("spatial_x", "spatial_y", "spatial_z"),
        )
        metadata = Metadata(has_array=True, spatial=spatial)
        subject = Subject(values=np.zeros((4, 4, 4), "u1"), metadata=metadata)
        mlarray_xr.to_mla(subject, tmp_path / f"{name}.mla")
    image, mask = (str(tmp_path / f"{name}.mla") for name in ("ct", "seg"))
    assert MlaArray(image).metadata.spatial != MlaArray(mask).metadata.spatial
    aligned(image, mask)


def test_alignment_is_checked_by_subject_and_reported_together(tmp_path: Path) -> None:
    files = {}
    for i in range(9):
        files[f"p{i}"] = {
            "ct": write(tmp_path / f"{i}_ct.mla", z0=float(i)),
            "seg": write(tmp_path / f"{i}_seg.mla", z0=float(i), extents={"x": 8 - (i > 1)}),
        }
    collection = Collection.from_files(files)
    collection.head(2).check_alignment()
    with pytest.raises(GeometryError, match="7 of 9 subjects are not aligned") as caught:
        collection.check_alignment()
    assert "subject 'p2'" in str(caught.value)
    assert "and 2 more" in str(caught.value)
    with pytest.raises(GeometryError, match="origin"):
        aligned(files["p0"]["ct"], files["p1"]["seg"])  # of another subject


def test_files_are_opened_when_they_are_read(tmp_path: Path) -> None:
    there = write(tmp_path / "ct.mla")
    collection = Collection.from_files({"a": {"ct": there, "seg": str(tmp_path / "none.mla")}})
    volumes = collection.volumes("a")
    assert list(volumes) == ["ct", "seg"]
    assert volumes["ct"].n_channels == 1
    with pytest.raises(
        FileNotFoundError, match=r"subject 'a', modality 'seg', .*none.mla: there is no such file"
    ):
        collection.check_alignment()
    (tmp_path / "none.mla").write_bytes(b"no frame at all")
    with pytest.raises(mlarray_xr.errors.FormatError, match="subject 'a', modality 'seg'"):
        collection.check_alignment()


def test_many_files_need_few_handles(tmp_path: Path) -> None:
    path = write(tmp_path / "0.mla")
    for i in range(1, 300):
        os.link(path, tmp_path / f"{i}.mla")
    collection = Collection.from_folder(tmp_path, "{subject}.mla")
    before, n_open = len(os.listdir("/proc/self/fd")), open_readers()
    volumes = [collection.volumes(subject)["image"] for subject in collection.subjects]
    collection.check_alignment()
    assert {volume.space.extents for volume in volumes} == {(6, 7, 8)}
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert open_readers() == n_open


# What is shown, and what travels


def test_nothing_of_a_patient_is_shown() -> None:
    table = {"secret-1": "carcinoma", "secret-2": "adenoma"}
    files = {name: {"ct<b>": f"/{name}.mla"} for name in table}
    collection = Collection.from_files(files).join(table, name="diagnosis<i>")
    for pending in (True, False):
        shown = [repr(collection), collection._repr_html_(), str(collection)]
        for text in shown:
            assert not any(word in text for pair in table.items() for word in pair)
        assert "<b>" not in shown[1]
        assert "<i>" not in shown[1]
        if pending:
            assert repr(collection) == "<Collection not evaluated yet: join>"
            _ = collection.records
    assert repr(collection) == "<Collection of 2 subjects; modalities ct<b>; labels diagnosis<i>>"
    assert "<td>ct&lt;b&gt;</td><td>2</td>" in collection._repr_html_()


def test_pickles_hold_records_and_no_functions() -> None:
    limit = 4
    view = study().filter(lambda record: record.labels["age"] > limit).head(3)
    restored = pickle.loads(pickle.dumps(view))
    assert restored.records == view.records
    assert len(restored.filter("age >= 0")) == 3
    for n in (0, 1, 2):
        assert len(pickle.loads(pickle.dumps(study().head(n)))) == n
    many = study(2000)
    assert len(pickle.dumps(many)) < 200 * len(many)

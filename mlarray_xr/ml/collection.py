"""Collection: subjects with their files and labels, however they are named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from mlarray_xr.errors import GeometryError
from mlarray_xr.ml.alignment import check_aligned
from mlarray_xr.ml.collection_files import records_of, table_records
from mlarray_xr.ml.collection_folder import DEFAULT_MODALITY, records_in
from mlarray_xr.ml.collection_steps import Missing, check_choice, complete
from mlarray_xr.ml.collection_views import CollectionViews
from mlarray_xr.ml.nnunet import nnunet_records
from mlarray_xr.ml.subject_record import SUBJECT, SubjectRecord
from mlarray_xr.ml.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from mlarray_xr.ml.collection_steps import Records
    from mlarray_xr.ml.volume import Channel

__all__ = ["Collection"]

_OPENED_AT_ONCE = 8
_MOST_REPORTED = 5


class Collection(CollectionViews):
    """Subjects, each with a file per modality and its labels in one record.

    Nothing is opened. Methods return new collections that are evaluated on first use, step after
    step in the order they were written; results are kept. A step reaches every modality, since a
    record holds them all. Pickling evaluates first, and takes addresses and labels only.

    Parameters
    ----------
    records
        One `SubjectRecord` for each subject; see also the ``from_`` methods.

    Raises
    ------
    ConversionError
        When two records are of the same subject.

    Examples
    --------
    >>> files = {f"sub-{i}": {"ct": f"{i}/ct.mla", "seg": f"{i}/seg.mla"} for i in range(10)}
    >>> study = Collection.from_files(files).join({name: int(name[-1]) for name in files})
    >>> study.filter("label > 3").head(2).subjects
    ('sub-4', 'sub-5')
    >>> study
    <Collection of 10 subjects; modalities ct, seg; labels label>
    >>> {name: len(part) for name, part in study.split({"train": 0.8, "val": 0.2}).items()}
    {'train': 8, 'val': 2}
    """

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        pattern: str = "{subject}/{modality}.mla",
        *,
        modalities: str | Sequence[str] | None = None,
        missing: Missing = "raise",
    ) -> Self:
        """Find the files of subjects in a local folder, by their names.

        Subjects are in natural order: ``sub-9`` before ``sub-10``. Names that start with a dot are
        passed over; linked folders are not entered, which a warning says.

        Parameters
        ----------
        folder
            Where to look.
        pattern
            Names relative to the folder. ``*`` stands for any text, ``**/`` for any folders. Fields
            other than ``{subject}`` and ``{modality}`` become labels.
        modalities
            Those to take, in this order; all that are found unless given. Without a field
            ``{modality}``: what to call the only one, ``"image"`` unless given.
        missing : {"raise", "drop", "keep"}
            What becomes of subjects that lack a modality.

        Raises
        ------
        ConversionError
            When nothing fits, a subject lacks a modality or has two files of one.
        SourceError
            When a file that fits is a link out of the folder, or to nothing.
        """
        names = (modalities,) if isinstance(modalities, str) else modalities
        records = records_in(folder, pattern=pattern, modalities=names)
        return cls(_completed(records, missing))

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]]
        | Iterable[str | os.PathLike[str]],
        *,
        modality: str = DEFAULT_MODALITY,
        missing: Missing = "raise",
    ) -> Self:
        """Take files by their paths or URLs.

        Parameters
        ----------
        files
            Paths by modality by subject; a path by subject; or paths, whose names without suffix
            are the subjects.
        modality
            What to call the only one where none is named.
        missing : {"raise", "drop", "keep"}
            What becomes of subjects that lack a modality.

        Raises
        ------
        ConversionError
            When a subject lacks a modality, or two paths have the same name.
        """
        return cls(_completed(records_of(files, modality=modality), missing))

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        *,
        files: str | Sequence[str] | Mapping[str, str],
        subject: str | None = SUBJECT,
        folder: str | os.PathLike[str] | None = None,
        missing: Missing = "raise",
    ) -> Self:
        """Take subjects from the rows of a table; columns that hold no files are labels.

        Parameters
        ----------
        table
            One row per subject.
        files
            Columns of paths or URLs, named like their modality; or column by modality.
        subject
            Column of the identifiers; the index when None, or when it has this name. Whole
            numbers become text.
        folder
            Where relative paths begin; the working directory unless given.
        missing : {"raise", "drop", "keep"}
            What becomes of subjects that lack a modality: whose cell is empty.

        Raises
        ------
        ConversionError
            When a column is not there, a subject has two rows or lacks a modality.
        """
        columns = (files,) if isinstance(files, str) else files
        records = table_records(
            table,
            subject=subject,
            files=columns if isinstance(columns, Mapping) else {name: name for name in columns},
            folder=None if folder is None else os.fspath(folder),
        )
        return cls(_completed(records, missing))

    @classmethod
    def from_nnunet(
        cls,
        folder: str | os.PathLike[str],
        *,
        labels: bool = True,
        missing: Missing = "raise",
    ) -> Self:
        """Take the cases of a folder that nnU-Net 2.6 or later has preprocessed.

        Modalities are ``image`` and ``seg``. These files name no axes: pass ``channel=0`` to
        whatever reads them. Labels are what nnU-Net noted of each case, such as ``spacing`` (of
        the original image); see `mlarray_xr.ml.nnunet.read_nnunet_properties` for the rest.

        Parameters
        ----------
        folder
            That of one configuration, such as ``nnUNetPlans_3d_fullres``.
        labels
            Whether to read them: one small file each, none of which is executed.
        missing : {"raise", "drop", "keep"}
            What becomes of cases without image or segmentation.

        Raises
        ------
        ConversionError
            When there are no cases, or one is incomplete.
        MetadataError
            When the notes of a case are damaged or hostile.
        """
        return cls(_completed(nnunet_records(folder, labels=labels), missing))

    # Its files

    def volumes(
        self,
        subject: str,
        *,
        channel: Channel = "auto",
        storage_options: Mapping[str, Any] | None = None,
    ) -> dict[str, Volume]:
        """Return the files of a subject by modality, to read patches from; nothing is opened.

        Parameters
        ----------
        subject
            Identifier.
        channel
            The axis of channels, see `mlarray_xr.ml.volume.Volume`.
        storage_options
            How to get at URLs.

        Raises
        ------
        KeyError
            When there is no such subject.
        """
        return _volumes(self[subject], channel=channel, storage_options=storage_options)

    def check_alignment(
        self,
        *,
        atol: float = 1e-3,
        channel: Channel = "auto",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that the files of each subject lie on the same voxels, by what they say.

        Headers alone are read; no file stays open.

        Parameters
        ----------
        atol
            How far entries of the affines may differ, in units of the world.
        channel, storage_options
            See `volumes`.

        Raises
        ------
        GeometryError
            When some do not; the message names the first few subjects, their files and numbers.
        MlaError, FileNotFoundError
            When a file cannot be opened; the message names subject, modality and file.
        """

        def problem(record: SubjectRecord) -> str | None:
            """Return how the files of a subject differ."""
            volumes = _volumes(record, channel=channel, storage_options=storage_options)
            try:
                check_aligned(record.subject, volumes, atol=atol)
            except GeometryError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
            found = [text for text in pool.map(problem, self.records) if text is not None]
        if found:
            more = len(found) - _MOST_REPORTED
            listed_more = [f"and {more} more"] if more > 0 else []
            what = "\n".join([*found[:_MOST_REPORTED], *listed_more])
            msg = f"files of {len(found)} of {len(self)} subjects are not aligned:\n{what}"
            raise GeometryError(msg)


def _completed(records: Records, missing: Missing) -> Records:
    """Deal with subjects that lack a modality of any other."""
    check_choice("missing", missing, Missing)
    return complete(records, modalities=None, missing=missing)


def _volumes(
    record: SubjectRecord, *, channel: Channel, storage_options: Mapping[str, Any] | None
) -> dict[str, Volume]:
    """Return the files of a record, to read patches from."""
    return {
        modality: Volume(file, channel=channel, storage_options=storage_options)
        for modality, file in record.files.items()
    }

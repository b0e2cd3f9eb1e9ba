"""PendingRecords: records that steps make of others, when they are first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlarray_xr.ml.collection_steps import Records, Step

__all__ = ["PendingRecords"]


class PendingRecords:
    """The end of a chain of steps; every link keeps what it has made.

    Links are shared: two views of one filter ask it once.

    Parameters
    ----------
    made
        The records, when there is nothing to do.
    before
        What the step is applied to.
    step
        What makes the records.
    """

    __slots__ = ("before", "made", "step")

    def __init__(
        self,
        *,
        made: Records | None = None,
        before: PendingRecords | None = None,
        step: Step | None = None,
    ) -> None:
        self.made, self.before, self.step = made, before, step

    def records(self) -> Records:
        """Return the records; steps before this one come first."""
        links = [self]
        # Read once: another thread may forget it meanwhile.
        while links[-1].made is None and (before := links[-1].before) is not None:
            links.append(before)
        made: Records = ()
        for link in reversed(links):
            made = link.make(made)
        return made

    def make(self, records: Records) -> Records:
        """Return what the step makes of the records before it, once; then forget both."""
        step = self.step
        if self.made is None and step is not None:
            self.made = step.apply(records)
        # After `made`: a thread that finds no step finds the records.
        self.before = self.step = None
        return self.made or ()

    def names(self) -> tuple[str, ...]:
        """Return the names of the steps that are still to be done, in their order."""
        found = []
        link: PendingRecords | None = self
        while link is not None and link.step is not None:
            found.append(type(link.step).__name__.lower())
            link = link.before
        return tuple(reversed(found))

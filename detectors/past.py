"""What subjects did window by window enters, sums over any span before any window leave.

The same whatever else is judged in one go: a sum is read off the running total of a subject's own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from polars import col

from detectors.table import SPACE, Ints
from detectors.windows import WINDOW_US, windows

WHO = [*SPACE, "subject"]
SUBJECT = 2**40  # more than there are windows


@dataclass(frozen=True)
class Past:
    """subjects: WHO, the columns told of each, and its `number`. place: the windows in which each has rows, in order of
    both. totals: running, of the columns summed."""

    subjects: pl.DataFrame
    place: npt.NDArray[np.int64]
    totals: dict[str, Ints]

    def over(self, points: pl.DataFrame, since_us: int, until_us: int) -> dict[str, Ints]:
        """For each point (number, window): the sums of the windows that end more than until_us and at most since_us
        before the point's window does."""
        at = points["number"].cast(pl.Int64).to_numpy() * SUBJECT + points["window"].to_numpy() // WINDOW_US
        lo, hi = (np.searchsorted(self.place, at - windows(us), side="right") for us in (since_us, until_us))
        return {n: total[hi] - total[lo] for n, total in self.totals.items()}


def past(rows: pl.DataFrame, sums: Sequence[str], told: Sequence[str] = ()) -> Past:
    """rows: window, WHO, told (the same in all rows of a subject) and the columns to be summed."""
    subjects = rows.select(*WHO, *told).unique(WHO).with_row_index("number")
    place = (col("number").cast(pl.Int64) * SUBJECT + col("window") // WINDOW_US).alias("place")
    mine = rows.select("window", *WHO, *sums).join(subjects, on=WHO).group_by(place).agg(col(*sums).sum())
    mine = mine.sort("place")
    totals = {n: np.concatenate([[0], mine[n].cum_sum().to_numpy()]) for n in sums}
    return Past(subjects, mine["place"].to_numpy(), totals)

"""Failed attempts and retries enter, how long each retry was waited for leaves: a histogram per edge and retry number.

waited_us is the time from the end of the attempt before of the same request to the start of the retry, both by the one
clock that stamped them, and rounded down to one of 16 steps of each doubling. A retry that began before that end waited
for nothing. No row for a retry of which the attempt before, its duration or the request is not told, or where calls of
one request go on side by side: nobody can say. Nor for one that waited for less than COARSE_US by stamps in whole
seconds, which are off by up to a second.
"""

import numpy as np
import polars as pl
from polars import col

from detectors.table import SPACE, Ints, Meet, Sum, Table
from detectors.windows import MINUTE_US, SECOND_US

WITHIN_US = MINUTE_US
STEP_BITS = 5  # the first bit of a number and four more: 16 steps
COARSE_US = 16 * SECOND_US  # a second is less than a step of what is longer
MOST_RETRIES = 10  # later ones are counted with the tenth

START_US = col("timestamp").cast(pl.Int64)
END_US = START_US + (col("duration_ms") * 1000).round().cast(pl.Int64)


def match_backoffs(rows: pl.DataFrame) -> pl.DataFrame:
    """Of each retry: the row before it, where that is an attempt before, and no other of these came before it untaken.

    One request on one edge, as attempts of one number and the retries after them take turns: 0 1 0 1 are two calls, one
    after the other. Of 0 0 1 1, which go on side by side, nobody can say who waited for whom.
    """
    placed = rows.with_columns(at=pl.int_range(pl.len()), number=col("retry_count"), again=pl.lit(True))
    attempts = placed.with_columns(number=col("retry_count") + 1, again=pl.lit(False))
    turns = pl.concat([attempts, placed.filter(col("retry_count") > 0)]).sort("group", "number", "at")
    waited = (
        turns.with_columns(
            waited_us=(col("start_us") - col("end_us").shift()).clip(0), began_us=col("start_us").shift()
        )
        .filter("now", "again", _turn(1) & ~col("again").shift(), ~_turn(2) | col("again").shift(2))
        .drop_nulls("waited_us")
    )
    coarse = (col("start_us") % SECOND_US == 0) & (col("began_us") % SECOND_US == 0)
    told = waited.filter(~coarse | (col("waited_us") >= COARSE_US))
    return told.select(
        *("window", *SPACE, "caller", "service_name", "side", "weight"),
        retry_count=col("retry_count").clip(upper_bound=MOST_RETRIES).cast(pl.Int64),
        waited_us=pl.Series(stepped(told["waited_us"].to_numpy())),
    )


def _turn(n: int) -> pl.Expr:
    """Whether the n-th row before is of the same turns, and no older than WITHIN_US."""
    same = [col(of) == col(of).shift(n, fill_value=-1) for of in ("group", "number")]
    return pl.all_horizontal(*same, col("window") - col("window").shift(n) <= WITHIN_US).fill_null(False)


def stepped(us: Ints) -> Ints:
    """Rounded down to STEP_BITS bits, which is off by less than a sixteenth."""
    low = np.maximum(np.frexp(us.astype(np.float64))[1] - STEP_BITS, 0)
    steps: Ints = us >> low << low
    return steps


def middle(step_us: int) -> int:
    """Of the waits that are one step."""
    return step_us + (1 << max(step_us.bit_length() - STEP_BITS, 0)) // 2


BACKOFFS = Table(
    name="backoffs",
    key=("caller", "service_name", "side", "retry_count", "waited_us"),
    sources=(
        Meet(
            stream="requests",
            where=col("request_id").is_not_null()
            & ((col("retry_count") > 0) | ((col("retry_count") == 0) & (col("status") != "ok"))),
            project={"start_us": START_US, "end_us": END_US},
            on=("caller", "service_name", "side", "node_id", "request_id"),
            carry=("retry_count", "start_us", "end_us"),
            back_us=WITHIN_US,
            match=match_backoffs,
        ),
    ),
    columns={"retries": Sum()},
)

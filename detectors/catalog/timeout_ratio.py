"""Share of attempts of an edge that timed out, over the last minute.

Formula: timeouts / attempts over six windows of 10 s, of client lines (server lines where an edge has no client's),
once the minute has 50 lines; below that it is unknown. Warn above 5 %, page above 10 %.
False alarms: a client that gives up on purpose (hedged requests logged as timeouts).
Misses: edges under 50 calls a minute; timeouts logged as errors.
Source: the operators' playbook, 4.1 (alert thresholds).
"""

from detectors.detector import ratio
from detectors.tables.calls import CALLS
from detectors.windows import MINUTE_US

MIN_VOLUME = 50

timeout_ratio = ratio(
    "timeout_ratio",
    CALLS,
    of="timeouts",
    by="attempts",
    subject=("caller", "service_name"),
    over_us=MINUTE_US,
    min_volume=MIN_VOLUME,
    warn=0.05,
    page=0.10,
    needs=("status",),
    lacks=(("caller", "all callers of a service are one"),),
)

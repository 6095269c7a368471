"""Names that only one side of a Kafka knows enter, a line for the operator leaves: once for each name.

Workers and lander each take their detectors from an asynchealth.toml of their own. Where these differ, what nobody here
knows is passed over, since it may also be what a detector left that was taken away; but never without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from streams.problems import Problem

THEN = "the same asynchealth.toml and folders of detectors for all workers and the lander; then start them again"


@dataclass
class Apart:
    """What one process has said of how it differs from the others."""

    told: set[tuple[str, str]] = field(default_factory=set)

    def tell(self, kind: str, names: Iterable[str], reason: str) -> None:
        fresh = sorted(n for n in names if (n, reason) not in self.told)
        if fresh:
            self.told |= {(n, reason) for n in fresh}
            sys.stderr.write(f"{Problem(' '.join([kind, *fresh]), reason, THEN)}\n")

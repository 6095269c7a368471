"""Names that only one side of a Kafka knows, and what users' own code raised, enter; a line for the operator leaves.

Once for each. Workers and lander each take their detectors from an asynchealth.toml of their own. Where these differ,
what nobody here knows is passed over, since it may also be what a detector left that was taken away; but never without
a word.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

from streams.problems import Problem

THEN = "the same asynchealth.toml and folders of detectors for all workers and the lander; then start them again"
MEND = "mend it, try it with asynchealth detectors check, then start the workers again"


@dataclass
class Apart:
    """What one process has said of how it differs from the others."""

    told: set[tuple[str, str]] = field(default_factory=set)

    def tell(self, kind: str, names: Iterable[str], reason: str) -> None:
        fresh = sorted(n for n in names if (n, reason) not in self.told)
        if fresh:
            self.told |= {(n, reason) for n in fresh}
            sys.stderr.write(f"{Problem(' '.join([kind, *fresh]), reason, THEN)}\n")

    def raised(self, kind: str, name: str, error: BaseException) -> None:
        """Of one detector or table, while the others go on."""
        reason = f"raised {type(error).__name__}: {error}".partition("\n")[0]
        if (name, reason) not in self.told:
            self.told.add((name, reason))
            told = Problem(f"{kind} {name}", f"{reason}; what it would have said is unknown, the rest goes on", MEND)
            sys.stderr.write(f"{told}\n")
            traceback.print_exception(error)

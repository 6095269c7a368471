"""Up to when something is done enters, look after look; a line leaves while it does not keep pace with the clock."""

from __future__ import annotations

from dataclasses import dataclass

from detectors.windows import SECOND_US

SLACK_S = 15  # beyond what is due: a rebalance, a slow publication
EACH_S = 15


@dataclass
class Pace:
    """due_s: how far the clock is ahead where all is well. then: what to do."""

    due_s: float
    then: str
    noted: tuple[float, float] | None = None  # when it was behind last, and by how much, in s
    told: bool = False

    def line(self, now_us: int, until_us: int) -> str | None:
        """Where it has fallen behind whether that grows, every EACH_S; and once when it has caught up."""
        now_s, behind_s = now_us / SECOND_US, (now_us - until_us) / SECOND_US - self.due_s
        if behind_s <= SLACK_S:
            caught_up, self.noted, self.told = self.told, None, False
            return "keeps pace again" if caught_up else None
        if self.noted and now_s < self.noted[0] + EACH_S:
            return None
        before, self.noted = self.noted, (now_s, behind_s)
        if before is None:
            return None
        self.told = True
        return f"is behind by {behind_s:,.0f} s and {'growing' if behind_s >= before[1] else 'shrinking'}: {self.then}"

"""Answers on the screen: numbers that are no numbers are shown, they stop nothing."""

import pyarrow as pa
import pytest

from streams.report import answers


@pytest.mark.parametrize(
    ("value", "shown"),
    [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf"), (2.0, "2"), (0.5, "0.5")],
)
def test_every_float_is_shown(value: float, shown: str) -> None:
    assert list(answers.table(pa.table({"x": [value]}), ascii_only=False))[-2].strip() == shown

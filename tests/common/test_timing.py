"""The timing loop and the table printer that every room uses."""

from __future__ import annotations

from stategate.common.tables import markdown_table, text_table
from stategate.common.timing import TimedCall, time_in_turns


def test_calls_take_turns_in_bursts_that_begin_with_the_first_feed() -> None:
    log: list[object] = []
    calls = {
        name: TimedCall(lambda feed, name=name: log.append((name, feed)), (1, 2), log.clear)
        for name in ("a",)
    }
    calls["b"] = TimedCall(lambda feed: log.append(("b", feed)))
    rounds: list[int] = []
    spans = time_in_turns(calls, rounds=2, burst=3, warm_up=1, report=rounds.append)
    assert log == [("a", 1), ("a", 2), ("a", 1), ("b", None), ("b", None), ("b", None)]
    assert rounds == [1, 2, 3]
    assert {name: ns.shape for name, ns in spans.items()} == {"a": (2, 3), "b": (2, 3)}
    assert all((ns >= 0).all() for ns in spans.values())


def test_rounds_are_added_until_the_time_has_passed() -> None:
    spans = time_in_turns({"a": TimedCall(lambda _: None)}, rounds=1, warm_up=0, seconds=0.01)
    assert len(spans["a"]) > 1


def test_nothing_to_measure_gives_nothing() -> None:
    assert time_in_turns({}, rounds=2) == {}


def test_a_table_has_columns_as_wide_as_their_widest_cell() -> None:
    rows = [("name", "us"), ("a", "1.5"), ("longer", "10.25")]
    assert text_table(rows).splitlines() == [
        "name    us",
        "a       1.5",
        "longer  10.25",
    ]


def test_a_bar_in_a_cell_does_not_end_the_cell() -> None:
    assert markdown_table(("a", "b"), [("x|y", "1")], right={1}).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1 |",
    ]

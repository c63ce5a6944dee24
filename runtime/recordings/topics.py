"""MCAP files and bags of ROS 2: messages of topics, in the order in which they were recorded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stategate.contract.errors import EpisodeError
from stategate.runtime.recordings import messages
from stategate.runtime.recordings.mapping import Map, Part
from stategate.runtime.recordings.source import (
    TYPICAL,
    Block,
    Field,
    Gather,
    Progress,
    Source,
    chosen,
    reading,
)


class Message(NamedTuple):
    """One message as it was recorded."""

    topic: str
    kind: str
    log_ns: int
    publish_ns: int
    decode: Callable[[], Any]


class Topics(Source):
    """A recording of messages; see `Source`."""

    is_timed = True
    settings = frozenset({"time", "order"})
    clocks: tuple[str, ...] = ("log", "publish", "header")  # times that a message has

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.topics: set[str] = set()  # that were read so far
        self.decoders: dict[object, messages.Decoder] = {}

    @abstractmethod
    def recorded(self, topics: frozenset[str] | None, order: bool) -> Iterator[Message]:
        """Messages of some topics, or of all, as recorded or in the order of their log times."""

    def fields(self) -> list[Field]:
        """What each topic holds, by its first message; the whole recording is gone through."""
        first: dict[str, tuple[str, Any]] = {}
        times: dict[str, list[int]] = {}
        counts: dict[str, int] = {}
        with reading(self.path, f"{self.form}, whole"):
            for message in self.recorded(None, order=False):
                counts[message.topic] = counts.get(message.topic, 0) + 1
                early = times.setdefault(message.topic, [])
                if len(early) < TYPICAL:
                    early.append(message.log_ns)
                if message.topic in first:
                    continue
                try:
                    first[message.topic] = message.kind, message.decode()
                except EpisodeError as problem:
                    first[message.topic] = message.kind, None
                    self.notes.append(f"{message.topic}: {problem.reason}")
            self.size = sum(counts.values())
            return [
                field
                for topic, (kind, message) in sorted(first.items())
                for field in messages.fields_of(topic, kind, message, times[topic], counts[topic])
            ]

    def episodes(
        self, parts: Sequence[Part], plan: Map, report: Progress
    ) -> Iterator[tuple[str, Iterator[Block]]]:
        """The recording is one episode; gaps may cut it."""
        if plan.time and plan.time not in self.clocks:
            raise EpisodeError(
                f"messages of {self.form} have no such time", found=plan.time,
                expected=" or ".join(self.clocks),
            )  # fmt: skip
        yield self.path.stem, self._batches(parts, plan, report)

    def _batches(self, parts: Sequence[Part], plan: Map, report: Progress) -> Iterator[Block]:
        fields = chosen(self, self.fields(), parts)
        topics = [
            max((t for t in self.topics if f"{p.field}.".startswith(f"{t}.")), key=len)
            for p in parts
        ]
        pick = [
            messages.picker(topic, part, one)
            for topic, part, one in zip(topics, parts, fields, strict=True)
        ]
        into = [Gather(part.field) for part in parts]
        of_topic = {t: [i for i, own in enumerate(topics) if own == t] for t in topics}
        done, is_full, kinds = 0, False, dict[str, str]()
        with reading(self.path, f"{self.form}, whole"):
            for message in self.recorded(frozenset(topics), plan.order == "sort"):
                if kinds.setdefault(message.topic, message.kind) != message.kind:
                    raise EpisodeError(
                        f"{message.topic} changes its type", found=message.kind,
                        expected=kinds[message.topic],
                    )  # fmt: skip
                decoded = message.decode()
                time_ns = message.publish_ns if plan.time == "publish" else message.log_ns
                if plan.time == "header":
                    stamp = messages.time_of(decoded)
                    if not stamp:
                        raise EpisodeError(
                            f"a message of {message.topic} has no time in a header",
                            remedy="--read time=log takes the time at which it was recorded",
                        )
                    time_ns = stamp
                for i in of_topic[message.topic]:
                    value = pick[i](decoded)
                    is_full |= value is not None and into[i].add(time_ns, value)
                done += 1
                if is_full:
                    report(done)
                    yield [g.take(i) for i, g in enumerate(into) if g.times]
                    is_full = False
        yield [g.take(i) for i, g in enumerate(into) if g.times]

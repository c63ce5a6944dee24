"""What a session tells of itself: counters, times, a page that is alive."""

from __future__ import annotations

from stategate.contract import Bundle
from stategate.contract.errors import SpecError
from stategate.runtime.base.buffers import Array
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.base.times import Times
from stategate.runtime.deadline import StepDeadline
from stategate.runtime.engines.engine import Engine
from stategate.runtime.keep.owner import MemoryOwner
from stategate.runtime.watch.gauges import Gauge, gauges
from stategate.runtime.watch.live import LiveSource
from stategate.runtime.watch.server import LOOPBACK, Server
from stategate.runtime.watch.tap import Tap
from stategate.runtime.watch.telemetry import metrics


class WatchedOwner(MemoryOwner):
    """A memory that can be looked at; a step pays nothing for it until somebody does."""

    _deadline: StepDeadline | None
    _server: Server | None = None

    def __init__(
        self, bundle: Bundle, engine: Engine, outputs: dict[str, Array], gates: dict[str, Array]
    ) -> None:
        super().__init__(bundle, engine, outputs, gates)
        self._times = Times()

    @property
    def ledger(self) -> Ledger:
        """The counters as they stand."""
        return self._counters.read()

    def metrics(self) -> dict[str, float | int | str]:
        """Counters, rates and sizes, flat; see `stategate.runtime.watch.telemetry.metrics`."""
        return metrics(self)

    @property
    def gauges(self) -> list[Gauge]:
        """What is left of each budget that is in force."""
        return gauges(self._budget, self._governor, self._keeper, self._times.step)

    @property
    def thresholds(self) -> dict[str, float]:
        """Threshold of each hard gate now; a budget with the policy ``adapt`` moves it."""
        now = dict(self.manifest.step.thresholds)
        if self._governor is not None:
            gates = [group.gate.name for group in self._buffers.groups if group.gate is not None]
            now |= zip(gates, self._governor.thresholds, strict=True)
        return now

    def time_steps(self) -> Times:
        """Time every step from now on, and count lateness and jitter of its loops."""
        self._timer()
        return self._times

    def _timer(self) -> StepDeadline:
        if self._deadline is None:
            self._deadline = StepDeadline(self._budget, self._clock, self._counters)
        if self._deadline.after is None:
            self._deadline.after = self._times.step.add
        return self._deadline

    def watch(self, port: int = 0, bind: str = LOOPBACK) -> Server:
        """Serve a page of this session, read-only, on threads of its own, until it is closed.

            print(session.watch(8080).url)

        A step is timed from now on. While somebody looks it is noted as well, with copies of small
        states.

        Args:
            port: 0 for any that is free.
            bind: Address. At any but loopback's own the page asks for the token in its `url`.

        Raises:
            SpecError: It is being served already, or cannot be there.
            RuntimeFault: The session was closed.
        """
        self._open_engine()
        if self._server is not None:
            raise SpecError("this session is watched already", found=self._server.url)
        tap = self.tap()
        self._server = Server(LiveSource(self, tap), bind, port)
        return self._server

    def tap(self) -> Tap:
        """Note each step from now on, for as long as the tap has viewers."""
        buffers, state_bytes = self._buffers, self.manifest.state_bytes
        if self._memory.on_device:
            state_bytes = 1 << 62  # a copy of each would cost more than a step
        tap = Tap(
            self._counters, self._memory, buffers.inputs, self._outputs, self._gates, state_bytes
        )
        count, note = self._times.step.add, tap.note

        def after(elapsed_ns: int) -> None:
            count(elapsed_ns)
            note(elapsed_ns)

        self._timer().after = after
        return tap

    def close(self) -> None:
        """Free the engine, and end the page."""
        if self._server is not None:
            self._server.close()
        super().close()

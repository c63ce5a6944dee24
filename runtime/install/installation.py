"""A session that takes updates: it steps the bundle that is installed, and tries the next one.

with Installation.open("/var/lib/robot") as robot:
    for observation in sensor:
        action = robot.step(z=observation)["action"]
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stategate.contract import Manifest
from stategate.contract.arguments import checks_kinds
from stategate.contract.errors import (
    EngineError,
    InstallError,
    PersistBudgetError,
    SnapshotError,
    SpecError,
    StateFault,
    StategateError,
)
from stategate.runtime.base.buffers import Array
from stategate.runtime.base.closeable import Closeable
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.deadline import Loop
from stategate.runtime.install.acting import ActingSlot
from stategate.runtime.install.decide import Event, Phase, runs
from stategate.runtime.install.install import confirm, go_back, status
from stategate.runtime.install.memories import states_for_update
from stategate.runtime.install.record import InstallFolder
from stategate.runtime.install.shadow import Shadow
from stategate.runtime.keep.policy import SnapshotPolicy
from stategate.runtime.session import Session

LOOK_STEPS = 32  # between two looks at the record, and at the limits of an update
RATE_STEPS = 100  # on trial before shares of steps are judged


class Installation(ActingSlot, Closeable):
    """Steps the bundle of an installation like a session, and takes updates between two steps.

    Not thread-safe. Make one with `Installation.open`.
    """

    confirm = staticmethod(confirm)
    go_back = staticmethod(go_back)
    status = staticmethod(status)

    def __init__(
        self, folder: InstallFolder, policy: SnapshotPolicy, opening: dict[str, Any]
    ) -> None:
        super().__init__(folder, policy, opening)
        self._shadow: Shadow | None = None
        self._shadow_digest, self._countdown = "", 1
        self._began = Ledger()  # counters when a trial or a shadow run began
        # While what left lets go of budgets and folder; then the policy by which what acts saves.
        self._is_handing = False
        self._policy_to_come: SnapshotPolicy | None = None
        self._refused_at, self._refusal = -1, ""  # a record whose trial was given up
        self._decision: threading.Thread | None = None

    @classmethod
    @checks_kinds
    def open(
        cls, folder: str | Path, *, snapshots: SnapshotPolicy | None = None, **opening: Any
    ) -> Installation:
        """Open what is installed, with the memory that it had.

        Starts with an update that is staged or on trial are counted; after three in which it got no
        further, it is refused. Where the bytes of a slot are not those that were installed, the
        other one runs.

        Args:
            folder: Of the installation.
            snapshots: When the memory is saved by itself; its folder is not used, because an
                installation has its own.
            **opening: As in `Session.open`, without a black box.

        Raises:
            InstallError: Nothing is installed, another process runs it, or no slot can be used.
            StategateError: As in `Session.open`.
        """
        if opening.get("black_box") is not None:
            raise SpecError("an installation has no black box: it would end at each update")
        installation = cls(InstallFolder(folder), snapshots or SnapshotPolicy(""), opening)
        try:
            installation._start()
            installation._began = installation._acting.ledger
        except BaseException:
            installation.close()
            raise
        return installation

    # --- what a session has -----------------------------------------------------------------

    def step(self, /, **inputs: Array) -> Mapping[str, Array]:
        """One step of the bundle that acts; see `Session.step`.

        A bundle on trial whose step fails is taken back at once, and the one before it answers.
        What is returned is another mapping after an update.
        """
        self._countdown -= 1
        if self._countdown <= 0:
            self._countdown = LOOK_STEPS
            self._look()
        session = self._session or self._acting
        try:
            outputs = session.step(**inputs)
        except (EngineError, StateFault) as fault:
            if not self._is_on_trial or self._counted().faults <= self._record.trial.faults:
                raise
            # Before it is on the disk: a start in between counts as one on trial.
            self._refused_at, self._refusal = self._record.number, f"on trial: {fault.reason}"
            self._switch()
            return self._acting.step(**inputs)
        if self._shadow is not None and self._shadow.has_begun:
            self._shadow.step(inputs, outputs, session.budget_finding)
        return outputs

    def begin(self, /, **inputs: Array) -> None:
        """Begin an episode with the bundle's prologue; see `Session.begin`."""
        self._acting.begin(**inputs)
        if self._shadow is not None and self._shadow.session is not None:
            self._shadow.begin_by_prologue(inputs)

    def reset(self) -> None:
        """Put every state to its initial value; see `Session.reset`."""
        self._acting.reset()
        if self._shadow is not None and self._shadow.has_begun:
            self._shadow.begin(None)

    def save(self) -> int | None:
        """Write a snapshot; see `Session.save`."""
        if self._is_handing and self._shadow is not None:
            self._shadow.wait()
            self._take_folder()
        return self._acting.save()

    def state(self, name: str) -> Array:
        """A copy of one state; see `Session.state`."""
        return self._acting.state(name)

    def every(self, hz: float, ticks: int | None = None) -> Loop:
        """A loop of fixed period; see `Session.every`. It outlives an update."""
        return self._acting.every(hz, ticks)

    @property
    def manifest(self) -> Manifest:
        """What the bundle that acts promises."""
        return self._acting.manifest

    @property
    def bundle_digest(self) -> str:
        """Which bundle acts."""
        return self._acting.bundle_digest

    @property
    def outputs(self) -> Mapping[str, Array]:
        """Those of the last step."""
        return self._acting.outputs

    @property
    def gates(self) -> Mapping[str, Array]:
        """Those of the last step."""
        return self._acting.gates

    @property
    def ledger(self) -> Ledger:
        """All that this installation has counted, over updates; steps of a shadow are not in it.

        Gates and states are counted by name, for those of the bundle that acts.
        """
        return self._acting.ledger.after(self._others)

    @property
    def phase(self) -> str:
        """How an update stands: steady, unpacking, staged, trial."""
        return self._record.slots.phase.name.lower()

    @property
    def why(self) -> str:
        """What led to the last change, and to the memory that the acting bundle began with."""
        return f"{self._record.why}; {self._memory_words}"

    def close(self) -> None:
        """Free engines and files; a second call does nothing. Save before."""
        shadow, self._shadow, session, self._session = self._shadow, None, self._session, None
        for each in (shadow.close() if shadow is not None else None, session):
            if each is not None:
                each.close()
        if self._decision is not None:
            self._decision.join()
        self._locks.close()

    # --- an update --------------------------------------------------------------------------

    def _counted(self) -> Ledger:
        """What was counted since the trial, or the shadow run, began."""
        return self._acting.ledger.since(self._began)

    def _look(self) -> None:
        """See what was decided and obey it; else judge a shadow run or a trial.

        An installation whose record cannot be read goes on with what runs.
        """
        if self._is_handing:
            self._take_folder()
        if self._is_fixed or (self._decision is not None and self._decision.is_alive()):
            return
        try:
            version = self._folder.version()
            if version != self._version and not self._is_handing:
                self._record, self._version = self._folder.read(), version
                self._obey()
        except InstallError as problem:
            self._is_fixed = True
            warnings.warn(f"no update is taken any more: {problem.reason}", UserWarning, 4)
            return
        if self._record.number == self._refused_at:
            self._decide(Event.REFUSED, self._refusal)
        elif self._is_on_trial:
            self._judge_trial()
        elif self._shadow is not None and self._shadow_digest:
            self._judge_shadow(self._shadow)

    def _decide(self, event: Event, why: str, **fields: Any) -> None:
        """Write a decision while the steps go on; a later look obeys it.

        Where it cannot be written, such as on a full disk, what runs goes on, and a later look
        comes to the same decision.
        """
        number = self._record.number

        def write() -> None:
            with suppress(OSError, InstallError):
                self._folder.change(event, why, only_at=number, **fields)

        self._decision = threading.Thread(target=write, name="stategate-decision")
        self._decision.start()

    def _obey(self) -> None:
        """Do what the record says."""
        slots = self._record.slots
        if self._record.number == self._refused_at:
            return
        if runs(slots) != self._slot:
            self._switch()
        elif slots.phase is Phase.STAGED:
            other = 1 - self._slot
            if self._record.digests[other] != self._shadow_digest:
                self._end_shadow()
                self._shadow_digest = self._record.digests[other]
                self._shadow = Shadow(lambda: self._opened(other, None))
        elif not self._is_on_trial:
            self._end_shadow()

    def _end_shadow(self) -> None:
        if self._shadow is not None:
            self._shadow.abandon()
        self._shadow, self._shadow_digest = None, ""

    def _judge_shadow(self, shadow: Shadow) -> None:
        trial, acting = self._record.trial, self._acting
        if shadow.problem is not None:
            self._decide(
                Event.REFUSED, f"refused after {shadow.steps} shadow steps: {shadow.problem}"
            )
        elif shadow.session is not None and not shadow.has_begun:
            states = {spec.name: acting.state(spec.name) for spec in acting.manifest.states}
            memory, self._memory_words = states_for_update(acting.manifest, states, shadow.session)
            self._began = acting.ledger
            # A memory that began anew fills for half of the run before anything is compared; one
            # that only a prologue can begin waits for the next episode.
            if memory is not None:
                shadow.begin(memory)
            elif shadow.session.manifest.prologue is None:
                shadow.begin(None, trial.shadow_steps // 2)
        elif shadow.steps >= trial.shadow_steps:
            words = f"difference {shadow.difference:.3g} in {shadow.steps} shadow steps"
            if not shadow.difference <= trial.difference:
                self._decide(
                    Event.REFUSED, f"refused: {words}, at most {trial.difference:g} allowed"
                )
                return
            counted, most = self._counted(), trial.write_rate
            if most is None:
                most = 2 * counted.writes / max(1, counted.steps) + 0.01
            self._decide(Event.AGREED, f"on trial: {words}", write_rate=most)

    def _judge_trial(self) -> None:
        trial, counted, limit = self._record.trial, self._counted(), self._record.write_rate
        steps, shadow = counted.steps, self._shadow
        breaches = {
            f"{counted.faults} faults, at most {trial.faults} allowed": counted.faults
            > trial.faults,
            f"difference {shadow.difference if shadow else 0:.3g} from the bundle before, at most "
            f"{trial.difference:g} allowed": shadow is not None
            and not shadow.difference <= trial.difference,
        }
        if steps >= RATE_STEPS:
            late, wrote = counted.deadline_misses / steps, counted.writes / steps
            breaches |= {
                f"{late:.2%} of steps late, at most {trial.late:.2%} allowed": late > trial.late,
                f"{wrote:.2%} of steps write, at most {limit or 0:.2%} allowed": limit is not None
                and wrote > limit,
            }
        broken = [words for words, is_broken in breaches.items() if is_broken]
        if broken:
            self._decide(
                Event.REFUSED, f"taken back after {steps} steps on trial: {'; '.join(broken)}"
            )
        elif steps >= trial.steps and not trial.by_hand:
            self._decide(Event.CONFIRMED, f"confirmed after {steps} steps on trial")

    def _switch(self) -> None:
        """Act with the other slot from the next step on.

        Its session has kept pace as a shadow, so that nothing is opened and nothing written here:
        the one that leaves saves its memory, for the way back, in the shadow's thread. Only where
        there is no shadow, as after a restart, the other slot is opened now.
        """
        total, leaving, shadow = self.ledger, self._acting, self._shadow
        self._shadow, self._shadow_digest = None, ""
        coming = shadow.close() if shadow is not None else None
        if coming is None:
            self._open_other(leaving, total)
            return
        coming.count_anew()
        coming.follow(False, 0.0)  # full, and then what is left
        coming.allowed = leaving.allowed
        self._slot, self._session = 1 - self._slot, coming
        self._others, self._began = total, coming.ledger
        self._is_handing, self._policy_to_come = True, None
        self._shadow = Shadow.of(leaving)
        self._shadow.call(self._let_go, leaving, self._slot)

    def _let_go(self, leaving: Session, slot: int) -> None:
        """In the shadow's thread: save what left, and free the budgets for what acts."""
        before = leaving.ledger
        with suppress(PersistBudgetError, SnapshotError):
            leaving.save()
        leaving.keep_in(None)
        self._others = leaving.ledger.since(before).after(self._others)
        self._policy_to_come = self._policy_of(slot)

    def _take_folder(self) -> None:
        """Keep the memory of what acts in its folder, once what left has let go of the budgets."""
        shadow, policy = self._shadow, self._policy_to_come
        if policy is None and shadow is not None and shadow.is_alive:
            return
        problem = shadow.problem if shadow is not None else None
        self._is_handing, total = False, self.ledger
        if policy is not None:
            try:
                self._acting.keep_in(policy)
            except SnapshotError as refusal:
                problem, policy = refusal.reason, None
        if policy is None:
            warnings.warn(f"nothing is saved from here on: {problem}", UserWarning, 5)
        self._others = total.since(self._acting.ledger)
        if not self._is_on_trial:
            self._end_shadow()

    def _open_other(self, leaving: Session, total: Ledger) -> None:
        """Open the other slot in the place of what acts; where it cannot be, that goes on."""
        with suppress(PersistBudgetError, SnapshotError):
            leaving.save()
        leaving.keep_in(None)
        self._slot = 1 - self._slot
        try:
            coming = self._opened(self._slot, self._policy_of(self._slot))
        except StategateError as problem:
            self._slot = 1 - self._slot
            self._change(Event.REFUSED if self._is_on_trial else Event.LOST_GOOD, problem.reason)
            self._is_fixed = runs(self._record.slots) != self._slot
            leaving.keep_in(self._policy_of(self._slot))
            return
        self._restore(coming)
        self._session = coming
        self._others, self._began = total.since(coming.ledger), coming.ledger
        leaving.close()

"""A robot with a snapshot folder, as a process of its own that a test drives over pipes.

The process that is started imports everything and then forks a robot for each ``start``, so that a
restart costs milliseconds. What goes to the disk is logged by a system call of its own before it
happens, so that SIGKILL loses no line of the log. Faults are put into the functions of `os`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  loaded once, and not by every robot

from stategate.contract import Budget
from stategate.contract.errors import BudgetError, SnapshotError
from stategate.runtime import Session, SnapshotPolicy
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.keep import account

GATES = {True: 1.0, False: -1.0}


class Disk:
    """Logs what is written, and fails or kills at the next call that is named."""

    def __init__(self, log: str) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.fault: tuple[str, str] | None = None
        for name in ("fsync", "fdatasync", "replace", "pwrite"):
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Any) -> Any:
        def call(*given: Any) -> Any:
            kind = name
            if name == "fsync":
                path = str(Path(f"/proc/self/fd/{given[0]}").readlink())
                kind = "sync folder" if os.path.isdir(path) else "sync file"  # noqa: PTH112
            how = ""
            if self.fault is not None and self.fault[0] == kind:
                how, self.fault = self.fault[1], None
            # The file's bytes were handed over before it is synced, but a record that is not
            # handed over wears nothing, and leaves nothing that the next session could charge.
            if kind == "sync file":
                os.write(self._log, b"snapshot\n")
            if how == "kill before":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "fail":
                raise OSError(errno.EIO, "Input/output error")
            if kind == "pwrite":
                os.write(self._log, b"record\n")
            real_answer = real(*given)
            if how == "kill after":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "interrupt":
                raise KeyboardInterrupt
            return real_answer

        return call


class Robot:
    def __init__(self, bundle: str, log: str) -> None:
        self._bundle, self._disk = bundle, Disk(log)
        self._clock = ManualClock()
        self._boot, self._boot_ns = "", 0
        self.pipes: list[int] = []
        account.since_boot = lambda: (self._boot, self._boot_ns)

    def open(self, folder: str, writes: float, bytes_a_day: float, boot: str, boot_ns: int) -> Any:
        self._boot, self._boot_ns = boot, boot_ns
        budget = Budget(writes_per_1000_steps=writes, persisted_bytes_per_day=bytes_a_day)
        policy = SnapshotPolicy(folder, on_damage="fresh")
        self._session = Session.open(
            self._bundle, snapshots=policy, budget=budget, clock=self._clock
        )
        return {}

    def step(self, times: int, gate: bool) -> Any:
        before = self._session.ledger.writes
        for _ in range(times):
            self._session.step(x=np.array([[GATES[gate], 0.1, 0.2, 0.3]], np.float32))
        return {"writes": self._session.ledger.writes - before}

    def save(self, fault: list[str] | None) -> Any:
        self._disk.fault = tuple(fault) if fault else None  # type: ignore[assignment]
        sequence = None
        try:
            sequence = self._session.save()
        except (SnapshotError, BudgetError, KeyboardInterrupt):
            pass
        finally:
            self._disk.fault = None
        return {"sequence": sequence, "ledger": self.ledger()}

    def restore(self) -> Any:
        restored = self._session.restore()
        steps = None if restored is None else restored.steps
        return {"steps": steps, "ledger": self.ledger()}

    def pass_time(self, ns: int) -> Any:
        self._clock.advance_ns(ns)
        self._boot_ns += ns
        return {}

    def jump(self, wall_s: float, back_ns: int) -> Any:
        """The clock on the wall, and a session's clock that goes back and comes again."""
        time.time = lambda: wall_s
        self._clock.advance_ns(-back_ns)
        self.step(1, False)
        self._clock.advance_ns(back_ns)
        return {}

    def fork(self) -> Any:
        """A child that tries to save, and lives on."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            for pipe in self.pipes:  # or the robot's death would not be seen
                os.close(pipe)
            try:
                self._session.save()
                os.write(writer, b"saved")
            except SnapshotError:
                os.write(writer, b"refused")
            os.close(writer)
            time.sleep(600)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read().decode()
        return {"said": said, "child": child}

    def close(self) -> Any:
        self._session.close()
        return {}

    def ledger(self) -> dict[str, int]:
        ledger = self._session.ledger
        names = ("steps", "writes", "snapshots", "persisted_bytes", "restores")
        return {name: getattr(ledger, name) for name in names}


def serve(robot: Robot, requests: Any, answers: Any) -> None:
    robot.pipes = [requests.fileno(), answers.fileno()]
    for line in requests:
        name, given = json.loads(line)
        try:
            answer = getattr(robot, name)(**given)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    pipes: list[Any] = []
    child = 0
    for line in sys.stdin:
        name, given = json.loads(line)
        if name == "start":
            down, up = os.pipe(), os.pipe()
            child = os.fork()
            if child == 0:
                os.close(down[1]), os.close(up[0])
                serve(Robot(**given), os.fdopen(down[0]), os.fdopen(up[1], "w"))
                os._exit(0)
            os.close(down[0]), os.close(up[1])
            pipes = [os.fdopen(down[1], "w"), os.fdopen(up[0])]
            print(json.dumps({"pid": child}), flush=True)
            continue
        if name == "kill":
            os.kill(child, signal.SIGKILL)
            said = ""
        else:
            print(line.strip(), file=pipes[0], flush=True)
            said = pipes[1].readline().strip()
        if not said:
            os.waitpid(child, 0)
            for pipe in pipes:
                pipe.close()
        print(said or '{"dead": true}', flush=True)


if __name__ == "__main__":
    main()

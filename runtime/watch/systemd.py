"""Words to systemd: ready, alive, stopping. Silent in a program that systemd did not start.

    with stategate.Installation.open("/var/lib/robot") as robot:
        systemd = Systemd()
        systemd.say("READY=1")
        for tick in robot.every(hz=50):
            robot.step(z=read_sensor())
            systemd.alive()

A step that hangs ends these, and systemd starts the program again (``WatchdogSec=`` in the unit).
The protocol is that of ``sd_notify(3)``: one datagram for each message.
"""

from __future__ import annotations

import os
import socket

from stategate.contract.failures import failures
from stategate.runtime.base.clock import Clock, MonotonicClock


class Systemd:
    """Where ``NOTIFY_SOCKET`` says, at least twice in the time that ``WATCHDOG_USEC`` allows."""

    def __init__(self, clock: Clock | None = None) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # The time is meant for the process that systemd started, and not for its children.
        is_this = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = os.environ.get("WATCHDOG_USEC", "0") if is_this else "0"
        self._every_ns = int(usec) * 1000 // 2 if usec.isdecimal() else 0
        self._clock = clock or MonotonicClock()
        self._due_ns = self._clock.now_ns()

    def say(self, words: str) -> bool:
        """Send a message, such as ``READY=1`` or ``STATUS=...``; whether somebody was there."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.setblocking(False)  # a step does not wait for the service manager
                line.sendto(words.encode(), self._address)
        except failures(OSError):
            return False
        return True

    def alive(self) -> None:
        """Call it after each step: half of the time that is allowed later it sends a message."""
        if self._every_ns and self._clock.now_ns() >= self._due_ns:
            self._due_ns = self._clock.now_ns() + self._every_ns
            self.say("WATCHDOG=1")

"""A robot's policy as a service: its memory goes on over restarts, and systemd sees it live."""

import os
import signal
import sys

import numpy as np

from stategate import Installation, SnapshotPolicy
from stategate.runtime.watch.systemd import Systemd

FOLDER = os.environ.get("STATE_DIRECTORY", "robot")  # systemd names it: /var/lib/robot
running = True


def stop(*_: object) -> None:
    """Let the loop end after the step that is being taken."""
    global running
    running = False


def read_sensors(robot: Installation, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Replace this by your robot's sensors: random numbers in the shapes of the inputs."""
    return {
        tensor.name: rng.standard_normal(tensor.shape).astype(tensor.dtype)
        for tensor in robot.manifest.inputs
    }


def main() -> None:
    """Step until systemd says stop, then save."""
    signal.signal(signal.SIGTERM, stop)
    rng, systemd = np.random.default_rng(), Systemd()
    # At most one save a minute: what a loss of power may cost, and what the flash pays.
    policy = SnapshotPolicy("", every_seconds=60)
    with Installation.open(FOLDER, snapshots=policy) as robot:
        systemd.say(f"READY=1\nSTATUS=goes on at step {robot.ledger.steps}")
        print(f"goes on at step {robot.ledger.steps}: {robot.why}", flush=True)
        for _ in robot.every(hz=50):
            if not running:
                break
            robot.step(**read_sensors(robot, rng))
            systemd.alive()
        systemd.say("STOPPING=1")
        robot.save()
        print(f"saved at step {robot.ledger.steps}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

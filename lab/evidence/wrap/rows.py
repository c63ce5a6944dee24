"""What the evidence of wrapping is kept in: one row a training, written when it is done."""

from __future__ import annotations

import msgspec

VERSIONS = {"tmaze": 2}
"""Of a task and its measurements, where it is not 1; a change makes its rows anew."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one rule of writing does on fresh streams, or in the simulator.

    Attributes:
        rule: ``gate``, ``always``, ``never``, ``random``, ``periodic``, or ``gate > -2``.
        write_rate: Share of steps that write.
        score: Share of questions answered, or of episodes that reached the goal; of continuous
            actions the root mean square error, in spreads.
        hold: Idle steps in the simulator; None elsewhere.
        judged: Questions or episodes.
    """

    rule: str
    write_rate: float
    score: float
    judged: int
    hold: int | None = None


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of one training.

    Attributes:
        task: One of `lab.evidence.wrap.tasks.TASKS`, or ``tmaze``.
        seed: Of backbone, recordings and training.
        digest: Of what the row depends on.
        refusal: What `stategate.wrap` said where it refused; empty where there is a bundle.
        rules: On streams that were neither trained on nor held out.
        hard_rate: Share of labels that need memory.
        threshold: That was chosen.
        price: Of a write.
        chunk: Steps back-propagated through.
        iterations: Optimiser steps.
        held_out_lost: Loss on held-out recordings.
        backbone_sha256: Digest of its weights.
        verdict: Of the bundle.
        gate_flips: Of its check against torch.
    """

    task: str
    seed: int
    digest: str
    refusal: str = ""
    rules: tuple[Rule, ...] = ()
    hard_rate: float | None = None
    threshold: float | None = None
    price: float | None = None
    chunk: int | None = None
    iterations: int | None = None
    held_out_lost: float | None = None
    backbone_sha256: str = ""
    verdict: str = ""
    gate_flips: int | None = None

    def rule(self, name: str, hold: int | None = None) -> Rule:
        """What a rule does."""
        return next(rule for rule in self.rules if (rule.rule, rule.hold) == (name, hold))

"""The observation contract: what it holds, and which differences it finds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stategate.contract import ObservationContract, StateSpec, StepSpec, TensorSpec
from stategate.contract.claims import declared, refuse_difference
from stategate.contract.errors import SpecError
from stategate.contract.observation import Signal, Term

JOINTS = ("hip", "knee", "ankle")
STEP = StepSpec(
    (TensorSpec("obs", (1, 3)),), (TensorSpec("action", (1, 3)),), (StateSpec("h", (1, 4)),)
)


def contract(**parts: Any) -> ObservationContract:
    return declared(parts, ("obs",))


def refusal(promised: ObservationContract, claimed: object) -> str:
    with pytest.raises(SpecError) as raised:
        refuse_difference(promised, declared(claimed, ("obs",)))
    return str(raised.value)


def test_every_swap_of_two_names_is_found_at_its_first_index() -> None:
    draw = random.Random(17)
    for _ in range(200):
        names = [f"joint_{i}" for i in range(draw.randint(2, 40))]
        first, second = sorted(draw.sample(range(len(names)), 2))
        swapped = list(names)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        promised = declared(names, ("obs",))
        refuse_difference(promised, declared(tuple(names), ("obs",)))
        message = refusal(promised, swapped)
        assert f"has 'joint_{first}' at index {first}, and the caller gives" in message
        assert f"the caller has 'joint_{first}' at index {second}" in message


def test_every_renamed_missing_or_surplus_name_is_found() -> None:
    draw = random.Random(18)
    for _ in range(200):
        names = [f"joint_{i}" for i in range(draw.randint(2, 40))]
        at = draw.randrange(len(names))
        promised = declared(names, ("obs",))
        renamed = [*names[:at], "elbow", *names[at + 1 :]]
        assert f"'joint_{at}' at index {at}, and the caller gives 'elbow'" in refusal(
            promised, renamed
        )
        shorter = names[:at] + names[at + 1 :]
        message = refusal(promised, shorter)
        assert f"'joint_{at}' at index {at}" in message and "nowhere" in message
        assert f"has nothing at index {len(names)}, and the caller gives 'elbow'" in refusal(
            promised, [*names, "elbow"]
        )


@pytest.mark.parametrize("order", ["time-first", "term-first"])
def test_a_missing_history_and_its_wrong_order_are_named(order: str) -> None:
    promised = contract(inputs={"obs": {"elements": JOINTS, "history": 5, "order": order}})
    assert "takes 5 frames of 'hip' (index 0), and the caller gives 1" in refusal(
        promised, list(JOINTS)
    )
    other = {"time-first": "term-first", "term-first": "time-first"}[order]
    # Of one term alone both orders are one.
    refuse_difference(
        promised,
        declared({"obs": {"elements": JOINTS, "history": 5, "order": other}}, ("obs",)),
    )
    terms = [{"name": "gyro", "size": 3}, {"name": "position", "elements": JOINTS, "history": 5}]
    promised = contract(inputs={"obs": {"terms": terms, "order": order}})
    message = refusal(promised, {"obs": {"terms": terms, "order": other}})
    assert f"stored {order}, and the caller's {other}: they differ from index 0 on" in message


def test_names_with_a_history_stand_in_the_order_of_the_tensor() -> None:
    terms = (Term("p", ("a", "b"), history=2), Term("v", size=1))
    assert Signal(terms, "term-first").elements() == (
        "p.a@t-1",
        "p.b@t-1",
        "p.a@t",
        "p.b@t",
        "v[0]",
    )
    assert Signal(terms, "time-first").elements() == (
        "p.a@t-1",
        "p.b@t-1",
        "p.a@t",
        "p.b@t",
        "v[0]",
    )
    both = (Term("p", ("a",), history=2), Term("v", ("a",), history=2))
    assert Signal(both, "term-first").elements() == ("p.a@t-1", "p.a@t", "v.a@t-1", "v.a@t")
    assert Signal(both, "time-first").elements() == ("p.a@t-1", "v.a@t-1", "p.a@t", "v.a@t")


def test_rates_scales_joints_and_normalisers_are_compared() -> None:
    promised = contract(
        inputs={"obs": {"elements": JOINTS, "scale": [1.0, 0.25, 1.0], "normaliser": "in-graph"}},
        joints={"names": JOINTS, "stiffness": [40.0, 40.0, 20.0]},
        sim_dt=0.005,
        decimation=4,
    )
    assert promised.rate_hz == 50
    refuse_difference(promised, declared({"rate_hz": 49.9}))
    assert "runs at 50 Hz, and the caller's loop at 100 Hz" in refusal(promised, {"rate_hz": 100})
    scale = {"obs": {"elements": JOINTS, "scale": 1}}
    assert "scale of input 'obs' has 0.25 at index 1, and the caller gives 1.0" in refusal(
        promised, scale
    )
    clip = {"obs": {"elements": JOINTS, "clip": [-1, 1], "units": "deg"}}
    assert "clip of input 'obs' has nothing at index 0" in refusal(promised, clip)
    in_units = contract(inputs={"obs": {"elements": JOINTS, "units": "rad"}})
    units = {"obs": {"elements": JOINTS, "units": "deg"}}
    assert "units of input 'obs' has 'rad' at index 0, and the caller gives 'deg'" in refusal(
        in_units, units
    )
    gains = {"joints": {"names": JOINTS, "stiffness": [40, 40, 40]}}
    assert "stiffness of the joints has 20.0 at index 2" in refusal(promised, gains)
    assert "in-graph" in refusal(promised, {"obs": {"normaliser": "as-given", "terms": []}})


def test_what_a_bundle_does_not_say_cannot_be_compared() -> None:
    empty = ObservationContract()
    assert "does not say what input 'obs' consists of" in refusal(empty, list(JOINTS))
    assert "does not say its control rate" in refusal(empty, {"rate_hz": 50})
    refuse_difference(None, empty)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"obz": ["a"]}, "obz"),
        ({"obs": {"elements": ["a", "a", "b"]}}, "two elements have one name"),
        ({"obs": {"elements": ["a"], "scale": [1, 2]}}, "2 scale for 1 elements"),
        ({"obs": {"elements": ["a"], "clip": [1, -1]}}, "clipped to nothing"),
        ({"obs": {"elements": ["a"], "history": 0}}, "history"),
        ({"obs": {"elements": ["a"], "terms": [{"name": "b"}]}}, "beside terms"),
        ({"rate_hz": -1}, "rate_hz"),
        ({"rate_hz": 100, "sim_dt": 0.005, "decimation": 4}, "contradicts the simulator's step"),
        ({"joints": {"names": ["a"], "damping": [1, 2]}}, "2 numbers for 1 joints"),
        (7, "int"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(claim: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        declared(claim, ("obs",))


def test_it_must_describe_tensors_of_the_model() -> None:
    contract(inputs={"obs": JOINTS}, outputs={"action": JOINTS}).check(STEP)
    with pytest.raises(SpecError, match="2 names, history included"):
        contract(inputs={"obs": ["a", "b"]}).check(STEP)
    with pytest.raises(SpecError, match="an output that the model lacks"):
        contract(outputs={"torque": ["a"]}).check(STEP)
    contract(inputs={"obs": {"terms": [{"name": "command"}, {"name": "joint_pos"}]}}).check(STEP)


def test_a_file_says_the_same_as_python_and_damage_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "observes.json"
    file.write_text(json.dumps({"inputs": {"obs": JOINTS}, "rate_hz": 50}))
    assert declared(file, ("obs",)) == contract(
        inputs={"obs": JOINTS}, rate_hz=50, source="observes.json"
    )
    raw = file.read_bytes()
    draw = random.Random(19)
    for _ in range(300):
        damaged = bytearray(raw[: draw.randint(0, len(raw))])
        for _ in range(draw.randint(0, 3)):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            declared(file, ("obs",))
        except SpecError as problem:
            assert "observation contract" in str(problem)


def test_what_is_declared_goes_before_what_was_read() -> None:
    read = contract(inputs={"obs": JOINTS}, sim_dt=0.005, decimation=4, source="policy.onnx")
    own = contract(rate_hz=100.0, joints={"names": JOINTS}, source="mine.yaml")
    both = own.filled_from(read)
    assert (both.rate_hz, both.sim_dt) == (100.0, None)
    assert both.inputs == read.inputs and both.joints == own.joints
    assert both.source == "mine.yaml; policy.onnx"
    assert msgspec.convert(msgspec.to_builtins(both), ObservationContract) == both

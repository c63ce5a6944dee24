from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stategate.contract import (
    Bundle,
    ConstantSpec,
    GateSpec,
    Manifest,
    StateSpec,
    StepSpec,
    TensorSpec,
    canonical_json,
)
from stategate.contract.errors import ManifestError, SpecError
from stategate.contract.manifest import decode_manifest
from stategate.contract.sessions import batched, check_rows

SPEC = StepSpec(
    (TensorSpec("x", (1, 3)),),
    (TensorSpec("y", (1, 2)),),
    (StateSpec("s", (1, 4, 4), gate="g", init_file="initial/0.bin"), StateSpec("t", (1, 2))),
    (GateSpec("g", "hard", (1,), 0.5, "threshold"),),
    (ConstantSpec("rate", (7,), "int64", 16000),),
)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@given(st.integers(1, 50))
def test_every_tensor_of_a_session_gets_a_row_for_each(sessions: int) -> None:
    wide = batched(SPEC, sessions)
    check_rows(wide, sessions)
    assert wide.state_bytes == sessions * SPEC.state_bytes == sum(s.bytes for s in wide.states)
    assert [s.gate for s in wide.states] == ["g", None]
    assert wide.states[0].init_file == "initial/0.bin"


def test_constants_and_thresholds_have_no_rows() -> None:
    assert batched(SPEC, 4).fixed_inputs == SPEC.fixed_inputs


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": (TensorSpec("x", (2, 3)),)},
        {"inputs": (TensorSpec("x", ()),)},
        {"outputs": (TensorSpec("y", (3,)),)},
        {"states": (StateSpec("s", (2, 1, 128), gate="g"),)},
        {"gates": (GateSpec("g", "hard", (8,), 0.5),)},
    ],
)
def test_a_leading_axis_that_is_no_batch_is_refused(change: dict) -> None:
    spec = msgspec.structs.replace(SPEC, **change)
    with pytest.raises(SpecError, match="no row for each session"):
        batched(spec, 4)
    assert batched(spec, 1) == spec


def test_an_input_called_rows_is_refused_because_a_pool_needs_the_name() -> None:
    spec = msgspec.structs.replace(SPEC, inputs=(TensorSpec("rows", (1, 3)),))
    with pytest.raises(SpecError, match="cannot be called 'rows'"):
        batched(spec, 4)


@pytest.mark.parametrize("sessions", [0, -3])
def test_a_bundle_for_no_session_is_refused(manifest: Manifest, sessions: int) -> None:
    for attempt in (
        lambda: batched(SPEC, sessions),
        lambda: msgspec.structs.replace(manifest, sessions=sessions),
    ):
        with pytest.raises(SpecError, match="at least one session"):
            attempt()


def test_a_manifest_promises_a_row_for_each_session(manifest: Manifest) -> None:
    wide = batched(manifest.step, 3)
    parts = {name: getattr(wide, name) for name in ("inputs", "outputs", "states", "gates")}
    pool = msgspec.structs.replace(manifest, sessions=3, **parts)
    assert pool.state_bytes == 3 * manifest.state_bytes
    assert pool.state_bytes_per_session == manifest.state_bytes_per_session == 20
    assert decode_manifest(canonical_json(pool)) == pool
    for name in parts:
        with pytest.raises(SpecError, match="no row for each session"):
            msgspec.structs.replace(pool, **{name: getattr(manifest, name)})


def test_a_manifest_without_the_field_is_for_one_session(manifest: Manifest) -> None:
    record = json.loads(canonical_json(manifest))
    assert record.pop("sessions") == 1
    assert decode_manifest(json.dumps(record).encode()) == manifest
    with pytest.raises(ManifestError, match="no row for each session"):
        decode_manifest(json.dumps(record | {"sessions": 2}).encode())

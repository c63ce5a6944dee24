"""What exporters and simulators wrote down about the numbers of a step, as an observation contract.

Read are: LEAPP's YAML (names of elements, rate), the ONNX metadata of mjlab and
whole-body-tracking (comma lists) and of exploy (JSON), and the ``env.yaml`` that Isaac Lab and
mjlab keep beside a training. What they do not say stays open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from stategate.common import console
from stategate.contract import ObservationContract, StepSpec, TensorSpec
from stategate.contract.claims import Observes, declared, declared_in
from stategate.contract.errors import SpecError
from stategate.contract.failures import failures, first_line
from stategate.contract.observation import Joints, Signal, Term
from stategate.export.frontends.yaml_file import load_yaml

# Isaac Lab and mjlab lay the history of one term out before the next term begins.
_LAB_ORDER: Literal["term-first"] = "term-first"


def observation_of(
    metadata: Mapping[str, str],
    spec: StepSpec,
    sessions: int = 1,
    observes: Observes | None = None,
    adapter: ObservationContract | None = None,
) -> ObservationContract | None:
    """What is known of a model's inputs and outputs; what a user declares goes first."""
    own = None
    if observes is not None:
        own = _declared(observes, spec)
    read = _from_metadata(metadata, spec, sessions)
    parts = [part for part in (own, adapter, read) if part is not None]
    if not parts:
        return None
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.filled_from(part)
    whole = _typed(whole)
    whole.check(spec, sessions)
    return whole


def _typed(contract: ObservationContract) -> ObservationContract:
    """The same, every field of its type: what a program puts together was never decoded."""
    try:
        return msgspec.convert(msgspec.to_builtins(contract), ObservationContract)
    except failures(msgspec.MsgspecError, TypeError) as problem:
        raise SpecError("this is no observation contract", found=problem) from problem


def _declared(observes: Observes, spec: StepSpec) -> ObservationContract:
    inputs = tuple(tensor.name for tensor in spec.inputs)
    if not isinstance(observes, (str, Path)) or Path(observes).suffix not in (".yaml", ".yml"):
        return declared(observes, inputs)
    path = Path(observes)
    try:
        plain = load_yaml(path)
    except failures() as problem:  # PyYAML lets KeyError, AttributeError and more through
        raise SpecError(
            "the observation contract cannot be read",
            found=f"{path}: {first_line(problem)}",
            expected="a YAML or JSON file",
        ) from problem
    if not isinstance(plain, dict) or not {"decimation", "sim"} <= set(plain):
        return declared_in(plain, inputs, path.name)
    try:
        return _typed(_from_training(plain, spec, path.name))
    except failures(ValueError, TypeError, AttributeError) as problem:
        raise SpecError(
            f"{path} is not the configuration of an environment of Isaac Lab or mjlab",
            found=first_line(problem),
            expected="sim.dt, decimation, and terms of observations and actions",
            remedy="write down what it says in a file of the form of docs/guides/observations.md",
        ) from problem


def _from_metadata(
    metadata: Mapping[str, str], spec: StepSpec, sessions: int
) -> ObservationContract | None:
    """Of all that travelled in a file what can be understood; what contradicts itself is noted."""
    read = None
    for reader in (_from_leapp, _from_exploy, _from_lists):
        try:
            contract = reader(metadata, spec)
            if contract is not None:
                contract = _typed(contract)
                contract.check(spec, sessions)
                read = contract if read is None else read.filled_from(contract)
        except failures(ValueError, TypeError, KeyError) as problem:
            console.note(
                "note: what the file says about its inputs is not taken into the bundle: "
                f"{first_line(problem)}; declare it with --observes FILE"
            )
    return read


def _from_leapp(metadata: Mapping[str, str], spec: StepSpec) -> ObservationContract | None:
    """Of the facts that `leapp.adopt_export` keeps."""

    def signals(side: str, tensors: Iterable[TensorSpec]) -> dict[str, Signal]:
        named = {t.name: _axes(metadata, f"leapp.{side}.{t.name}", t) for t in tensors}
        return {name: Signal((Term(elements=names),)) for name, names in named.items() if names}

    inputs, outputs = signals("input", spec.inputs), signals("output", spec.outputs)
    rate = metadata.get("leapp.frequency_hz")
    if not (inputs or outputs or rate):
        return None
    rate_hz = None if rate is None else float(rate)
    return ObservationContract(inputs, outputs, rate_hz=rate_hz, source="LEAPP")


def _axes(metadata: Mapping[str, str], fact: str, tensor: TensorSpec) -> tuple[str, ...]:
    """Names of a tensor's elements, where one axis has names and the others have one element."""
    axes = json.loads(metadata.get(f"{fact}.element_names", "[]"))
    lists = [axis for axis in axes if isinstance(axis, list)]
    if len(lists) != 1 or len(lists[0]) != math.prod(tensor.shape) or None in lists[0]:
        return ()
    return tuple(lists[0])


def _from_lists(metadata: Mapping[str, str], spec: StepSpec) -> ObservationContract | None:
    """Of the comma lists that mjlab and whole-body-tracking attach to their ONNX files."""
    names = _texts(metadata.get("joint_names", ""))
    terms = _texts(metadata.get("observation_names", ""))
    if not (names or terms):
        return None
    inputs, outputs = {}, {}
    observation, action = _only(spec.inputs, "obs"), _only(spec.outputs, "actions", "action")
    if terms and observation is not None:
        inputs[observation.name] = Signal(
            tuple(
                Term(name, history=frames)
                for name, frames in zip(terms, _histories(metadata, terms), strict=True)
            ),
            _LAB_ORDER,
        )
    scale = _numbers(metadata.get("action_scale", ""))
    if names and action is not None and math.prod(action.shape) == len(names):
        outputs[action.name] = Signal((Term(elements=names, scale=scale),))
    numbers = (
        _numbers(metadata.get(key, ""))
        for key in ("default_joint_pos", "joint_stiffness", "joint_damping")
    )
    return ObservationContract(
        inputs, outputs, Joints(names, *numbers), source="metadata of the ONNX file"
    )


def _histories(metadata: Mapping[str, str], terms: tuple[str, ...]) -> list[int]:
    text = metadata.get("observation_history_lengths", "")
    if text.lstrip().startswith("{"):
        by_name = json.loads(text)
        return [int(by_name.get(term, 1)) for term in terms]
    # 0 frames is how Isaac Lab says that there is no history.
    return [max(1, int(frames)) for frames in _numbers(text)] or [1] * len(terms)


def _from_exploy(metadata: Mapping[str, str], spec: StepSpec) -> ObservationContract | None:
    """Of what exploy attaches: JSON by tensor or group of tensors, and ``update_rate``."""
    facts = {}
    for key, text in metadata.items():
        if key == "update_rate" or text.startswith("{"):
            try:
                facts[key] = json.loads(text)
            except ValueError:  # somebody else's text
                continue
    rate = facts.pop("update_rate", None)
    inputs = {t.name: s for t in spec.inputs if (s := _exploy_signal(facts.get(t.name)))}
    outputs, joints = {}, Joints()
    for tensor in spec.outputs:
        group = facts.get(tensor.name.rpartition(".")[0])
        if isinstance(group, dict) and len(group.get("names", ())) == math.prod(tensor.shape):
            outputs[tensor.name] = Signal((Term(elements=tuple(group["names"])),))
            gains = {k: tuple(group[k]) for k in ("names", "stiffness", "damping") if k in group}
            joints = msgspec.convert(gains, Joints)
    if not (inputs or outputs or rate):
        return None
    return ObservationContract(
        inputs, outputs, joints, None if rate is None else float(rate), source="exploy"
    )


def _exploy_signal(fact: object) -> Signal | None:
    if not isinstance(fact, dict):
        return None
    if "names" in fact:
        return Signal((Term(elements=tuple(fact["names"])),))
    ranges = fact.get("ranges")
    if isinstance(ranges, dict):
        return Signal(
            tuple(Term(elements=(name,), clip=tuple(span)) for name, span in ranges.items())
        )
    return None


def _from_training(env: dict[str, Any], spec: StepSpec, source: str) -> ObservationContract:
    """Of the configuration of an environment that Isaac Lab or mjlab writes beside a training."""
    sim = env["sim"] if isinstance(env["sim"], dict) else {}
    dt = sim.get("dt") or (sim.get("mujoco") or {}).get("timestep")
    inputs, outputs = {}, {}
    tensor = _only(spec.inputs, "obs")
    groups = env.get("observations") or {}
    group = groups.get("policy") or groups.get("actor")
    if tensor is not None and isinstance(group, dict):
        terms = tuple(_trained_terms(group))
        inputs[tensor.name] = Signal(terms, _LAB_ORDER)
    action = _only(spec.outputs, "actions", "action")
    actions = env.get("actions") or {}
    if action is not None and len(actions) == 1:
        ((name, config),) = actions.items()
        size = math.prod(action.shape) // action.shape[0] if action.shape else 1
        term = Term(name, size=size, scale=_one_scale(config), clip=_clip(config))
        outputs[action.name] = Signal((term,))
    decimation = env["decimation"]
    return ObservationContract(inputs, outputs, sim_dt=dt, decimation=decimation, source=source)


def _trained_terms(group: dict[str, Any]) -> Iterator[Term]:
    """The terms of a group, in the order of the file, which is that of the tensor."""
    frames = group.get("history_length")
    for name, config in (group.get("terms") or group).items():
        if isinstance(config, dict) and "func" in config:
            history = config.get("history_length") if frames is None else frames
            yield Term(
                name, scale=_one_scale(config), clip=_clip(config), history=max(1, history or 1)
            )


def _one_scale(config: Mapping[str, Any]) -> tuple[float, ...]:
    """A scale of all elements; by pattern of joint names it cannot be known without the robot."""
    scale = config.get("scale")
    if isinstance(scale, (int, float)) and not isinstance(scale, bool):
        return (float(scale),)
    return tuple(map(float, scale)) if isinstance(scale, list) else ()


def _clip(config: Mapping[str, Any]) -> tuple[float, float] | None:
    clip = config.get("clip")
    return (float(clip[0]), float(clip[1])) if isinstance(clip, list) and len(clip) == 2 else None


def _only(tensors: Iterable[TensorSpec], *names: str) -> TensorSpec | None:
    """The tensor of one of these names, or the only one that there is."""
    by_name = {tensor.name: tensor for tensor in tensors}
    named = [by_name[name] for name in names if name in by_name]
    return named[0] if named else next(iter(by_name.values())) if len(by_name) == 1 else None


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, _texts(text)))

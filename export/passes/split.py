"""From one step two graphs: `read` in every step, `write` only where a gate opens.

The smallest cut. Every node is computed in `read`, in `write`, or in both; `write` has the states,
the constants and what `read` gives anyway for nothing, and every other tensor that it takes from
`read` is payload. Choosing what is cut is a minimum cut: for a node n and a tensor t that it gives,
with "true" meaning *in write*,

    t available in write, n not computed in write     costs the bytes of t (payload)
    n computed in write, a tensor it takes not there  is impossible
    n computed in write and needed by `read`          costs its work (it is done twice)
    n computed in `read` for `write` alone            costs its work (quiet steps do it in vain)

Inputs are never computed in write, makers of guarded next states always. Bytes outweigh all work
together, so the payload is the smallest there is; only operators that cost much, matrix products
and reductions above all, are worth more bytes than being done twice. States that no gate guards
change in every step: `read` gives their next values.

Where the payload would be no smaller than the states, the other way is partial evaluation: `quiet`
is the step with every gate closed and what then is not needed left out; an open gate takes the
whole step after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx
import onnx

from stategate.contract import StateSpec, StepSpec, TensorSpec, given_by_read
from stategate.contract.errors import SplitError
from stategate.export.passes.dataflow import Dataflow
from stategate.export.passes.fold import can_only_open_whole, given_gate

_SOURCE, _SINK = "read", "write"


@dataclass(frozen=True, slots=True)
class Split:
    """A step in two graphs.

    Attributes:
        read: From inputs, constants and states to outputs, gates, next values of the states that
            no hard gate guards, and the payload.
        write: From states, constants, payload, what else ``read`` gives, and inputs where the cut
            goes through them, to the next states that hard gates guard; None where it is the whole
            step, taken again.
        payload: What is handed over; inputs are not, they lie where they were given.
        step_work: Elements that the step computes, those of matrix products times their depth.
        read_work: The same of ``read``.
        write_work: The same of ``write``.
    """

    read: onnx.ModelProto
    write: onnx.ModelProto | None
    payload: tuple[TensorSpec, ...]
    step_work: int
    read_work: int
    write_work: int

    @property
    def payload_bytes(self) -> int:
        """Bytes that a read hands over."""
        return sum(tensor.nbytes for tensor in self.payload)


def read_write(model: onnx.ModelProto, spec: StepSpec) -> Split:
    """Cut a step where the payload is smallest.

    Args:
        model: One step, without branches.
        spec: Its signature.

    Raises:
        SplitError: No hard gate guards a state, or no cut is smaller than what they guard.
    """
    given, guarded = given_by_read(spec), _guarded(spec)
    whole = given_gate(model, spec, is_open=True) if can_only_open_whole(spec) else None
    reading = Dataflow(model)
    writing = Dataflow(whole) if whole is not None else reading
    free = {c.name for c in spec.fixed_inputs} | {s.name for s in spec.states} | {*given}
    payload = _smallest(writing, [s.next_name for s in guarded], free, reading.needed_for(given))
    size, limit = sum(tensor.nbytes for tensor in payload), sum(s.bytes for s in guarded)
    if size >= limit:
        raise SplitError(
            "what a write needs from a read is no smaller than what it writes",
            found=f"{size} bytes in the smallest cut",
            expected=f"fewer than the {limit} bytes that gates guard",
        )
    inputs = spec.graph_inputs()
    handed = tuple(tensor for tensor in payload if tensor.name not in inputs)
    read = reading.part(inputs, [*given, *(tensor.name for tensor in handed)])
    known = free.union(tensor.name for tensor in payload)
    takes = [name for name in writing.tensors if name in known]
    write = writing.part(takes, [s.next_name for s in guarded])
    return Split(read, write, handed, reading.total, Dataflow(read).total, Dataflow(write).total)


def quiet(model: onnx.ModelProto, spec: StepSpec) -> Split:
    """A step as if every gate were closed, to be followed by the whole step where one is not.

    Args:
        model: One step, without branches.
        spec: Its signature.

    Raises:
        SplitError: No hard gate guards a state, nothing in the graph depends on its threshold, or
            a gate depends on whether another was open.
    """
    _guarded(spec)
    rest = given_gate(model, spec, is_open=False)
    if rest is None:
        raise SplitError(
            "the step does not choose by its gate",
            found="no comparison of a gate with its threshold",
            expected="torch.where(gate > threshold, new, old)",
        )
    flow, rest_flow = Dataflow(model), Dataflow(rest)
    # Nodes stand where they stood; one that a gate needs and that was decided is another now.
    needed = flow.needed_for(gate.name for gate in spec.gates)
    if any(flow.nodes[i].op_type != rest_flow.nodes[i].op_type for i in needed):
        raise SplitError(
            "a gate depends on whether another was open",
            found="layers, each with a gate of its own",
            expected="gates that can all be asked before any is known to be open",
        )
    read = rest_flow.part(spec.graph_inputs(), given_by_read(spec))
    return Split(read, None, (), flow.total, Dataflow(read).total, flow.total)


def _guarded(spec: StepSpec) -> list[StateSpec]:
    guarded = [s for s in spec.states if s.gate in spec.thresholds]
    if not guarded:
        raise SplitError(
            "there is nothing to leave out of a step",
            found="no state that a hard gate guards",
            expected="a gate with a threshold, so that some steps do not write",
        )
    return guarded


def _smallest(
    flow: Dataflow, guarded: list[str], free: set[str], read: set[int]
) -> tuple[TensorSpec, ...]:
    """The payload of the smallest cut, in the order in which `read` computes it."""
    nodes = sorted(flow.needed_for(guarded))
    free = free | flow.fixed(free - flow.maker.keys())
    work = {n: flow.work(n) for n in nodes}
    byte = 1 + sum(work.values())
    never = byte * (1 + sum(tensor.nbytes for tensor in flow.tensors.values()))
    network = networkx.DiGraph()
    network.add_nodes_from((_SOURCE, _SINK))  # of which a trivial step may need neither
    for n in nodes:
        if free >= set(flow.nodes[n].output):
            continue
        if flow.nodes[n].output[0] in guarded:
            network.add_edge(n, _SINK)  # without a capacity: it cannot be cut
        elif n not in read:
            network.add_edge(n, _SINK, capacity=work[n])
        if n in read:
            network.add_edge(_SOURCE, n, capacity=work[n] if flow.cheap(n) else never)
        for taken in flow.reads(n) - free:
            network.add_edge(taken, n)
            size = {"capacity": byte * flow.tensors[taken].nbytes} if taken in flow.tensors else {}
            network.add_edge(flow.maker.get(taken, _SOURCE), taken, **size)
    _, (_, there) = networkx.minimum_cut(network, _SOURCE, _SINK)
    handed = [
        name
        for name in flow.tensors
        if name in there and flow.maker.get(name, _SOURCE) not in there and name not in free
    ]
    return tuple(flow.tensors[name] for name in handed)

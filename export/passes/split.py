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

from collections.abc import Collection
from dataclasses import dataclass

import networkx
import onnx
import onnx_ir as ir

from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import SplitError
from stategate.contract.split import given_by_read
from stategate.export.passes.dataflow import (
    constant_values,
    inferred,
    is_cheap,
    needed_for,
    part,
    reads,
    tensor_of,
    values_of,
    work_of,
)
from stategate.export.passes.known_gate import AssumeGates, can_only_open_whole

_SOURCE, _SINK = "read", "write"


@dataclass(frozen=True, slots=True)
class Split:
    """A step in two graphs; work is counted in elements, see `work_of`."""

    # From inputs, constants and states to outputs, gates, next values of the states that no hard
    # gate guards, and the payload.
    read: onnx.ModelProto
    # From states, constants, payload, what else `read` gives, and inputs where the cut goes through
    # them, to the next states that hard gates guard; None where it is the whole step, taken again.
    write: onnx.ModelProto | None
    payload: tuple[TensorSpec, ...]  # without inputs, which lie where the caller put them
    step_work: int
    read_work: int
    write_work: int

    @property
    def payload_bytes(self) -> int:
        """Bytes that a read hands to a write."""
        return sum(tensor.nbytes for tensor in self.payload)


def read_write(model: onnx.ModelProto, spec: StepSpec) -> Split:
    """Cut a step without branches where the payload is smallest."""
    by_read, guarded = given_by_read(spec), _guarded(spec)
    reading, writing = inferred(model), inferred(model)
    if can_only_open_whole(spec):
        # A write is only asked for where the one gate is open: there it need not choose.
        AssumeGates(spec, is_open=True)(writing)
    free = {c.name for c in spec.fixed_inputs} | {s.name for s in spec.states} | {*by_read}
    values = values_of(reading.graph)
    in_read = {v.name for n in needed_for(values[name] for name in by_read) for v in n.outputs}
    payload = _smallest(writing.graph, [s.next_name for s in guarded], free, in_read)
    size, limit = sum(tensor.nbytes for tensor in payload), sum(s.bytes for s in guarded)
    if size >= limit:
        raise SplitError(
            "what a write needs from a read is no smaller than what it writes",
            found=f"{size} bytes in the smallest cut",
            expected=f"fewer than the {limit} bytes that gates guard",
        )
    inputs = spec.graph_inputs()
    carried = tuple(tensor for tensor in payload if tensor.name not in inputs)
    read = part(reading, inputs, [*by_read, *(tensor.name for tensor in carried)])
    available = free.union(tensor.name for tensor in payload)
    takes = [n for n, v in values_of(writing.graph).items() if n in available and tensor_of(v)]
    write = part(writing, takes, [s.next_name for s in guarded])
    return Split(read, write, carried, *(work_of(_nodes(each)) for each in (model, read, write)))


def quiet(model: onnx.ModelProto, spec: StepSpec) -> Split:
    """A step as if every gate were closed, to be followed by the whole step where one is not."""
    _guarded(spec)
    whole, rest = inferred(model), inferred(model)
    closed = AssumeGates(spec, is_open=False)
    if not closed(rest).modified:
        raise SplitError(
            "the step does not choose by its gate",
            found="no comparison of a gate with its threshold",
            expected="torch.where(gate > threshold, new, old)",
        )
    values = values_of(whole.graph)
    for node in needed_for(values[gate.name] for gate in spec.gates):
        # Such a gate has its true value only where the assumption holds that it shall decide on.
        if node.outputs[0].name in closed.decided:
            raise SplitError(
                "a gate depends on whether another was open",
                found="layers, each with a gate of its own",
                expected="gates that can all be asked before any is known to be open",
            )
    read = part(rest, spec.graph_inputs(), given_by_read(spec))
    work = work_of(whole.graph)
    return Split(read, None, (), work, work_of(_nodes(read)), work)


def _nodes(model: onnx.ModelProto) -> ir.Graph:
    return inferred(model).graph


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
    graph: ir.Graph, guarded: list[str], free_names: set[str], in_read: Collection[str | None]
) -> tuple[TensorSpec, ...]:
    """The payload of the smallest cut, in the order in which `read` computes it."""
    values = values_of(graph)
    needed = needed_for(values[name] for name in guarded)
    nodes = [node for node in graph if node in needed]
    free = {values[name] for name in free_names if name in values}
    # What depends on nothing but inputs that never change costs a write nothing either.
    free |= constant_values(graph, (str(v.name) for v in free if v.producer() is None))
    tensors = [tensor for value in values.values() if (tensor := tensor_of(value))]
    work = {node: work_of([node]) for node in nodes}
    byte = 1 + sum(work.values())  # so that a byte of payload outweighs all work together
    never = byte * (1 + sum(tensor.nbytes for tensor in tensors))
    network = networkx.DiGraph()
    network.add_nodes_from((_SOURCE, _SINK))  # of which a trivial step may need neither
    for node in nodes:
        name = node.outputs[0].name
        if free.issuperset(node.outputs):
            continue
        if name in guarded:
            network.add_edge(node, _SINK)  # without a capacity: it cannot be cut
        elif name not in in_read:
            network.add_edge(node, _SINK, capacity=work[node])
        if name in in_read:
            network.add_edge(_SOURCE, node, capacity=work[node] if is_cheap(node) else never)
        for value in reads(node):
            if value in free:
                continue
            network.add_edge(value, node)
            tensor = tensor_of(value)
            size = {"capacity": byte * tensor.nbytes} if tensor else {}
            network.add_edge(value.producer() or _SOURCE, value, **size)
    _, (_, in_write) = networkx.minimum_cut(network, _SOURCE, _SINK)
    return tuple(
        tensor
        for tensor in tensors
        if (value := values[tensor.name]) in in_write
        and (value.producer() or _SOURCE) not in in_write
        and value not in free
    )

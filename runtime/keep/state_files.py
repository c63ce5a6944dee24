"""States in a file of their own: handed from one session to another, or made by another program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stategate.contract import Bundle, ObservationContract
from stategate.contract.durable import write_whole
from stategate.contract.errors import SnapshotError
from stategate.contract.reading import RECORD_BYTES
from stategate.contract.state_file import encode_states, load_states
from stategate.runtime.base.buffers import Array
from stategate.runtime.keep.snapshot import BLOCK_BYTES, memory_identity

_MEMORY, _BUNDLE = "stategate.memory_sha256", "stategate.bundle_sha256"

States = Mapping[str, Array] | str | Path
"""Arrays by name, or a safetensors file of them."""


def write_states(
    path: str | Path, states: Mapping[str, Array], bundle: Bundle, count: Callable[[int], None]
) -> None:
    """Write states with the digests of their memory and their bundle.

    Args:
        path: The file; one that is there is replaced.
        states: By name.
        bundle: Whose they are.
        count: Called with the bytes of all blocks, before they are written: what fails half-way
            has worn the medium too.
    """
    facts = {_MEMORY: memory_identity(bundle.manifest), _BUNDLE: bundle.digest}
    raw = encode_states(states, facts)
    count(-(-len(raw) // BLOCK_BYTES) * BLOCK_BYTES)
    write_whole(Path(path), raw)


def read_states(source: States, bundle: Bundle) -> Mapping[str, Array]:
    """States as they are handed over, or from a file that may be for this memory."""
    if isinstance(source, Mapping):
        return source
    manifest = bundle.manifest
    states, facts = load_states(source, manifest.state_bytes + RECORD_BYTES)
    rules = (manifest.observation or ObservationContract()).resets
    same_memory = facts.get(_MEMORY, "") in ("", memory_identity(manifest))
    same_bundle = not rules.on_switch or facts.get(_BUNDLE) == bundle.digest
    if not (same_memory and same_bundle):
        raise SnapshotError(
            f"the states in {source} are of another {'bundle' if same_memory else 'memory'}",
            found=facts.get(_BUNDLE if same_memory else _MEMORY, "no bundle named")[:16],
            expected=(bundle.digest if same_memory else memory_identity(manifest))[:16],
            remedy="begin an episode with reset(): the same numbers may mean something else here",
        )
    return states

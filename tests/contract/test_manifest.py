from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stategate.contract import Bundle, Manifest, canonical_json
from stategate.contract.errors import ManifestError, SpecError, StategateError
from stategate.contract.manifest import checked_path, decode_manifest

# Fields of a manifest of the first edition, version 0.1.0.
FIRST_SCHEMA = set(
    [
        "schema_version",
        "created",
        "producer",
        "model",
        "inputs",
        "outputs",
        "states",
        "gates",
        "constants",
        "graphs",
        "way",
        "files",
        "golden",
        "budget",
        "target",
        "calibration",
        "verification",
        "drift",
        "metadata",
        "sessions",
        "native",
    ]
)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def test_a_manifest_survives_its_own_json(manifest: Manifest) -> None:
    raw = canonical_json(manifest)
    assert decode_manifest(raw) == manifest
    assert canonical_json(decode_manifest(raw)) == raw


def test_key_order_on_the_way_in_does_not_matter(manifest: Manifest) -> None:
    raw = canonical_json(manifest)
    shuffled = json.dumps(dict(reversed(json.loads(raw).items()))).encode()
    assert canonical_json(decode_manifest(shuffled)) == raw


def test_every_truncation_is_refused(manifest: Manifest) -> None:
    raw = canonical_json(manifest)
    for length in range(len(raw) - 2):  # the last two bytes are '}' and a newline
        with pytest.raises(ManifestError):
            decode_manifest(raw[:length])


@pytest.mark.parametrize("path", [("surprise",), ("states", 0, "surprise"), ("model", "surprise")])
def test_an_unknown_field_is_refused_by_name(
    manifest: Manifest, path: tuple[str | int, ...]
) -> None:
    record = json.loads(canonical_json(manifest))
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = 1
    with pytest.raises(ManifestError, match="surprise"):
        decode_manifest(json.dumps(record).encode())


@pytest.mark.parametrize(("version", "remedy"), [(3, "upgrade stategate"), (0, "export")])
def test_another_schema_version_says_who_has_to_move(
    manifest: Manifest, version: int, remedy: str
) -> None:
    record = json.loads(canonical_json(manifest))
    record |= {"schema_version": version, "a_field_of_the_future": True}
    with pytest.raises(ManifestError, match=remedy):
        decode_manifest(json.dumps(record).encode())


def test_a_manifest_of_the_first_schema_still_opens(manifest: Manifest) -> None:
    """It lacks every field that the second one added, as a file of the first edition does."""
    record = json.loads(canonical_json(manifest)) | {"schema_version": 1}
    for field in manifest.__struct_fields__:
        if field not in FIRST_SCHEMA:
            del record[field]
    assert decode_manifest(json.dumps(record).encode()).schema_version == 1


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../graph.onnx", "a/../../b", "..", "", "C:/x", "a\\..\\b", "a\0b", "x" * 300],
)
def test_a_path_that_leaves_the_folder_is_refused(manifest: Manifest, path: str) -> None:
    record = json.loads(canonical_json(manifest))
    record["graphs"][0]["file"]["path"] = path
    with pytest.raises(ManifestError, match="leaves the bundle"):
        decode_manifest(json.dumps(record).encode())


@given(st.lists(st.from_regex(r"[a-z_.]{1,8}", fullmatch=True), min_size=1, max_size=4))
def test_a_path_is_accepted_only_if_it_stays_inside(parts: list[str]) -> None:
    path = "/".join(parts)
    inside = Path("/bundle").joinpath(path)
    try:
        checked_path(path)
    except SpecError:
        assert ".." in parts or inside.resolve() == Path("/bundle")
    else:
        assert inside.resolve().is_relative_to("/bundle")


def test_states_over_the_budget_are_refused(manifest: Manifest) -> None:
    record = json.loads(canonical_json(manifest))
    record["budget"]["state_bytes"] = manifest.state_bytes - 1
    with pytest.raises(ManifestError, match="do not fit the budget"):
        decode_manifest(json.dumps(record).encode())


def test_a_golden_episode_must_be_listed(manifest: Manifest) -> None:
    with pytest.raises(SpecError, match="not listed"):
        msgspec.structs.replace(manifest, files=())


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_own_errors(raw: bytes) -> None:
    with pytest.raises(StategateError):
        decode_manifest(raw)


def test_deep_nesting_is_refused(manifest: Manifest) -> None:
    nested = b'{"schema_version": 1, "metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001
    with pytest.raises(ManifestError):
        decode_manifest(nested)

"""Files that a stranger wrote: of the wrong kind, too large, ambiguous, or deceptive."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.picture import read_run
from stategate.bench.record import read_result
from stategate.cli.device import describe
from stategate.contract import Bundle, CalibrationRecord, Episode, sha256, write_bundle
from stategate.contract.errors import (
    BundleError,
    DigestError,
    ManifestError,
    SpecError,
    StategateError,
)
from stategate.contract.manifest import decode_manifest
from stategate.contract.precision import PrecisionPlan, RangeRecord
from stategate.contract.reading import decode_json, printable, read_bounded
from stategate.runtime import Session

Copier = Callable[[Path], Path]

# Every loader of a record, and of what an episode is.
LOADERS: list[Callable[[Path], object]] = [
    CalibrationRecord.load,
    RangeRecord.load,
    lambda path: PrecisionPlan.named(str(path)),
    read_result,
    read_run,
    Episode.load,
]


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 * 2**30)


def reseal(bundle: Path, manifest: bytes) -> Path:
    """What a stranger does who knows the format."""
    (bundle / "manifest.json").write_bytes(manifest)
    (bundle / "manifest.sha256").write_text(f"{sha256(manifest)}  manifest.json\n")
    return bundle


def altered(bundle: Path, **fields: object) -> Path:
    record = json.loads((bundle / "manifest.json").read_bytes())
    return reseal(bundle, json.dumps(record | fields).encode())


@pytest.mark.case("E11")
@pytest.mark.parametrize("plant", [sparse, os.mkfifo, Path.mkdir], ids=["sparse", "pipe", "folder"])
@pytest.mark.parametrize("load", LOADERS)
def test_every_loader_looks_at_size_and_kind_before_it_reads(
    tmp_path: Path, plant: Callable[[Path], None], load: Callable[[Path], object]
) -> None:
    path = tmp_path / "x.json"
    plant(path)
    with pytest.raises(StategateError, match=r"pipe|folder|bytes|not a zip"):
        load(path)


@pytest.mark.case("E11")
@pytest.mark.parametrize("plant", [sparse, os.mkfifo, Path.mkdir], ids=["sparse", "pipe", "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "golden.npz"])
def test_every_file_of_a_bundle_is_looked_at_before_it_is_read(
    tiny_bundle: Path, copy_of: Copier, plant: Callable[[Path], None], name: str
) -> None:
    copy = copy_of(tiny_bundle)
    (copy / name).unlink()
    plant(copy / name)
    with pytest.raises(BundleError, match=r"pipe|folder|bytes"):
        Bundle.open(copy)


@pytest.mark.case("E12")
@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_a_manifest_that_is_a_link_out_of_the_folder_is_refused(
    tiny_bundle: Path, copy_of: Copier, tmp_path: Path, name: str
) -> None:
    copy = copy_of(tiny_bundle)
    (copy / name).rename(tmp_path / "outside")
    (copy / name).symlink_to(tmp_path / "outside")
    with pytest.raises(DigestError, match="outside"):
        Bundle.open(copy)


@pytest.mark.case("E12")
def test_links_in_a_circle_are_a_sentence(tiny_bundle: Path, copy_of: Copier) -> None:
    copy = copy_of(tiny_bundle)
    (copy / "golden.npz").unlink()
    (copy / "golden.npz").symlink_to("golden.npz")
    with pytest.raises(BundleError, match="golden"):
        Bundle.open(copy)


@pytest.mark.case("E12")
@pytest.mark.parametrize("odd", ["pipe", "dangling link", "link to a folder"])
def test_what_is_no_file_counts_as_undeclared_and_is_never_replaced(
    tiny_bundle: Path, copy_of: Copier, tmp_path: Path, odd: str
) -> None:
    copy = copy_of(tiny_bundle)
    if odd == "pipe":
        os.mkfifo(copy / "odd")
    else:
        (copy / "odd").symlink_to(tmp_path if odd == "link to a folder" else tmp_path / "gone")
    bundle = Bundle.open(copy)
    assert bundle.undeclared_files() == ["odd"]
    with pytest.raises(BundleError, match="odd"):
        content = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
        write_bundle(copy, bundle.manifest, content)


@pytest.mark.case("E12")
@pytest.mark.parametrize(
    "raw",
    [b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 1}}', b'[{"a": 1, "\\u0061": 2}]'],
    ids=["outside", "inside", "escaped"],
)
def test_one_key_with_two_values_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match="two values under the key"):
        decode_json(raw, object)


@pytest.mark.case("E12")
def test_a_manifest_or_calibration_that_says_one_thing_twice_is_refused(
    tiny_bundle: Path, copy_of: Copier, tmp_path: Path
) -> None:
    copy = copy_of(tiny_bundle)
    raw = (copy / "manifest.json").read_bytes()
    reseal(copy, raw.replace(b'"threshold": 0.0', b'"threshold": 9.0, "threshold": 0.0'))
    with pytest.raises(SpecError, match="two values under the key threshold"):
        Bundle.open(copy)
    record = tmp_path / "calibration.json"
    record.write_text(
        '{"model_sha256": "", "episodes": "", "steps": 1, "steps": 2, "gates": [], "version": 2}'
    )
    with pytest.raises(StategateError, match="two values under the key steps"):
        CalibrationRecord.load(record)


@pytest.mark.case("E9")
@pytest.mark.parametrize(
    "evil",
    ["h\ndigest       0000", "\x1b[2Jh", "h\u202edetrev", "h\x9b31m", "h\u2028passed", "h\x00"],
    ids=["newline", "escape", "bidi", "C1", "separator", "nul"],
)
@pytest.mark.parametrize("field", ["created", "model", "producer", "states"])
def test_a_manifest_with_a_control_character_in_a_text_is_refused(
    tiny_bundle: Path, copy_of: Copier, evil: str, field: str
) -> None:
    copy = copy_of(tiny_bundle)
    record = json.loads((copy / "manifest.json").read_bytes())
    value = record[field]
    if field == "created":
        value = evil
    elif field == "producer":
        value[evil] = "1"
    else:
        (value if field == "model" else value[0])["name"] = evil
    with pytest.raises(SpecError, match=r"control character|cannot be the name") as caught:
        Bundle.open(altered(copy, **{field: value}))
    assert evil not in str(caught.value)


@pytest.mark.case("E9")
def test_what_prints_is_shown_as_it_is_and_the_rest_escaped_on_one_line() -> None:
    assert printable("größe 温度 h_next") == "größe 温度 h_next"
    assert printable("a\nb\x1b[31m\u202e") == r"a\nb\x1b[31m\u202e"
    assert printable("a" * 300) == "a" * 200 + "... (300 characters)"


@given(st.text())
def test_a_printable_text_is_one_line_for_any_text(text: str) -> None:
    assert len(printable(text, 10**6).splitlines()) <= 1


def with_file(bundle: Path, name: str, data: bytes, state: str = "") -> Path:
    """A bundle in which one file is another, or one more, under right digests."""
    record = json.loads((bundle / "manifest.json").read_bytes())
    record["files"] = [f for f in record["files"] if f["path"] != name]
    record["files"].append({"path": name, "sha256": sha256(data)})
    for one in record["states"]:
        if one["name"] == state:
            one["init_file"] = name
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(data)
    return reseal(bundle, json.dumps(record).encode())


@pytest.mark.case("E12")
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_memory_that_starts_with_no_number_is_refused(
    tiny_bundle: Path, copy_of: Copier, odd: float
) -> None:
    start = np.array([0, odd, 0, 0], "<f4").tobytes()
    copy = with_file(copy_of(tiny_bundle), "initial/0.bin", start, "h")
    with pytest.raises(StategateError, match="start with NaN or Inf"):
        Session.open(copy)


@pytest.mark.case("E12")
@pytest.mark.parametrize("group", ["states", "gates"])
def test_a_golden_episode_whose_memory_is_no_number_is_refused(
    tiny_bundle: Path, copy_of: Copier, group: str
) -> None:
    copy = copy_of(tiny_bundle)
    golden = Episode.load(copy / "golden.npz")
    next(iter(getattr(golden, group).values())).reshape(-1)[0] = np.nan
    with pytest.raises(StategateError, match="not finite"):
        Bundle.open(with_file(copy, "golden.npz", golden.to_bytes())).golden()


@pytest.mark.slow
@pytest.mark.case("E11")
def test_what_a_manifest_costs_grows_as_its_states_do(tiny_bundle: Path, copy_of: Copier) -> None:
    copy = copy_of(tiny_bundle)
    record = json.loads((copy / "manifest.json").read_bytes())
    (gated, plain), (gate,) = record["states"], record["gates"]

    def seconds(count: int) -> float:
        names = [f"s{i}" for i in range(count)]
        states = [plain | {"name": s, "next_name": f"{s}_next", "gate": f"{s}_gate"} for s in names]
        gates = [gate | {"name": f"{s}_gate", "threshold_input": None} for s in names]
        altered(copy, states=[gated, *states], gates=[gate, *gates])
        times = []
        for _ in range(3):
            start = time.process_time()
            assert len(describe(Bundle.open(copy).manifest)) > count
            times.append(time.process_time() - start)
        return min(times)

    # Four times as much is four times as long, and sixteen times where all pairs are compared.
    assert seconds(12_000) < 9 * seconds(3_000)


@pytest.mark.case("E11")
def test_a_deeply_nested_record_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"x":' * 200_000)
    for load in LOADERS:
        with pytest.raises(StategateError):
            load(path)
    with pytest.raises(ManifestError):
        decode_manifest(b'{"schema_version": 2, "x": ' + b"[" * 200_000)


def test_a_file_may_be_as_large_as_the_limit_and_no_larger(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bounded(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, and at most 4"):
        read_bounded(tmp_path / "x", 4)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/zero is a device of Linux")
def test_a_device_is_no_file() -> None:
    with pytest.raises(OSError, match="device"):
        read_bounded("/dev/zero")


@pytest.mark.case("E11")
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.text() | st.floats() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_as_a_record_give_an_error_of_stategate(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(raw)
    for load in LOADERS:
        with suppress(StategateError):
            load(path)
    with pytest.raises(StategateError):
        decode_manifest(raw)

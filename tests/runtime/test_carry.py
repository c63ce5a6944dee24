from __future__ import annotations

import base64
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.contract.errors import BundleError, DigestError, RegistryError
from stategate.runtime.carry.reference import Reference
from stategate.runtime.carry.registry import client_of, container_of
from tests.runtime.registry import Shelf, serving

Document = dict[str, Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def signed(tiny_bundle: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "signed"))
    (folder / "model.sig").write_bytes(b"somebody's word")
    return folder


@pytest.fixture
def shelf(signed: Path) -> Iterator[Shelf]:
    with serving(Shelf()) as shelf:
        stategate.push(signed, f"oci://{shelf.host}/policies/tiny:1")
        shelf.requests.clear()
        yield shelf


def pulled(shelf: Shelf, out: Path, name: str = ":1") -> Bundle:
    return stategate.pull(f"oci://{shelf.host}/policies/tiny{name}", out)


def test_a_bundle_comes_back_byte_for_byte_with_its_signature(
    shelf: Shelf, signed: Path, tmp_path: Path
) -> None:
    reference = stategate.push(signed, f"oci://{shelf.host}/policies/tiny:2")
    assert shelf.manifests["1"] == shelf.manifests["2"]
    bundle = pulled(shelf, tmp_path / "new" / "out", reference.partition("tiny")[2])
    assert contents(bundle.path) == contents(signed) and "model.sig" in contents(bundle.path)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]
    assert oct(bundle.path.stat().st_mode)[-3:] == "755"
    # A second push sends nothing that is there.
    assert [m for m, p, _ in shelf.requests if m == "PUT" and "/manifests/" not in p] == []


def test_the_artifact_is_one_of_modelpack(shelf: Shelf, signed: Path) -> None:
    document = shelf.document()
    assert document["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert document["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"]
        for layer in document["layers"]
    }
    assert kinds["graphs/step.onnx"] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["golden.npz"] == "application/vnd.cncf.model.dataset.v1.raw"
    config = json.loads(shelf.blobs[document["config"]["digest"]])
    assert config["modelfs"]["type"] == "layers"
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in document["layers"]]
    assert config["config"]["format"] == "onnx"


def first(document: Document, **changes: Any) -> None:
    document["layers"][0] |= changes


def named(document: Document, path: str) -> None:
    first(document, annotations={"org.cncf.model.filepath": path})


def added(document: Document, path: str) -> None:
    layer = document["layers"][0] | {"annotations": {"org.cncf.model.filepath": path}}
    document["layers"].append(layer)


TAR = "application/vnd.cncf.model.weight.v1.tar"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: named(d, "../../escaped"),
        lambda d: named(d, "/etc/escaped"),
        lambda d: named(d, "graphs\\..\\escaped"),
        lambda d: named(d, ""),
        lambda d: named(d, "a\u0000b"),
        lambda d: named(d, "a\u001b[2Jb"),
        lambda d: added(d, "manifest.json"),
        lambda d: added(d, "manifest.json/below"),
        lambda d: added(d, "unlisted.py"),
        lambda d: first(d, size=1 << 40),
        lambda d: first(d, size=-1),
        lambda d: first(d, digest="md5:0"),
        lambda d: first(d, mediaType=TAR),
        lambda d: d.update(artifactType="application/vnd.oci.image.config.v1+json"),
        lambda d: d.update(mediaType="application/vnd.oci.image.index.v1+json"),
        lambda d: d["config"].update(mediaType="application/json"),
        lambda d: d.update(layers=d["layers"][2:]),
        lambda d: d.update(layers=d["layers"][:2]),
        lambda d: d.update(layers=d["layers"] * 5000),
        lambda d: d.update(layers="none"),
        lambda d: d.update(padding="x" * (1 << 22)),
    ],
)
def test_what_no_bundle_holds_is_refused_and_nothing_is_written(
    change: Callable[[Document], None], shelf: Shelf, tmp_path: Path
) -> None:
    document = shelf.document()
    change(document)
    shelf.put(document)
    out = tmp_path / "below" / "out"
    with pytest.raises((RegistryError, BundleError)):
        pulled(shelf, out)
    assert not out.exists() and not (tmp_path / "escaped").exists()
    assert {p.name for p in tmp_path.rglob("*")}.isdisjoint({"escaped", "unlisted.py"})


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda digest, raw: raw[:-1] + bytes([raw[-1] ^ 1]), DigestError),
        (lambda digest, raw: raw[: len(raw) // 2], RegistryError),
        (lambda digest, raw: raw + b"more", DigestError),
        (lambda digest, raw: b"", RegistryError),
    ],
    ids=["one bit", "half", "more", "nothing"],
)
def test_other_bytes_leave_the_old_bundle_and_are_loaded_anew(
    answer: Callable[[str, bytes], bytes],
    error: type[Exception],
    shelf: Shelf,
    native_bundle: Path,
    tmp_path: Path,
    signed: Path,
) -> None:
    out = Path(shutil.copytree(native_bundle, tmp_path / "out"))
    shelf.answer = answer
    with pytest.raises(error):
        pulled(shelf, out)
    assert contents(out) == contents(native_bundle)
    shelf.answer = lambda digest, raw: raw
    assert contents(pulled(shelf, out).path) == contents(signed)


def test_a_download_that_broke_off_goes_on_where_it_ended(shelf: Shelf, tmp_path: Path) -> None:
    largest = max(shelf.blobs, key=lambda digest: len(shelf.blobs[digest]))
    half = len(shelf.blobs[largest]) // 2
    shelf.answer = lambda digest, raw: raw[:half] if digest == largest else raw
    with pytest.raises(RegistryError, match="broke off|cannot be used"):
        pulled(shelf, tmp_path / "out")
    before = {digest for digest, _ in shelf.loaded()} - {largest}
    shelf.requests.clear()
    shelf.answer = lambda digest, raw: raw
    pulled(shelf, tmp_path / "out")
    again = dict(shelf.loaded())
    assert again[largest].startswith("bytes=") and again[largest] != "bytes=0-"
    assert not before & set(again)


def test_a_manifest_of_another_digest_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    shelf.manifests[digest] = shelf.manifests["1"]
    with pytest.raises(DigestError, match="the manifest from the registry"):
        pulled(shelf, tmp_path / "out", f"@{digest}")


def test_a_planted_link_is_no_place_for_a_download(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.pulled").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="not a folder of yours"):
        pulled(shelf, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_in_the_place_of_a_signature_is_not_sent(shelf: Shelf, signed: Path) -> None:
    (signed / "model.sig").unlink()
    (signed / "model.sig").symlink_to("/etc/hostname")
    with pytest.raises(DigestError, match="the signature is a link"):
        stategate.push(signed, f"oci://{shelf.host}/policies/tiny:3")
    assert not shelf.requests


def test_a_bundle_that_changed_since_it_was_opened_is_not_sent(shelf: Shelf, signed: Path) -> None:
    opened = Bundle.open(signed)
    graph = signed / opened.manifest.step_graph.file.path
    graph.write_bytes(graph.read_bytes() + b"\0")
    for call in (
        lambda: stategate.push(opened, f"oci://{shelf.host}/a:1"),
        lambda: stategate.bill(opened),
    ):
        with pytest.raises(DigestError):
            call()


@pytest.mark.slow
def test_two_pulls_to_one_place_take_turns(shelf: Shelf, signed: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        bundles = list(pool.map(lambda _: pulled(shelf, tmp_path / "new" / "out"), range(8)))
    assert {contents(bundle.path) == contents(signed) for bundle in bundles} == {True}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_a_registry_is_asked_with_the_password_of_docker(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.password = base64.b64encode(b"ada:secret").decode()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    with pytest.raises(RegistryError, match="docker login"):
        pulled(shelf, tmp_path / "out")
    config = {"auths": {shelf.host: {"auth": shelf.password}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert pulled(shelf, tmp_path / "out").path.exists()


@pytest.mark.parametrize("place", ["oci://example.org/a", "oci://127.0.0.1:5000/a"])
def test_a_registry_that_sends_the_client_to_plain_http_elsewhere_is_refused(place: str) -> None:
    client = client_of(Reference.parse(place), plain_http=False)
    with pytest.raises(RegistryError, match="without encryption") as caught:
        client.session.get("http://192.0.2.1/v2/")  # an address that nobody has (RFC 5737)
    assert "--plain-http" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "loopback", "asked_for"),
    [
        ("oci://localhost:5000/a/b:1.2", True, "1.2"),
        ("oci://127.0.0.9/a", True, "latest"),
        ("oci://[::1]:5000/a", True, "latest"),
        ("oci://127.0.0.1.example.org/a:x", False, "x"),
        ("oci://localhost.example.org:80/a", False, "latest"),
        (f"oci://example.org/a:1@sha256:{'0' * 64}", False, f"sha256:{'0' * 64}"),
    ],
)
def test_a_reference_says_where_and_what(text: str, loopback: bool, asked_for: str) -> None:
    reference = Reference.parse(text)
    assert (reference.is_loopback, reference.object) == (loopback, asked_for)


@pytest.mark.parametrize("text", ["oci://localhost/a.b/c", "oci://registry/a", "oci://h:1/a.b"])
def test_no_other_host_is_asked_than_the_one_that_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls: list[str] = []

    def send(adapter: object, request: Any, **_: Any) -> None:
        urls.append(request.url)
        raise requests.ConnectionError("nobody is there")

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", send)
    with pytest.raises(RegistryError):
        stategate.pull(text, tmp_path / "out")
    host = text.split("/")[2]
    scheme = "http" if host == "localhost" else "https"
    assert urls == [f"{scheme}://{host}/v2/"]
    container = container_of(Reference.parse(text))
    assert container.manifest_url("1") == f"{host}/v2/{text.partition(host + '/')[2]}/manifests/1"


@pytest.mark.parametrize(
    "text",
    [
        "localhost:5000/a",
        "oci://Host/A",
        "oci://h/../a",
        "oci://u:p@h/a",
        "oci://h/a@md5:0",
        "oci://h/a?b",
    ],
)
def test_what_is_no_reference_is_refused(text: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["pull", text, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and "expected: oci://HOST" in done.output


def test_a_silent_port_is_said_in_a_sentence(tiny_bundle: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RegistryError, match="cannot be used"):
        stategate.push(tiny_bundle, f"oci://127.0.0.1:{port}/a:1")


@pytest.mark.slow
def test_a_pull_that_is_killed_leaves_nothing_and_goes_on(
    shelf: Shelf, signed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    slow = [signed / "golden.npz"]
    name = f"sha256:{hashlib.sha256(slow[0].read_bytes()).hexdigest()}"

    def hanging(digest: str, raw: bytes) -> bytes:
        if digest == name:
            time.sleep(30)
        return raw

    shelf.answer = hanging
    reference = f"oci://{shelf.host}/policies/tiny:1"
    command = [
        sys.executable,
        "-c",
        f"import stategate; stategate.pull({reference!r}, {str(out)!r})",
    ]
    process = subprocess.Popen(command)
    while name not in dict(shelf.loaded()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    before = set(dict(shelf.loaded())) - {name}
    shelf.requests.clear()
    shelf.answer = lambda digest, raw: raw
    assert contents(pulled(shelf, out).path) == contents(signed)
    assert not before & set(dict(shelf.loaded()))


@pytest.fixture
def docker_registry(tmp_path: Path) -> Iterator[str]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is missing: make registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "registry.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/store}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(tmp_path / "registry.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.05)
        yield host
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_debians_registry_takes_a_bundle_and_gives_it_back(
    docker_registry: str, signed: Path, native_bundle: Path, tmp_path: Path
) -> None:
    place = f"oci://{docker_registry}/policies/tiny"
    reference = stategate.push(signed, f"{place}:1")
    assert stategate.push(signed, f"{place}:again") == reference
    assert stategate.push(native_bundle, f"{place}:1") != reference
    assert contents(stategate.pull(reference, tmp_path / "a").path) == contents(signed)
    assert contents(stategate.pull(f"{place}:1", tmp_path / "a").path) == contents(native_bundle)
    # A file that rots in the store is not taken.
    for file in (tmp_path / "store").rglob("data"):
        if file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises((DigestError, RegistryError)):
        stategate.pull(reference, tmp_path / "b")
    assert not (tmp_path / "b").exists()

"""The public conformance cases of OpenSSF Model Signing, against `check_signed`.

They are no part of this repository: ``make conformance`` fetches them and runs these tests.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib import resources
from pathlib import Path

import pytest
from model_signing import hashing

from stategate.contract.errors import TrustError
from stategate.runtime.trust.policy import Identity, Policy
from stategate.runtime.trust.signature import check_signed

ROOT = Path(__file__).parents[2]
CASES = Path(os.environ.get("OMS_CASES", ROOT / "build" / "oms-conformance" / "test"))
ASSETS = CASES / "assets"
FOLDERS = sorted(CASES.glob("test-cases/verify/*/*/config.json"))
NOT_OFFERED = {
    "key-simple-ignore-unsigned-files": "a bundle with files that nobody signed is never accepted"
}

pytestmark = pytest.mark.slow


def sigstore_roots(folder: Path) -> Path:
    """The roots that the sigstore package carries, as a trust configuration: no network."""
    store = resources.files("sigstore._store") / "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev"
    record = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": json.loads((store / "trusted_root.json").read_text()),
        "signingConfig": json.loads((store / "signing_config.v0.2.json").read_text()),
    }
    path = folder / "roots.json"
    path.write_text(json.dumps(record))
    return path


def model_of(config: dict, case: Path, folder: Path) -> Path:
    source = (case if config.get("model_relative_to") == "test_dir" else ASSETS) / config["model"]
    model = folder / source.name
    (shutil.copy2 if source.is_file() else shutil.copytree)(source, model)
    inside = model if model.is_dir() else folder
    changes = config.get("model_modifications", {})
    for name, text in {**changes.get("inject", {}), **changes.get("tamper", {})}.items():
        (inside / name).write_text(text)
    for name in changes.get("delete", []):
        (inside / name).unlink()
    return model


def test_the_cases_are_here() -> None:
    if not FOLDERS:
        pytest.skip(f"no conformance cases in {CASES}: make conformance fetches them")
    assert len(FOLDERS) >= 43


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.parent.name)
def test_a_case_ends_as_the_specification_says(path: Path, tmp_path: Path) -> None:
    case, config = path.parent, json.loads(path.read_text())
    if case.name in NOT_OFFERED:
        pytest.skip(NOT_OFFERED[case.name])
    options = config["verify"]
    identities: tuple[Identity, ...] = ()
    if "identity" in options:
        identities = (Identity(options["identity"], options["identity_provider"]),)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(
        b"".join((ASSETS / name).read_bytes() for name in options.get("cert_chain", []))
    )
    key = ASSETS / options["public_key"] if "public_key" in options else None
    missing = key is not None and not key.exists()  # a case names a key that its suite lacks
    policy = Policy(
        version=1,
        keys=(str(key),) if key is not None else (),
        certificates=(str(chain),) if config["method"] == "certificate" else (),
        identities=identities,
        sigstore=str(sigstore_roots(tmp_path)) if identities else None,
    )
    model = model_of(config, case, tmp_path)
    contents = hashing.Config().set_ignored_paths(paths=options.get("ignore_paths", []))
    raw = (case / "bundle.sig").read_bytes()
    if config.get("expect") == "fail":
        with pytest.raises(TrustError):
            check_signed(raw, model, policy, tmp_path, contents)
    else:
        assert not missing
        assert check_signed(raw, model, policy, tmp_path, contents)

"""A bundle as a ModelPack artifact: one uncompressed layer a file; what is none is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from stategate.contract import Bundle, Manifest, sha256
from stategate.contract.bundle import MANIFEST, SEAL, SIGNATURE
from stategate.contract.errors import DigestError, RegistryError, SpecError
from stategate.contract.manifest import checked_path
from stategate.contract.reading import FILE_BYTES, decode_json, file_sha256
from stategate.contract.records import canonical_json

# github.com/modelpack/model-spec, version 1
IMAGE = "application/vnd.oci.image.manifest.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
_LAYER = "application/vnd.cncf.model.{}.v1.raw"
_KINDS = {kind: _LAYER.format(kind) for kind in ("weight", "weight.config", "code", "dataset")}
_PATH = "org.cncf.model.filepath"
_TITLE = "org.opencontainers.image.title"  # for other clients

MANIFEST_BYTES = 1 << 22  # what registries take, by the distribution specification
_MOST_FILES = 10_000
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A blob of a registry; fields that this build does not know are of no importance here."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}

    @property
    def sha256(self) -> str:
        """The digest without its algorithm."""
        return self.digest.partition(":")[2]

    @property
    def path(self) -> str:
        """Where its file belongs."""
        return self.annotations.get(_PATH) or self.annotations.get(_TITLE, "")


class Artifact(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest of a registry."""

    schema_version: int
    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = IMAGE
    artifact_type: str = ""


def files_of(bundle: Bundle) -> list[str]:
    """Everything that travels: the files of the manifest, its digest, and a signature."""
    signature = bundle.path / SIGNATURE
    if signature.is_symlink():  # what it points to would be sent to strangers
        raise DigestError("the signature is a link", found=f"{signature} -> {signature.readlink()}")
    signed = [SIGNATURE] if signature.exists() else []
    return [MANIFEST, SEAL, *signed, *sorted(file.path for file in bundle.manifest.all_files)]


def packed(bundle: Bundle) -> tuple[bytes, bytes, dict[str, Path]]:
    """A bundle as an artifact: the same bytes for the same bundle, wherever it lies.

    Returns:
        The artifact's manifest, its configuration, and every file by its digest.
    """
    layers, paths = [], {}
    for name in files_of(bundle):
        digest, size = file_sha256(bundle.path / name)
        paths[f"sha256:{digest}"] = bundle.path / name
        names = {_PATH: name, _TITLE: name}
        layers.append(Descriptor(_KINDS[_kind(name)], f"sha256:{digest}", size, names))
    config = canonical_json(_config(bundle.manifest, [layer.digest for layer in layers]))
    described = Descriptor(CONFIG, f"sha256:{sha256(config)}", len(config))
    return canonical_json(Artifact(2, described, tuple(layers), IMAGE, MODEL)), config, paths


def unpacked(raw: bytes) -> Artifact:
    """Read a manifest that anybody may have written, and refuse what is no bundle.

    Raises:
        RegistryError: It is malformed, of another kind, or holds files that no bundle holds.
    """
    try:
        artifact = decode_json(raw, Artifact)
    except msgspec.MsgspecError as problem:
        raise _refused(f"a manifest that cannot be read: {problem}") from problem
    kinds = (artifact.schema_version, artifact.media_type, artifact.artifact_type)
    if kinds != (2, IMAGE, MODEL) or artifact.config.media_type != CONFIG:
        raise _refused(f"{artifact.artifact_type or artifact.media_type}, version {kinds[0]}")
    if len(artifact.layers) > _MOST_FILES:
        raise _refused(f"{len(artifact.layers):,} layers")
    paths = [layer.path for layer in artifact.layers]
    for layer in artifact.layers:
        if layer.media_type not in _KINDS.values():
            raise _refused(f"a layer of type {layer.media_type}")
        if not _DIGEST.fullmatch(layer.digest) or not 0 <= layer.size <= FILE_BYTES:
            raise _refused(f"a layer of {layer.size:,} bytes with digest {layer.digest}")
        try:
            checked_path(layer.path)
        except (SpecError, IndexError) as problem:
            raise _refused(f"a file at {layer.path!r}") from problem
    folders = {
        "/".join(path.split("/")[:i]) for path in paths for i in range(1, path.count("/") + 1)
    }
    if len(set(paths)) < len(paths) or folders & set(paths):
        raise _refused("two files at one path")
    if not {MANIFEST, SEAL} <= set(paths):
        raise _refused("a model without manifest.json, of another program")
    return artifact


def _refused(reason: str) -> RegistryError:
    return RegistryError(
        "this is no bundle of stategate",
        found=reason,
        expected=f"an artifact of type {MODEL}, one uncompressed layer a file",
        remedy="stategate push BUNDLE oci://... writes such a one",
    )


def _kind(path: str) -> str:
    """Which of ModelPack's kinds of files one is."""
    if path.endswith((".onnx", "weights.bin")) or path.startswith("initial/"):
        return "weight"
    if path.endswith(".npz"):
        return "dataset"
    return "code" if path.startswith("native/") else "weight.config"


def _config(manifest: Manifest, digests: list[str]) -> dict[str, Any]:
    """What ModelPack asks of a model; precision is named only in its own words."""
    precision = manifest.step_graph.precision
    technical = {"architecture": manifest.model.family, "format": "onnx"}
    technical |= {"precision": "float32"} if precision == "float32" else {"quantization": precision}
    return {
        "descriptor": {
            "createdAt": manifest.created,
            "family": manifest.model.family,
            "name": manifest.model.name,
        },
        "config": technical,
        "modelfs": {"type": "layers", "diffIds": digests},
    }


def check_digest(what: str, expected: str, found: str) -> None:
    """Refuse other bytes than those that were asked for.

    Raises:
        DigestError: They are others.
    """
    if expected.removeprefix("sha256:") != found:
        raise DigestError(
            f"{what} from the registry is not what its digest names",
            found=f"sha256:{found}",
            expected=expected,
            remedy="push the bundle again, or use another registry",
        )

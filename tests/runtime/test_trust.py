"""Signatures and the list of accepted code: what an attacker tries, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import onnx
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from model_signing import hashing, signing, verifying

import stategate
from stategate.cli.main import main
from stategate.common.compiler import compile_library
from stategate.contract import Bundle, FileRef, sha256, write_bundle
from stategate.contract.c_library import tag
from stategate.contract.errors import (
    BundleError,
    DigestError,
    EngineError,
    EngineFallbackWarning,
    MissingDependencyError,
    SpecError,
    TrustError,
)
from stategate.runtime import Pool, Session
from stategate.runtime.check.build_native import build_native
from stategate.runtime.trust import code
from stategate.runtime.trust.accepted import accepted

PEM = serialization.Encoding.PEM
PrivateKey = ec.EllipticCurvePrivateKey


def write_key(folder: Path, name: str, private: PrivateKey | None = None) -> Path:
    """A private key at ``NAME.pem``; the public one beside it, at ``NAME.pub``."""
    private = private or ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / f"{name}.pem").write_bytes(private.private_bytes(PEM, *form))
    public = private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the keys of an author and of somebody else."""
    write_key(tmp_path, "author")
    write_key(tmp_path, "other")
    return tmp_path


@pytest.fixture
def bundle(tiny_bundle: Path, copy_of: Callable[[Path], Path], keys: Path) -> Path:
    """A bundle, signed by the author."""
    copy = copy_of(tiny_bundle)
    stategate.sign(copy, key=keys / "author.pem")
    return copy


def policy(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(f'version = 1\nkeys = ["author.pub"]\n{text}\n')
    return path


def resealed(path: Path, **changes: object) -> Path:
    """The bundle with another manifest and digests that agree, and the old signature."""
    opened, signature = Bundle.open(path), (path / "model.sig").read_bytes()
    content = {f.path: opened.read(f) for f in opened.manifest.all_files}
    write_bundle(path, msgspec.structs.replace(opened.manifest, **changes), content)
    (path / "model.sig").write_bytes(signature)
    return path


def test_a_signed_bundle_opens_by_the_authors_key_alone(bundle: Path, keys: Path) -> None:
    with Session.open(bundle, trust=keys / "author.pub") as session:
        assert session.manifest.model.name == "Tiny"
    with Pool.open(bundle, trust=keys / "author.pub"):
        pass
    report = stategate.verify(bundle, trust=keys / "author.pub")
    assert report.passed and report.signer == "key author.pub"
    for opens in (Session.open, Pool.open, stategate.verify):
        with pytest.raises(TrustError, match="not one that this machine accepts"):
            opens(bundle, trust=keys / "other.pub")


def test_the_published_library_verifies_what_is_signed_and_signs_what_is_verified(
    bundle: Path, keys: Path
) -> None:
    public = keys / "author.pub"
    other_tool = verifying.Config().use_elliptic_key_verifier(public_key=public)
    other_tool.verify(bundle, bundle / "model.sig")
    (bundle / "model.sig").unlink()
    signer = signing.Config().use_elliptic_key_signer(private_key=keys / "author.pem")
    signer.sign(bundle, bundle / "model.sig")
    assert accepted(Bundle.open(bundle), public).signer == "key author.pub"


def test_no_changed_added_or_removed_file_is_accepted(bundle: Path, keys: Path) -> None:
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(StategateErrors):
            Session.open(bundle, trust=keys / "author.pub")
        file.unlink()
        with pytest.raises(StategateErrors):
            Session.open(bundle, trust=keys / "author.pub")
        file.write_bytes(whole)
    (bundle / "native.so").write_bytes(b"\x7fELF")
    with pytest.raises(TrustError, match="does not list"):
        Session.open(bundle, trust=keys / "author.pub")
    (bundle / "native.so").unlink()
    (bundle / "link").symlink_to("/etc/passwd")
    with pytest.raises(TrustError, match="does not list"):
        Session.open(bundle, trust=keys / "author.pub")
    (bundle / "link").unlink()
    Session.open(bundle, trust=keys / "author.pub").close()


StategateErrors = (BundleError, stategate.contract.errors.ManifestError)


def test_an_attacker_who_makes_the_digests_agree_still_lacks_the_key(
    bundle: Path, keys: Path
) -> None:
    resealed(bundle, created="2020-01-01T00:00:00Z")
    with Session.open(bundle):
        pass  # nobody asked for an author
    with pytest.raises(TrustError, match=r"manifest\.json"):
        Session.open(bundle, trust=keys / "author.pub")


def test_a_signature_of_another_bundle_or_of_some_files_is_refused(
    bundle: Path, tiny_pool_bundle: Path, keys: Path, tmp_path: Path
) -> None:
    signature, signer = bundle / "model.sig", signing.Config()
    signer.use_elliptic_key_signer(private_key=keys / "author.pem")
    signer.sign(tiny_pool_bundle, signature)
    with pytest.raises(TrustError):
        accepted(Bundle.open(bundle), keys / "author.pub")
    # The signer may say what is left out; a verifier that obeys would accept any graph.
    some = hashing.Config().set_ignored_paths(paths=[signature, bundle / "graphs"])
    signer.set_hashing_config(some).sign(bundle, tmp_path / "some.sig")
    ignored = ["model.sig", "graphs"]
    some = hashing.Config().use_file_serialization(ignore_paths=[Path(p) for p in ignored])
    some.set_ignored_paths(paths=ignored)
    signer.set_hashing_config(some).sign(bundle, tmp_path / "some.sig")
    signature.write_bytes((tmp_path / "some.sig").read_bytes())
    obedient = verifying.Config().use_elliptic_key_verifier(public_key=keys / "author.pub")
    obedient.verify(bundle, signature)
    with pytest.raises(TrustError, match=r"step\.onnx"):
        accepted(Bundle.open(bundle), keys / "author.pub")


def test_another_place_and_name_of_the_folder_change_nothing(bundle: Path, keys: Path) -> None:
    moved = bundle.rename(bundle.parent / "other-name")
    Session.open(moved, trust=keys / "author.pub").close()
    linked = bundle.parent / "linked"
    linked.symlink_to(moved)
    Session.open(linked, trust=keys / "author.pub").close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: b"",
        lambda s: b"[]",
        lambda s: b"[" * 100_000,
        lambda s: s[: len(s) // 2],
        lambda s: _with(s, signatures=[]),
        lambda s: _with(s, signatures=json.loads(s)["dsseEnvelope"]["signatures"] * 2),
        lambda s: _with(s, payloadType="text/plain"),
        lambda s: _with(s, payload=b64encode(b"{}").decode()),
        lambda s: s.replace(b"bundle.v0.3", b"bundle.v9"),
        lambda s: s.replace(b'"publicKey"', b'"x509CertificateChain"'),
        lambda s: s.replace(b'"publicKey"', b'"certificate"'),
    ],
)
def test_a_damaged_signature_is_refused_in_words(
    bundle: Path, keys: Path, damage: Callable[[bytes], bytes]
) -> None:
    signature = bundle / "model.sig"
    signature.write_bytes(damage(signature.read_bytes()))
    with pytest.raises(TrustError, match="what to do"):
        accepted(Bundle.open(bundle), keys / "author.pub")


def _with(raw: bytes, **changes: object) -> bytes:
    record = json.loads(raw)
    record["dsseEnvelope"] |= changes
    return json.dumps(record).encode()


def certified(
    name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: str,
    issuer_key: PrivateKey,
    days: tuple[int, int],
    usage: x509.ExtendedKeyUsage | None = None,
) -> x509.Certificate:
    now = datetime.now(timezone.utc)
    names = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (name, issuer))
    subject, vouching = names
    is_root = name == issuer
    builder = (
        x509.CertificateBuilder(vouching, subject, public, x509.random_serial_number())
        .not_valid_before(now + timedelta(days[0]))
        .not_valid_after(now + timedelta(days[1]))
        .add_extension(x509.BasicConstraints(is_root, None), True)
        .add_extension(
            x509.KeyUsage(not is_root, False, False, False, False, is_root, False, False, False),
            True,
        )
    )
    if usage is not None:
        builder = builder.add_extension(usage, False)
    return builder.sign(issuer_key, hashes.SHA256())


@pytest.mark.parametrize(
    ("days", "issuer", "refused"),
    [
        ((-9, 9), "root", None),
        ((-9, -1), "root", "clock of this machine"),
        ((1, 9), "root", "clock of this machine"),
        ((-9, 9), "impostor", "certificate"),
    ],
    ids=["good", "expired", "not yet good", "of another root"],
)
def test_a_certificate_counts_while_it_is_good_and_known(
    bundle: Path, keys: Path, days: tuple[int, int], issuer: str, refused: str | None
) -> None:
    roots = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "impostor")}
    key = ec.generate_private_key(ec.SECP384R1())
    write_key(keys, "leaf", key)
    for name, root in roots.items():
        certificate = certified(name, root.public_key(), name, root, (-10, 10))
        (keys / f"{name}.crt").write_bytes(certificate.public_bytes(PEM))
    leaf = certified("author", key.public_key(), issuer, roots[issuer], days)
    (keys / "leaf.crt").write_bytes(leaf.public_bytes(PEM))
    stategate.sign(
        bundle,
        key=keys / "leaf.pem",
        certificate=keys / "leaf.crt",
        chain=[keys / f"{issuer}.crt"],
    )
    with pytest.raises(TrustError):
        accepted(Bundle.open(bundle), keys / "author.pub")  # of another kind
    if refused is None:
        assert "CN=author" in accepted(Bundle.open(bundle), keys / "root.crt").signer
    else:
        with pytest.raises(TrustError, match=refused):
            accepted(Bundle.open(bundle), keys / "root.crt")


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("", None),
        ("native = true", None),
        ('models = ["Tiny"]', None),
        ("not_older = 2020-01-01", "policy"),
        ("not_older = 2020-01-01T00:00:00Z", None),
        ("not_older = 2120-01-01T00:00:00Z", "before 2120"),
        ('models = ["other"]', "the model is Tiny"),
        ("navite = true", "navite"),
        ('engines = ["gpu"]', "gpu"),
        ("version = 2", "policy"),
        ("= 3", "policy"),
    ],
)
def test_a_policy_says_what_is_accepted_and_no_unknown_word_passes(
    bundle: Path, keys: Path, text: str, refused: str | None
) -> None:
    path = policy(keys, text)
    if refused is None:
        Session.open(bundle, trust=path).close()
    else:
        with pytest.raises(TrustError, match=refused):
            Session.open(bundle, trust=path)


def test_a_policy_decides_which_engine_steps(bundle: Path, keys: Path) -> None:
    allowed = policy(keys, 'engines = ["onnxruntime"]')
    with Session.open(bundle, trust=allowed) as session:
        assert session.engine_name.startswith("onnxruntime")
    with pytest.raises(EngineError, match="policy of this machine"):
        Session.open(bundle, engine="native", trust=allowed)
    with pytest.raises(EngineError, match="policy of this machine"):
        Session.open(bundle, engine="tensorrt", trust=policy(keys, "native = false"))
    with pytest.raises(EngineError, match="no native engine"):
        Session.open(bundle, trust=policy(keys, 'engines = ["native"]'))


def test_what_cannot_be_trusted_is_refused_with_what_to_do(
    bundle: Path, tiny_bundle: Path, keys: Path
) -> None:
    big = rsa.generate_private_key(65537, 2048).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (keys / "rsa.pub").write_bytes(big.public_bytes(PEM, form))
    (keys / "text").write_text("hello")
    (keys / "empty.toml").write_text("version = 1\n")
    (keys / "gone.toml").write_text('version = 1\nkeys = ["author.pub", "gone.pub"]\n')
    nothing = 'native = false\nengines = ["native", "tensorrt"]'
    policy(keys, nothing).rename(keys / "none.toml")
    several = (keys / "author.pub").read_bytes() + (keys / "other.pub").read_bytes()
    (keys / "several.pub").write_bytes(several)
    (keys / "several.toml").write_text('version = 1\nkeys = ["several.pub"]\n')
    for trust, word in {
        "author.pem": "private key",
        "rsa.pub": "not one that this machine accepts",
        "text": "not what can be trusted",
        "empty.toml": "names nobody",
        "none.toml": "leaves no engine",
        "gone.toml": "names files that are not there",
        "several.pub": "several keys",
        "several.toml": "several keys",
        "missing": "cannot be read",
        ".": "cannot be read",
    }.items():
        with pytest.raises(TrustError, match=word):
            Session.open(bundle, trust=keys / trust)
    with pytest.raises(TrustError, match="not signed"):
        Session.open(tiny_bundle, trust=keys / "author.pub")
    for wrong in ({"key": keys / "author.pub"}, {}, {"key": keys / "no.pem"}):
        with pytest.raises(TrustError, match="signed"):
            stategate.sign(bundle, **wrong)
    key, certificate = keys / "author.pem", keys / "author.pub"
    for unused in (
        {"key": key, "chain": [certificate]},
        {"sigstore": True, "certificate": certificate},
        {"sigstore": True, "password": "secret"},
    ):
        with pytest.raises(TrustError, match="would not hold"):
            stategate.sign(bundle, **unused)


def test_a_key_that_cannot_be_read_hides_no_other_key_of_the_policy(
    bundle: Path, keys: Path
) -> None:
    (keys / "junk.pub").write_text("junk")
    for order in ("junk.pub", "other.pub"):
        (keys / "two.toml").write_text(f'version = 1\nkeys = ["{order}", "author.pub"]\n')
        assert stategate.verify(bundle, digests_only=True, trust=keys / "two.toml").signer
    (keys / "two.toml").write_text('version = 1\nkeys = ["junk.pub", "other.pub"]\n')
    with pytest.raises(TrustError, match="junk.pub.*other.pub"):
        Session.open(bundle, trust=keys / "two.toml")


@pytest.mark.parametrize(
    "call",
    [
        lambda path: stategate.install(path, path / "new", trial={"steps": 3}),
        lambda path: stategate.install(path, path / "new", older=3),
        lambda path: stategate.install(path, into=3),
        lambda path: stategate.Installation.open(path, snapshots=str(path)),
        lambda path: stategate.sign(path, key=3),
        lambda path: stategate.release(path, 2, older=3),
        lambda path: stategate.pull("oci://localhost:1/a:1", 3),
        lambda path: stategate.bill(path, about=3),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(
    call: Callable[[Path], object], tiny_bundle: Path
) -> None:
    with pytest.raises(SpecError, match="of the wrong kind"):
        call(tiny_bundle)


def reordered(path: Path, raw: bytes) -> Path:
    """A bundle with another native library, sealed as if that were right."""
    opened = Bundle.open(path)
    native = opened.manifest.native
    assert native is not None and native.library is not None
    content = {f.path: opened.read(f) for f in opened.manifest.all_files} | {native.library: raw}
    refs = tuple(FileRef(f.path, sha256(content[f.path])) for f in opened.manifest.files)
    return write_bundle(path, msgspec.structs.replace(opened.manifest, files=refs), content).path


@pytest.fixture
def hostile(native_bundle: Path, copy_of: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A bundle whose library writes a file as soon as it is mapped; `tmp_path` / "harm"."""
    manifest = Bundle.open(native_bundle).manifest
    assert manifest.native is not None
    name = tag(manifest.native.abi, manifest.step_graph.file.sha256).decode()
    source = f"""#include <stdio.h>
    const char stategate_tag[] = "{name}";
    __attribute__((constructor)) static void harm(void) {{
        FILE *file = fopen("{tmp_path / "harm"}", "w");
        if (file) fclose(file);
    }}"""
    library = compile_library({"harm.c": source.encode()}).library
    return reordered(copy_of(native_bundle), library)


def test_a_hostile_library_is_mapped_by_nothing_before_somebody_accepts_it(
    hostile: Path, tmp_path: Path
) -> None:
    run, harm = CliRunner().invoke, tmp_path / "harm"
    for line in (
        ["inspect", str(hostile)],
        ["verify", "--digests", str(hostile)],
        ["fits", str(hostile), "--target", "jetson-orin-nano-8gb"],
        ["device", "retarget", str(hostile), "--target", "x86-64-server", "--out", f"{harm}s"],
    ):
        run(main, line)
        assert not harm.exists(), line
    with pytest.warns(EngineFallbackWarning, match="nobody on this machine has accepted"):
        Session.open(hostile).close()
    with pytest.raises(EngineError, match=f"stategate trust {hostile}"):
        Session.open(hostile, engine="native")
    with pytest.raises(EngineError):
        Pool.open(hostile, engine="native")
    with pytest.raises(EngineError):
        stategate.verify(hostile, engine="native")
    with pytest.raises(TrustError, match="not compiled"):
        build_native(hostile)
    assert not harm.exists()
    done = run(main, ["trust", str(hostile)])
    assert done.exit_code == 0 and "with everything that you may do" in done.output
    assert not harm.exists()
    with pytest.raises(EngineError, match="lacks"):  # but it was mapped
        Session.open(hostile, engine="native")
    assert harm.exists()
    assert run(main, ["trust", str(hostile), "--withdraw"]).exit_code == 0
    assert code.refusal(Bundle.open(hostile)) is not None


def test_a_signature_lets_native_code_run_where_the_policy_does(
    native_bundle: Path,
    copy_of: Callable[[Path], Path],
    keys: Path,
    no_list: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    no_list.setenv(code.VARIABLE, str(tmp_path / "list"))
    copy = copy_of(native_bundle)
    stategate.sign(copy, key=keys / "author.pem")
    with pytest.raises(EngineError, match="not run"):
        Session.open(copy, engine="native")
    for forbids in ("native = false", 'engines = ["onnxruntime"]'):
        path = policy(keys, forbids)
        with pytest.warns(EngineFallbackWarning, match="accepts no native code"):
            session = Session.open(copy, trust=path)
        assert session.engine_name.startswith("onnxruntime")
        with pytest.raises(EngineError, match="policy of this machine"):
            Session.open(copy, engine="native", trust=path)
        # Not even where the user has accepted this code, and in the replay of a golden episode.
        code.accept_for_this_process(code.code_digest(Bundle.open(copy).manifest))
        with pytest.raises(EngineError, match="policy of this machine"):
            stategate.verify(copy, engine="native", trust=path)
        with pytest.raises(EngineError, match="policy of this machine"):
            stategate.install(copy, tmp_path / "robot", engine="native", trust=path)
        no_list.setattr(code, "_THIS_PROCESS", set())
    for allows in (keys / "author.pub", policy(keys, 'engines = ["native"]')):
        no_list.setattr(code, "_THIS_PROCESS", set())
        assert Session.open(copy, trust=allows).engine_name.startswith("native")
        assert Pool.open(copy, engine="native", trust=allows).engine_name.startswith("native")


@pytest.mark.slow
def test_c_of_a_signed_bundle_is_compiled_and_then_code_of_this_machine(
    native_bundle: Path,
    copy_of: Callable[[Path], Path],
    keys: Path,
    no_list: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    no_list.setenv(code.VARIABLE, str(tmp_path / "list"))
    copy = copy_of(native_bundle)
    stategate.sign(copy, key=keys / "author.pem")
    with pytest.raises(TrustError, match="not compiled"):
        build_native(copy)
    assert build_native(copy, trust=keys / "author.pub").manifest.native is not None
    assert not (copy / "model.sig").exists()  # it was over the bundle as it was before
    no_list.setattr(code, "_THIS_PROCESS", set())
    Session.open(copy, engine="native").close()


def test_code_is_accepted_with_the_shapes_that_it_is_called_with(native_bundle: Path) -> None:
    manifest = Bundle.open(native_bundle).manifest
    digest = code.code_digest(manifest)
    receipts = msgspec.structs.replace(manifest, verification=None, created="")
    assert code.code_digest(receipts) == digest
    (state, *others) = manifest.states
    smaller = msgspec.structs.replace(state, shape=(1, 1), bytes=4)
    changed = msgspec.structs.replace(manifest, states=(smaller, *others))
    assert code.code_digest(changed) != digest


@pytest.fixture
def no_list(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(code, "_THIS_PROCESS", set())
    for name in (code.VARIABLE, "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


DIGEST = "ab" * 32


def test_a_machine_without_a_place_for_the_list_says_so_and_goes_on(
    no_list: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    no_list.setattr(Path, "home", classmethod(homeless))
    assert code.list_path() is None and not code.is_accepted(DIGEST)
    with pytest.warns(EngineFallbackWarning, match="no home folder"):
        code.accept_own(DIGEST, "model")
    assert code.is_accepted(DIGEST)  # in this process
    no_list.setattr(code, "_THIS_PROCESS", set())
    no_list.setenv(code.VARIABLE, "/proc/nothing/accepted")  # as a read-only home
    with pytest.warns(EngineFallbackWarning, match="/proc/nothing/accepted"):
        code.accept_own(DIGEST, "model")
    no_list.setenv(code.VARIABLE, str(tmp_path / "deep" / "list"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code.accept_own(DIGEST, "a\nmodel")
    assert (tmp_path / "deep" / "list").read_text() == f"{DIGEST}  a model\n"


def test_a_home_that_is_no_absolute_path_is_none(no_list: pytest.MonkeyPatch) -> None:
    for name, value in ((code.VARIABLE, ""), ("HOME", "here"), ("XDG_STATE_HOME", "here")):
        no_list.setenv(name, value)
    assert code.list_path() is None


def test_a_list_that_others_can_write_counts_for_nothing(
    no_list: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "list"
    no_list.setenv(code.VARIABLE, str(path))
    assert code.accept(DIGEST, "model") is None and code.is_accepted(DIGEST)
    path.chmod(0o666)
    assert not code.is_accepted(DIGEST)
    assert "written by others" in str(code.accept("cd" * 32, "model"))
    path.chmod(0o600)
    umask = os.umask(0o002)
    assert code.accept("cd" * 32, "other") is None and code.withdraw("cd" * 32)
    os.umask(umask)
    assert code.is_accepted(DIGEST) and not code.is_accepted("cd" * 32)
    path.write_text(f"# {DIGEST}\n {DIGEST}\n{DIGEST[:-1]}\n")
    assert not code.is_accepted(DIGEST)
    path.unlink()
    os.mkfifo(path)
    assert not code.is_accepted(DIGEST)


@pytest.mark.slow
def test_processes_that_accept_at_once_lose_no_line(
    no_list: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "list"
    path.write_text(f"{DIGEST}  torn by a full disk")
    path.chmod(0o600)
    program = (
        "import sys; from stategate.runtime.trust.code import accept\n"
        "for i in range(100): accept(f'{int(sys.argv[1]) * 1000 + i:064x}', 'model')"
    )
    environment = os.environ | {code.VARIABLE: str(path)}
    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(
            lambda n: subprocess.run([sys.executable, "-c", program, str(n)], env=environment),
            range(4),
        ):
            assert done.returncode == 0
    no_list.setenv(code.VARIABLE, str(path))
    every = [f"{n * 1000 + i:064x}" for n in range(4) for i in range(100)]
    assert all(map(code.is_accepted, [DIGEST, *every]))
    assert len(path.read_text().split()) == len(every) * 2 + 6


@pytest.mark.slow
def test_a_c_program_that_pins_its_model_starts_with_no_other(
    native_bundle: Path, tmp_path: Path
) -> None:
    folder = native_bundle / "native"
    (tmp_path / "main.c").write_text(
        '#include "stategate.h"\nstatic stategate_session s;\n'
        "int main(void) { return stategate_init(&s) == STATEGATE_OTHER_MODEL ? 7 : 0; }\n"
    )
    graph = Bundle.open(native_bundle).manifest.step_graph.file.sha256
    for pin, ends in ((graph, 0), (DIGEST, 7), (graph[:-1], 7), ("", 7), (None, 0)):
        option = [] if pin is None else [f'-DSTATEGATE_PIN="{pin}"']
        line = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", *option, "-o", "program", "main.c"]
        parts = [f"-I{folder}", str(folder / "libstep.so"), f"-Wl,-rpath,{folder}"]
        subprocess.run([*line, *parts], cwd=tmp_path, check=True)
        assert subprocess.run([tmp_path / "program"]).returncode == ends, pin


def with_graph(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The bundle with another graph of its step, sealed as if that were right."""
    opened = Bundle.open(path)
    content = {f.path: opened.read(f) for f in opened.manifest.all_files}
    old = opened.manifest.step_graph
    model = onnx.load_model_from_string(content[old.file.path])
    change(model)
    content[old.file.path] = model.SerializeToString()
    new = msgspec.structs.replace(old, file=FileRef(old.file.path, sha256(content[old.file.path])))
    graphs = tuple(new if g is old else g for g in opened.manifest.graphs)
    return write_bundle(path, msgspec.structs.replace(opened.manifest, graphs=graphs), content).path


def test_a_graph_reads_no_file_and_calls_no_operator_that_the_bundle_brings(
    tiny_bundle: Path,
    copy_of: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    monkeypatch.chdir(tmp_path)

    def outside(place: str) -> Callable[[onnx.ModelProto], None]:
        def change(model: onnx.ModelProto) -> None:
            weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            entry = weight.external_data.add()
            entry.key, entry.value = "location", place

        return change

    def foreign(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "evil"
        model.opset_import.add(domain="evil", version=1)

    for change in (outside("secret.bin"), outside("../../etc/passwd"), foreign):
        harmful = with_graph(copy_of(tiny_bundle), change)
        for line in (["inspect", str(harmful)], ["verify", "--digests", str(harmful)]):
            assert CliRunner().invoke(main, line).exit_code == 0, line
        with pytest.raises(EngineError, match="cannot load"):
            Session.open(harmful)


def test_a_file_that_is_exchanged_after_the_check_is_not_read(
    bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def and_then_exchanged(opened: Bundle, trust: Path) -> object:
        answer = accepted(opened, trust)
        graph = bundle / opened.manifest.step_graph.file.path
        graph.write_bytes(graph.read_bytes() + b"\0")
        return answer

    monkeypatch.setattr("stategate.runtime.session.accepted", and_then_exchanged)
    with pytest.raises(DigestError, match="not the file that was sealed"):
        Session.open(bundle, trust=keys / "author.pub")


def test_without_the_library_a_signature_is_refused_and_not_passed_over(
    bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "stategate.runtime.trust.signature")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert "key:" in str(stategate.sign.__doc__)  # so that help(stategate) works without it
    with pytest.raises(MissingDependencyError, match=r"stategate\[trust\]"):
        Session.open(bundle, trust=keys / "author.pub")
    line = ["sign", str(bundle), "--key", str(keys / "author.pem")]
    assert "stategate[trust]" in CliRunner().invoke(main, line).output
    with pytest.raises(MissingDependencyError, match=r"stategate\[trust\]"):
        stategate.sign(bundle, key=keys / "author.pem")
    Session.open(bundle).close()

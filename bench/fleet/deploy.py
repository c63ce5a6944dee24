"""A bundle put on another machine: looked at, copied, installed, verified and measured there.

Nothing is decided here: the other machine's own ``stategate install`` does it, which is safe
against being killed at any moment. So a line may drop anywhere; what ran goes on.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from stategate.bench.fleet.host import Answer, Host, connected
from stategate.bench.record import BenchResult
from stategate.common.console import note
from stategate.contract import Bundle, canonical_json, sha256
from stategate.contract.arguments import checks_kinds
from stategate.contract.durable import make_folder, write_whole
from stategate.contract.errors import InstallError, MissingDependencyError
from stategate.contract.reading import printable, read_bounded
from stategate.runtime.trust.policy import read_policy

_LEAST_PYTHON = (3, 10)
_ENVIRONMENT = "~/.local/share/stategate"
# Where a shell that nobody logged into looks for nothing.
_COMMANDS = (
    f"{_ENVIRONMENT}/bin/stategate",
    "stategate",
    "~/.local/bin/stategate",
    "~/.venv/bin/stategate",
    "/opt/stategate/bin/stategate",
)
_LOOK = """
printf 'machine=%s\\n' "$(uname -m)"
printf 'system=%s\\n' "$(uname -sr)"
printf 'home=%s\\n' "$HOME"
printf 'python=%s\\n' "$(python3 -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')"
for c in {commands}; do
  case $c in '~/'*) c=$HOME/${{c#'~/'}};; esac
  if p=$(command -v "$c") && v=$("$p" --version); then
    printf 'command=%s\\nversion=%s\\n' "$p" "$v"; break
  fi
done
d={into}; while [ ! -d "$d" ]; do d=$(dirname "$d"); done
printf 'free_kib=%s\\n' "$(df -Pk "$d" | awk 'END {{print $(NF - 2)}}')"
[ -w "$d" ] || printf 'sealed=%s\\n' "$d"
"""
_FREE_COPIES = 3  # what waits to be installed, the slot, and room for a memory


@dataclass(frozen=True, slots=True)
class Deployed:
    """What is so on the other machine."""

    host: str  # its name for ssh
    machine: str  # as ``uname -m`` says
    system: str  # its kernel
    python: str  # version of its ``python3``; empty where it has none
    stategate: str  # version of stategate there
    digest: str  # of the bundle
    folder: str  # of the installation there
    slot: str  # where the bundle lies in it
    was_installed: bool  # whether it was installed before, by this command or another
    phase: str  # ``steady``, or ``staged`` until the program there has tried it
    verified: str  # what the golden episode came to there, in words
    bench: BenchResult | None  # the measurement there; None where it was not measured
    notes: tuple[str, ...]  # what else to know, in sentences


@checks_kinds
def deploy(
    host: str,
    bundle: str | Path | Bundle,
    *,
    into: str = "stategate",
    ssh: str = "ssh",
    command: str | None = None,
    wheels: str | Path | None = None,
    accept_code: bool = False,
    trust: str | Path | None = None,
    engine: str = "auto",
    measure: bool = True,
    out: str | Path | None = None,
) -> Deployed:
    """Put a bundle on another machine over ssh, beside what runs there.

        stategate.deploy("pi@robot-7.local", "build/policy", into="/var/lib/robot")

    Args:
        host: As ssh knows it.
        bundle: The bundle, or its folder.
        into: Folder of the installation there; from the home folder where it is not absolute.
        ssh: The program and its options, such as ``ssh -p 2222``.
        command: How stategate is called there; it is looked for in the usual places.
        wheels: Folder of wheels: where stategate is not there, it is installed from these into an
            environment of its own.
        accept_code: Accept the bundle's native code there; see ``stategate device trust``.
        trust: Public key by which the other machine must accept the bundle's signature.
        engine: What steps it there.
        measure: Whether a short measurement is made there.
        out: Folder for ``deploy.json``, and page and record of the measurement.

    Raises:
        InstallError: The machine lacks something, refuses the bundle, or the line dropped.
        BundleError: It is no bundle, or a file was altered.
    """
    opened, into = Bundle.open(bundle), into.removeprefix("~/")  # home is the default
    if not into.strip() or into.startswith("~") or not into.isprintable():
        raise InstallError(
            "the installation's folder has no name that every shell reads alike",
            found=repr(into),
            expected="such as /var/lib/robot, or robot for one in the home folder",
        )
    key = None if trust is None else _key(Path(trust))
    if out is not None:
        make_folder(Path(out))
    with connected(host, ssh) as line:
        machine = _Machine(line, opened, into, command)
        if "command" not in machine.facts and wheels is not None:
            machine.install_wheels(Path(wheels))
            machine = _Machine(line, opened, into, command)
        machine.check(wheels is not None)
        with machine.staged(key):
            was_installed = machine.slot is not None
            if accept_code:
                machine.accept_code()
            if not was_installed:
                machine.install(engine)
            verified = machine.verify(engine)
            bench = machine.bench(engine) if measure else None
    if was_installed:
        machine.notes.insert(0, "It was installed there already, and was not copied again.")
    names = ("machine", "system", "python")
    result = Deployed(
        host=host,
        **{name: machine.facts.get(name, "") for name in names},
        stategate=machine.facts["version"].rpartition(" ")[2],
        digest=opened.digest,
        folder=machine.folder,
        slot=machine.slot or "",
        was_installed=was_installed,
        phase=machine.phase,
        verified=verified,
        bench=bench,
        notes=tuple(machine.notes),
    )
    if out is not None:
        _write(result, Path(out))
    return result


class _Machine:
    """The other machine, the bundle, and how far things are."""

    def __init__(self, line: Host, bundle: Bundle, into: str, command: str | None) -> None:
        """Look what there is, by one short script of any shell."""
        note(f"looking at {line.name}")
        self._line, self._bundle, self.notes = line, bundle, list[str]()
        self._commands = (command,) if command else _COMMANDS
        commands = " ".join(map(shlex.quote, self._commands))
        place = shlex.quote(into) if into.startswith("/") else f'"$HOME"/{shlex.quote(into)}'
        script = _LOOK.format(commands=commands, into=place)
        answer = line.ask("sh", "-s", doing="looking what is there", script=script)
        pairs = (text.partition("=") for text in answer.out.splitlines())
        self.facts = {name: printable(value, 1000) for name, _, value in pairs if value}
        self._home = self.facts.get("home", "")
        self.folder = into if into.startswith("/") else f"{self._home}/{into}"
        # In the home: the installation's folder holds nothing else. Two deployments at once do not
        # clear away each other's files.
        job = sha256(f"{bundle.digest} {self.folder}".encode())[:16]
        self._incoming = f"{self._home}/.cache/stategate/{job}"
        self._keys: tuple[str, ...] = ()
        self.slot: str | None = None
        self.phase = ""

    def check(self, with_wheels: bool) -> None:
        """Refuse, before anything is copied, what could not be installed there."""
        name, facts, target = self._line.name, self.facts, self._bundle.manifest.target
        if missing := [fact for fact in ("machine", "home", "free_kib") if not facts.get(fact)]:
            raise InstallError(
                f"{name} does not say what it is",
                found=f"no word on {', '.join(missing)}",
                expected="a Linux machine with sh, uname, df and awk, and a home folder",
            )
        if target is not None and target.machine != facts["machine"]:
            raise InstallError(
                f"the bundle is for another machine than {name}",
                found=f"{target.machine} ({target.name})",
                expected=facts["machine"],
                remedy="export it for that one; they are listed by: stategate device targets",
            )
        if "sealed" in facts:
            raise InstallError(
                f"nothing can be written into {facts['sealed']} on {name}",
                expected="a folder of the user who logs in",
                remedy=f"there: sudo install -d -o $USER {shlex.quote(self.folder)}; or name "
                "another with --into",
            )
        if "command" not in facts:
            pip = 'python3 -m venv .venv && .venv/bin/pip install --find-links WHEELS "stategate'
            raise InstallError(
                f"there is no stategate on {name}",
                found=f"Python {facts['python']}" if "python" in facts else "no python3 either",
                expected=", or ".join(self._commands),
                remedy="look into what was installed there"
                if with_wheels
                else f'name a folder of wheels with --wheels; or there: {pip}[ort]"',
            )
        needs, kib = _FREE_COPIES * _bytes(self._bundle), facts["free_kib"]
        if kib.isdecimal() and (free := int(kib) * 1024) < needs:
            raise InstallError(
                f"{name} has too little room",
                found=f"{free:,} bytes",
                expected=f"{needs:,} bytes: the bundle three times",
            )

    def install_wheels(self, wheels: Path) -> None:
        """Make an environment there, of wheels from here and whatever index its pip asks."""
        names = [path.name for path in sorted(wheels.glob("*.whl"))]
        own = [name for name in names if name.startswith("stategate-")]
        if len(own) != 1:
            raise InstallError(
                f"the folder has {len(own) or 'no'} wheels of stategate",
                found=", ".join(own or names) or f"no wheel in {wheels}",
                expected="one",
                remedy="make wheel writes it into dist/; remove older ones",
            )
        python = self.facts.get("python", "")
        if tuple(map(int, python.split(".")[:2])) < _LEAST_PYTHON if python else True:
            raise InstallError(
                f"the Python of {self._line.name} is too old, or not there",
                found=python or "no python3",
                expected="3.10 or newer",
                remedy="install one there, and say with --command how its stategate is called",
            )
        note(f"installing stategate on {self._line.name}")
        environment = self._home + _ENVIRONMENT.removeprefix("~")
        self._line.send(wheels, f"{self._incoming}/wheels")
        remedy = "there: sudo apt-get install python3-venv"
        making = ("python3", "-m", "venv", environment)
        self._line.do(*making, doing="making an environment", remedy=remedy)
        pip = (f"{environment}/bin/python", "-m", "pip", "install", "--quiet", "--find-links")
        # The wheel by its file: an index may have something else by this name.
        what = (f"{self._incoming}/wheels", f"{self._incoming}/wheels/{own[0]}[ort]")
        self._line.do(*pip, *what, doing="installing stategate")

    @contextmanager
    def staged(self, key: bytes | None) -> Iterator[None]:
        """Ask how things stand, copy what is missing, and clear up when all is done."""
        answer = self._stategate("install", "status", self.folder, doing="asking for status")
        # What gives no status is nothing, or what only a new install can mend.
        self._see({} if answer.code else _json(answer.out, "install status"))
        if self.slot is None:
            mib = _bytes(self._bundle) / 2**20
            note(f"copying {mib:.2f} MiB to {self._line.name}")
            self._line.send(self._bundle.path, f"{self._incoming}/bundle")
        if key is not None:
            doing, place = "copying the author's key", f"{self._incoming}/author"
            self._line.do("mkdir", "-p", self._incoming, doing=doing)
            script = 'cat > "$1"'
            written = self._line.ask("sh", "-c", script, "sh", place, doing=doing, script=key)
            self._line.check(written, doing)
            self._keys = ("--trust", place)
        yield
        self._line.ask("rm", "-rf", self._incoming, doing="clearing up")

    def accept_code(self) -> None:
        """Let the other machine accept the native code, where the bundle lies now."""
        place = f"{self.folder}/{self.slot}" if self.slot else f"{self._incoming}/bundle"
        trust = self._stategate("device", "trust", place, doing="accepting the native code")
        self._line.check(trust, "accepting the native code")

    def install(self, engine: str) -> None:
        """Let the other machine install it."""
        staging = f"{self._incoming}/bundle"
        note(f"installing into {self.folder}")
        options = ("--into", self.folder, "--engine", engine, *self._keys)
        done = self._stategate("install", "bundle", staging, *options, doing="installing")
        self._line.check(done, "installing; what ran there goes on")
        self._see(_json(done.out, "install"))

    def verify(self, engine: str) -> str:
        """Let it replay the golden episode where it lies now."""
        place = f"{self.folder}/{self.slot}"
        note(f"verifying in {place}")
        options = (place, "--engine", engine, *self._keys)
        answer = self._stategate("verify", *options, doing="verifying")
        record = _json(answer.out, "verify") if answer.out.startswith("{") else {}
        replay = record.get("replay")
        if record:
            self._check_same(record.get("digest"))
        if answer.code > 1:  # killed, or a stategate that does not know these options
            self._line.check(answer, "verifying")
        if answer.code or replay is None:
            folder = shlex.quote(self.folder)
            raise InstallError(
                f"the bundle does not pass on {self._line.name}",
                found=answer.errors.strip() or str(replay or "no golden episode"),
                remedy=f"there: stategate verify {shlex.quote(place)}; to go back: stategate "
                f"install go-back {folder}",
            )
        native, machine = self._bundle.manifest.native, self.facts["machine"]
        if self.phase == "staged":
            self.notes.append("It waits beside the bundle that runs, until the program tries it.")
        if native is not None and native.machine not in ("", machine):
            self.notes.append(f"Its library is for {native.machine}: onnxruntime steps it there.")
        elif "nobody on this machine has accepted" in answer.errors:
            self.notes.append("Its native code is not accepted there: --accept-code, or sign it.")
        error = replay["max_output_error"]
        return f"{replay['steps']} golden steps, output error {error:.2g}"

    def _check_same(self, digest: str | None) -> None:
        """Refuse figures of another bundle, which somebody else put there in this moment."""
        if digest != self._bundle.digest:
            raise InstallError(
                f"another bundle lies in {self.folder}/{self.slot} on {self._line.name} by now",
                found=digest,
                expected=self._bundle.digest,
                remedy="let the other deployment end; then give the same command again",
            )

    def bench(self, engine: str) -> BenchResult | None:
        """Let it measure for some seconds."""
        note("measuring there for some seconds")
        place = f"{self.folder}/{self.slot}"
        options = (place, "--quick", "--engine", engine)
        answer = self._stategate("bench", "run", *options, doing="measuring")
        try:
            if not answer.code:
                result = msgspec.json.decode(answer.out, type=BenchResult)
                for subject in result.subjects:
                    self._check_same(subject.digest)
                return result
            problem = (answer.errors.strip().splitlines() or ["no word"])[-1]
        except msgspec.MsgspecError as wrong:
            problem = f"the result is of another version: {wrong}"
        self.notes.append(f"It was not measured there: {printable(problem)}")
        return None

    def _stategate(self, *words: str, doing: str) -> Answer:
        return self._line.ask(self.facts["command"], *words, "--json", doing=doing)

    def _see(self, status: dict[str, Any]) -> None:
        """The slot that holds the bundle, whole: where it runs, waits, or is on trial."""
        self.phase = status.get("phase", "empty")
        waits = self.phase in ("staged", "trial")
        for slot in status.get("slots", ()) if self.phase != "unpacking" else ():
            whole = slot["digest"] == self._bundle.digest and slot["problem"] is None
            if whole and (waits or slot["name"] == status["runs"]):
                self.slot = slot["name"]


def _key(path: Path) -> bytes:
    """What may be copied to another machine: a public key or a certificate, and nothing else."""
    policy, _ = read_policy(path)
    if path.name not in (*policy.keys, *policy.certificates):
        raise InstallError(
            "a policy names other files, which the other machine does not have",
            found=path,
            expected="a public key or a certificate",
            remedy="put the policy there, and install there with --trust",
        )
    return read_bounded(path)


def _json(text: str, verb: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as problem:
        raise InstallError(
            f"stategate {verb} there answers something else than this one expects",
            found=printable(text[:200]) or str(problem),
            remedy="bring both machines to one version of stategate",
        ) from problem
    return dict(record)


def _write(result: Deployed, folder: Path) -> None:
    write_whole(folder / "deploy.json", canonical_json(result))
    if result.bench is None:
        return
    write_whole(folder / "bench.json", canonical_json(result.bench))
    try:
        from stategate.bench.report.page import write_report

        write_report(result.bench, folder)
    except ModuleNotFoundError as missing:
        problem = MissingDependencyError(missing.name or "a library", "bench")
        note(f"no page is drawn: {problem.reason}")


def _bytes(bundle: Bundle) -> int:
    return sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file())

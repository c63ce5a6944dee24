"""``stategate sign`` and ``stategate trust``: who made a bundle, and whose code may run here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import stategate
from stategate.cli.options import EXISTING_FILE, bundle_verb, flag, option
from stategate.cli.show import leave_unless, show
from stategate.contract import Bundle
from stategate.contract.errors import ResultError
from stategate.contract.tensorrt_plan import stored_plans
from stategate.runtime.trust import code


@bundle_verb()
@option("--key", type=EXISTING_FILE, help="Private key in PEM, on the curve P-256, P-384 or P-521.")
@option(
    "--password",
    envvar="STATEGATE_KEY_PASSWORD",
    show_envvar=True,
    help="Of the key, where it has one.",
)
@option("--certificate", type=EXISTING_FILE, help="Certificate of the key, in PEM.")
@option(
    "--chain",
    type=EXISTING_FILE,
    multiple=True,
    help="Certificate between that one and the one that others know; may be repeated.",
)
@flag("--sigstore", "Sign without a key, by a login at an identity provider; needs a network.")
def sign(bundle: Path, **options: Any) -> None:
    """Sign BUNDLE as its author, in the form of OpenSSF Model Signing.

    Writes model.sig into BUNDLE. Whoever has the public key, or knows who issued the certificate,
    can tell that every file is as you signed it: stategate verify BUNDLE --trust author.pub

    \b
    Make a key, and the public key that others get:
      openssl ecparam -name prime256v1 -genkey -noout -out author.pem
      openssl pkey -in author.pem -pubout -out author.pub

    \b
    Example:
      stategate sign build/aura --key author.pem
    """
    path = stategate.sign(bundle, **options)
    show({"signature": str(path)}, [("signed", path)])


@bundle_verb()
@flag("--withdraw", "Take it back: its native code is not run again.")
def trust(bundle: Path, withdraw: bool) -> None:
    """Accept the native code of BUNDLE on this machine, once and for good.

    A native library is a program: it runs with all your rights, on your files and devices, and
    nothing contains it. Bundles that were made on this machine are accepted already. Accept another
    one only if you know who made it, and got it from them. Nothing in BUNDLE is run by this verb.

    TensorRT engines that lie beside BUNDLE are accepted with it. Where the author signs, trust the
    key instead: stategate run BUNDLE --trust author.pub

    \b
    Example:
      stategate device trust build/aura
    """
    opened = Bundle.open(bundle)
    library, listed = code.code_digest(opened.manifest), code.list_path()
    plans = [stored.record.plan.sha256 for stored in stored_plans(opened.path)]
    digests = [*([library] if library else []), *plans]
    record = {"bundle": opened.digest, "code": digests, "list": str(listed)}
    if not digests:
        show(record, ["There is no native code in it; nothing needs to be accepted."])
        return
    if withdraw:
        withdrawn = any([code.withdraw(digest) for digest in digests])
        text = f"taken out of {listed}" if withdrawn else f"it was not in {listed}"
        show(record, [("native code", text)])
        leave_unless(withdrawn)
        return
    problems = [code.accept(digest, opened.manifest.model.name) for digest in digests]
    if any(problems):
        raise ResultError(
            "it cannot be written down that the code is accepted",
            found=next(filter(None, problems)),
            expected="a file that only you can write",
            remedy=f"export {code.VARIABLE}=/PATH/OF/A/FILE",
        )
    show(
        record,
        [
            f"The native code of {opened.manifest.model.name} may now run as you, "
            "with everything that you may do.",
            *(("code", digest) for digest in digests),
            ("written to", listed),
            ("take it back", f"stategate trust {shlex.quote(str(bundle))} --withdraw"),
        ],
    )

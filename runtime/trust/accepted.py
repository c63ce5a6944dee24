"""Whether this machine accepts a bundle: one question, asked by whoever opens or installs one."""

from __future__ import annotations

from dataclasses import dataclass

from stategate.contract import Bundle
from stategate.contract.errors import TrustError
from stategate.runtime.trust import code
from stategate.runtime.trust.policy import Trust, read_policy


@dataclass(frozen=True, slots=True)
class Accepted:
    """A bundle that may be opened here.

    Attributes:
        signer: Whose signature was accepted, in words; empty where none was asked for.
        refusal: Why its native code may not run, in words; None where it may, or it has none.
        remedy: What to do about that.
        engines: What may step it; anything where it is empty.
    """

    signer: str = ""
    refusal: str | None = None
    remedy: str = ""
    engines: tuple[str, ...] = ()


def accepted(bundle: Bundle, trust: Trust | None = None) -> Accepted:
    """Hold an opened bundle against what is trusted, before anything of it runs.

    What is checked are the digests that the bundle was opened with, and every file of it is held
    against these again when it is read: a file that is exchanged afterwards is refused there.

    Args:
        bundle: Opened.
        trust: Path of a public key, a certificate or a policy. With None no signature is asked
            for, and native code runs if the user's list has it; see `stategate.runtime.trust.code`.

    Raises:
        TrustError: The signature is missing, wrong or of somebody else, or the policy refuses it.
        MissingDependencyError: The library that checks signatures is not installed.
    """
    if trust is None:
        return Accepted("", code.refusal(bundle), code.remedy(bundle))
    policy, folder = read_policy(trust)
    from stategate.runtime.trust.signature import check_signature

    signer = check_signature(bundle, policy, folder)
    breach = policy.breaches(bundle.manifest)
    if breach is not None:
        raise TrustError(
            "the policy of this machine refuses the bundle",
            found=breach,
            expected=f"as {trust} says",
            remedy="install a bundle that it accepts, or ask whoever keeps the policy",
        )
    if not policy.native or (policy.engines and "native" not in policy.engines):
        # A TensorRT engine is native code as well.
        refusal, others = f"{trust} accepts no native code", "ask whoever keeps this policy"
        engines = policy.engines if policy.native else ("onnxruntime",)
        return Accepted(signer, refusal, others, engines)
    code.accept_for_this_process(code.code_digest(bundle.manifest))
    return Accepted(signer, engines=policy.engines)

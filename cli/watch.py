"""``stategate watch``: a page, or a terminal, that shows a memory as it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from stategate.cli.options import (
    ANY_PATH,
    POSITIVE,
    engine_option,
    episode_option,
    flag,
    option,
    trust_option,
)
from stategate.cli.run import golden
from stategate.common.ending import StopRequest, stop_request
from stategate.contract import Bundle, Manifest, load_episode
from stategate.runtime.episodes.run import endless
from stategate.runtime.session import Session
from stategate.runtime.watch.server import LOOPBACK, Server, Source

_RATE_HZ = 30.0


@click.command()
@click.argument("what", metavar="BUNDLE|RUN|HOST")
@option("--bundle", type=ANY_PATH, help="The bundle that was recorded, where RUN is a black box.")
@episode_option("; the bundle's golden episode, over and over, if left out.")
@option(
    "--rate", "rate_hz", type=POSITIVE, help="Steps a second; the episode's or bundle's, else 30."
)
@option("--storage", help="A flash medium, such as emmc-16gb: how long it lasts.")
@option("--bind", default=LOOPBACK, help="Address; any but loopback's own asks for a token.")
@option("--port", type=click.IntRange(0, 65535), default=0, help="0 takes one that is free.")
@flag("--text", "Draw in this terminal; into a file or pipe, a line a second.", "as_text")
@engine_option
@trust_option
def watch(
    what: str,
    bundle: Path | None,
    episode: Path | None,
    rate_hz: float | None,
    storage: str | None,
    bind: str,
    port: int,
    as_text: bool,
    engine: str,
    trust: Path | None,
) -> None:
    """Show a memory as it works: gate, writes, budgets, flash, deadlines, health.

    BUNDLE is stepped through its golden episode, or --episode, at its rate. RUN is a black box of
    Session.open(..., black_box=) or of run --black-box; it can be gone back through. HOST is the
    address that another process printed, of stategate watch or session.watch(port).

    The page is read-only, and is reached from this machine alone unless --bind says otherwise.

    \b
    Examples:
      stategate watch build/aura
      stategate watch robot.rec --bundle build/aura
      stategate watch http://robot:8080/?token=... --text
    """
    path = Path(what)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_request())
        if not path.exists() and ":" in what and not what.startswith("/"):
            from stategate.bench.live.remote import RemoteSource

            _show(RemoteSource(what), bind, port, as_text, stop)
        elif path.is_dir():
            opened = Bundle.open(path)
            steps = load_episode(episode, None) if episode else golden(opened)
            contract = opened.manifest.observation
            rate = rate_hz or steps.rate_hz or (contract.rate_hz if contract else None) or _RATE_HZ
            session = stack.enter_context(Session.open(opened, engine=engine, trust=trust))
            steps.check(session.manifest.step, starts=True)
            server = session.watch(port, bind)
            source = f"{path.name}, {episode.name if episode else 'golden episode'}, over and over"
            more = {"source": source, "rate_hz": rate, **flash(storage, opened.manifest)}
            server.source.more = more  # type: ignore[attr-defined]
            with _drawn(server, as_text, stop):
                ticks = session.every(rate)
                for _, inputs in zip(ticks, endless(session, steps), strict=False):
                    if stop:
                        break
                    session.step(**inputs)
        else:
            source_ = recorded(path, bundle, engine, storage, rate_hz)
            stack.callback(source_.close)
            _show(source_, bind, port, as_text, stop)


def recorded(
    path: Path, bundle: Path | None, engine: str, storage: str | None, rate_hz: float | None
) -> Any:
    """A black box, stepped through with its bundle."""
    from stategate.bench.live.recorded import RecordedSource

    if not path.exists():
        raise click.BadParameter(
            f"{path} is no bundle, no black box and no host; a host is given as host:port",
            param_hint="BUNDLE|RUN|HOST",
        )
    if bundle is None:
        raise click.UsageError(
            f"{path.name} is a file: a black box is shown with the bundle that it recorded.\n"
            f"  what to do: stategate watch {path} --bundle BUNDLE"
        )
    more = flash(storage, Bundle.open(bundle).manifest)
    more |= {"rate_hz": rate_hz} if rate_hz else {}
    return RecordedSource(path, bundle, None if engine == "auto" else engine, **more)


def flash(storage: str | None, manifest: Manifest) -> dict[str, Any]:
    """How many snapshots a medium takes, where one is named, for a page that knows their rate."""
    if storage is None:
        return {}
    from stategate.common.flash import endurance_bytes, host_bytes_per_snapshot
    from stategate.runtime.keep.snapshot import Codec
    from stategate.targets import load_storage

    medium = load_storage(storage)
    cost = host_bytes_per_snapshot(medium, Codec(manifest).file_bytes)
    saves = endurance_bytes(medium) / cost  # of a new medium
    return {"flash": {"medium": medium.name, "saves": saves, "assumed": bool(medium.assumed)}}


def _show(source: Source, bind: str, port: int, as_text: bool, stop: StopRequest) -> None:
    """What is stepped elsewhere, or was."""
    if as_text:
        from stategate.bench.live.terminal import show_in_terminal

        show_in_terminal(source, lambda: bool(stop))
        return
    import time

    with Server(source, bind, port) as server:
        click.echo(f"{server.url}  (Ctrl-C ends it)")
        while not stop:
            time.sleep(0.1)


@contextmanager
def _drawn(server: Server, as_text: bool, stop: StopRequest) -> Iterator[None]:
    """Say where the page is, or draw on a thread while this one steps."""
    click.echo(f"{server.url}  (Ctrl-C ends it)", err=as_text)
    if not as_text:
        yield
        return
    import threading

    from stategate.bench.live.terminal import show_in_terminal

    thread = threading.Thread(
        target=show_in_terminal, args=(server.source, lambda: bool(stop)), daemon=True
    )
    thread.start()
    yield
    thread.join(timeout=2.0)

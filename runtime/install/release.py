"""Say of a bundle which release it is, and how the memory of an older bundle becomes its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from stategate.contract import Bundle, write_bundle
from stategate.contract.arguments import checks_kinds
from stategate.contract.errors import SpecError
from stategate.contract.migration import Migration, StateOrigin
from stategate.runtime.keep.snapshot import memory_identity


@checks_kinds
def release(
    bundle: str | Path | Bundle,
    number: int,
    *,
    older: str | Path | Bundle | None = None,
    states: Mapping[str, str] | None = None,
    fill: Mapping[str, float] | None = None,
    crop: Iterable[str] = (),
    drop: Collection[str] = (),
) -> Bundle:
    """Write a bundle again with a release number, before it is signed.

        stategate.release("build/policy-2", 2, older="build/policy-1", states={"h": "hidden"})

    Args:
        bundle: The bundle, or its folder; its digest changes.
        number: An installation refuses one that is lower than the highest that it confirmed.
        older: Bundle whose memory this one may go on with.
        states: For states of this bundle, the name in the older one; those of equal names need no
            entry. A value is cast to the dtype here, and stands first where there is room for more.
        fill: By state of this bundle, what new elements hold; else they hold the initial state.
        crop: States of this bundle that take less than the older one had.
        drop: States of the older bundle that are left behind.

    Raises:
        SpecError: A state is unknown, or nobody says what becomes of it.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    migrations = manifest.migrations
    if older is not None:
        before, sources, values = Bundle.open(older).manifest, states or {}, fill or {}
        named, cropped = {spec.name for spec in before.states}, {*crop}
        unknown = {*sources, *values, *cropped} - {spec.name for spec in manifest.states}
        unknown |= {*sources.values(), *drop} - named
        if unknown:
            raise SpecError("there is no such state", found=", ".join(sorted(unknown)))
        origins = []
        for spec in manifest.states:
            same = spec.name if spec.name in named - {*sources.values(), *drop} else None
            source = sources.get(spec.name, same)
            origins.append(
                StateOrigin(spec.name, source, values.get(spec.name), spec.name in cropped)
            )
        migration = Migration(memory_identity(before), tuple(origins), tuple(sorted(drop)))
        migration.try_on(before.states, manifest.states)
        others = [m for m in migrations if m.memory_sha256 != migration.memory_sha256]
        migrations = (*others, migration)
    elif states or fill or drop or crop:
        raise SpecError("a migration needs the older bundle", remedy='older="build/policy-1"')
    files = {file.path: opened.read(file) for file in manifest.all_files}
    changed = msgspec.structs.replace(manifest, release=number, migrations=migrations)
    return write_bundle(opened.path, changed, files)

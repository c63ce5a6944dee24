"""Files of episodes: read in blocks, refused when they are not what they say."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stategate.contract import Episode, EpisodeSet, load_episode
from stategate.contract.episodes import EpisodeFile
from stategate.contract.errors import EpisodeError


def made(steps: int, seed: int = 0, **facts: object) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        {"x": rng.normal(size=(steps, 1, 4)).astype(np.float32)},
        {"y": rng.integers(-1, 3, steps)},
        **facts,  # type: ignore[arg-type]
    )


def put(path: Path, episode: Episode) -> Path:
    path.write_bytes(episode.to_bytes())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three episodes, written out of order."""
    for name, steps in (("b", 70), ("a", 100), ("c", 5)):
        put(tmp_path / f"{name}.npz", made(steps, steps, rate_hz=50.0, provenance=f"robot {name}"))
    (tmp_path / "notes.txt").write_text("not an episode")
    return tmp_path


def test_rate_and_provenance_survive_the_file() -> None:
    again = Episode.load(made(3, rate_hz=12.5, provenance="Prüfstand 7").to_bytes())
    assert (again.rate_hz, again.provenance) == (12.5, "Prüfstand 7")
    assert again.resized(9).rate_hz == 12.5


def test_plain_numpy_writes_an_episode(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "log.npz",
        **{"input.x": np.ones((3, 2)), "meta.rate_hz": 50, "meta.provenance": "by hand"},  # type: ignore[arg-type]
    )
    assert Episode.load(tmp_path / "log.npz").rate_hz == 50.0
    assert EpisodeFile.open(tmp_path / "log.npz").provenance == "by hand"


def test_a_folder_is_read_in_the_order_of_names(folder: Path) -> None:
    episodes = EpisodeSet.open(folder)
    assert episodes.names == ("a.npz", "b.npz", "c.npz")
    assert (episodes.steps, len(episodes), episodes.rate_hz) == (175, 3, 50.0)
    for (name, episode), steps in zip(episodes, (100, 70, 5), strict=True):
        whole = Episode.load(folder / name)
        assert episode.steps == steps
        assert episode.inputs["x"].tobytes() == whole.inputs["x"].tobytes()
        assert episode.labels["y"].tolist() == whole.labels["y"].tolist()
        assert episode.provenance == whole.provenance


def test_blocks_put_together_are_the_episode(folder: Path) -> None:
    blocks = list(EpisodeFile.open(folder / "a.npz").blocks(32))
    assert [block.steps for block in blocks] == [32, 32, 32, 4]
    whole = Episode.load(folder / "a.npz").inputs["x"]
    assert np.concatenate([block.inputs["x"] for block in blocks]).tobytes() == whole.tobytes()


def test_a_folder_is_stepped_as_one_stream(folder: Path) -> None:
    parts = [Episode.load(folder / f"{n}.npz").inputs["x"] for n in "abc"]
    joined = load_episode(folder)
    assert joined.inputs["x"].tobytes() == np.concatenate(parts).tobytes()
    assert joined.provenance == "robot a; robot b; robot c"
    assert load_episode(folder, 130).steps == 130
    assert load_episode(folder / "c.npz", 1000).steps == 5


def test_the_digest_is_that_of_names_and_bytes(folder: Path) -> None:
    digest = EpisodeSet.open(folder).digest
    assert digest == EpisodeSet.open(folder).digest
    (folder / "c.npz").rename(folder / "d.npz")
    renamed = EpisodeSet.open(folder).digest
    put(folder / "d.npz", made(5, 6, rate_hz=50.0))
    assert len({digest, renamed, EpisodeSet.open(folder).digest}) == 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_twenty_times_the_block_never_lies_in_memory_whole(
    tmp_path: Path, save: object
) -> None:
    steps, block = 20 * 4096, 4096
    array = np.random.default_rng(0).normal(size=(steps, 1, 32)).astype(np.float32)
    save(tmp_path / "long.npz", **{"input.x": array})  # type: ignore[operator]
    total = 0.0
    episodes = EpisodeSet.open(tmp_path)
    tracemalloc.start()
    for piece in episodes.files[0].blocks(block):
        total += float(piece.inputs["x"].sum(dtype=np.float64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == pytest.approx(float(array.sum(dtype=np.float64)))
    assert peak < array.nbytes / 20 * 4
    print(f"peak {peak:,} bytes for {array.nbytes:,}")


def test_an_empty_folder_and_empty_episodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="holds no episodes"):
        EpisodeSet.open(tmp_path)
    with pytest.raises(EpisodeError, match="cannot be read"):
        EpisodeSet.open(tmp_path / "nowhere")
    put(tmp_path / "a.npz", made(0))
    with pytest.raises(EpisodeError, match="is empty"):
        EpisodeSet.open(tmp_path)
    put(tmp_path / "a.npz", Episode({}, {"y": np.zeros(3, int)}))
    with pytest.raises(EpisodeError, match="is empty"):
        EpisodeSet.open(tmp_path)
    put(tmp_path / "a.npz", Episode({"x": np.array(1.0)}))
    with pytest.raises(EpisodeError, match="is empty"):
        EpisodeSet.open(tmp_path)


def test_lengths_that_differ_are_refused(tmp_path: Path) -> None:
    episode = Episode({"x": np.zeros((3, 2))}, {"y": np.zeros(4, int)})
    with pytest.raises(EpisodeError, match="differ in length"):
        EpisodeFile.open(put(tmp_path / "a.npz", episode))


@pytest.mark.parametrize(
    "odd",
    [
        Episode({"z": np.zeros((9, 1, 4), np.float32)}, {"y": np.zeros(9, int)}, rate_hz=50.0),
        Episode({"x": np.zeros((9, 1, 4))}, {"y": np.zeros(9, int)}, rate_hz=50.0),
        Episode({"x": np.zeros((9, 4), np.float32)}, {"y": np.zeros(9, int)}, rate_hz=50.0),
        Episode({"x": np.zeros((9, 1, 4), np.float32)}, rate_hz=50.0),
        made(9),
        made(9, rate_hz=100.0),
    ],
    ids=["name", "dtype", "shape", "no labels", "no rate", "rate"],
)
def test_a_folder_of_mixed_forms_is_refused(folder: Path, odd: Episode) -> None:
    put(folder / "odd.npz", odd)
    with pytest.raises(EpisodeError, match="not of one form") as refused:
        EpisodeSet.open(folder)
    assert "odd.npz" in str(refused.value)


def test_a_hole_in_a_log_is_refused_with_its_step(tmp_path: Path) -> None:
    episode = made(100)
    episode.inputs["x"][71, 0, 2] = np.nan
    file = EpisodeFile.open(put(tmp_path / "a.npz", episode))
    with pytest.raises(EpisodeError, match=r"a\.npz is not finite(.|\n)*step 71"):
        list(file.blocks(32))


def test_a_file_that_vanishes_or_changes_is_refused(folder: Path) -> None:
    episodes = EpisodeSet.open(folder)
    stream = iter(episodes)
    next(stream)
    (folder / "b.npz").unlink()
    with pytest.raises(EpisodeError, match=r"b\.npz is gone"):
        next(stream)
    put(folder / "c.npz", made(6, rate_hz=50.0))
    with pytest.raises(EpisodeError, match="has changed"):
        list(episodes.files[2].blocks())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = put(tmp_path / "a.npz", made(500))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(EpisodeError, match="cannot be read"):
        EpisodeSet.open(tmp_path)


def test_a_damaged_middle_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = put(tmp_path / "a.npz", made(500))
    raw = bytearray(path.read_bytes())
    raw[3000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(EpisodeError, match="CRC"):
        list(EpisodeFile.open(path).blocks(100))


def npy(shape: object, dtype: object = "<f4", data: bytes = b"", fortran: bool = False) -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"input.{name}.npy", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("raw", "finding"),
    [
        (zipped(x=npy((10**12, 4), data=bytes(64))), "promises"),
        (zipped(x=npy((2, 4), data=bytes(64))), "promises"),
        (zipped(x=npy((-2, -8), data=bytes(64))), "promises"),
        (zipped(x=npy((16,), "|O", bytes(128))), "pickled"),
        (zipped(x=npy((16,), [("a", "<f4")], bytes(64))), "no number"),
        (zipped(x=npy((16,), "<c8", bytes(128))), "no number"),
        (zipped(x=npy("text", data=bytes(64))), "cannot be read"),
        (zipped(x=b"\x93NUMPY\x09\x00"), "cannot be read"),
        (zipped(x=b"hello"), "cannot be read"),
    ],
    ids=["bomb", "short", "negative", "pickle", "record", "complex", "shape", "version", "magic"],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(
    tmp_path: Path, raw: bytes, finding: str
) -> None:
    (tmp_path / "a.npz").write_bytes(raw)
    tracemalloc.start()
    with pytest.raises(EpisodeError, match=finding):
        EpisodeSet.open(tmp_path)
    with pytest.raises(EpisodeError, match=finding):
        Episode.load(raw)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_zip_that_claims_more_than_it_has_costs_one_block(tmp_path: Path) -> None:
    steps = 2**36
    raw = zipped(x=npy((steps, 4), data=bytes(4096)))
    length = len(npy((steps, 4)))
    honest, claimed = (struct.pack("<I", n) for n in (length + 4096, 0xFFFFFFFE))
    raw = raw.replace(honest, claimed)
    (tmp_path / "a.npz").write_bytes(raw.replace(str(steps).encode(), str(2**28 - 9).encode()))
    with pytest.raises(EpisodeError):
        list(EpisodeSet.open(tmp_path).files[0].blocks(64))


def test_a_real_bomb_is_read_in_blocks_and_never_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stategate.contract.npz.WHOLE_BYTES", 2**20)
    np.savez_compressed(tmp_path / "a.npz", **{"input.x": np.zeros((2**18, 4), np.float32)})  # type: ignore[arg-type]
    assert (tmp_path / "a.npz").stat().st_size < 2**14
    episodes = EpisodeSet.open(tmp_path)
    with pytest.raises(EpisodeError, match="too large to be loaded at once"):
        list(episodes)
    assert sum(block.steps for block in episodes.files[0].blocks()) == 2**18
    assert load_episode(tmp_path, 100).steps == 100


def test_rows_that_are_not_together_are_refused_with_the_remedy(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    np.savez(tmp_path / "a.npz", **{"input.x": array})  # type: ignore[arg-type]
    assert (Episode.load(tmp_path / "a.npz").inputs["x"] == array).all()
    with pytest.raises(EpisodeError, match="ascontiguousarray"):
        list(EpisodeSet.open(tmp_path).files[0].blocks())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("meta.rate_hz", np.ones(3)),
        ("meta.rate_hz", np.array("fast")),
        ("meta.rate_hz", np.array(-1.0)),
        ("meta.rate_hz", np.array(np.nan)),
        ("meta.provenance", np.array(3)),
        ("meta.colour", np.array("red")),
    ],
)
def test_facts_of_another_form_are_refused(tmp_path: Path, key: str, value: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", **{"input.x": np.ones((3, 2)), key: value})  # type: ignore[arg-type]
    with pytest.raises(EpisodeError, match=r"meta|rate"):
        EpisodeSet.open(tmp_path)
    with pytest.raises(EpisodeError, match=r"meta|rate"):
        Episode.load(tmp_path / "a.npz")

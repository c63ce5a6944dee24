"""Names and texts of a stranger, wherever they are shown: tables, errors, pages, metrics, C."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry, generate_latest

from stategate.cli.device import inspect, verify
from stategate.cli.record import episodes
from stategate.cli.show import show
from stategate.common.page import document, items, table
from stategate.contract import Bundle, Episode, EpisodeSet, TensorSpec, sha256
from stategate.contract.errors import EpisodeError, SpecError, StategateError
from stategate.runtime import Session
from stategate.runtime.watch.prometheus import watch

EVIL = "h\x1b[2J\r\ndigest       0000\npassed\u202e"

Copier = Callable[[Path], Path]


def shown(command: object, *arguments: str) -> str:
    done = CliRunner().invoke(command, list(arguments))  # type: ignore[arg-type]
    assert not isinstance(done.exception, Exception), done.exception
    return done.output


def resealed(bundle: Path, **fields: object) -> Path:
    record = json.loads((bundle / "manifest.json").read_bytes()) | fields
    raw = json.dumps(record).encode()
    (bundle / "manifest.json").write_bytes(raw)
    (bundle / "manifest.sha256").write_text(f"{sha256(raw)}  manifest.json\n")
    return bundle


@pytest.mark.case("E9")
def test_a_fact_of_an_adopted_file_cannot_write_a_line_of_inspect(
    tiny_bundle: Path, copy_of: Copier
) -> None:
    copy = resealed(copy_of(tiny_bundle), metadata={EVIL: EVIL, "long": "x" * 10**6})
    text = shown(inspect, str(copy))
    assert [line for line in text.splitlines() if line.startswith("digest")] == [
        f"digest       {Bundle.open(copy).digest}"
    ]
    assert "\x1b" not in text and "\u202e" not in text
    assert max(map(len, text.splitlines())) < 1100


@pytest.mark.case("E9")
def test_a_file_that_is_called_like_a_verdict_is_shown_escaped(
    tiny_bundle: Path, copy_of: Copier
) -> None:
    copy = copy_of(tiny_bundle)
    (copy / EVIL).touch()
    (copy / os.fsdecode(b"not utf-8 \xff")).touch()
    text = shown(verify, str(copy), "--digests")
    assert text.splitlines()[-1] == "FAILED" and "passed" not in text.splitlines()
    assert "\x1b" not in text
    json.loads(shown(verify, str(copy), "--digests", "--json"))


@pytest.mark.case("E11")
def test_undeclared_files_are_listed_up_to_a_limit(tiny_bundle: Path, copy_of: Copier) -> None:
    copy = copy_of(tiny_bundle)
    for number in range(1000):
        (copy / str(number)).touch()
    text = shown(verify, str(copy), "--digests")
    assert len(text.splitlines()) < 40 and "980 more" in text


@pytest.mark.case("E9")
def test_an_error_keeps_its_lines_whatever_it_quotes() -> None:
    problem = StategateError(
        f"{EVIL} is wrong", found=f"a\n  what to do: {EVIL}", expected="x" * 10**6, remedy="r"
    )
    lines = str(problem).splitlines()
    assert [line for line in lines if line.startswith("  what to do: ")] == ["  what to do: r"]
    assert not any(line.startswith(("digest", "passed")) for line in lines)
    assert "\x1b" not in str(problem) and len(str(problem)) < 5000
    assert len(str(StategateError("x", found="line\n" * 10**5)).splitlines()) < 30


@pytest.mark.case("E9")
@pytest.mark.parametrize("name", [EVIL, "h" * 1001, "h\x00"])
def test_no_tensor_has_a_name_that_does_not_print(name: str) -> None:
    with pytest.raises(SpecError, match="name of a tensor"):
        TensorSpec(name, (1,))


def test_names_in_any_script_are_names() -> None:
    for name in ("größe", "温度", "حالت", "h.0/next:1", "a b", "%s{}"):
        assert TensorSpec(name, (1,)).name == name


@pytest.mark.case("E9")
def test_an_episode_tells_where_it_comes_from_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "e\n.npz"
    path.write_bytes(Episode({"x": np.zeros((3, 1, 4))}, provenance=EVIL).to_bytes())
    text = shown(episodes, str(path))
    assert "\x1b" not in text and not any(s.startswith("digest") for s in text.splitlines())
    assert "\x1b" not in EpisodeSet.open(path).files[0].provenance
    path.write_bytes(Episode({EVIL: np.zeros((3, 1, 4))}).to_bytes())
    with pytest.raises(EpisodeError, match="no episode has") as caught:
        EpisodeSet.open(path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.case("E9")
def test_a_page_shows_markup_and_controls_of_a_name_as_text() -> None:
    evil = "<script>alert(1)</script>\u202e\x1b"
    page = document(evil, [table([evil], [[evil]]), items([evil])])
    assert "<script>" not in page and "\u202e" not in page and "\x1b" not in page


@pytest.mark.case("E9")
def test_a_label_with_quotes_and_backslashes_is_one_label_of_prometheus(
    tiny_bundle: Path, copy_of: Copier
) -> None:
    copy = copy_of(tiny_bundle)
    model = json.loads((copy / "manifest.json").read_bytes())["model"]
    resealed(copy, model=model | {"name": 'a"} 1\\n# x'})
    registry = CollectorRegistry()
    with Session.open(copy) as session:
        watch(session, registry)
        text = generate_latest(registry).decode()
    assert 'model="a\\"} 1\\\\n# x"' in text


@pytest.mark.case("E9")
def test_a_graph_whose_name_would_end_a_comment_of_c_puts_nothing_into_the_source(
    tmp_path: Path,
) -> None:
    from stategate.export.c.lower import source_of
    from stategate.export.frontends.adopt import adopt
    from stategate.export.frontends.declared import Request

    evil = '*/ int injected(void) { return 1; } /* "\\'
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", f"{evil}_in"], [f"{evil}_out"], doc_string=evil),
            helper.make_node("Neg", [f"{evil}_out"], [evil], name=evil),
        ],
        evil,
        [value(name, TensorProto.FLOAT, [1, 4]) for name in ("x", f"{evil}_in")],
        [value(name, TensorProto.FLOAT, [1, 4]) for name in (evil, f"{evil}_out")],
        doc_string=evil,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "evil.onnx")
    states = {f"{evil}_in": f"{evil}_out"}
    adopted = adopt(tmp_path / "evil.onnx", Request({}, {}, {}, states))
    source = source_of(adopted.candidate.graph, adopted.candidate.spec, {}).files
    assert not any(b"int injected(void)" in text for text in source.values())


@pytest.mark.case("E9")
def test_json_on_the_screen_is_ascii_whatever_travelled_in_the_file(
    tiny_bundle: Path, copy_of: Copier
) -> None:
    evil = "\x9b31m \u202e \x1b[31m"
    copy = copy_of(tiny_bundle)
    resealed(copy, metadata={"note": evil})
    text = shown(inspect, str(copy), "--json")
    assert text.isascii() and "\x1b" not in text
    assert json.loads(text)["metadata"] == {"note": evil}


def test_an_episode_whose_name_is_no_utf8_is_shown_in_json(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"e\xff.npz")
    path.write_bytes(Episode({"x": np.zeros((3, 1, 4))}).to_bytes())
    (row,) = json.loads(shown(episodes, str(path), "--json"))["files"]
    assert os.fsencode(row["name"]).endswith(b"e\xff.npz")


def test_a_number_that_is_not_finite_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    with click.Context(click.Command("inspect")) as context:
        context.meta["stategate.json"] = True
        show({"b": float("nan"), "a": [float("-inf"), 1.5]}, ())
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": None}

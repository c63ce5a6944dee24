from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from stategate.bench.fits import footprint as footprints
from stategate.bench.fits.footprint import footprint
from stategate.bench.fits.report import measure_resident
from stategate.cli.main import main
from stategate.contract import Bundle, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import EngineError
from stategate.contract.precision import PRESETS
from stategate.models.step import StepResult
from stategate.models.zoo.catalogue import ZOO
from stategate.targets import load, names
from stategate.targets.fits import Footprint, fit, load_costs, predict
from stategate.targets.profile import TargetProfile

SMALL = Footprint(
    model="m", precision="float32", sessions=1, graph_bytes=1000, constant_bytes=800,
    dequantized_bytes=0, widest_bytes=0, nodes=10, state_bytes=64, state_buffer_bytes=128,
    bound_bytes=8, activation_bytes=16, multiply_adds=500, unsized=0, branches=0,
    kv_bytes_per_step=256, snapshot_bytes=5000,
)  # fmt: skip


def stategate(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def with_memory(name: str, memory: int, reserve: int | None) -> TargetProfile:
    profile = load(name)
    return msgspec.structs.replace(
        profile,
        memory_bytes=msgspec.structs.replace(profile.memory_bytes, value=memory),
        system_reserve_bytes=msgspec.structs.replace(profile.system_reserve_bytes, value=reserve),
    )


def test_a_byte_too_little_is_refused_and_just_enough_fits() -> None:
    costs = load_costs()
    needed = predict(SMALL, costs)
    for memory, verdict in ((needed.peak + 99, "does not fit"), (needed.peak + 100, "fits")):
        target = with_memory("jetson-orin-nano-8gb", memory, 100)
        found = fit(SMALL, PRESETS["float32"], target, costs, horizon_steps=10)
        assert found.verdict == verdict, found.reason
        assert found.left_bytes == memory - 100 - needed.total


def test_an_unknown_reserve_is_said_and_an_unknown_memory_is_no_verdict() -> None:
    costs, plan = load_costs(), PRESETS["float32"]
    nano = fit(SMALL, plan, load("raspberry-pi-5"), costs, horizon_steps=10)
    assert nano.verdict == "fits"
    assert "no source tells" in nano.reason
    generic = fit(SMALL, plan, load("cpu-x86-64"), costs, horizon_steps=10)
    assert (generic.verdict, generic.left_bytes) == ("unknown", None)


def test_the_native_engine_is_its_library_and_little_more(native_bundle: Path) -> None:
    bundle = Bundle.open(native_bundle)
    library = (native_bundle / "native" / "libstep.so").stat().st_size
    print_, costs = footprint(bundle, "native"), load_costs("native")
    assert print_.graph_bytes == library
    assert predict(print_, costs).weights == library
    measured = measure_resident(native_bundle, engine="native")
    added = predict(print_, costs).added
    assert abs(added - measured.added) < 200_000 < 0.02 * (predict(SMALL, load_costs()).added)
    assert measured.imported + measured.added < 0.8 * predict(SMALL, load_costs()).total


def test_a_bundle_without_a_library_is_reported_to_have_none(aura_bundle: Path) -> None:
    result = stategate("fits", aura_bundle, "--engine", "native")
    assert result.exit_code == 2 and "no native library" in result.stderr


def test_sessions_share_the_graph_and_not_the_states() -> None:
    costs = load_costs()
    one, many = predict(SMALL, costs), predict(SMALL, costs, 10)
    assert (many.weights, many.engine) == (one.weights, one.engine)
    assert many.states == 10 * one.states
    assert many.activations == 10 * one.activations
    found = fit(
        SMALL, PRESETS["float32"], load("jetson-nano"), costs, sessions=10, horizon_steps=1000
    )
    assert found.kv_bytes == 256 * 1000 * 10
    assert found.snapshot_space_bytes == 10 * 2 * 8192
    assert found.bandwidth_floor_us == pytest.approx((800 + 10 * 64) / 25.6e9 * 1e6)


def test_the_roofline_is_that_of_the_published_peaks() -> None:
    orin, costs = load("jetson-orin-nano-8gb"), load_costs()
    found = fit(SMALL, PRESETS["int8"], orin, costs, horizon_steps=10)
    assert found.bandwidth_floor_us == pytest.approx(864 / 102e9 * 1e6)
    assert found.compute_floor_us == pytest.approx(1000 / 33.5e12 * 1e6)
    # Nobody publishes its dense float32 rate, so there is no floor rather than a guessed one.
    assert fit(SMALL, PRESETS["float32"], orin, costs, horizon_steps=10).compute_floor_us is None


def a_graph() -> onnx.ModelProto:
    """x(1,8) -> MatMul with a widened int8 weight -> Tanh -> MatMul with a folded half weight."""
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Cast", ["half"], ["v"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    constants = {
        "q": np.ones((8, 16), np.int8),
        "scale": np.ones((), np.float32),
        "half": np.ones((16, 4), np.float16),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return onnx.shape_inference.infer_shapes(helper.make_model(graph))


def test_a_graph_is_counted_by_hand() -> None:
    model = a_graph()
    graphs, nodes = footprints._graphs(model.graph), footprints._nodes(model.graph)
    shapes, sizes = footprints._shapes_and_sizes(graphs)
    constants, widened = footprints._constants(graphs, nodes)
    assert widened == {"w": "q"}
    assert footprints._used(nodes, constants) == {"q", "scale", "v"}
    assert sizes["v"] == 16 * 4 * 4  # widened once, when it is loaded
    assert sum(footprints._multiply_adds(n, shapes) for n in nodes) == 8 * 16 + 16 * 4
    # Tanh is computed where its operand lies: one row of sixteen floats at any time.
    assert footprints._activation_bytes(nodes, sizes, {"a", "b"}) == 16 * 4


def test_what_lies_in_branches_is_counted_too() -> None:
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=weight),
            helper.make_node("Add", ["x", "c"], ["z"]),
        ],
        "branch",
        [],
        [value],
    )
    choice = helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
    ]
    graph = helper.make_graph([choice], "g", inputs, [value])
    graphs, nodes = footprints._graphs(graph), footprints._nodes(graph)
    assert (len(graphs), len(nodes)) == (3, 5)
    constants, _ = footprints._constants(graphs, nodes)
    assert constants == {"c"}
    assert footprints._shapes_and_sizes(graphs)[1]["c"] == 16
    note = predict(dataclasses.replace(SMALL, branches=2), load_costs()).assumptions
    assert "may be far off" in note[0]


@pytest.mark.usefixtures("one_thread")
def test_states_that_are_stored_small_must_be_legal_too(tmp_path: Path) -> None:
    out = tmp_path / "small"
    words = ("--state-storage", "int8", "--steps", 20, "--accept", "test: form alone")
    assert stategate("export", "gru", *words, "--out", out).exit_code == 0
    refused = stategate("fits", out, "--target", "raspberry-pi-4")
    assert refused.exit_code == 1
    assert "raspberry-pi-4 does not run int8" in refused.stdout
    assert stategate("fits", out, "--target", "raspberry-pi-5").exit_code == 0


def test_measuring_a_pool_is_reported_to_be_wrong(tiny_pool_bundle: Path) -> None:
    result = stategate("fits", tiny_pool_bundle, "--measure")
    assert result.exit_code == 2
    assert "serves several" in result.stderr


def test_the_footprint_of_the_shipped_policy_is_that_of_its_manifest(aura_bundle: Path) -> None:
    found = footprint(Bundle.open(aura_bundle))
    assert found.state_bytes == 4224
    assert found.state_buffer_bytes == 2 * 4224
    assert found.kv_bytes_per_step == 256
    assert found.unsized == 0
    assert found.constant_bytes < found.graph_bytes


def test_the_report_names_every_device_and_the_policy_fits_a_jetson(aura_bundle: Path) -> None:
    report = json.loads(stategate("fits", aura_bundle, "--all", "--json").stdout)
    found = {one["target"]: one for one in report["fits"]}
    assert set(found) == set(names())
    assert found["jetson-orin-nano-8gb"]["verdict"] == "fits"
    assert found["jetson-nano"]["verdict"] == "not legal"
    assert found["jetson-nano"]["legal"] == ["tensorrt"]
    assert found["jetson-orin-nano-8gb"]["build_peak_bytes"]["tensorrt"] is None
    wear = found["jetson-agx-orin-64gb"]["wear"]["emmc-64gb"]
    assert wear["every step"] < wear["once a second"] < wear["every minute"]
    shared = json.loads(stategate("fits", aura_bundle, "--sessions", 4, "--all", "--json").stdout)
    many = {one["target"]: one for one in shared["fits"]}["jetson-agx-orin-64gb"]["wear"]
    assert many["emmc-64gb"]["every step"] == pytest.approx(wear["every step"] / 4)


def test_what_does_not_fit_anywhere_exits_with_one(aura_bundle: Path) -> None:
    result = stategate("fits", aura_bundle, "--target", "jetson-nano")
    assert result.exit_code == 1
    assert "Python 3.6" in result.stdout
    assert "bounds and not promises" in result.stdout


@pytest.mark.usefixtures("one_thread")
def test_a_model_is_exported_for_the_moment() -> None:
    result = stategate("fits", "gru", "--precision", "int8-weights", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["footprint"]["state_bytes"] == 256
    assert found["footprint"]["precision"] == "int8-weights"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "jetson-orin-nano"), "jetson-orin-n"),
        (("--target", "jetson-nano", "--all"), "contradict"),
        (("--sessions", "0"), "--sessions"),
        (("--horizon", "-1"), "--horizon"),
        (("--rate", "nan"), "--rate"),
        (("--precision", "int8"), "--precision is for a model"),
    ],
)
def test_wrong_use_is_reported(aura_bundle: Path, arguments: tuple[str, ...], said: str) -> None:
    result = stategate("fits", aura_bundle, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_folder_that_is_no_bundle_and_a_model_that_is_none_are_reported(tmp_path: Path) -> None:
    assert "not a bundle" in stategate("fits", tmp_path).stderr
    assert "zoo has no such model" in stategate("fits", "aurora").stderr


def test_measuring_something_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="this is not a bundle"):
        measure_resident(tmp_path)


def test_the_prediction_is_within_a_tenth_of_what_is_measured(aura_bundle: Path) -> None:
    measured = measure_resident(aura_bundle).added
    assert predict(footprint(Bundle.open(aura_bundle)), load_costs()).added == pytest.approx(
        measured, rel=0.1
    )


class Wide(nn.Module):
    """Layers of weights and a wide state, so that the engine's fixed part does not hide them."""

    def __init__(self, width: int, layers: int, rows: int) -> None:
        super().__init__()
        self.width, self.rows = width, rows
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])

    def step_spec(self) -> StepSpec:
        return StepSpec(
            inputs=(TensorSpec("x", (1, self.width)),),
            outputs=(TensorSpec("y", (1, self.width)),),
            states=(StateSpec("h", (1, self.rows, self.width)),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        x = inputs["x"]
        for layer in self.layers:
            x = torch.tanh(layer(x))
        h = 0.9 * states["h"] + 0.1 * x.unsqueeze(1)
        return StepResult({"y": h.mean(1)}, {"h": h}, {})


@pytest.mark.slow
@pytest.mark.parametrize(("width", "layers", "rows"), [(1024, 7, 8), (512, 1, 8192), (32, 400, 4)])
def test_the_prediction_holds_for_large_weights_states_and_graphs(
    width: int, layers: int, rows: int, seal_model: Callable[..., Bundle]
) -> None:
    with TemporaryDirectory() as folder:  # 100 MB, which pytest would keep
        bundle = seal_model(Path(folder) / "bundle", Wide(width, layers, rows), steps=4)
        predicted = predict(footprint(bundle), load_costs()).added
        assert predicted == pytest.approx(measure_resident(bundle.path).added, rel=0.1)


@pytest.mark.slow
def test_the_prediction_holds_however_the_allocator_is_set_up(
    seal_model: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As machines differ: huge pages, thresholds that freed memory is kept below."""
    ways = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # all on the heap, which has holes
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),  # the heap never shrinks by itself
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    with TemporaryDirectory() as folder:
        bundle = seal_model(Path(folder) / "bundle", Wide(1024, 7, 8), steps=4)
        predicted = predict(footprint(bundle), load_costs()).added
        for name, value in ways.items():
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                assert predicted == pytest.approx(measure_resident(bundle.path).added, rel=0.1), (
                    name
                )


@pytest.mark.slow
def test_the_serialised_graph_is_let_go_once_it_is_loaded(
    seal_model: Callable[..., Bundle],
) -> None:
    with TemporaryDirectory() as folder:
        bundle = seal_model(Path(folder) / "bundle", Wide(1024, 7, 8), steps=4)
        weights = 7 * 1024 * 1024 * 4
        added = measure_resident(bundle.path).added
        # Once packed for the kernels, and the engine's fixed part of less than half of it.
        assert weights < added < 1.5 * weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_prediction_holds_for_every_model_of_the_zoo(name: str, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert stategate("export", name, "--steps", 32, "--out", out).exit_code == 0
    measured = measure_resident(out).added
    predicted = predict(footprint(Bundle.open(out)), load_costs()).added
    print(f"{name:<16} {measured:>12,} {predicted:>12,} {predicted / measured - 1:+.1%}")
    assert predicted == pytest.approx(measured, rel=0.1)

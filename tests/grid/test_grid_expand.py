from __future__ import annotations

import pytest
from grid_plugins import CATALOGUE, GIB, HEAD, grid_of

from sparsefleet.errors import InvalidGrid
from sparsefleet.grid.expand import Point, Skip, count, expand, walk
from sparsefleet.grid.load import load_grid, load_text, shipped_grids
from sparsefleet.trial.spec import TrialSpec

RIGID = HEAD.replace("model: {mlp: {hidden: [64]}}\n", "")
AXES = "axes:\n  density: [0.1, 0.02]\n  layer: [masked, csr]\n  method:\n    - {rewirer: set}\n    - {rewirer: rigl, train: {epochs: 3}}\n"


def points(text: str, head: str = HEAD, memory: int = 24 * GIB) -> list[Point]:
    """Without the default control arm, unless ``text`` names its own."""
    own = text if "control_arms" in text else f"{text}control_arms: []\n"
    return list(expand(grid_of(own, head), CATALOGUE, memory))


def skips(text: str, memory: int = 24 * GIB, head: str = HEAD) -> list[Skip]:
    return [item for item in walk(grid_of(text, head), CATALOGUE, memory) if isinstance(item, Skip)]


def test_axes_multiply_in_the_order_of_the_file_with_seeds_fastest() -> None:
    found = [p for p in points(AXES + "seeds: 2\n") if p.arm == "sparse"]
    rows = [(p.spec.density, p.spec.layer.name, p.spec.method.label, p.spec.seed) for p in found]
    assert rows[:4] == [(0.1, "masked", "set", 0), (0.1, "masked", "set", 1), (0.1, "masked", "rigl", 0), (0.1, "masked", "rigl", 1)]
    assert len(rows) == len(set(rows)) == 2 * 2 * 2 * 2


def test_a_point_overrides_what_stands_above() -> None:
    found = points(AXES)
    assert {(p.spec.method.label, p.spec.train.epochs) for p in found} == {("dense", 2), ("dense", 3), ("set", 2), ("rigl", 3)}


def test_an_override_wins_over_an_axis_whatever_comes_first() -> None:
    text = "density: 0.1\naxes:\n  method: [{rewirer: set, train.epochs: 9}]\n  train.epochs: [4, 5]\n"
    found = points(text)
    assert [(p.arm, p.spec.train.epochs) for p in found] == [("dense", 9), ("sparse", 9)]
    assert count(grid_of(text)) == 2


def test_named_things_are_replaced_and_blocks_are_merged() -> None:
    found = points(
        "train.batch_size: 32\naxes:\n  train: [{epochs: 5}, {drop_last: true}]\n  optimizer: [{sgd: {lr: 1}}, {adam: {lr: 1}}]\n"
    )
    assert [(p.spec.train.epochs, p.spec.train.batch_size, p.spec.train.drop_last) for p in found[::2]] == [(5, 32, False), (2, 32, True)]
    assert [getattr(p.spec.optimizer, "momentum", None) for p in found[:2]] == [0.0, None]


def test_dotted_axes_reach_into_plugins_and_blocks() -> None:
    text = "axes:\n  model.mlp.hidden: [[8], [8, 8]]\n  train.batch_size: [16, 32]\n  optimizer.sgd.lr: [1, 0.5]\n"
    found = points(text)
    assert len(found) == 8
    assert {tuple(p.spec.model.params["hidden"]) for p in found} == {(8,), (8, 8)}
    assert {p.spec.optimizer.lr for p in found} == {1.0, 0.5}


def test_the_twin_comes_once_before_its_trials() -> None:
    found = points("seeds: 2\n" + AXES.replace(", train: {epochs: 3}", ""))
    assert [p.arm for p in found].count("dense") == 2
    twins = {p.spec.spec_id: n for n, p in enumerate(found) if p.arm == "dense"}
    for n, p in enumerate(found):
        if p.arm == "sparse":
            assert p.twin is not None
            assert twins[p.twin.spec_id] < n
            assert p.twin.seed == p.spec.seed
            assert p.twin.density == 1
            assert not p.twin.is_sparse


def test_the_dense_block_is_the_twins_alone() -> None:
    found = points("dense: {optimizer: {sgd: {lr: 0.01}}, train.epochs: 4}\ndensity: 0.1\nmethod: {rewirer: set}\n")
    assert [(p.arm, p.spec.optimizer.lr, p.spec.train.epochs) for p in found] == [("dense", 0.01, 4), ("sparse", 0.1, 2)]


def test_a_sparse_activation_on_dense_layers_has_a_relu_twin() -> None:
    found = points("activation: k-winners\n")
    assert [(p.arm, p.spec.activation.name, p.spec.layer.name) for p in found] == [
        ("dense", "relu", "dense"),
        ("sparse", "k-winners", "dense"),
    ]


def test_density_1_is_the_dense_row_itself() -> None:
    found = points("axes: {density: [1.0, 0.1], method: [{rewirer: set}, {pruner: magnitude}]}\n")
    assert [(p.arm, p.spec.method.label) for p in found] == [("dense", "dense"), ("sparse", "set"), ("sparse", "magnitude+one-shot")]


def test_a_method_without_a_layer_trains_on_masked() -> None:
    assert [p.spec.layer.name for p in points("density: 0.1\nmethod: {pruner: magnitude}\n")] == ["dense", "masked"]


def test_start_twin_names_the_twin_of_the_same_seed() -> None:
    for p in points("seeds: [3, 5]\ndensity: 0.1\nmethod: {pruner: magnitude, start: twin}\n"):
        if p.arm == "sparse":
            assert p.twin is not None
            assert p.start == p.twin
            assert p.spec.start.trial == p.twin.spec_id
        else:
            assert p.spec.start is None


def test_control_arms() -> None:
    text = "control_arms: [random-static, small-dense]\ndensity: 0.1\nlayer: csr\nmethod: {pruner: magnitude, distribution: erk, keep_dense: [last]}\n"
    dense, sparse, static, small = points(text)
    assert [p.arm for p in (dense, sparse, static, small)] == ["dense", "sparse", "random-static", "small-dense"]
    assert (static.spec.method.label, static.spec.method.distribution, static.spec.method.keep_dense) == ("static", "erk", ("last",))
    assert (static.spec.layer.name, static.spec.density) == ("csr", 0.1)
    assert (small.spec.narrow_to_density, small.spec.density, small.spec.layer.name) == (0.1, 1.0, "dense")
    assert sparse.rival == static.rival == small.spec
    assert sparse.twin == static.twin == small.twin == dense.spec


def test_small_dense_is_trained_by_default_and_only_beside_what_is_sparse() -> None:
    found = list(
        expand(grid_of("seeds: 2\naxes: {density: [1, 0.1], method: [{rewirer: set}, {rewirer: rigl}]}\nlayer: masked\n"), CATALOGUE)
    )
    assert [p.spec.narrow_to_density for p in found if p.arm == "small-dense"] == [0.1, 0.1]


def test_a_model_that_cannot_be_narrowed_has_no_small_dense_and_says_why() -> None:
    (one,) = [p for p in expand(grid_of("model: rigid\ndensity: 0.1\nmethod: {rewirer: set}\n", RIGID), CATALOGUE) if p.arm != "dense"]
    assert (one.arm, one.rival, one.no_rival) == ("sparse", None, "model rigid cannot be narrowed")
    (quiet,) = [p for p in points("model: rigid\ndensity: 0.1\nmethod: {rewirer: set}\n", RIGID) if p.arm != "dense"]
    assert quiet.no_rival is None  # nobody asked


def test_a_static_point_is_its_own_control_arm() -> None:
    found = points("control_arms: [random-static]\ndensity: 0.1\naxes: {method: [{rewirer: set}, {rewirer: static}]}\n")
    assert [(p.arm, p.added) for p in found] == [("dense", True), ("sparse", False), ("random-static", True)]


def test_conditional_values_and_axes() -> None:
    text = (
        "density: 0.1\nmethod: {rewirer: set}\naxes:\n"
        "  layer: [masked, csr]\n"
        "  connectivity: [random, {value: small-world, when: {layer: csr}}]\n"
        "  train.batch_size: {values: [32, 128], when: {layer: csr}}\n"
    )
    rows = [(p.spec.layer.name, p.spec.connectivity.name, p.spec.train.batch_size) for p in points(text) if p.arm == "sparse"]
    assert rows == [
        ("masked", "random", 64),
        ("csr", "random", 32),
        ("csr", "random", 128),
        ("csr", "small-world", 32),
        ("csr", "small-world", 128),
    ]
    assert count(grid_of(text)) == 5


def test_any_axis_value_may_carry_overrides() -> None:
    found = points("axes:\n  activation:\n    - relu\n    - {value: k-winners, optimizer.sgd.lr: 0.005}\n")
    assert {(p.spec.activation.name, p.spec.optimizer.lr) for p in found} == {("relu", 0.1), ("relu", 0.005), ("k-winners", 0.005)}


def test_exclude_by_name_value_and_parameters() -> None:
    base = (
        "axes:\n  density: [0.1, 0.02]\n  layer: [masked, csr]\n  method: [{rewirer: {set: {every: 5}}}, {rewirer: set}, {rewirer: rigl}]\n"
    )
    assert count(grid_of(base)) == 12
    assert count(grid_of(base + "exclude: [{layer: csr, density: 0.1}]\n")) == 9
    assert count(grid_of(base + "exclude: [{rewirer: set}]\n")) == 4
    assert count(grid_of(base + "exclude: [{method: [set, rigl], layer: csr}]\n")) == 6
    assert count(grid_of(base + "exclude: [{method.rewirer: {set: {every: 5}}}]\n")) == 8


def test_include_stands_beside_the_product_with_its_own_seeds() -> None:
    text = AXES + "seeds: 2\ninclude:\n  - {layer: csr, density: 0.5, method: {rewirer: set}, model.mlp.hidden: [256], seeds: 1}\n"
    wide = [p for p in points(text) if p.spec.model.params["hidden"] == [256]]
    assert [(p.arm, p.spec.seed) for p in wide] == [("dense", 0), ("sparse", 0)]
    assert count(grid_of(text)) == 17


def test_a_point_that_is_given_twice_runs_once() -> None:
    text = AXES + "include: [{layer: csr, density: 0.1, method: {rewirer: set}}]\n"
    assert len(points(text)) == len(points(AXES))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("method: {rewirer: deep-r}\n", "deep-r is defined for SGD without momentum; the optimizer is sgd with momentum 0.9"),
        (
            "method: {rewirer: snfs}\nlayer: csr\n",
            "snfs needs values at absent sites, which layer=csr does not store (18.5 KiB if it were dense); use masked",
        ),
        ("method: {rewirer: set}\nlayer: dense\n", "layer=dense stores every weight; set needs masked or a sparse layer"),
        ("method: {rewirer: set}\nlayer: two-four\n", "layer=two-four runs on cuda; this trial asks for no GPU"),
        (
            "method: {pruner: magnitude, pattern: row}\nlayer: fixed-fan-in\n",
            "layer=fixed-fan-in holds topology constant-fan-in, which pattern row does not give",
        ),
        (
            "method: {rewirer: set}\nlayer: csr\nmodel.mlp.norm: layer\ninclude: [{model: convnet}]\n",
            "layer=csr stores Linear; convnet has Conv2d as well (keep_dense: [Conv2d] leaves that dense)",
        ),
    ],
)
def test_what_cannot_run_is_skipped_with_a_reason(text: str, reason: str) -> None:
    assert [skip.reason for skip in skips("density: 0.1\n" + text)] == [reason]


def test_a_kind_that_stays_dense_need_not_be_stored() -> None:
    convnet = "include: [{model: convnet, layer: csr, density: 0.1, method: {rewirer: set, keep_dense: [%s]}}]\n"
    assert skips(convnet % "Conv2d") == []
    assert ["convnet has Conv2d as well" in skip.reason for skip in skips(convnet % "last")] == [True]


def test_a_kind_may_depend_on_a_parameter_of_the_model() -> None:
    words = "include: [{model: {words: {prune_embedding: %s}}, layer: csr, density: 0.1, method: {rewirer: set}}]\n"
    assert skips(words % "false") == []
    assert [skip.reason for skip in skips(words % "true")] == [
        "layer=csr stores Linear; words has Embedding as well (keep_dense: [Embedding] leaves that dense)"
    ]


def test_memory_is_estimated_before_anything_is_allocated() -> None:
    head = HEAD.replace("[64]", "[1000000, 1000000]")
    base = "density: 1e-8\naxes: {layer: [masked, csr], method: [{rewirer: set}]}\n"
    assert [s.reason for s in skips(base, head=head)] == [
        "layer=masked at width 1,000,000: dense weight needs 3.6 TiB, this machine has 24.0 GiB"
    ]
    (only,) = points(base, head=head)
    assert (only.spec.layer.name, only.twin) == ("csr", None)
    assert only.dense_infeasible == "dense weight needs 3.6 TiB, this machine has 24.0 GiB"
    (start,) = skips("density: 1e-8\nlayer: csr\nmethod: {rewirer: set, start: twin}\n", head=head)
    assert "start: twin" in start.reason
    (full,) = skips("density: 0.5\nlayer: csr\nmethod: {rewirer: set}\n", head=head)
    assert "its connections need 12.7 TiB" in full.reason


def test_a_dotted_name_may_fit_some_points_only() -> None:
    text = "axes:\n  model: [mlp, convnet]\n  model.convnet.width: {values: [4, 8], when: {model: convnet}}\n"
    rows = [(p.spec.model.name, p.spec.model.params) for p in points(text)]
    assert rows == [("mlp", {"hidden": [300, 100], "norm": "none"}), ("convnet", {"width": 4}), ("convnet", {"width": 8})]
    without = "axes:\n  model: [mlp, convnet]\n  model.convnet.width: [4, 8]\n"
    assert [s.reason for s in skips(without)] == ["model.convnet.width needs model to be 'convnet'; here it is 'mlp'"] * 2


def test_the_digest_ignores_formatting_and_sees_every_value() -> None:
    same = grid_of("  \n# a comment\nseeds:   2\nvalidation: 0.10\n" + AXES.replace("[0.1, 0.02]", "\n    - 1e-1\n    - 0.020"))
    grid = grid_of("seeds: 2\n" + AXES)
    assert same.digest == grid.digest
    assert grid.sweep == f"small-{grid.digest[:8]}"
    for change in ("validation: 0.2\n", "dense: {train.epochs: 9}\n", "control_arms: []\n", "measure: {batch_sizes: [1]}\n"):
        assert grid_of("seeds: 2\n" + AXES + change).digest != grid.digest


def test_ids_are_stable() -> None:
    """Golden: a change here means that every cached result is lost; it needs a reason and a line in the changelog."""
    found = points(
        "seeds: 1\ndensity: 0.1\nlayer: csr\nmethod: {pruner: magnitude, schedule: cubic, start: twin}\ncontrol_arms: [random-static, small-dense]\n"
    )
    assert {p.arm: p.spec.spec_id for p in found} == GOLDEN
    assert len({TrialSpec.model_validate(p.spec.to_json()).spec_id for p in found}) == 4


GOLDEN = {"dense": "7661322433d6", "sparse": "1b1b20c0b683", "random-static": "a558f8ce0e32", "small-dense": "b372414f3b0f"}


def test_shipped_grids_load_with_the_installed_plugins() -> None:
    from sparsefleet.registry import catalog

    installed = catalog()
    assert "quickstart" in shipped_grids()
    for name in shipped_grids():
        if name == "sparselinear-user":  # its connections are a file of the reader's
            with pytest.raises(InvalidGrid, match=r"sparselinear-user\.npy is not there"):
                load_grid(name, catalog=installed)
            continue
        grid = load_grid(name, catalog=installed)
        assert grid.name == name
        items = list(walk(grid, installed, 24 * GIB))
        assert not [item for item in items if isinstance(item, Skip)]
        assert len(items) < 200


def test_expansion_is_lazy() -> None:
    values = ", ".join(str(round(0.0001 * n, 6)) for n in range(1, 1001))
    grid = grid_of(
        f"seeds: 2147483648\nmethod: {{rewirer: set}}\naxes:\n  density: [{values}]\n  optimizer.sgd.lr: [{values}]\n",
        set_=("model.mlp.hidden=[6400]",),
    )
    first = [next(stream).arm for stream in [expand(grid, CATALOGUE)] for _ in range(2)]
    assert first == ["dense", "sparse"]
    assert count(grid) == 1000 * 1000 * 2147483648


def test_a_problem_of_an_include_has_its_line() -> None:
    with pytest.raises(InvalidGrid, match=r"g\.yaml:7 include\[0\]: .*mlp"):
        load_text(HEAD + "include:\n  - {model: convnet, model.mlp.hidden: [3]}\n", "g.yaml", catalog=CATALOGUE)

import math

import pytest
from hypothesis import given, settings, strategies as st

from sparsefleet.errors import PluginError, UserError
from sparsefleet.sparsity.distribute import apportion, distribute, total_nnz

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.10, (0.0796, 0.2302, 1.0)),
        (0.05, (0.0385, 0.1113, 0.9185)),
        (0.02, (0.0154, 0.0445, 0.3674)),
        (0.01, (0.0077, 0.0223, 0.1837)),
    ],
)
def test_erk_of_lenet_300_100(density, expected):
    """Unit values computed from arXiv 1911.11134, section 3, for LeNet-300-100."""
    nnz = distribute(LENET, density, "erk")
    for (name, shape), wanted in zip(LENET.items(), expected, strict=True):
        assert nnz[name] / math.prod(shape) == pytest.approx(wanted, abs=6e-4)


def test_er_follows_its_formula():
    nnz = distribute({"a": (1000, 1000), "b": (500, 2000)}, 0.01, "er")
    raw = {"a": 2000 / 1e6, "b": 2500 / 1e6}
    assert nnz["a"] / nnz["b"] == pytest.approx(raw["a"] / raw["b"], rel=1e-3)


def test_er_of_a_convolution_is_that_of_its_channels():
    """arXiv 1911.11134, section 3: ER knows of neurons, and ERK of the kernel too."""
    shapes = {"conv": (64, 32, 5, 5), "linear": (64, 32)}
    nnz = distribute(shapes, 0.01, "er")
    assert nnz["conv"] / nnz["linear"] == pytest.approx(25, rel=0.03)  # the same density
    nnz = distribute(shapes, 0.01, "erk")
    assert nnz["conv"] / nnz["linear"] == pytest.approx(106 / 96, rel=0.03)


def test_a_tie_above_one_makes_all_tied_layers_dense():
    nnz = distribute({"a": (1000, 1000), "b": (4, 4), "c": (4, 4)}, 0.05, "erk")
    assert nnz["b"] == nnz["c"] == 16


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6),
    st.floats(0.02, 1.0),
    st.sampled_from(["uniform", "er", "erk"]),
)
def test_total_is_exact_and_no_layer_is_empty_or_overfull(shapes, density, kind):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    total = total_nnz(sum(math.prod(s) for s in shapes), density)
    if total < len(shapes):
        with pytest.raises(UserError, match="connections for"):
            distribute(named, density, kind)
        return
    nnz = distribute(named, density, kind)
    assert sum(nnz.values()) == total
    assert all(1 <= nnz[name] <= math.prod(shape) for name, shape in named.items())


def test_a_million_squared_is_counted_exactly():
    assert distribute({"wide": (10**6, 10**6)}, 1e-9, "uniform") == {"wide": 1000}


@pytest.mark.parametrize("density", [0, -1, 1.0001, 2, float("nan"), "0.1", None])
def test_a_density_that_is_none_is_refused(density):
    with pytest.raises(UserError, match=r"density must be in \(0, 1\], got"):
        distribute({"a": (3, 4)}, density, "uniform")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), min_size=1, max_size=6), st.floats(0, 1))
def test_apportion_is_exact_proportional_and_within_the_room(places, share):
    weights, room = [weight for weight, _ in places], [place for _, place in places]
    total = round(share * sum(room))
    got = apportion(total, weights, room)
    assert sum(got) == total
    assert all(0 <= n <= place for n, place in zip(got, room, strict=True))
    if all(total * weight < place * sum(weights) for weight, place in places) and sum(weights):
        assert all(abs(n - total * weight / sum(weights)) < 1 for n, weight in zip(got, weights, strict=True))


def test_apportion_by_hand():
    assert apportion(10, [1, 1, 2], [100, 100, 100]) == [3, 2, 5]  # 2.5, 2.5, 5: of equal remainders the first
    assert apportion(10, [1, 1, 2], [100, 100, 3]) == [4, 3, 3]  # 7 are left for two
    assert apportion(10, [8, 1, 1], [2, 3, 100]) == [2, 3, 5]  # 8 are left, 4 each; then 5 for the last
    assert apportion(5, [0.0, 0.0], [4, 4]) == [3, 2]
    assert apportion(5, [math.nan, 1.0], [4, 3]) == [2, 3]
    with pytest.raises(PluginError, match="cannot give 9 to places with room for 8"):
        apportion(9, [1, 1], [4, 4])

"""User-defined connectivity: every kind of file, what is refused, and the file's bytes in the trial's key."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sparsefleet_plugins.connectivity.user import UserConnectivity

from sparsefleet import Rng, UserError
from sparsefleet.errors import InvalidMask
from sparsefleet.nn.materialise import draw_connections
from sparsefleet.registry import catalog
from sparsefleet.testing import check
from sparsefleet.trial.build import build_network
from sparsefleet.trial.identity import Keys
from sparsefleet.trial.record import State
from sparsefleet.trial.run import run_trial
from sparsefleet.trial.spec import TrialSpec

SITES = torch.tensor([[2, 0, 1, 1], [1, 3, 0, 2]])
FLAT = [3, 4, 6, 9]  # of 3 x 4, ascending


def written(folder, kind, tensor=SITES, name=None):
    path = folder / f"sites.{kind}"
    if kind == "npy":
        np.save(path, tensor.numpy())
    elif kind == "safetensors":
        save_file({name or "fc1": tensor.contiguous()}, path)
    else:
        rows = [f"{name},{row},{col}" if name else f"{row},{col}" for row, col in tensor.T.tolist()]
        path.write_text("\n".join([f"{'layer,' if name else ''}row,col", *rows]) + "\n")
    return UserConnectivity(file=str(path))


def drawn(plugin, layer="fc1", shape=(3, 4)):
    return draw_connections(layer, shape, plugin.nnz_of(layer, shape, 7), plugin, 0, torch.device("cpu")).flat.tolist()


@pytest.mark.parametrize("kind", ["npy", "csv", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_every_kind_of_file(tmp_path, kind, dtype):
    assert drawn(written(tmp_path, kind, SITES.to(dtype))) == FLAT


@pytest.mark.parametrize("kind", ["csv", "safetensors"])
def test_layers_by_name(tmp_path, kind):
    plugin = written(tmp_path, kind, name="fc2")
    assert drawn(plugin, "fc2") == FLAT
    with pytest.raises(UserError, match=r"has no connections for layer 'fc1'[\s\S]*it has: fc2"):
        drawn(plugin, "fc1")
    others = plugin.model_copy(update={"others": "random"})
    assert len(drawn(others, "fc1")) == 7


def test_an_unnamed_tensor_is_for_every_layer_or_for_the_one_named(tmp_path):
    plugin = written(tmp_path, "npy")
    assert drawn(plugin, "fc1") == drawn(plugin, "fc2") == FLAT
    first = plugin.model_copy(update={"layer": "fc1", "others": "random"})
    assert drawn(first, "fc1") == FLAT
    assert len(drawn(first, "fc2")) == 7


def test_it_conforms(tmp_path):
    assert check(written(tmp_path, "safetensors", name="layer")) == []


def test_duplicates_and_sites_out_of_range_are_counted(tmp_path):
    twice = written(tmp_path, "npy", torch.tensor([[0, 0, 1, 0], [2, 2, 1, 2]]))
    with pytest.raises(InvalidMask, match="layer 'fc1': 2 of 4 connections are duplicates"):
        drawn(twice)
    outside = written(tmp_path, "csv", torch.tensor([[0, 3, 1, -1], [2, 2, 9, 0]]))
    with pytest.raises(InvalidMask, match="3 of 4 connections lie outside 3 x 4"):
        drawn(outside)


def test_sites_out_of_range_do_not_hide_duplicates(tmp_path):
    both = written(tmp_path, "npy", torch.tensor([[0, 0, 3, 2, 2], [2, 2, 0, 9, 9]]))  # 0,2 twice; three outside of 3 x 4
    with pytest.raises(InvalidMask, match="3 of 5 connections lie outside 3 x 4, and 1 of the others are duplicates"):
        drawn(both)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("layer,row,col\nfc2,1,2\n\nfc2,3\n", r"line 4 must be layer,row,col, two whole numbers last, got 'fc2,3'"),
        ("row,col\n1,2\n1.5,3\n", r"line 3 must be row,col, two whole numbers last, got '1.5,3'"),
        ("row,col\n1,2,3\n", r"line 2 must be row,col, .* got '1,2,3'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, problem):
    (tmp_path / "a.csv").write_text(lines)
    with pytest.raises(UserError, match=problem):
        drawn(UserConnectivity(file=str(tmp_path / "a.csv")))


def test_a_file_without_connections_is_refused_without_a_warning(tmp_path, recwarn):
    (tmp_path / "a.csv").write_text("row,col\n")
    with pytest.raises(UserError, match=r"a\.csv holds no connection"):
        drawn(UserConnectivity(file=str(tmp_path / "a.csv")))
    assert not recwarn.list


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    plugin = written(tmp_path, "csv", name="hidden").model_copy(update={"others": "random"})
    with pytest.raises(UserError, match=r"the file names hidden; the model has fc1, fc2$"):
        build_network(spec_with(0.1, file=plugin.file, others="random"), data_root=tmp_path)
    with pytest.raises(UserError, match=r"layer names fc9; the model has fc1, fc2$"):
        build_network(spec_with(0.1, file=str(written(tmp_path, "npy").file), layer="fc9", others="random"), data_root=tmp_path)


def test_the_notebooks_own_example_has_thousands_of_duplicates(tmp_path):
    """Source: 200 random outputs, drawn with replacement, for each of 784 inputs."""
    gen = torch.Generator().manual_seed(0)
    col = torch.arange(784).repeat_interleave(200)
    row = torch.randint(2000, (784 * 200,), generator=gen)
    plugin = written(tmp_path, "npy", torch.stack([row, col]))
    with pytest.raises(InvalidMask, match=r"7\d\d\d of 156800 connections are duplicates"):
        drawn(plugin, shape=(2000, 784))


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)])
def test_other_tensors_are_refused(tmp_path, bad):
    with pytest.raises(UserError, match=r"must be integers of shape \(2, nnz\), got"):
        drawn(written(tmp_path, "npy", bad))


def test_a_file_cannot_run_code(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    for name in ("evil.safetensors", "evil.npy"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Bomb(), protocol=2))
        with pytest.raises(UserError, match="cannot be read as"):
            drawn(UserConnectivity(file=str(path)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("a.npy", b""), ("a.csv", b"x,y\n1,2\n"), ("a.csv", b"row,col\n1,b\n"), ("a.safetensors", b"{}")]
)
def test_damaged_files_are_a_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read as"):
        drawn(UserConnectivity(file=str(tmp_path / name)))
    (tmp_path / "a.txt").write_text("1 2")
    with pytest.raises(UserError, match="connections are read from"):
        drawn(UserConnectivity(file=str(tmp_path / "a.txt")))


def spec_with(density, **params):
    return TrialSpec(
        dataset={"name": "digits"},
        model={"name": "mlp", "params": {"hidden": [20]}},
        layer={"name": "csr"},
        connectivity={"name": "user", "params": params},
        method={"rewirer": {"name": "static"}},
        density=density,
        optimizer={"kind": "sgd", "lr": 0.1},
        train={"epochs": 1},
    )


def test_a_trial_with_given_sites(tmp_path, digits_request):
    """The file has 130 of 20 x 64; the other layer is drawn at the density that the trial asks for."""
    flat = Rng("given").distinct(130, 20 * 64)
    written(tmp_path, "npy", torch.stack([flat // 64, flat % 64]))
    asked = {"connectivity": {"name": "user", "params": {"file": "sites.npy", "layer": "fc1", "others": "random"}}}
    request = digits_request(
        **asked,
        model={"name": "mlp", "params": {"hidden": [20]}},
        layer={"name": "csr"},
        method={"rewirer": {"name": "static"}},
        density=0.101,
    ).model_copy(update={"data_root": tmp_path})
    record = run_trial(request)
    assert record.state is State.SUCCEEDED, record.reason
    assert [layer.nnz for layer in record.counts.layers] == [130, 20]
    assert [layer.nnz_asked for layer in record.counts.layers] == [130, 20]
    network = build_network(request.spec, data_root=tmp_path)
    assert torch.equal(network.sparse["fc1"].flat_sites(), flat)
    with pytest.raises(UserError, match=r"has 130 connections for fc1; density 0.05 asks for 64[\s\S]*density: 0.1016"):
        build_network(request.spec.model_copy(update={"density": 0.05}), data_root=tmp_path)


def test_the_bytes_of_the_file_are_part_of_the_key(tmp_path):
    written(tmp_path, "npy")
    spec = spec_with(0.1, file="sites.npy")
    first = Keys(catalog(), tmp_path).key(spec, 1, "cpu")
    assert Keys(catalog(), tmp_path).key(spec, 1, "cpu") == first
    assert "connectivity/user" in Keys(catalog(), tmp_path).request(spec, 1, "cpu")["data"]
    written(tmp_path, "npy", SITES.flip(1))
    assert Keys(catalog(), tmp_path).key(spec, 1, "cpu") != first
    (tmp_path / "sites.npy").unlink()
    with pytest.raises(UserError, match=r"sites\.npy is not there"):
        Keys(catalog(), tmp_path).key(spec, 1, "cpu")


def test_another_file_than_the_one_submitted_is_refused(tmp_path, digits_request):
    written(tmp_path, "npy")
    request = digits_request(**spec_with(0.1, file="sites.npy").model_dump(exclude={"schema_", "train"}, mode="json"))
    request = request.model_copy(update={"data_root": tmp_path, "data": {"connectivity/user": "0" * 64}})
    record = run_trial(request)
    assert record.state is State.PLUGIN_ERROR
    assert "connectivity 'user' on this machine is not the one that the trial was submitted with" in record.reason

"""What a pruner trains on before its network has the layer that was asked for, and which modules stay dense."""

import pytest

from sparsefleet.errors import UserError
from sparsefleet.nn import MaskedModule, QuantisedModule
from sparsefleet.trial.build import build_network
from sparsefleet.trial.spec import TrialSpec


def network(layer, keep_dense=()):
    body = {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "params": {"hidden": [16]}},
        "layer": layer,
        "density": 0.25,
        "method": {"pruner": {"name": "magnitude"}, "keep_dense": keep_dense, "schedule": {"kind": "one-shot"}},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "train": {"epochs": 1, "batch_size": 64},
    }
    return build_network(TrialSpec.model_validate(body))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [({"name": "csr"}, MaskedModule), ({"name": "masked"}, MaskedModule), ({"name": "quantised", "params": {"bits": 3}}, QuantisedModule)],
)
def test_a_layer_that_masks_dense_weights_is_trained_on_from_the_start(layer, kind):
    made = network(layer)
    assert [type(module) for module in made.sparse.values()] == [kind, kind]
    assert [getattr(module, "bits", 3) for module in made.sparse.values()] == [3, 3]
    assert made.storage == (layer["name"] if kind is QuantisedModule else "masked")


def test_a_kind_stays_dense_as_a_whole():
    with pytest.raises(UserError, match="leaves no layer to make sparse"):
        network({"name": "masked"}, ["Linear"])
    with pytest.raises(UserError, match="keep_dense names 'Conv2d'") as caught:
        network({"name": "masked"}, ["Conv2d"])
    assert "valid: first, last, Linear, fc1, fc2" in str(caught.value.fix)

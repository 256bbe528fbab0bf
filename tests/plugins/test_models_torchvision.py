"""torchvision's classifiers: published sizes, fitted ends, other widths, and parts that only a constructor fills."""

import copy
import subprocess
import sys

import pytest
import torch
import torchvision
from pydantic import ValidationError
from sparsefleet_plugins.models.torchvision import _NAMES, Torchvision
from torch import nn

from sparsefleet import DataInfo, UserError
from sparsefleet.registry import catalog

CIFAR = DataInfo("classification", (3, 32, 32), 10)
GREY = DataInfo("classification", (1, 28, 28), 7)
SOME = ["densenet121", "mobilenet_v2", "regnet_y_400mf", "resnet18", "resnet50", "squeezenet1_0", "swin_t", "vgg11", "vit_b_16"]


def relu(features):
    return nn.ReLU()


def on_meta(data, **parameters):
    with torch.device("meta"):
        return Torchvision(**parameters).build(data, relu)


def n_params(module):
    return sum(p.numel() for p in module.parameters())


def check_published_size(architecture):
    told = torchvision.models.get_model_weights(architecture).DEFAULT.meta
    side = {"inception_v3": 299}.get(architecture, told.get("min_size", (224, 224))[0] if architecture.startswith("vit") else 224)
    module = on_meta(DataInfo("classification", (3, side, side), 1000), architecture=architecture)
    second_heads = {"inception_v3": 3_326_696}.get(architecture, 0)  # published with its auxiliary classifier, which we leave out
    assert n_params(module) == told["num_params"] - second_heads


@pytest.mark.parametrize("architecture", SOME)
def test_sizes_are_those_that_torchvision_publishes(architecture):
    check_published_size(architecture)


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", sorted(set(_NAMES) - set(SOME) - {"regnet_y_128gf"})
)  # that one is built on the CPU and takes 2.5 GB
def test_all_sizes_are_those_that_torchvision_publishes(architecture):
    check_published_size(architecture)


@pytest.mark.parametrize("architecture", ["resnet18", "vit_b_16", "squeezenet1_1", "mobilenet_v3_small"])
def test_both_ends_fit_the_data(architecture):
    data = DataInfo("classification", (1, 32, 32), 7)
    module = on_meta(data, architecture=architecture)
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    assert first.in_channels == 1
    assert module(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 7)
    assert module.training


def test_an_unknown_name_is_refused_by_the_plan_with_a_close_one():
    ((path, message),) = catalog().complete("model", "torchvision", {"architecture": "resnet81"})[1]
    assert path == "architecture"
    assert "did you mean 'resnet18'?" in message
    with pytest.raises(ValidationError, match="no classifier 'resnet81'"):
        Torchvision(architecture="resnet81")


def test_the_names_are_torchvisions():
    assert sorted(torchvision.models.list_models(module=torchvision.models)) == _NAMES


def test_a_plan_does_not_import_torchvision():
    code = "import sys, sparsefleet_plugins.models.torchvision; print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_segmentation_and_detection_are_no_classifiers():
    assert not [name for name in _NAMES if "fcn" in name or "rcnn" in name or "quantized" in name]


def test_a_wider_resnet_by_its_own_option():
    wide = on_meta(CIFAR, architecture="resnet50", options={"width_per_group": 128})
    assert n_params(wide) == n_params(on_meta(CIFAR, architecture="wide_resnet50_2"))


@pytest.mark.parametrize(
    ("parameters", "cause"),
    [
        ({"options": {"widht": 3}}, "widht"),
        ({"architecture": "vgg11", "options": {"dropout": "much"}}, "dropout"),
        ({"architecture": "vit_b_16", "options": {"image_size": 48}}, "Wrong image height"),
    ],
)
def test_what_an_architecture_cannot_take_is_told(parameters, cause):
    with pytest.raises(UserError, match="does not take pictures of 3 x 32 x 32") as caught:
        on_meta(CIFAR, **parameters)
    assert caught.value.cause


def test_pictures_that_are_too_small_are_told():
    with pytest.raises(UserError, match="does not take pictures of 1 x 28 x 28"):
        on_meta(GREY, architecture="vgg11")  # five times 2 x 2 pooling leave nothing


def test_another_activation_is_refused():
    with pytest.raises(UserError, match="activations of its own"), torch.device("meta"):
        Torchvision().build(CIFAR, lambda features: nn.Tanh())


# Widths


def test_resnet18_at_half_its_width():
    half, whole = on_meta(CIFAR, width=0.5), on_meta(CIFAR)
    for (name, a), (_, b) in zip(half.named_modules(), whole.named_modules(), strict=True):
        if isinstance(a, nn.Conv2d):
            assert (a.out_channels, a.in_channels) == (b.out_channels // 2, b.in_channels // 2 if name != "conv1" else 3)
            assert a.weight.shape == (a.out_channels, a.in_channels, *a.kernel_size)
        if isinstance(a, nn.BatchNorm2d):
            assert a.num_features == b.num_features // 2 == len(a.running_var)
    assert (half.fc.in_features, half.fc.out_features) == (256, 10)


@pytest.mark.parametrize("architecture", ["densenet121", "mobilenet_v3_small", "googlenet", "vgg11_bn", "efficientnet_b0"])
def test_sums_joins_and_excitations_keep_fitting(architecture):
    """Building runs the network once, so that it can be built says that it fits."""
    narrow = on_meta(CIFAR, architecture=architecture, width=0.1)
    assert n_params(narrow) < 0.02 * n_params(on_meta(CIFAR, architecture=architecture))


@pytest.mark.parametrize("architecture", ["resnet18", "shufflenet_v2_x0_5"])
def test_narrow_nets_compute(architecture):
    module = Torchvision(architecture=architecture).narrowed(0.1).build(CIFAR, relu)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = module(x).square().sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert n_params(module) < 0.1 * n_params(on_meta(CIFAR, architecture=architecture))


def test_a_depthwise_convolution_stays_depthwise():
    for part in on_meta(CIFAR, architecture="mobilenet_v2", width=0.3).modules():
        if isinstance(part, nn.Conv2d) and part.groups > 1:
            assert part.groups == part.in_channels == part.out_channels


@pytest.mark.parametrize("architecture", ["vit_b_32", "swin_t", "convnext_tiny"])
def test_what_has_no_other_width_says_so(architecture):
    with pytest.raises(UserError) as caught:
        on_meta(CIFAR, architecture=architecture, width=0.5)
    assert "has no other width" in caught.value.cause


# Parts that only a constructor fills


def started(part, seed):
    """``part`` of a network on the meta device, its own tensors filled as the core fills them."""
    part.to_empty(device="cpu", recurse=False)
    for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
        tensor.detach().fill_(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        part.reset_parameters()
    return part


def test_a_vision_transformers_own_tensors_start_as_torchvisions():
    def tables(seed):
        module = copy.deepcopy(on_meta(CIFAR, architecture="vit_b_32"))
        assert started(module, seed).class_token.count_nonzero() == 0
        return started(module.encoder, seed).pos_embedding.detach()

    table = tables(3)
    assert table.shape == (1, 2, 768)
    assert abs(float(table.std()) - 0.02) < 2e-3
    assert torch.equal(table, tables(3))
    assert not torch.equal(table, tables(4))


def test_a_swin_transformers_index_of_positions_is_right():
    wanted = torchvision.models.swin_t(weights=None).features[1][0].attn
    found = started(on_meta(CIFAR, architecture="swin_t").features[1][0].attn, 0)
    assert torch.equal(found.relative_position_index, wanted.relative_position_index)
    assert 0.015 < float(found.relative_position_bias_table.detach().std()) < 0.025

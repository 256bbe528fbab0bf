"""Multi-head attention with a Linear per projection: torch's own module is the reference, in float64."""

import copy
import math
import pickle

import pytest
import torch
from compound_nets import LAYERS, as_torch, gradients_of, sparse
from torch import nn

from sparsefleet.nn import MultiheadAttention
from sparsefleet.nn.expose import exposed

KINDS = [
    {"batch_first": True},
    {"bias": False},
    {"kdim": 6, "vdim": 10, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"dropout": 0.4},
]


def operands(module, *, batched=True):
    """Query of 3 and keys of 5 times, a batch of 2."""
    shapes = ((3, module.embed_dim), (5, module.kdim), (5, module.vdim))
    dims = [((2, t, n) if module.batch_first else (t, 2, n)) if batched else (t, n) for t, n in shapes]
    return [torch.randn(*each, dtype=torch.float64) for each in dims]


def options():
    far = torch.ones(3, 5, dtype=torch.bool).triu(3)
    padding = torch.tensor([[False, False, False, True, True], [False] * 5])
    yield {}
    yield {"need_weights": False}
    yield {"average_attn_weights": False, "attn_mask": far}
    yield {"need_weights": False, "attn_mask": far, "key_padding_mask": padding}
    yield {"attn_mask": torch.randn(4, 3, 5, dtype=torch.float64)}
    yield {"need_weights": False, "attn_mask": torch.randn(3, 5, dtype=torch.float64)}
    yield {"key_padding_mask": torch.randn(2, 5, dtype=torch.float64)}


def compare(ours, theirs, x, **given):
    torch.manual_seed(1)  # of dropout
    want, want_weights = theirs(*x, **given)
    torch.manual_seed(1)
    got, got_weights = ours(*x, **given)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    if want_weights is None:
        assert got_weights is None
    else:
        torch.testing.assert_close(got_weights, want_weights, rtol=0, atol=1e-12)
    theirs.zero_grad(), ours.zero_grad()
    want.square().sum().backward(), got.square().sum().backward()
    for name, mine, other in gradients_of(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_torchs_module(kind):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2, dtype=torch.float64, **kind)
    for name in ("in_proj_bias", "out_proj.bias"):
        if kind.get("bias", True):
            nn.init.normal_(theirs.get_parameter(name))
    ours = MultiheadAttention.from_torch(theirs)
    for given in options():
        compare(ours, theirs, operands(theirs), **given)
    theirs.eval(), ours.eval()
    for given in options():
        compare(ours, theirs, operands(theirs), **given)


def test_unbatched_and_causal():
    theirs = nn.MultiheadAttention(8, 2, dtype=torch.float64)
    ours = MultiheadAttention.from_torch(theirs)
    compare(ours, theirs, operands(theirs, batched=False))
    compare(ours, theirs, operands(theirs, batched=False), key_padding_mask=torch.tensor([False, True, False, False, True]))
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    for need_weights in (False, True):
        compare(ours, theirs, (x, x, x), attn_mask=causal, is_causal=True, need_weights=need_weights)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        ours(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match="batched 3D"):
        ours(x[0, 0], x[0, 0], x[0, 0])


@pytest.mark.parametrize("layer", LAYERS)
def test_every_storage_of_projections_is_torchs_module_with_zeros(layer):
    network, found = sparse(lambda: nn.MultiheadAttention(8, 2), layer)
    assert list(found) == ["0.query", "0.key", "0.value", "0.out"]
    compare(network[0], as_torch(network[0], nn.MultiheadAttention(8, 2, dtype=torch.float64)), operands(network[0]))


@pytest.mark.parametrize(("kind", "bounds"), [({}, (6 / 160, 6 / 160, 6 / 160)), ({"kdim": 20}, (6 / 80, 6 / 60, 6 / 80))])
def test_first_weights_are_as_torch_draws_them(kind, bounds):
    """Xavier's bound of the packed matrix, (3 * 40, 40), or of each where keys have other dimensions; biases are 0."""
    made = MultiheadAttention(40, 2, add_bias_kv=True, **kind)
    drawn, _ = sparse(lambda: nn.MultiheadAttention(40, 2, add_bias_kv=True, **kind), "masked", names=[], dtype=torch.float32)
    for module in (made, drawn[0]):
        for name, square in zip(("query", "key", "value"), bounds, strict=True):
            linear = module.get_submodule(name)
            assert 0.98 * math.sqrt(square) < linear.weight.abs().max() <= math.sqrt(square) * (1 + 1e-6)
            assert not linear.bias.any()
        assert 0.97 / math.sqrt(40) < module.out.weight.abs().max() <= 1 / math.sqrt(40) * (1 + 1e-6)
        assert not module.out.bias.any()
        assert module.bias_k.abs().max() > 0
    own = nn.MultiheadAttention(40, 2, **kind)
    packed = own.in_proj_weight if own.in_proj_weight is not None else own.q_proj_weight
    assert 0.98 * math.sqrt(bounds[0]) < packed.abs().max() <= math.sqrt(bounds[0]) * (1 + 1e-6)


def test_transformer_layers_call_their_modules_also_in_eval_mode():
    torch.manual_seed(0)
    for first in (True, False):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, norm_first=first, dtype=torch.float64)
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not first).eval()
        x, padding = torch.randn(3, 4, 8, dtype=torch.float64), torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]]).bool()
        with torch.no_grad():
            want = encoder(x), encoder(x, src_key_padding_mask=padding)
            ours = exposed(encoder)
            got = ours(x), ours(x, src_key_padding_mask=padding)
        torch.testing.assert_close(got[0], want[0], rtol=0, atol=1e-12)
        live = ~padding  # the nested fast path leaves zeros where there is padding
        torch.testing.assert_close(got[1][live], want[1][live], rtol=0, atol=1e-12)
        assert all(type(each.self_attn) is MultiheadAttention for each in ours.layers)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True, dropout=0.0, dtype=torch.float64).eval()
    want = decoder(x, x)
    torch.testing.assert_close(exposed(decoder)(x, x), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", ["masked", "csr"])
def test_copies_pickles_and_state_dicts_compute_the_same(layer):
    network, _ = sparse(lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), layer)
    other, _ = sparse(lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), layer, seed=1)
    x = operands(network[0])
    want = network[0](*x)[0]
    assert not torch.equal(other[0](*x)[0], want)
    other.load_state_dict(network.state_dict())
    for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin[0](*x)[0], want)

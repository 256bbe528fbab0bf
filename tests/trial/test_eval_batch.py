"""How many examples are evaluated at a time: 64 MiB of one layer's output at most."""

import torch
from torch import nn

from sparsefleet.plugin import DataInfo, TensorData
from sparsefleet.trial.objective import EVAL_BATCH, EVAL_VALUES, eval_batch, evaluate


def test_wide_layers_are_evaluated_in_smaller_batches():
    assert eval_batch(nn.Linear(100, 10)) == EVAL_BATCH
    assert eval_batch(nn.Linear(100, 1_000_000)) == EVAL_VALUES // 1_000_000 == 16


def test_a_convolutions_output_counts_with_its_places():
    conv = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.Flatten(2))
    small, large = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 224, 224)
    assert eval_batch(conv, small) == EVAL_BATCH
    assert eval_batch(conv, large) == EVAL_VALUES // (64 * 112 * 112) // 16 * 16 == 16


def test_the_score_is_that_of_one_large_batch_and_no_hook_is_left():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2000, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2000 * 36, 3)).double()
    x, y = torch.randn(400, 1, 8, 8).double(), torch.randint(3, (400,))
    assert eval_batch(network, x[:1]) < 400
    score = evaluate(network, TensorData(x, y), DataInfo("classification", (1, 8, 8), 3))
    with torch.no_grad():
        right = float((network(x).argmax(1) == y).double().mean())
    assert (score.metric, score.n) == (right, 400)
    assert not network[0]._forward_hooks

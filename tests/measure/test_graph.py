import pytest
import torch

from sparsefleet.measure.graph import recorded

pytestmark = pytest.mark.gpu


def test_replay_repeats_every_call_and_reads_what_is_there_now():
    x = torch.ones(4, device="cuda")
    replay = recorded([lambda: x.mul_(2), lambda: x.add_(1)], x.device)
    assert replay is not None
    x.fill_(5)
    replay()
    torch.cuda.synchronize()
    assert x.tolist() == [11] * 4


def test_what_waits_for_the_device_cannot_be_recorded_and_does_no_harm():
    x = torch.ones(4, device="cuda")
    assert recorded([lambda: x.sum().item()], x.device) is None
    assert x.sum().item() == 4


def test_gradients_can_be_recorded():
    x, w = torch.randn(8, 8, device="cuda"), torch.randn(8, 8, device="cuda", requires_grad=True)
    kept = torch.empty_like(w)

    def step():
        (grad,) = torch.autograd.grad((x @ w).square().sum(), w)
        kept.copy_(grad)

    replay = recorded([step], x.device)
    assert replay is not None
    x.mul_(2)
    replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(kept, 2 * x.t() @ (x @ w.detach()))

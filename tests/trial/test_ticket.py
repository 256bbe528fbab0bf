"""Lottery tickets, fine-tuning and the arms that take another trial's connections."""

import torch
from safetensors.torch import load_file

from sparsefleet.trial import files
from sparsefleet.trial.build import build_network, load_network
from sparsefleet.trial.masks import load_masks
from sparsefleet.trial.record import State
from sparsefleet.trial.run import run_trial

MAGNITUDE = {"name": "magnitude"}
TRAIN = {"epochs": 4, "batch_size": 64, "lr_schedule": {"kind": "step", "every": 40, "factor": 0.5}}
STEPS, PER_EPOCH = 84, 21  # 1,293 training digits


def level(number, levels=2, what="weights", to=0.0, **method):
    return {
        "method": {"pruner": MAGNITUDE, "rewind": {"what": what, "to": to, "level": number, "levels": levels}, **method},
        "layer": {"name": "masked"},
        "gives": "ticket",
    }


def dense(digits_request, **overrides):
    request = digits_request("dense", train=TRAIN, **overrides)
    assert run_trial(request).state is State.SUCCEEDED
    return request


def weights(request):
    """Dense weights of a finished trial by layer, zeros where nothing is connected."""
    masks = request.workdir if (request.workdir / files.MANIFEST).exists() else None
    network = load_network(request.spec, request.workdir / files.MODEL, masks)
    found = {}
    for name in network.prunable:
        module = network.module.get_submodule(name)
        if name in network.sparse:
            full = torch.zeros(module.matrix_shape[0] * module.matrix_shape[1])
            full[module.flat_sites()] = module.values()
            found[name] = full.view(module.matrix_shape)
        else:
            found[name] = module.weight.detach()
    return found


def smallest_go(weight, n_keep):
    flat = weight.abs().reshape(-1)
    order = sorted(range(flat.numel()), key=lambda i: (-float(flat[i]), i))
    return sorted(order[:n_keep])


def masks_of(request):
    return {name: mask.flat for name, mask in load_masks(request.workdir).items()}


def test_each_level_prunes_what_the_one_before_came_to_and_trains_the_first_weights_masked(digits_request):
    first = dense(digits_request)
    initial = build_network(first.spec)
    before, twin_weights = first, weights(first)
    for number, density in ((1, 0.25**0.5), (2, 0.25)):
        request = digits_request(f"level{number}", train={**TRAIN, "epochs": 0}, start=before.workdir, density=density, **level(number))
        record = run_trial(request)
        assert record.state is State.SUCCEEDED, record.reason
        theirs = weights(before)
        found = masks_of(request)
        for layer in record.counts.layers:
            name = layer.name
            n_keep = found[name].numel()
            assert abs(n_keep - density * theirs[name].numel()) <= 1
            assert found[name].tolist() == smallest_go(theirs[name], n_keep)
            expected = initial.module.get_submodule(name).weight.detach().reshape(-1)
            live = weights(request)[name].reshape(-1)
            assert torch.equal(live[found[name]], expected[found[name]])  # rewound to before the first step
            assert int((live != 0).sum()) <= n_keep
        trained = digits_request(f"trained{number}", train=TRAIN, start=before.workdir, density=density, **level(number))
        assert run_trial(trained).state is State.SUCCEEDED
        assert {n: m.tolist() for n, m in masks_of(trained).items()} == {n: m.tolist() for n, m in found.items()}
        for name, weight in weights(trained).items():  # source 000 retrained without the mask and ended with 0.0 % zeros
            assert set(torch.nonzero(weight.reshape(-1)).flatten().tolist()) <= set(found[name].tolist())
        assert not torch.equal(weights(trained)["fc1"], twin_weights["fc1"])
        before = trained


def test_rewinding_to_step_k_gives_the_dense_weights_of_step_k_to_the_last_bit(digits_request):
    first = dense(digits_request)
    k = STEPS // 4
    request = digits_request("late", train={**TRAIN, "max_steps": STEPS}, start=first.workdir, density=0.3, **level(1, 1, to=0.25))
    dense_at_k = digits_request("at-k", train={**TRAIN, "max_steps": k})
    run_trial(dense_at_k)
    stopped = {}
    from sparsefleet.trial import training as module

    drawn = module.draw_ticket

    def spy(training):
        drawn(training)
        stopped["step"] = training.step
        stopped["weights"] = {name: m.values().clone() for name, m in training.network.sparse.items()}
        stopped["sites"] = {name: m.flat_sites().clone() for name, m in training.network.sparse.items()}
        stopped["slots"] = {
            name: training.optimizer.state[m.weight_parameter]["momentum_buffer"].reshape(-1).clone()
            for name, m in training.network.sparse.items()
        }

    module.draw_ticket = spy
    try:
        assert run_trial(request).state is State.SUCCEEDED
    finally:
        module.draw_ticket = drawn
    at_k = weights(dense_at_k)
    assert stopped["step"] == k
    for name, values in stopped["weights"].items():
        assert torch.equal(values, at_k[name].reshape(-1)[stopped["sites"][name]])
        slot = stopped["slots"][name]
        assert bool(slot[stopped["sites"][name]].abs().max() > 0)  # momentum goes back too
        gone = torch.ones(slot.numel(), dtype=torch.bool)
        gone[stopped["sites"][name]] = False
        assert not slot[gone].any()


def test_learning_rate_rewinding_keeps_the_weights_and_trains_the_rest_of_the_schedule(digits_request):
    first = dense(digits_request)
    options = level(1, 1, what="learning-rate", to=0.5)
    record = run_trial(digits_request("lr", train=TRAIN, start=first.workdir, density=0.3, **options))
    assert record.state is State.SUCCEEDED, record.reason
    assert record.curves["train_loss"].steps[0] == STEPS // 2 + 1  # 42 steps are left
    assert record.curves["train_loss"].steps[-1] == STEPS
    assert record.accuracy.before_fine_tuning is not None
    assert record.accuracy.test >= record.accuracy.before_fine_tuning - 0.05
    assert record.curves["train_loss"].values[0] < 1.0  # trained weights, where new ones have ln 10


def test_a_level_resumes_to_the_last_bit(digits_request):
    first = dense(digits_request)
    options = {"train": TRAIN, "start": first.workdir, "density": 0.3, **level(1, 1, to=0.25)}
    whole = digits_request("whole", **options)
    run_trial(whole)
    from sparsefleet.trial import training as module

    class Stopped(Exception):
        """The machine went away."""

    def stop_at(step):
        def report(values):
            if values["step"] >= step:
                raise Stopped

        return report

    every = module._REPORT_EVERY_S
    module._REPORT_EVERY_S = -1.0
    try:
        broken = digits_request("broken", checkpoint_every_s=1e-9, **options)
        record = run_trial(broken, stop_at(50))
        assert record.state is State.PLUGIN_ERROR
        again = run_trial(broken)
    finally:
        module._REPORT_EVERY_S = every
    assert again.state is State.SUCCEEDED
    one, other = (load_file(r.workdir / files.MODEL) for r in (whole, broken))
    assert all(torch.equal(one[key], other[key]) for key in one)
    ours, theirs = masks_of(broken), masks_of(whole)
    assert {name: flat.tolist() for name, flat in ours.items()} == {name: flat.tolist() for name, flat in theirs.items()}


def test_a_ticket_of_a_converted_level_is_the_same_ticket(digits_request):
    first = dense(digits_request)
    found = []
    for storage in ("masked", "csr"):
        options = {**level(1, 2), "layer": {"name": storage}}
        one = digits_request(f"{storage}-1", train=TRAIN, start=first.workdir, density=0.5, **options)
        assert run_trial(one).state is State.SUCCEEDED
        options = {**level(2, 2), "layer": {"name": storage}}
        two = digits_request(f"{storage}-2", train=TRAIN, start=one.workdir, density=0.25, **options)
        assert run_trial(two).state is State.SUCCEEDED
        found.append({name: flat.tolist() for name, flat in masks_of(two).items()})
    assert found[0] == found[1]


def arm(digits_request, source, gives, draw=0, workdir="arm", **overrides):
    return digits_request(
        workdir,
        start=source.workdir,
        gives=gives,
        density=source.spec.density,
        layer=source.spec.layer.model_dump(),
        method={"rewirer": {"name": "static"}},
        init={"draw": draw},
        **overrides,
    )


def pruned_globally(digits_request, layer="csr"):
    request = digits_request(
        "pruned",
        density=0.2,
        layer={"name": layer},
        method={
            "pruner": MAGNITUDE,
            "distribution": "global" if layer == "csr" else "uniform",
            "schedule": {"kind": "one-shot", "at": 0.5},
        },
        train={"epochs": 2, "batch_size": 64},
    )
    assert run_trial(request).state is State.SUCCEEDED
    return request


def test_reinit_mask_has_the_masks_and_other_weights(digits_request):
    source = pruned_globally(digits_request)
    nothing = {"epochs": 0, "batch_size": 64}
    same = arm(digits_request, source, "mask", 0, "same", train=nothing)
    other = arm(digits_request, source, "mask", 1, "other", train=nothing)
    records = [run_trial(same), run_trial(other)]
    assert [r.state for r in records] == [State.SUCCEEDED] * 2
    assert {n: m.tolist() for n, m in masks_of(other).items()} == {n: m.tolist() for n, m in masks_of(source).items()}
    initial = build_network(digits_request("plain").spec)
    for name, weight in weights(same).items():
        live = masks_of(source)[name]
        assert torch.equal(weight.reshape(-1)[live], initial.module.get_submodule(name).weight.detach().reshape(-1)[live])
        assert not torch.isclose(weights(other)[name].reshape(-1)[live], weight.reshape(-1)[live]).any()
    trained = run_trial(arm(digits_request, source, "mask", 1, "trained", train={"epochs": 1, "batch_size": 64}))
    assert [(layer.nnz_asked, layer.nnz) for layer in trained.counts.layers] == [(m.numel(),) * 2 for m in masks_of(source).values()]


def test_shuffled_mask_has_the_counts_of_each_layer_and_other_sites(digits_request):
    source = pruned_globally(digits_request)
    request = arm(digits_request, source, "shuffled-mask", workdir="shuffled", train={"epochs": 1, "batch_size": 64})
    assert run_trial(request).state is State.SUCCEEDED
    theirs, ours = masks_of(source), masks_of(request)
    assert [m.numel() for m in ours.values()] == [m.numel() for m in theirs.values()]
    assert all(set(ours[name].tolist()) != set(theirs[name].tolist()) for name in theirs)


def test_shuffled_mask_keeps_a_constant_fan_in(digits_request):
    source = pruned_globally(digits_request, "fixed-fan-in")
    request = arm(digits_request, source, "shuffled-mask", workdir="shuffled", train={"epochs": 1, "batch_size": 64})
    record = run_trial(request)
    assert record.state is State.SUCCEEDED, record.reason
    assert all(layer.fan_in_cv == 0 for layer in record.counts.layers)


def test_fine_tuning_takes_a_new_optimizer_at_the_last_pruning(digits_request):
    method = {
        "pruner": MAGNITUDE,
        "schedule": {"kind": "one-shot", "at": 0.5},
        "fine_tune": {"optimizer": {"kind": "adam", "lr": 0.001}, "lr_schedule": {"kind": "multi-step", "at": [0.5], "factor": 0.1}},
    }
    seen = {}
    from sparsefleet.trial import training as module

    step = module.Training._train_step

    def spy(self, x, y):
        step(self, x, y)
        seen[self.step] = (type(self.optimizer).__name__, self.optimizer.param_groups[0]["lr"])

    module.Training._train_step = spy
    try:
        record = run_trial(digits_request(density=0.1, layer={"name": "csr"}, method=method, train={"epochs": 4, "batch_size": 64}))
    finally:
        module.Training._train_step = step
    assert record.state is State.SUCCEEDED, record.reason
    half = STEPS // 2
    assert seen[half] == ("SGD", 0.1)
    assert seen[half + 1] == ("Adam", 0.001)
    assert seen[STEPS] == ("Adam", 0.0001)  # the schedule begins anew at the pruning
    assert record.accuracy.before_fine_tuning < record.accuracy.test


def test_fine_tuning_resumes_to_the_last_bit(digits_request):
    method = {
        "pruner": MAGNITUDE,
        "schedule": {"kind": "one-shot", "at": 0.25},
        "fine_tune": {"optimizer": {"kind": "adam", "lr": 0.001}},
    }
    options = {"density": 0.1, "layer": {"name": "masked"}, "method": method, "train": {"epochs": 4, "batch_size": 64}}
    whole = digits_request("whole", **options)
    first = run_trial(whole)
    from sparsefleet.trial import training as module

    def stop(values):
        if values["step"] >= 50:
            raise KeyError("gone")

    every = module._REPORT_EVERY_S
    module._REPORT_EVERY_S = -1.0
    try:
        broken = digits_request("broken", checkpoint_every_s=1e-9, **options)
        assert run_trial(broken, stop).state is State.PLUGIN_ERROR
        again = run_trial(broken)
    finally:
        module._REPORT_EVERY_S = every
    one, other = (load_file(r.workdir / files.MODEL) for r in (whole, broken))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert again.accuracy.before_fine_tuning == first.accuracy.before_fine_tuning

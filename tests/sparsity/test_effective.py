import itertools

import torch

from sparsefleet.sparsity import effective
from sparsefleet.sparsity.effective import chain_counts, effective_nnz


def sites(matrix):
    return lambda: torch.nonzero(matrix.flatten()).flatten()


def test_connections_off_every_path_do_not_count():
    first = torch.tensor([[1, 1, 0], [0, 0, 1]])  # unit 0 reads inputs 0, 1; unit 1 reads input 2
    second = torch.tensor([[1, 0]])  # only unit 0 is read
    layers = [(tuple(m.shape), sites(m)) for m in (first, second)]
    assert effective_nnz(layers) == [2, 1]


def test_a_dead_unit_ends_paths_after_it():
    first = torch.tensor([[1, 0], [0, 0]])
    second = torch.tensor([[1, 1]])
    layers = [(tuple(m.shape), sites(m)) for m in (first, second)]
    assert effective_nnz(layers) == [1, 1]


def test_layers_that_are_no_chain_have_no_answer():
    assert effective_nnz([((3, 2), lambda: torch.tensor([0])), ((2, 4), lambda: torch.tensor([0]))]) is None


def test_a_dense_layer_reads_everything_that_is_alive():
    first = torch.tensor([[1, 1, 0], [0, 0, 0]])
    chain = [((2, 3), sites(first)), ((4, 2), None)]
    assert effective_nnz(chain) == [2, 4]  # of the dense layer's eight, those from the one unit that has inputs
    last = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0]])
    assert effective_nnz([*chain, ((2, 4), sites(last))]) == [2, 2, 2]
    nothing = torch.zeros(2, 3)
    assert effective_nnz([((2, 3), sites(nothing)), ((4, 2), None)]) == [0, 0]


def test_parts_give_what_the_whole_gives(monkeypatch):
    matrices = [
        (torch.rand(shape, generator=torch.Generator().manual_seed(i)) < 0.1) for i, shape in enumerate([(30, 20), (25, 30), (5, 25)])
    ]
    chain = [(tuple(m.shape), sites(m)) for m in matrices]
    whole = effective_nnz(chain)
    monkeypatch.setattr(effective, "_CHUNK", 3)
    assert effective_nnz(chain) == whole
    forward, through = torch.ones(20), []
    for m in matrices:
        through.append(forward)
        forward = (m.double() @ forward.double() > 0).double()
    backward, wanted = torch.ones(5).double(), []
    for m, alive in zip(reversed(matrices), reversed(through), strict=True):
        on = m.double() * backward[:, None] * (alive[None, :] > 0)
        wanted.insert(0, int(on.sum()))
        backward = (on.sum(0) > 0).double()
    assert whole == wanted


def test_units_that_lack_inputs_or_outputs_are_counted_once():
    """Input 3 is read by nobody; hidden unit 1 reads nothing, unit 2 is not read, unit 3 neither reads nor is read; output 1 reads nothing."""
    first = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    second = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    found = chain_counts([((4, 4), sites(first)), ((2, 4), sites(second))])
    assert found.effective == [2, 1]
    assert found.dead_units == 4
    assert found.unused_inputs == 1


def test_random_chains_count_as_dense_matrices_do():
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        matrices = [torch.rand(shape, generator=draw) < 0.15 for shape in [(12, 9), (11, 12), (4, 11)]]
        found = chain_counts([(tuple(m.shape), sites(m)) for m in matrices])
        hidden = sum(int((~before.any(1) | ~after.any(0)).sum()) for before, after in itertools.pairwise(matrices))
        assert found.dead_units == hidden + int((~matrices[-1].any(1)).sum())
        assert found.unused_inputs == int((~matrices[0].any(0)).sum())
        forward = [torch.ones(9, dtype=torch.bool)]
        for m in matrices:
            forward.append((m & forward[-1]).any(1))
        backward, wanted = torch.ones(4, dtype=torch.bool), []
        for m, alive in zip(reversed(matrices), reversed(forward[:-1]), strict=True):
            on = m & alive[None, :] & backward[:, None]
            wanted.insert(0, int(on.sum()))
            backward = on.any(0)
        assert found.effective == wanted

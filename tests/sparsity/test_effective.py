import torch

from sparsefleet.sparsity.effective import effective_nnz


def test_connections_off_every_path_do_not_count():
    first = torch.tensor([[1, 1, 0], [0, 0, 1]])  # unit 0 reads inputs 0, 1; unit 1 reads input 2
    second = torch.tensor([[1, 0]])  # only unit 0 is read
    layers = [(tuple(m.shape), torch.nonzero(m.flatten()).flatten()) for m in (first, second)]
    assert effective_nnz(layers) == [2, 1]


def test_a_dead_unit_ends_paths_after_it():
    first = torch.tensor([[1, 0], [0, 0]])
    second = torch.tensor([[1, 1]])
    layers = [(tuple(m.shape), torch.nonzero(m.flatten()).flatten()) for m in (first, second)]
    assert effective_nnz(layers) == [1, 1]


def test_layers_that_are_no_chain_have_no_answer():
    assert effective_nnz([((3, 2), torch.tensor([0])), ((2, 4), torch.tensor([0]))]) is None

"""A storage of one's own on CooLinear: one method; what it keeps is made anew whenever its connections change or move."""

import copy

import torch

from sparsefleet.nn import CooLinear, remap_sites


class Counting(CooLinear):
    """Keeps its index as one tensor, and counts how often it made it."""

    n_made = 0

    def product(self, x, values):
        if "index" not in self.made:
            self.made["index"] = torch.stack([self.row, self.col])
            self.n_made += 1
        row, col = self.made["index"]
        return x.new_zeros(len(x), self.out_features).index_add_(1, row, x[:, col] * values)


def test_one_method_is_enough():
    layer = Counting(12, 8, 0.3, seed=1, dtype=torch.float64)
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight.to_dense(), layer.bias))


def test_what_is_made_of_the_index_lasts_as_long_as_the_index():
    layer, x = Counting(12, 8, 0.3, seed=1), torch.randn(5, 12)
    layer(x)
    layer(x)
    assert layer.n_made == 1
    keep = torch.arange(layer.nnz) > 0
    new = torch.tensor([next(site for site in range(96) if site not in layer.flat_sites().tolist())])
    remap = remap_sites(layer.flat_sites(), keep, new, regrown_are_kept=False)
    layer.set_topology(remap, remap.gather(layer.values()))
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight.to_dense(), layer.bias))
    assert layer.n_made == 2
    assert copy.deepcopy(layer).made == {}
    other = Counting(12, 8, 0.3, seed=7)
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x), other(x))

"""What the ledger of allocations counts, and what it costs."""

import subprocess
import sys

import torch

from sparsefleet.testing.allocation import Ledger


def test_tensors_born_in_the_block_are_counted_until_they_die():
    with Ledger() as ledger:
        kept = torch.zeros(4, 8).double().chunk(2)  # views of one storage
        assert ledger.live == 4 * 8 * 8
        torch.stack([torch.zeros(2), torch.ones(2)])
        assert ledger.live == 4 * 8 * 8
        del kept
        assert ledger.live == 0
    assert ledger.peak >= 4 * 8 * 8


def test_it_does_without_torchs_compiler():  # whose import takes more than a second
    code = (
        "import sys, torch; from sparsefleet.testing.allocation import Ledger\n"
        "with Ledger(): torch.zeros(1).abs()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

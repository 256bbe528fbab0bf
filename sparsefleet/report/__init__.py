"""From rows of the ledger to tables: ``compare`` makes the rows, ``table``, ``csv`` and the sentences show them."""

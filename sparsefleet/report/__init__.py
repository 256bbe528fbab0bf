"""From rows of the ledger to tables."""

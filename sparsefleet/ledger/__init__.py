"""Attempts, committed records, raw samples and the outbox, in SQLite."""

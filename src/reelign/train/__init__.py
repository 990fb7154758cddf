"""Shared by every stage: parallelism, optimiser, checkpoints, EMA, tracking, ledger."""

"""The battery, judged axes, pairwise comparison, statistics."""

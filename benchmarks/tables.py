"""The Markdown tables of the benchmarks: rows and the cells that several of them have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

AXES = ("text", "visual", "motion", "overall")
"""What a pair of clips is compared on."""


def head(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [line(*names), "|---" * len(names) + "|"]


def line(*cells: object) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def interval(found: Mapping[str, float]) -> str:
    """A GSB with its interval over prompts."""
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def over_seeds(values: list[float]) -> str:
    """Mean and range over seeds; three seeds give no better interval."""
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def weakest(retention: Mapping[str, float | None]) -> str:
    """The attribute that a child keeps least of what its parent passed, and its share."""
    kept = {attribute: share for attribute, share in retention.items() if share is not None}
    attribute = min(kept, key=lambda name: kept[name])
    return f"{attribute} {kept[attribute]:.1%}"

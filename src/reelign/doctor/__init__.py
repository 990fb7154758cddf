"""What can be known to be wrong before the hours are spent: `reelign doctor RECIPE`."""

from reelign.doctor.examine import examine
from reelign.doctor.finding import Finding

__all__ = ["Finding", "examine"]

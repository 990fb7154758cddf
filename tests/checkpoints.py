"""What a stage has trained, whichever checkpoint it keeps as the best."""

from pathlib import Path

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save


def newest_weights(stage: Path) -> dict[str, torch.Tensor]:
    """The trained weights (float32 masters) in the newest checkpoint, by name, `DENOISER.PARAMETER`."""
    newest = max(path for path in (stage / "checkpoints").glob("step-*") if path.is_dir())
    dcp_to_torch_save(newest, stage / "newest.pt")
    state = torch.load(stage / "newest.pt", weights_only=False)
    prefix = "optimizer/master."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

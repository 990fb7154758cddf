import torch

from tiny_qwen import tiny_whole
from vlm_ranks import update, update_on_ranks


def test_two_ranks_learn_what_one_learns(tmp_path):
    """The network is sharded block by block; 1e-5 of weights of about 0.1 is float32 reordered."""
    base = tiny_whole(tmp_path / "base", "qwen3_vl")
    alone = update(base)
    for rank in update_on_ranks(2, base, tmp_path):
        torch.testing.assert_close(rank, alone, atol=1e-5, rtol=1e-4)
    assert alone["_backbone.language_model.embed_tokens.new"].shape == (2, 32) and len(alone) == 15

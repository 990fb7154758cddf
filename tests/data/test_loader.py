"""Batches: the same for the same seed, for any number of ranks, and after any interruption."""

import json
from itertools import chain, islice

import pytest
import torch

from reelign.data.loader import Batch, Example, Loader
from reelign.errors import ReelignError


def examples(*shapes: tuple[int, tuple[int, ...]]) -> list[Example]:
    """`count` clips of each shape; every clip holds its own number."""
    found: list[Example] = []
    for count, shape in shapes:
        for _ in range(count):
            value = float(len(found))
            found.append(Example(f"clip {len(found)}", torch.full(shape, value), {"text": torch.full((2, 3), value)}))
    return found


CLIPS = examples((10, (4, 3, 2, 2)), (5, (4, 1, 2, 2)))
EPOCH = 3 + 2
"""Batches of four: ten clips fill three, five clips fill two."""


def drawn(loader: Loader, count: int) -> list[list[str]]:
    return [batch.ids for batch in islice(loader, count)]


def test_a_batch_holds_one_bucket_and_each_clip_its_own_words():
    batch: Batch
    for batch in islice(Loader(CLIPS, 4, seed=0), 2 * EPOCH):
        assert batch.latents.shape[0] == len(batch.ids) == 4
        for row, name in enumerate(batch.ids):
            expected = CLIPS[int(name.removeprefix("clip "))]
            assert torch.equal(batch.latents[row], expected.latents)
            assert torch.equal(batch.conditions["text"][row], expected.conditions["text"])


def test_every_clip_is_seen_in_every_epoch_and_only_the_last_batch_of_a_bucket_is_filled_up():
    loader = Loader(CLIPS, 4, seed=0)
    assert len(loader) == EPOCH
    for _ in range(3):
        seen = [name for ids in drawn(loader, EPOCH) for name in ids]
        assert set(seen) == {clip.id for clip in CLIPS}
        assert max(seen.count(name) for name in seen) == 2
        assert len(seen) - len(set(seen)) == (12 - 10) + (8 - 5)


def test_a_bucket_smaller_than_a_batch_is_repeated():
    ids = next(Loader(CLIPS[:3], 8, seed=0)).ids
    assert sorted(ids.count(clip.id) for clip in CLIPS[:3]) == [2, 3, 3]


def test_the_order_follows_from_the_seed_and_differs_between_epochs():
    first, again, other = (drawn(Loader(CLIPS, 4, seed), 2 * EPOCH) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[:EPOCH] != first[EPOCH:]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_see_together_what_one_rank_would_see(ranks):
    alone = drawn(Loader(CLIPS, 4, seed=3), 2 * EPOCH)
    shares = [drawn(Loader(CLIPS, 4, seed=3, rank=rank, world_size=ranks), 2 * EPOCH) for rank in range(ranks)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    assert all(len(ids) == 4 // ranks for share in shares for ids in share)


@pytest.mark.parametrize("done", [0, 1, 3, EPOCH - 1, EPOCH, EPOCH + 2, 4 * EPOCH])
def test_a_loader_goes_on_where_another_stopped(done):
    whole = drawn(Loader(CLIPS, 4, seed=5), done + 8)
    stopped = Loader(CLIPS, 4, seed=5)
    drawn(stopped, done)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = Loader(CLIPS, 4, seed=5)
    drawn(resumed, 2)
    resumed.load_state_dict(state)
    assert drawn(resumed, 8) == whole[done:]


def test_a_state_of_one_rank_is_gone_on_with_by_two():
    one = Loader(CLIPS, 4, seed=5)
    drawn(one, 3)
    shares = []
    for rank in range(2):
        loader = Loader(CLIPS, 4, seed=5, rank=rank, world_size=2)
        loader.load_state_dict(one.state_dict())
        shares.append(drawn(loader, 6))
    assert [first + second for first, second in zip(*shares, strict=True)] == drawn(one, 6)


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (Loader(CLIPS, 4, seed=1), "seed 0, batch size 4 and 15 clips, this run has 1, 4 and 15"),
        (Loader(CLIPS, 2, seed=0), "this run has 0, 2 and 15"),
        (Loader(CLIPS[:6], 4, seed=0), "this run has 0, 4 and 6"),
    ],
)
def test_a_state_whose_order_is_another_is_refused(loader, words):
    state = Loader(CLIPS, 4, seed=0).state_dict()
    with pytest.raises(ReelignError, match=words):
        loader.load_state_dict(state)


def test_no_clips_and_an_uneven_share_are_refused():
    with pytest.raises(ReelignError, match="nothing to train on"):
        Loader([], 4, seed=0)
    with pytest.raises(ReelignError, match="a batch of 4 does not divide over 3 ranks"):
        Loader(CLIPS, 4, seed=0, world_size=3)

"""The miniature's pairs: a user's words, and a full caption of the very scene that they are about."""

from reelign.data.pairs import PromptPair
from reelign.miniature.captions import full_caption, read_prompt
from reelign.miniature.enhancer_pairs import FULL_SHARE, miniature_pairs
from reelign.miniature.world import scenes

PAIRS = miniature_pairs(2000, seed=7)


def test_pair_i_depends_on_the_seed_and_i_alone():
    assert miniature_pairs(50, seed=7) == PAIRS[:50]
    assert miniature_pairs(50, seed=8) != PAIRS[:50]
    assert miniature_pairs(0, seed=7) == []


def test_every_rewrite_keeps_what_its_prompt_states():
    for pair in PAIRS:
        asked, written = read_prompt(pair.prompt), read_prompt(pair.rewrite)
        assert asked is not None, pair
        assert written is not None, pair
        assert set(asked.stated) <= set(written.stated)
        assert all(getattr(asked.scene, name) == getattr(written.scene, name) for name in asked.stated), pair


def test_every_rewrite_is_a_full_caption_of_a_training_scene_in_one_of_its_orders():
    written = [read_prompt(pair.rewrite) for pair in PAIRS]
    assert not any(prompt is None or prompt.scene.held_out for prompt in written)
    orders = {"a": 0, "on": 0}
    for pair in PAIRS:
        orders[pair.rewrite.split()[0]] += 1
    assert min(orders.values()) > 500
    canonical = {full_caption(scene) for scene in scenes(held_out=False)}
    assert 0.25 < sum(pair.rewrite in canonical for pair in PAIRS) / len(PAIRS) < 0.42


def test_some_prompts_are_full_captions_already_and_stay_as_they_are():
    same = [pair for pair in PAIRS if pair == PromptPair(pair.rewrite, pair.rewrite)]
    assert 0.8 * FULL_SHARE < len(same) / len(PAIRS) < 1.2 * FULL_SHARE


def test_all_training_scenes_come_up():
    looks = {(p.scene.colour, p.scene.shape, p.scene.motion) for pair in PAIRS if (p := read_prompt(pair.rewrite))}
    assert looks == {(s.colour, s.shape, s.motion) for s in scenes(held_out=False)}

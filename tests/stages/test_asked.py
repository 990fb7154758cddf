"""Prompts of a stage: real lists with their oddities, and a stream that is a function of its arguments."""

import pytest

from reelign.errors import ReelignError
from reelign.miniature.captions import read_prompt
from reelign.stages.asked import MiniaturePrompts, PromptList, build_prompts, drawn


@pytest.mark.parametrize("style", ["full", "user"])
def test_the_miniatures_prompts_are_of_training_scenes(style):
    found = build_prompts([MiniaturePrompts(kind="miniature", count=300, style=style)])
    assert len({prompt.text for prompt in found}) == len(found) > 250
    for prompt in found:
        asked = read_prompt(prompt.text)
        assert asked is not None
        assert not asked.scene.held_out


def test_a_list_with_duplicates_empty_lines_emoji_and_an_epic(tmp_path):
    epic = " ".join(["word"] * 2000)
    path = tmp_path / "prompts.txt"
    path.write_text(f"a cat\n\n   \na   cat\n🐈 on a 🛹\n{epic}\na dog\n", encoding="utf-8")
    found = build_prompts([PromptList(kind="list", path=path), PromptList(kind="list", path=path)])
    assert [prompt.text for prompt in found] == ["a cat", "🐈 on a 🛹", epic, "a dog"]


def test_an_empty_list_says_so(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n")
    with pytest.raises(ReelignError, match="holds no prompt"):
        build_prompts([PromptList(kind="list", path=path)])


def test_the_stream_shows_every_prompt_once_an_epoch_in_a_new_order():
    prompts = build_prompts([MiniaturePrompts(kind="miniature", count=10)])
    stream = [prompt.id for prompt in drawn(prompts, range(30), seed=0)]
    epochs = [stream[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == sorted(prompt.id for prompt in prompts) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [prompt.id for prompt in drawn(prompts, range(7, 23), seed=0)] == stream[7:23]
    assert [prompt.id for prompt in drawn(prompts, range(30), seed=1)] != stream

"""Files of pairs of every kind are read alike; an inversion is a shorter prompt that says nothing of its own."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelign.data.caption_words import ADJECTIVES, CUTS, FUNCTION_WORDS, SYNONYMS
from reelign.data.inversion import invert
from reelign.data.pairs import PromptPair, holds_pairs, inverted, read_pairs, write_pairs
from reelign.errors import ReelignError

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "prompts"
with_shared_data = pytest.mark.skipif(not PROMPTS.is_dir(), reason="the shared data is not here")
TWO = [PromptPair("a cat", "A grey cat, by a window."), PromptPair("two dogs", "Two dogs run.")]
ROWS = [{"prompt": pair.prompt, "rewrite": pair.rewrite} for pair in TWO]
CAPTION = (
    "A joyful child, with a big smile, swings energetically on a rusty old swing set in a sunlit backyard. The swing "
    'set creaks. A sign reads "Keep Out, Please!" in red. The camera slowly zooms in, capturing the mood.'
)

ODD = ["cat,", "dog.", "runs", "slowly,", "gently", "Tokyo", '"STOP, now!"', "(aside),", "—", "...", "video", "shows"]
WORDS = st.sampled_from([*sorted(ADJECTIVES | CUTS | FUNCTION_WORDS | set(SYNONYMS)), *ODD])
TEXT = st.text(st.characters())
CAPTIONS = st.one_of(TEXT, st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=40).map(" ".join))


def of(caption: str, seed: int = 0) -> str:
    return invert(caption, np.random.default_rng(seed), SYNONYMS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", "\n\n".join(json.dumps(row) for row in ROWS)),
        ("p.jsonl", "\ufeff" + "\r\n".join(json.dumps(row | {"id": 3}) for row in [*ROWS, ROWS[0]])),
        ("p.json", json.dumps(ROWS)),
        ("p.json", json.dumps({"data": ROWS})),
        ("p.csv", 'id,prompt,rewrite\n1,a cat,"A grey cat, by a window."\n2,two dogs,Two dogs run.\n'),
        ("p.tsv", "rewrite\tprompt\nA grey cat, by a window.\ta cat\nTwo dogs run.\ttwo dogs\n"),
        ("p.jsonl", "\n".join(json.dumps({"prompt": p.prompt, "enhanced": {"gpt": p.rewrite + "\r"}}) for p in TWO)),
        ("p.jsonl", "\n".join(json.dumps(row) for row in [{"prompt": " ", "rewrite": "A."}, *ROWS])),
    ],
)
def test_each_format_gives_the_same_pairs(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_pairs(tmp_path / name) == TWO
    assert holds_pairs(tmp_path / name)


def test_each_rewriter_gives_a_pair_and_one_can_be_chosen(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [
        {"prompt": "a cat", "enhanced": {"one": "A cat.", "two": "A grey cat."}},
        {"prompt": "a dog", "enhanced": {"one": "A dog.", "two": ""}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [pair.rewrite for pair in read_pairs(path)] == ["A cat.", "A grey cat.", "A dog."]
    assert read_pairs(path, "two") == [PromptPair("a cat", "A grey cat.")]
    with pytest.raises(ReelignError, match="has no rewriter 'three'; there are one, two"):
        read_pairs(path, "three")


def test_our_own_rows_have_no_rewriter_to_choose(tmp_path):
    write_pairs(tmp_path / "p.jsonl", TWO)
    with pytest.raises(ReelignError, match="nobody's in particular"):
        read_pairs(tmp_path / "p.jsonl", "gpt")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "p.jsonl",
            b'{"prompt": "a", "rewrite": "b"}\n{"prompt": "a"}',
            r'p\.jsonl, line 2: .* expected "prompt" with',
        ),
        ("p.jsonl", b'{"prompt": "a", "rewrite": "b"}\n\n{"prompt": ', r"p\.jsonl, line 3: no JSON"),
        ("p.jsonl", b'{"prompt": "a", "enhanced": "b"}', r"line 1: .* is no pair"),
        ("p.jsonl", b'{"prompt": "a", "rewrite": 7}', r"line 1: .* is no pair"),
        ("p.jsonl", b'"a"', r"line 1: .* is no pair"),
        ("p.json", b'[{"prompt": "a", "rewrite": "b"},\n {"prompt": }]', r"p\.json, line 2: no JSON"),
        ("p.json", b'[{"prompt": "a", "rewrite": "b"}, 3]', r"p\.json, row 2: '3' is no pair"),
        ("p.json", b"7", "expected a list of pairs"),
        ("p.json", b"[" * 100_000, "no JSON"),
        ("p.csv", b"prompt,caption\na,b\n", r"p\.csv, line 2: .* is no pair"),
        ("p.csv", b'prompt,rewrite\n"' + b"x" * 200_000 + b'"\n', r"p\.csv, line 1: no table"),
        ("p.jsonl", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("p.jsonl", b'{"prompt": " ", "rewrite": "b"}', "holds no pair"),
        ("p.jsonl", b"", "holds no pair"),
        ("p.txt", b"a", r"expected \.jsonl, \.json, \.csv or \.tsv"),
    ],
)
def test_what_is_no_file_of_pairs_is_refused_with_the_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReelignError, match=words) as error:
        read_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ReelignError, match="cannot read the pairs"):
        read_pairs(tmp_path / "none.jsonl")
    assert not holds_pairs(tmp_path / "none.jsonl")


def test_what_is_written_is_read_back(tmp_path):
    hard = [
        *TWO,
        PromptPair("一只猫", "“一只猫”\u2028在雨中 \x00"),
        PromptPair("half a \ud83d", 'quotes " and \\ \ud83d'),
        PromptPair("{prompt}", "</s> %s"),
    ]
    hard = [PromptPair(pair.prompt, " ".join(pair.rewrite.split())) for pair in hard]
    write_pairs(tmp_path / "new" / "p.jsonl", hard)
    assert read_pairs(tmp_path / "new" / "p.jsonl") == hard
    assert "一只猫" in (tmp_path / "new" / "p.jsonl").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.jsonl"]


@with_shared_data
def test_published_pairs_are_read():
    vbench = PROMPTS / "pairs" / "vbench_enhanced_pairs.jsonl"
    assert len(read_pairs(vbench, "wan2.1")) > 600
    assert len(read_pairs(vbench)) > 2400
    for path in (PROMPTS / "pairs" / "vbench2_enhanced_pairs.jsonl", *(PROMPTS / "noncommercial" / "pairs").iterdir()):
        pairs = read_pairs(path)
        assert len(pairs) > 600
        assert not any(side != " ".join(side.split()) for pair in pairs for side in (pair.prompt, pair.rewrite))


@given(CAPTIONS, st.integers(0, 2**32))
def test_an_inversion_of_any_text_is_no_longer_not_empty_and_the_same_again(caption, seed):
    prompt = of(caption, seed)
    assert len(prompt.split()) <= len(caption.split())
    assert bool(prompt.split()) == bool(caption.split())
    assert prompt == of(caption, seed)
    if len(caption.split()) == 1:
        assert prompt == caption.strip()


@given(CAPTIONS, st.integers(0, 99))
def test_quotations_are_whole_or_gone(caption, seed):
    caption = " ".join(caption.replace('"STOP, now!"', "stop").replace('"', "").split())
    prompt = of(f'{caption} a sign that says "No Dogs, Please. Thanks!" hangs in a shop', seed)
    assert prompt.count('"') in (0, 2)
    assert ('"' in prompt) == ('"No Dogs, Please. Thanks!"' in prompt)


@pytest.mark.parametrize(
    "text", ['"' * 5000, "“" * 5000, "( " * 5000, "video of " * 3000, ", in a" * 3000, ". " * 5000]
)
def test_monstrous_texts_take_no_longer_than_long_ones(text):
    assert of(text).strip()


def test_inversions_of_a_caption_differ_and_are_made_of_its_words_and_their_synonyms():
    prompts = {of(CAPTION, seed) for seed in range(200)}
    assert len(prompts) > 60
    allowed = {"a", "an"} | {word for options in SYNONYMS.values() for option in options for word in option.split()}
    allowed |= set(re.findall(r"\w+", CAPTION.lower()))
    for prompt in prompts:
        assert set(re.findall(r"\w+", prompt.lower())) <= allowed, prompt
        assert re.search(r"\b(child|kid)\b", prompt.lower()), prompt


def test_decoration_and_talk_of_the_camera_are_what_goes_first():
    prompts = [of(CAPTION, seed).lower() for seed in range(300)]
    share = {word: np.mean([word in prompt for prompt in prompts]) for word in ("swings", "joyful", "camera", "mood")}
    assert share["swings"] > 0.9
    assert share["joyful"] < 0.3
    assert share["camera"] < 0.15
    assert share["mood"] < 0.15


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A wide shot of a red fox on a hill", {"a red fox on a hill, wide shot", "a red fox on a hill"}),
        ("The video shows a red fox on a hill.", {"a red fox on a hill"}),
        ("In a kitchen, a man cooks soup.", {"a man cooks soup", "a man cooks soup, in a kitchen"}),
        ("A man, wearing a hat, walks down a street.", {"a man walks down a street"}),
        ("An old barn stands in a field (seen twice).", {"a barn stands in a field"}),
        ("A warm and inviting glow fills rooms", {"a glow fills rooms"}),
        ("A girl smiles, cinematic, 4k, highly detailed", {"a girl smiles"}),
    ],
)
def test_the_rules_by_example(caption, expected):
    prompts = {invert(caption, np.random.default_rng(seed), {}).lower().rstrip(".") for seed in range(200)}
    assert expected <= prompts


def test_negations_and_numbers_of_what_is_kept_stay():
    for seed in range(200):
        prompt = of("Two cats and not a single dog.", seed).lower()
        assert "two cats" in prompt
        assert ("not" in prompt) == ("dog" in prompt)
        said = invert("There are no large dogs.", np.random.default_rng(seed), {})
        assert "no large dogs" in said


def test_synonyms_come_from_the_table_and_are_never_longer():
    table = {"cat": ["feline animal", "kitty", ""], "sits on": ["tops"]}
    prompts = {invert("A cat sits on mats", np.random.default_rng(seed), table).lower() for seed in range(300)}
    assert any("kitty" in prompt for prompt in prompts)
    assert any("tops" in prompt for prompt in prompts)
    assert not any("animal" in prompt for prompt in prompts)
    assert all(len(new.split()) <= len(old.split()) for old, options in SYNONYMS.items() for new in options)
    assert all(old == old.lower() and old.strip() for old in SYNONYMS)


def test_articles_fit_the_words_that_follow_them():
    prompts = [of("An elegant dog and an old unicorn", seed).lower() for seed in range(200)]
    assert not any("an dog" in prompt or "an unicorn" in prompt or "a old" in prompt for prompt in prompts)


def test_pair_i_depends_on_the_seed_and_i_alone():
    captions = [f"A man number {n} walks through a park, with a dog." for n in range(7)]
    many, few = inverted(captions, 30, seed=3), inverted(captions, 9, seed=3)
    assert many[:9] == few
    assert many != inverted(captions, 30, seed=4)
    counts = [sum(pair.rewrite == caption for pair in many) for caption in captions]
    assert set(counts) == {4, 5}
    assert all(len(pair.prompt.split()) <= len(pair.rewrite.split()) for pair in many)


def test_captions_that_hold_nothing_are_no_source():
    assert {pair.rewrite for pair in inverted([" ", "a cat  sits"], 4, seed=0)} == {"a cat sits"}
    with pytest.raises(ReelignError, match="no caption"):
        inverted([" ", ""], 4, seed=0)


@with_shared_data
def test_real_captions_become_prompts_of_the_length_that_people_type():
    captions = (PROMPTS / "vbench" / "all_dimension_longer.txt").read_text(encoding="utf-8").splitlines()
    with (PROMPTS / "open_sora" / "sora.csv").open(encoding="utf-8") as file:
        captions += [row["text"] for row in csv.DictReader(file)]
    lengths = [len(pair.prompt.split()) for pair in inverted(captions, 1000, seed=0)]
    assert 7 < np.mean(lengths) < 13
    assert np.mean([length > 32 for length in lengths]) < 0.02


def test_pairs_are_made_without_torch():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, reelign.data.ask_pairs; print({'torch', 'diffusers'} & sys.modules.keys())",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "set()"

"""Prompt lists of every kind give the same prompts; what is no list is refused with its place."""

import json

import pytest

from reelign.data.prompts import listed_texts, read_prompts
from reelign.errors import ReelignError

TWO = ["a red circle", "a blue square, at night"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a red circle\n\n  a blue  square, at night \na red circle\n"),
        ("p.txt", "\ufeffa red circle\r\na blue square, at night"),
        ("p.csv", 'id,prompt\n1,a red circle\n2,"a blue square, at night"\n'),
        ("p.csv", 'id,prompt\r1,a red circle\r2,"a blue square, at night"\r'),
        ("p.tsv", "caption\tid\na red circle\t1\na blue square, at night\t2\n"),
        ("p.json", json.dumps(TWO)),
        ("p.json", json.dumps({"data": [{"prompt_en": TWO[0]}, {"cap": [TWO[1], "a short one"]}]})),
        ("p.jsonl", "\n".join(json.dumps({"text": text}) for text in TWO)),
        ("p.JSONL", json.dumps(TWO[0]) + "\n\n" + json.dumps({"prompt": "a\u2028blue square, at night"})),
    ],
)
def test_each_format_gives_the_same_prompts(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    (tmp_path / "plain.txt").write_text("\n".join(TWO))
    prompts = read_prompts(tmp_path / name)
    assert [prompt.text for prompt in prompts] == TWO
    assert prompts == read_prompts(tmp_path / "plain.txt")


def test_a_name_follows_from_the_words_alone(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("zero\ntwo\n")
    first, second = read_prompts(tmp_path / "a.txt"), read_prompts(tmp_path / "b.txt")
    assert first[1] == second[1]
    assert len({prompt.id for prompt in first + second}) == 3


def test_what_is_dropped_can_still_be_counted(tmp_path):
    long = "word " * 2000
    (tmp_path / "p.txt").write_text(f"🎈 über\n\n🎈  über \n{long}\n", encoding="utf-8")
    assert listed_texts(tmp_path / "p.txt") == ["🎈 über", "", "🎈 über", long.strip()]
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.txt")] == ["🎈 über", long.strip()]


def test_a_line_separator_inside_a_json_line_does_not_cut_it(tmp_path):
    line = json.dumps({"prompt": "a\u2028cat"}, ensure_ascii=False)
    (tmp_path / "p.jsonl").write_text(line, encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.jsonl")] == ["a cat"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b" \n\n", "holds no prompt"),
        ("p.txt", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("p.csv", b"id,title\n1,a cat\n", "expected one of the keys prompt, caption"),
        ("p.csv", b'prompt\n"' + b"x" * 200_000 + b'"\n', r"p\.csv, line 1: no table \(field larger"),
        ("p.json", b"[1, 2]", "no prompt found in '1'"),
        ("p.json", b"7", "must hold a list of prompts"),
        ("p.json", b'{"data": 7}', "must hold a list of prompts"),
        ("p.json", b"[" * 100_000, "no JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', r"p\.jsonl, line 2: no JSON"),
    ],
)
def test_what_is_no_list_is_refused_with_the_file_and_the_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReelignError, match=words) as error:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_list_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ReelignError, match="cannot read the prompt list"):
            read_prompts(path)

"""How the user's words are framed, and how a rewrite is read out of what a language model says."""

import pytest

from reelign.enhancer.template import TEMPLATES, Template

TAGGED, PLAIN = TEMPLATES["video-1"], TEMPLATES["plain-1"]


def test_the_users_words_stand_in_the_users_turn_as_they_are():
    words = 'a {prompt} "sign" \\1 </user_prompt> {{ x }}\n🐈'
    assert PLAIN.messages(words) == [{"role": "user", "content": words}]
    system, user = TAGGED.messages(words)
    assert system == {"role": "system", "content": TAGGED.system}
    assert user == {"role": "user", "content": f"<user_prompt>\n{words}\n</user_prompt>"}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("rewrite", ["a red ball", 'a sign "OPEN" & <b>more</b>', "一只猫", "a < b > c"])
def test_what_is_trained_on_is_read_back(template: Template, rewrite):
    assert template.parse(template.answer(rewrite)) == rewrite
    assert template.parse(f"<think>\n\n</think>\n\n{template.answer(rewrite)}\n") == rewrite


@pytest.mark.parametrize(
    ("said", "rewrite"),
    [
        ("<prompt>a cat</prompt>", "a cat"),
        ("\n <prompt>\n a  cat\ton a\nroof </prompt>\n", "a cat on a roof"),
        ("<think>the user wants <prompt>a dog</prompt></think><prompt>a cat</prompt>", "a cat"),
        ("<think></think>\n\n<prompt>a cat</prompt>", "a cat"),
        ("<prompt>a <b>bold</b> cat</prompt>", "a <b>bold</b> cat"),
        ("a cat", None),
        ("", None),
        ("<prompt></prompt>", None),
        ("<prompt> \n </prompt>", None),
        ("<prompt>a cat", None),
        ("a cat</prompt>", None),
        ("<Prompt>a cat</Prompt>", None),
        ("Sure! <prompt>a cat</prompt>", None),
        ("<prompt>a cat</prompt> Enjoy.", None),
        ("<prompt>a cat</prompt><prompt>a dog</prompt>", None),
        ("<prompt><prompt>a cat</prompt></prompt>", None),
        ("<prompt>a cat</prompt></prompt>", None),
        ("<think>a thought that never ends <prompt>a cat</prompt>", None),
        ("<prompt>a cat</prompt><think>was that right?</think>", None),
    ],
)
def test_a_tagged_answer_holds_one_rewrite_and_nothing_else(said, rewrite):
    assert TAGGED.parse(said) == rewrite


@pytest.mark.parametrize(
    ("said", "rewrite"),
    [
        (" a  cat\non a roof ", "a cat on a roof"),
        ("<think>hm</think>\na cat", "a cat"),
        ("<prompt>a cat</prompt>", "<prompt>a cat</prompt>"),  # for the guard to refuse
        ("", None),
        (" \n", None),
        ("<think>only a thought</think>", None),
    ],
)
def test_a_plain_answer_is_the_rewrite(said, rewrite):
    assert PLAIN.parse(said) == rewrite

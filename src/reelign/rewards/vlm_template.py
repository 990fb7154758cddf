"""What a vision-language model reads when it rates a clip, and the new words at which its ratings are read off.

Attention is causal, so a rating knows only what stands before its word. As in VideoReward (arXiv 2501.13918), visual
and motion quality are asked for before the prompt is told, text alignment and the whole after it. The words are our
own; what the released VideoReward was trained to read is in `videoalign.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from reelign.errors import ReelignError

TOKENS = {
    "visual": "<|VQ_reward|>",
    "motion": "<|MQ_reward|>",
    "text": "<|TA_reward|>",
    "overall": "<|overall_reward|>",
}
"""The new word of each axis that can be judged, named as VideoReward names its own."""
RUBRICS = {
    "visual": (
        "\n**Visual quality**\nLook at the frames as pictures. Are shapes, bodies and scenes plausible? Are the frames "
        "sharp and clean, without noise, blur or artefacts? Are materials, light and texture rich in detail? Are "
        "colour and composition pleasing?\nVisual quality: {token}\n"
    ),
    "motion": (
        "\n**Motion quality**\nLook at how things change. Is the video steady, without flicker, jumps or parts that "
        "come and go? Do bodies and objects move as they would in the world, keep their shape and stay apart from the "
        "background? Does enough happen? A video that stands still is poor motion.\nMotion quality: {token}\n"
    ),
    "text": (
        "\n**Text alignment**\nCompare the video with the description. Are the subjects there, in the right number and "
        "with the right looks? Do they do what is described? Do place, style and camera follow it?\n"
        "Text alignment: {token}\n"
    ),
    "overall": (
        "\n**Overall**\nAll in all, how much would someone who asked for the description like to be given this "
        "video?\nOverall: {token}\n"
    ),
}
BEFORE_PROMPT = ("visual", "motion")
"""Axes that are judged without knowing the prompt."""


def default_template(axes: Sequence[str]) -> str:
    """What is read after the video: visual and motion quality, then the prompt, then what is judged by it.

    Raises:
        ReelignError: no axis, an unknown one, or one twice.
    """
    if not axes or len(set(axes)) != len(axes) or not set(axes) <= TOKENS.keys():
        raise ReelignError(f"the axes are {list(axes)}; give one or more of {', '.join(TOKENS)}, each once.")
    before, after = (
        "".join(
            rubric.replace("{token}", TOKENS[axis])
            for axis, rubric in RUBRICS.items()
            if axis in axes and (axis in BEFORE_PROMPT) is early
        )
        for early in (True, False)
    )
    opening = "\nThis video was generated. Rate it on each of the following, independently of the others.\n"
    return f"{opening}{before}\nDescription that the video was made from: {{prompt}}\n{after}"


def checked_template(template: str, axes: Sequence[str]) -> str:
    """The template, if it holds `{prompt}` and the word of each axis once.

    Raises:
        ReelignError: it does not.
    """
    for part in ("{prompt}", *(TOKENS[axis] for axis in axes)):
        if (count := template.count(part)) != 1:
            raise ReelignError(f"the template of the reward holds {part} {count} times; it stands there once.")
    return template

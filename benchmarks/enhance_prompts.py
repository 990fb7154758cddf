"""Real prompts through the machinery around a language model: every line of given lists, for structure only.

    python benchmarks/enhance_prompts.py LISTS...

The lists are prompt lists and files of pairs. Each prompt goes through template, parser and the lexical guard, once
with itself as the answer, once with its second half cut off, and, where a file brings rewrites, once with each of them.
What is counted is what the guard says, by the window of each rewriter's own texts; nothing may raise. Writes
`benchmarks/results/enhance_prompts.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from reelign.data.pairs import holds_pairs, read_pairs
from reelign.data.prompts import listed_texts
from reelign.enhancer.faithful import Lexical
from reelign.enhancer.guard import Guard, window_of
from reelign.enhancer.template import TEMPLATES
from tables import head, line

TEMPLATE = TEMPLATES["video-1"]


def main() -> None:
    """Read, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, nargs="+", help="Files, or folders with them.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/enhance_prompts"))
    arguments = parser.parse_args()
    rows = [row for path in files(arguments.lists) for row in (pairs(path) if is_pairs(path) else prompts(path))]
    arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(report(rows), encoding="utf-8")
    print(report(rows))


def files(given: list[Path]) -> list[Path]:
    """The lists among what was given."""
    kinds = {".txt", ".csv", ".json", ".jsonl"}
    found = [p for path in given for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [path for path in found if path.suffix in kinds]


def is_pairs(path: Path) -> bool:
    """Whether a file holds pairs of a prompt and its rewrites."""
    return path.suffix in {".json", ".jsonl"} and holds_pairs(path)


def prompts(path: Path) -> list[dict]:
    """Each listed prompt with itself and with its first half as the answer."""
    texts = listed_texts(path)
    guard = Guard(Lexical(), window_of([text for text in texts if text]))
    itself = [judged(guard, text, text) for text in texts]
    half = [judged(guard, text, " ".join(text.split()[: len(text.split()) // 2])) for text in texts]
    return [row(path, "itself", itself), row(path, "its first half", half)]


def pairs(path: Path) -> list[dict]:
    """Each prompt with its published rewrites, one rewriter after the other."""
    names = sorted({name for line in path.read_text(encoding="utf-8").splitlines() for name in rewriters(line)})
    rows = []
    for name in names:
        found = read_pairs(path, name)
        guard = Guard(Lexical(), window_of([pair.rewrite for pair in found]))
        rows.append(row(path, name, [judged(guard, pair.prompt, pair.rewrite) for pair in found]))
    return rows


def rewriters(line: str) -> list[str]:
    """Whose rewrites a line holds."""
    return list(json.loads(line).get("enhanced", {})) if line.strip() else []


def judged(guard: Guard, prompt: str, rewrite: str) -> str:
    """What the guard says of a rewrite that comes as the model's answer."""
    TEMPLATE.messages(prompt)
    answer = TEMPLATE.answer(rewrite)
    return (guard.asks(prompt) or guard.judge(prompt, answer, True, TEMPLATE.parse(answer))).label


def row(path: Path, answer: str, labels: list[str]) -> dict:
    """One line of the table."""
    return {
        "list": f"{path.parent.name}/{path.name}",
        "answer": answer,
        "prompts": len(labels),
        "outcomes": dict(Counter(labels).most_common()),
    }


def report(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = head("list", "answer", "prompts", "outcomes")
    for found in rows:
        counted = ", ".join(f"{label} {n}" for label, n in found["outcomes"].items())
        lines.append(line(found["list"], found["answer"], found["prompts"], counted))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

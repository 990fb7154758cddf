"""Verbs of prompts: rewriting them, and pairs to learn it from."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from reelign.cli.app import app
from reelign.cli.options import ServedName
from reelign.errors import ReelignError
from reelign.terminal import bars, console, errors, quiet_libraries, say, show_table


@app.command()
def enhance(
    prompts: Annotated[list[str] | None, typer.Argument(help="What users typed.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Who rewrites: an artifact with an enhancer, a folder, a hub id; by default 'miniature'."),
    ] = None,
    enhancer: Annotated[
        str | None, typer.Option(help="Address of a server that rewrites, for example http://localhost:8000/v1.")
    ] = None,
    served_name: ServedName = None,
    listed: Annotated[Path | None, typer.Option("--file", help="A list of prompts: text, JSON lines, CSV.")] = None,
    out: Annotated[Path | None, typer.Option(help="The rewrites of that list to write, JSON lines.")] = None,
) -> None:
    """Say prompts as the generator likes them: reelign enhance "red ball going left"."""
    if prompts and Path(prompts[0]).suffix in (".yaml", ".yml") and Path(prompts[0]).is_file():
        raise ReelignError(f"{prompts[0]} is a recipe, and not a prompt; train with: reelign run {prompts[0]}")
    if bool(prompts) == (listed is not None):
        raise ReelignError("give prompts, or a list of them with --file.")
    if (listed is None) != (out is None):
        raise ReelignError("--file and --out go together: the list to read, and the file to write.")
    from reelign.inference import enhance as words

    if enhancer is not None and not enhancer.startswith(words.ADDRESS):
        raise ReelignError(f"--enhancer is the address of a server (http://...); give {enhancer} as --model.")
    quiet_libraries()
    texts = words.listed_prompts(listed, out) if listed is not None and out is not None else prompts or []
    found = words.find_enhancer(enhancer or model or "miniature", model, served_name)
    if out is None:
        for rewrite in words.enhance_prompts(found, texts):
            typer.echo(rewrite.text)
            if remark := words.remark(rewrite):
                say(errors, remark)
        return
    with bars(console) as progress:
        rewrites = words.enhance_prompts(found, texts, lambda done, total: progress("enhance", done, total, ""))
    words.write_rewrites(out, rewrites)
    say(console, f"wrote {len(rewrites)} rewrites to {out}")
    show_table("Prompts", ["outcome", "prompts", "share"], words.outcome_rows(rewrite.label for rewrite in rewrites))


@app.command()
def pairs(
    source: Annotated[
        str, typer.Argument(help="The word 'miniature', a dataset, a list of captions, or a file of pairs.")
    ],
    out: Annotated[Path, typer.Option(help="The pairs to write, JSON lines.")],
    count: Annotated[
        int | None, typer.Option(min=1, help="How many pairs; by default one for each caption, or all there are.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pairs.")] = 0,
    way: Annotated[
        Literal["inversion", "file", "endpoint"] | None,
        typer.Option("--from", help="By rules, as a file has them, or from a language model; by default as it fits."),
    ] = None,
    rewriter: Annotated[str | None, typer.Option(help="Whose rewrites to take from a file of pairs.")] = None,
    url: Annotated[str | None, typer.Option(help="Whom to ask, for example http://localhost:8000/v1.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model there.")] = None,
) -> None:
    """Make pairs for a prompt enhancer: what a user types, and what the generator was trained on."""
    from reelign.data.endpoint import ChatEndpoint
    from reelign.inference.pairs import make_pairs, summary

    if (url is None) != (model is None):
        raise ReelignError("--url and --model go together: where a language model answers, and its name there.")
    endpoint = ChatEndpoint(url=url, model=model) if url is not None and model is not None else None
    with bars(console) if endpoint else nullcontext(lambda *_: None) as progress:
        made = make_pairs(
            source, out, way, count, seed, rewriter, endpoint, lambda done, total: progress("ask", done, total, "")
        )
    console.print(f"wrote [bold]{len(made)}[/] pairs to {escape(str(out))}", highlight=False)
    for line in summary(made):
        say(console, line)

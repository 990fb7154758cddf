"""Verbs of human feedback: pairs for people, the page, and what follows from votes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from reelign.cli.app import judge_app
from reelign.cli.options import Host
from reelign.errors import ReelignError
from reelign.terminal import bars, console, errors, quiet_libraries, say, show_table

StudyPath = Annotated[Path, typer.Argument(help="A study that `reelign judge new` made.")]
VotesPath = Annotated[
    Path, typer.Argument(help="A study, JSON lines of votes, VideoAlign's CSV, or JSON of label-studio or GenAI-Bench.")
]


@judge_app.command("new")
def new(
    entrants: Annotated[
        list[str], typer.Argument(help="Two or more: models, artifacts, evaluations, or folders of captioned clips.")
    ],
    out: Annotated[Path, typer.Option(help="The study to make, a folder.")] = Path("study"),
    battery: Annotated[
        Path | None, typer.Option(help="A recipe (its `battery:`) or a list of prompts; by default the miniature's.")
    ] = None,
    rater: Annotated[list[str] | None, typer.Option(help="Name of a rater; repeat it.")] = None,
    raters: Annotated[int, typer.Option(min=1, help="How many raters, where they have no names.")] = 1,
    quota: Annotated[int | None, typer.Option(min=1, help="Pairs that each rater sees; all, at most 60.")] = None,
    repeats: Annotated[float, typer.Option(min=0, max=0.5, help="Share of them that is asked twice.")] = 0.1,
    gold: Annotated[int, typer.Option(min=0, help="Pairs with a known answer among them.")] = 3,
    known: Annotated[Path | None, typer.Option(help="Votes with known answers, to be those pairs.")] = None,
    title: Annotated[str, typer.Option(help="What raters read on the page.")] = "Which video is better?",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pairs and sides.")] = 0,
    database: Annotated[str | None, typer.Option(help="A SQLAlchemy URL; by default a SQLite file inside.")] = None,
) -> None:
    """Sample clips of equal prompts and seeds, and draw pairs of them for people: reelign judge new BASE TUNED."""
    from reelign.feedback.sources import new_study
    from reelign.feedback.study import StudySettings

    quiet_libraries()
    settings = StudySettings(title=title, quota=quota, repeats=repeats, gold=gold, seed=seed)
    with bars(console) as progress:
        links = new_study(entrants, battery, out, rater or raters, settings, database, known, progress)
    say(console, f"made {out}. Serve it with: reelign judge serve {out}")
    for name, link in links:
        say(console, f"  {name}: {link}")
    say(console, f"These links are the raters' own, like passwords; they are kept in {out / 'links.txt'}.")


@judge_app.command("serve")
def serve(
    study: StudyPath,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve at.")] = 8803,
) -> None:
    """Open the page on which raters vote, until interrupted; every vote is on disk before it is answered."""
    from reelign.feedback.app import serve_study
    from reelign.feedback.study import open_study, read_links
    from reelign.rewards.serve import is_local

    links = read_links(open_study(study))
    if not is_local(host):
        say(errors, "warning: links and votes travel unencrypted to other machines; put a proxy with HTTPS before it.")

    def ready(address: str) -> None:
        say(console, f"serving {study} at {address}")
        for name, link in links:
            say(console, f"  {name}: {address}{link}")

    serve_study(study, host, port, ready)


@judge_app.command("more")
def more(
    study: StudyPath,
    count: Annotated[int, typer.Option(min=1, help="Further pairs for each rater.")] = 20,
    reward: Annotated[
        Path | None, typer.Option(help="A fitted reward: the pairs it is least sure of come first.")
    ] = None,
) -> None:
    """Give every rater further pairs, those first whose outcome a fitted reward is least sure of."""
    from reelign.feedback.active import least_sure
    from reelign.feedback.study import extend, open_study

    quiet_libraries()
    opened = open_study(study)
    priority = None if reward is None else least_sure(opened, reward)
    extend(opened, count, priority)
    say(console, f"{count} further pairs for each of {len(opened.store.raters())} raters of {study}")


@judge_app.command("report")
def report(
    votes: VotesPath,
    out: Annotated[Path | None, typer.Option(help="Folder of report.html and report.json.")] = None,
    judges: Annotated[bool, typer.Option(help="Ask automatic judges about the clips too.")] = True,
    reward: Annotated[
        list[Path] | None, typer.Option(help="A fitted reward to compare with people too; repeat it.")
    ] = None,
) -> None:
    """Say what votes show: who is better and how surely, how far raters and judges agree, and what is missing."""
    from reelign.feedback.automatic import automatic_scores
    from reelign.feedback.collected import collected
    from reelign.feedback.report import build_report

    quiet_libraries()
    found, folder = collected(votes), out or (votes if votes.is_dir() else votes.parent / f"{votes.stem}-report")
    with bars(console) as progress:
        scores = (
            automatic_scores(found, reward or [], lambda what, done, total: progress(what, done, total, ""))
            if judges
            else None
        )
    made = build_report(found, folder, scores)
    for comparison in made.comparisons:
        for axis, finding in comparison.findings.items():
            say(console, f"  {axis}: {finding.sentence}")
    say(console, f"wrote {folder / 'report.html'} and report.json")


@judge_app.command("export")
def export(
    votes: VotesPath,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    form: Annotated[
        Literal["jsonl", "videoalign", "label-studio"],
        typer.Option("--format", help="JSON lines lose nothing; VideoAlign's CSV is preference data of a pair a row."),
    ] = "jsonl",
) -> None:
    """Write votes for others, or into one file of JSON lines that a recipe's `votes:` reads."""
    from reelign.feedback.collected import collected
    from reelign.feedback.exchange import export_votes

    for note in export_votes(out, collected(votes), form):
        say(errors, note)
    say(console, f"wrote {out}")


@judge_app.command("import")
def import_(
    source: VotesPath,
    out: Annotated[Path, typer.Option(help="JSON lines of votes to write.")],
) -> None:
    """Read votes of any layout into JSON lines; what is no vote is listed with its reason."""
    from reelign.feedback.exchange import export_votes, import_votes

    found = import_votes(source)
    for row in found.left_out:
        say(errors, f"left out, {row.where}: {row.reason}")
    for note in found.notes:
        say(errors, note)
    if not found.votes:
        raise ReelignError(f"{source} ({found.layout}) holds no vote.")
    export_votes(out, found.votes, "jsonl")
    show_table(
        found.layout,
        ["", "count"],
        [
            ["votes", str(len(found.votes))],
            ["rows left out", str(len(found.left_out))],
            ["clips that are not here", str(len(found.absent))],
        ],
    )

"""Verbs of human feedback: pairs for people, the page on which they vote, and what follows from votes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reelign.cli.app import judge_app
from reelign.errors import ReelignError
from reelign.terminal import bars, console, errors, quiet_libraries, say, show_table

if TYPE_CHECKING:
    from reelign.feedback.findings import Report
    from reelign.feedback.judges import JudgeAgreement

StudyPath = Annotated[Path, typer.Argument(help="A study: the folder that `reelign judge new` made.")]
VotesPath = Annotated[
    Path, typer.Argument(help="A study, or a file: JSON lines, VideoAlign's CSV, JSON of label-studio or GenAI-Bench.")
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
    quota: Annotated[
        int | None, typer.Option(min=1, help="Pairs that each rater is shown; by default all, at most 60.")
    ] = None,
    repeats: Annotated[float, typer.Option(min=0, max=0.5, help="Share of them that comes again, unannounced.")] = 0.1,
    gold: Annotated[int, typer.Option(min=0, help="Pairs among them whose answer is known.")] = 3,
    known: Annotated[Path | None, typer.Option(help="Votes with `expected` answers: their pairs are gold too.")] = None,
    title: Annotated[str, typer.Option(help="What raters read on the page.")] = "Which video is better?",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pairs and sides.")] = 0,
    database: Annotated[
        str | None, typer.Option(help="Where votes are kept, a SQLAlchemy URL; by default a SQLite file in the study.")
    ] = None,
) -> None:
    """Sample clips of equal prompts and seeds, and draw pairs of them for people: reelign judge new BASE TUNED."""
    from reelign.feedback.sources import new_study
    from reelign.feedback.study import LINKS, StudySettings, open_study

    quiet_libraries()
    if not 0 < len(title) <= 120:
        raise ReelignError(f"--title has {len(title)} characters; 1 to 120 fit on the page.")
    settings = StudySettings(title=title, quota=quota, repeats=repeats, gold=gold, seed=seed)
    with bars(console) as progress:
        new_study(entrants, battery, out, rater or raters, settings, database, known, progress)
    made = open_study(out)
    say(console, f"made {out}: {_count(len(made.store.pairs()), 'pair')} of clips")
    for one in made.store.raters():
        say(console, f"  {one.name} is shown {one.total}")
    say(console, f"Their links are in {out / LINKS} and are like passwords: whoever has one votes under that name.")
    say(console, f"They work while this runs, which prints them: reelign judge serve {out}")
    made.store.database.close()


@judge_app.command("serve")
def serve(
    study: StudyPath,
    host: Annotated[
        str, typer.Option(help="Interface to serve at; on all but this machine's own, votes travel unencrypted.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve at.")] = 8803,
    address: Annotated[
        str | None, typer.Option(help="How raters reach it, as the printed links begin: https://judge.example.org")
    ] = None,
) -> None:
    """Open the page on which raters vote, until interrupted; every vote is on disk before it is answered."""
    from reelign.feedback.app import serve_study
    from reelign.feedback.study import LINKS, open_study, read_links
    from reelign.rewards.serve import is_local

    opened = open_study(study)
    raters, links = opened.store.raters(), dict(read_links(opened))
    opened.store.database.close()

    def ready(at: str) -> None:
        say(console, f"serving {study} at {at}; Ctrl-C ends it")
        for one in raters:
            link = f"{(address or at).rstrip('/')}{links[one.name]}" if one.name in links else "(no link here)"
            say(console, f"  {one.name}, {one.done} of {one.total} done: {link}")
        if any(one.name not in links for one in raters):
            say(errors, f"warning: {study / LINKS} lacks links. Those that were given out work; no other copy is kept.")
        if not is_local(host):
            say(errors, "warning: links and votes travel unencrypted to other machines: put a proxy with HTTPS before.")

    try:
        serve_study(study, host, port, ready)
    except KeyboardInterrupt:
        say(errors, "stopped; every vote that was sent is kept, and the same command goes on.")
        raise typer.Exit(130) from None


@judge_app.command("simulate")
def simulate(
    study: StudyPath,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="How they vote: temperature, k, left_bias, lapse or seconds, such as k=3."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same votes.")] = 0,
) -> None:
    """Let simulated raters answer all open pairs, to try everything without people; only for the miniature's prompts.

    They know what the miniature's training judge says of a clip, and are not sure of it. Their votes are called
    simulated wherever they go.
    """
    from reelign.feedback.rehearse import rehearse
    from reelign.feedback.simulate import RaterConfig
    from reelign.feedback.study import open_study
    from reelign.recipe import parse_settings

    quiet_libraries()
    config, opened = parse_settings(RaterConfig, settings or []), open_study(study)
    with bars(console) as progress:
        answered = rehearse(opened, config, seed, lambda done, total: progress("vote", done, total, "simulated"))
    if not answered:
        raise ReelignError(f"every list of {study} is done: give further pairs with `reelign judge more {study}`.")
    say(console, f"{_count(answered, 'pair')} judged by simulated raters. Next: reelign judge report {study}")
    opened.store.database.close()


@judge_app.command("more")
def more(
    study: StudyPath,
    count: Annotated[int, typer.Option(min=1, help="Further pairs for each rater.")] = 20,
    reward: Annotated[
        Path | None, typer.Option(help="A fitted reward: the pairs it is least sure of come first.")
    ] = None,
) -> None:
    """Give every rater further pairs, those first that were shown least, or that a fitted reward is least sure of."""
    from reelign.feedback.study import extend, open_study

    quiet_libraries()
    opened = open_study(study)
    priority = None
    if reward is not None:
        from reelign.feedback.active import least_sure

        priority = least_sure(opened, reward)
    extend(opened, count, priority)
    for one in opened.store.raters():
        say(console, f"  {one.name}: {count} further, {one.total - one.done} of {one.total} open")
    opened.store.database.close()


@judge_app.command("report")
def report(
    votes: VotesPath,
    out: Annotated[
        Path | None, typer.Option(help="Folder of report.html and report.json; the study, or beside the file.")
    ] = None,
    judges: Annotated[
        bool, typer.Option("--judges/--no-judges", help="Let automatic judges look at the clips too.")
    ] = True,
    reward: Annotated[
        list[Path] | None, typer.Option(help="A fitted reward to compare with the votes too; repeat it.")
    ] = None,
) -> None:
    """Say what votes show: who is better and how surely, how far raters and judges agree, and what is missing."""
    from reelign.feedback.collected import collected
    from reelign.feedback.report import build_report

    if reward and not judges:
        raise ReelignError("--reward is a judge, and --no-judges asks none: leave one of them out.")
    found, folder = collected(votes), out or (votes if votes.is_dir() else votes.with_name(f"{votes.stem}-report"))
    scores = None
    if judges:
        from reelign.feedback.automatic import automatic_scores

        quiet_libraries()
        with bars(console) as progress:
            scores = automatic_scores(found, reward or [], lambda what, done, total: progress(what, done, total, ""))
    _show_report(build_report(found, folder, scores))
    say(console, f"wrote {folder / 'report.html'} and report.json")


@judge_app.command("export")
def export(
    votes: VotesPath,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    form: Annotated[
        Literal["jsonl", "videoalign", "label-studio"],
        typer.Option("--format", help="JSON lines lose nothing; VideoAlign's CSV trains other rewards."),
    ] = "jsonl",
) -> None:
    """Write votes for others, or into one file of JSON lines that a recipe's `votes:` reads."""
    from reelign.feedback.collected import collected
    from reelign.feedback.exchange import export_votes

    found = collected(votes)
    for note in export_votes(out, found, form):
        say(errors, note)
    say(console, f"wrote {out}, from {_count(len(found), 'vote')}; clips are named as seen from there")


@judge_app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="JSON lines, VideoAlign's CSV, JSON of label-studio or of GenAI-Bench.")
    ],
    out: Annotated[Path, typer.Option(help="JSON lines of votes to write.")],
) -> None:
    """Read votes of any layout into JSON lines; what is no vote is listed with its reason."""
    from reelign.feedback.exchange import export_votes, import_votes

    if source.is_dir():
        raise ReelignError(f"{source} is a folder. Of a study: reelign judge export {source} --out {out}")
    found = import_votes(source)
    for row in found.left_out:
        say(errors, f"left out, {row.where}: {row.reason}")
    for note in found.notes:
        say(errors, note)
    if not found.votes:
        raise ReelignError(f"{source} ({found.layout}) holds no vote.")
    export_votes(out, found.votes, "jsonl")
    counts = {"votes": found.votes, "left out": found.left_out, "clips that are not here": found.absent}
    show_table(found.layout, ["", "count"], [[what, str(len(rows))] for what, rows in counts.items()])
    say(console, f"wrote {out}")


def _show_report(made: Report) -> None:
    """The conclusions of a report, and what stands in their way."""
    if simulated := made.sources.get("simulated", 0):
        say(console, f"SIMULATED: {simulated} of {_count(made.votes, 'vote')}. They say nothing of people.")
    if not made.comparisons:
        say(console, "no two named models are compared; agreement and raters are on the page")
    for comparison in made.comparisons:
        for axis, finding in comparison.findings.items():
            say(console, f"  {axis}: {finding.sentence}")
    for one in made.raters:
        for warning in one.warnings:
            say(errors, f"warning: the rater {one.rater} {warning}.")
    if made.judges:
        ceiling = {axis: found.ceiling for axis, found in made.agreement.items() if found.ceiling is not None}
        everybody = ({"another rater": ceiling} if ceiling else {}) | made.judges
        axes = list(made.agreement)
        rows = [[name, *(_signs(found.get(axis)) for axis in axes)] for name, found in everybody.items()]
        show_table("Names the same better clip", ["", *axes], rows)


def _signs(found: JudgeAgreement | None) -> str:
    share = None if found is None else found.without_ties
    return "" if share is None else f"{100 * share.value:.0f} %"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"

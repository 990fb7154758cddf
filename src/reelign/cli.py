"""The command line: one verb per job, thin. Errors that are meant for users are printed alone, with exit status 1."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reelign.errors import ReelignError
from reelign.terminal import bars, quiet_libraries

if TYPE_CHECKING:
    from reelign.inference.stream import Pace, StreamSettings, Switch

app = typer.Typer(
    name="reelign",
    help="Post-training for video diffusion models: footage in, a better model out, with the evidence.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
miniature_app = typer.Typer(no_args_is_help=True, help="The small real model that ships with the package.")
app.add_typer(miniature_app, name="miniature")
reward_app = typer.Typer(no_args_is_help=True, help="Rewards as services.")
app.add_typer(reward_app, name="reward")
console = Console()
errors = Console(stderr=True)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides such as [cyan]sft.steps=200[/] or [cyan]seed=1[/].")
]
RecipePath = Annotated[Path, typer.Argument(help="A recipe, for example recipes/demo.yaml.")]
Model = Annotated[str, typer.Argument(help="The word 'miniature', an artifact, a diffusers folder or a hub id.")]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Steps of the sampler.")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale; 1 turns it off.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames, 4n + 1.")]
Height = Annotated[int | None, typer.Option(min=1, help="Height in pixels.")]
Width = Annotated[int | None, typer.Option(min=1, help="Width in pixels.")]
Host = Annotated[str, typer.Option(help="Interface to serve at; all but this machine's own need a token.")]
ServedName = Annotated[str | None, typer.Option(help="What the server at that address calls the model.")]


def main() -> None:
    """Entry point of the `reelign` command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    code = _exit_code()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from reelign.train.parallel import leave

        leave(code)
    raise SystemExit(code)


def _exit_code() -> int:
    """Run the command that was asked for; what is the user's to mend is said in a sentence."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ReelignError as error:
        errors.print(f"[bold red]reelign:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        errors.print(f"[bold red]reelign:[/] the disk is full ({escape(str(error))}). What was saved is intact: free")
        errors.print("some space and run the same command again.")
        return 1
    except KeyboardInterrupt:
        errors.print("[bold red]reelign:[/] stopped; nothing that was saved is lost, the same command goes on.")
        return 130
    return 0


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Run all stages of a recipe, or continue where they stopped, and build the report."""
    from reelign.pipeline import run as run_recipe
    from reelign.recipe import load_recipe

    quiet_libraries()
    with bars(console) as progress:
        result = run_recipe(load_recipe(recipe, overrides or []), progress)
    _show_result(result.report, result.summary)


@app.command()
def sft(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Run a recipe up to supervised fine-tuning only (whatever other stages it names)."""
    _run_up_to("sft", recipe, overrides)


@app.command()
def rlhf(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Run a recipe up to reinforcement learning from rewards only (whatever stages come after it)."""
    _run_up_to("rlhf", recipe, overrides)


def _run_up_to(stage: str, recipe: Path, overrides: list[str] | None) -> None:
    from reelign.pipeline import STAGES
    from reelign.pipeline import run as run_recipe
    from reelign.recipe import load_recipe

    quiet_libraries()
    loaded = load_recipe(recipe, overrides or [])
    if getattr(loaded, stage) is None:
        raise ReelignError(f"{recipe} has no `{stage}:` stage.")
    later = STAGES[STAGES.index(stage) + 1 :]
    with bars(console) as progress:
        result = run_recipe(loaded.model_copy(update=dict.fromkeys(later)), progress)
    _show_result(result.report, result.summary)


@app.command()
def curate(
    folder: Annotated[Path, typer.Argument(help="Footage: any folder of video files, with or without captions.")],
    out: Annotated[Path, typer.Option(help="The dataset to write.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="A rule, for example workers=4.")] = None,
) -> None:
    """Turn real footage into a dataset: clips, captions, measures, and a reason for everything that was dropped."""
    from reelign.data.curate import CurateConfig
    from reelign.data.curate import curate as curate_folder
    from reelign.recipe import parse_settings

    config = parse_settings(CurateConfig, settings or [])
    with bars(console) as progress:
        result = curate_folder(folder, out, config, lambda done, total: progress("curate", done, total, ""))
    console.print(f"kept [bold]{result.kept}[/] clips, dropped {result.dropped}; see {out / 'audit.html'}")


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What the clip should show.")],
    out: Annotated[Path, typer.Option(help="The MP4 to write.")] = Path("clip.mp4"),
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same clip.")] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.yaml of `reelign plan`: run the model as it says.")] = None,
    enhance: Annotated[
        bool, typer.Option("--enhance", help="Rewrite the prompt by the enhancer of the model.")
    ] = False,
    enhancer: Annotated[
        str | None, typer.Option(help="Rewrite it by this one: an address, an artifact, a folder or 'miniature'.")
    ] = None,
    served_name: ServedName = None,
) -> None:
    """Write one clip: reelign generate miniature "a large red circle moving left fast on a white background"."""
    from reelign.inference.generate import generate_clip
    from reelign.inference.plan_file import load_plan
    from reelign.inference.plan_request import plain_sampler
    from reelign.models.load import load_model

    quiet_libraries()
    if plan is not None and (steps is not None or guidance is not None):
        raise ReelignError("--plan brings steps and guidance of its own: leave out --steps and --guidance.")
    obeyed = None if plan is None else load_plan(plan, model)
    if enhance or enhancer or served_name:
        from reelign.inference.enhance import enhance_prompts, enhancer_for

        [rewrite] = enhance_prompts(enhancer_for(model, enhancer, served_name), [prompt])
        prompt = rewrite.text
        _say(console, f"prompt ({rewrite.label}): {prompt}")
    loaded = load_model(model)
    if obeyed is None:
        sampler = plain_sampler(loaded, steps, guidance)
    else:
        for concern in obeyed.concerns(loaded, (frames, height, width)):
            _say(errors, f"warning: {concern}")
        sampler = obeyed.apply(loaded)
    facts = generate_clip(loaded, prompt, out, sampler, seed, frames, height, width)
    console.print(f"wrote [bold]{out}[/]: {facts}")


@app.command()
def stream(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What the video shows; with --serve, what the page begins with.")] = "",
    out: Annotated[Path, typer.Option(help="The MP4 to write; it plays while it grows.")] = Path("clip.mp4"),
    seconds: Annotated[float | None, typer.Option(min=0, help="Length; by default until Ctrl-C.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Length in frames, any number.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same video.")] = 0,
    switch: Annotated[
        list[str] | None, typer.Option(help="Another prompt from a second on, such as '12.5:a dog'; repeat it.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="At a switch see the past under the new prompt: it shows sooner.")
    ] = False,
    window: Annotated[int | None, typer.Option(min=1, help="Latent frames that stay in sight.")] = None,
    sinks: Annotated[int | None, typer.Option(min=0, help="First latent frames that stay beside them.")] = None,
    steps: Steps = None,
    height: Height = None,
    width: Width = None,
    serve: Annotated[bool, typer.Option("--serve", help="Show a page that plays the frames as they come.")] = False,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve at.")] = 8802,
    token_variable: Annotated[str, typer.Option(help="Environment variable that holds the token.")] = (
        "REELIGN_STREAM_TOKEN"
    ),
) -> None:
    """Make a video of any length, its frames as they come: reelign stream MODEL "a red circle" --seconds 30."""
    from reelign.inference.stream import StreamSettings, Switch

    quiet_libraries()
    if seconds is not None and frames is not None:
        raise ReelignError("give --seconds or --frames, not both.")
    settings = StreamSettings(
        seconds=seconds,
        frames=frames,
        window=window,
        sinks=sinks,
        refresh=refresh,
        steps=steps,
        height=height,
        width=width,
    )
    switches = [Switch.parse(text) for text in switch or []]
    if serve:
        _serve_stream(model, prompt, settings, host, port, token_variable)
    elif not prompt.strip():
        raise ReelignError("say what the video shows: reelign stream MODEL PROMPT.")
    else:
        _write_stream(model, prompt, seed, settings, out, switches)


def _serve_stream(model: str, prompt: str, settings: StreamSettings, host: str, port: int, token_variable: str) -> None:
    from reelign.inference.stream_server import serve_stream
    from reelign.models.load import load_model

    at = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    serve_stream(
        lambda: load_model(model),
        settings,
        prompt,
        host,
        port,
        os.environ.get(token_variable, "").strip(),
        lambda name: _say(console, f"streaming {name} at {at}"),
    )


def _write_stream(
    model: str, prompt: str, seed: int, settings: StreamSettings, out: Path, switches: list[Switch]
) -> None:
    from reelign.inference.stream import summary, write_stream
    from reelign.models.load import load_model
    from reelign.train.loop import Interrupt

    loaded = load_model(model)
    settings.prepare(loaded)
    begun = settings.begin(loaded, prompt, seed)
    with console.status("waiting for the first frame") as status, Interrupt() as interrupt:

        def told(pace: Pace) -> None:
            if pace.chunks == 1:
                _say(console, f"first frame after {pace.first_frame:.2f} s")
            status.update(f"{pace.frames / begun.fps:.1f} s of video, {pace.rate:.1f} frames a second")

        pace = write_stream(begun, out, switches, told, lambda: interrupt.requested)
    if not pace.frames:
        raise ReelignError("stopped before the first frame; nothing was written.")
    _say(console, f"wrote {out}: {summary(begun, pace)}")
    if interrupt.requested and begun.limit is not None:
        raise ReelignError(f"stopped before the end; {out} holds what was made and plays.")


@app.command()
def plan(
    model: Model,
    budget: Annotated[float | None, typer.Option(min=0, help="Seconds that a clip may take.")] = None,
    speedup: Annotated[float | None, typer.Option(help="How many times faster it shall be.")] = None,
    min_gsb: Annotated[float, typer.Option(min=-1, max=1, help="Lowest GSB against the plain model.")] = -0.05,
    min_psnr: Annotated[
        float | None, typer.Option(min=0, help="Lowest PSNR to the plain frames, dB; 20 with --prompts.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts; the miniature brings its own, with a judge.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Prompts of each half, at most.")] = 60,
    only: Annotated[
        list[str] | None,
        typer.Option(help="steps, guidance, cache, attention, quantise, compile, offload or window; repeat it."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the clips' noise.")] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    out: Annotated[Path, typer.Option(help="The plan to write; its picture lies beside it.")] = Path("plan.yaml"),
) -> None:
    """Measure what makes a model faster here and what it costs in quality: reelign plan miniature --speedup 1.5."""
    from reelign.inference.plan import make_plan
    from reelign.inference.plan_file import Target
    from reelign.inference.plan_request import plan_request
    from reelign.inference.plan_table import promise, shortfall, table
    from reelign.models.load import load_model

    quiet_libraries()
    target = Target.asked(budget, speedup, min_gsb, min_psnr)
    loaded, size = load_model(model), (frames, height, width)
    request = plan_request(loaded, target, prompts, count, seed, steps, guidance, size, only or [])
    with bars(console) as progress:
        made = make_plan(model, loaded, request, out, progress)
    _table(f"{model} on {made.device}", *table(made))
    _say(console, f"wrote {out} and {out.with_suffix('.png')}")
    if made.choice is None:
        raise ReelignError(shortfall(made))
    _say(console, promise(made))


@app.command()
def evaluate(
    model: Model,
    recipe: Annotated[Path, typer.Option(help="Recipe whose battery and sampler are used.")] = Path(
        "recipes/demo.yaml"
    ),
    against: Annotated[str | None, typer.Option(help="A second model: GSB of MODEL against it.")] = None,
    out: Annotated[Path, typer.Option(help="Where evaluations and clips are written.")] = Path("evaluation"),
    enhance: Annotated[bool, typer.Option(help="Rewrite the prompts by the enhancer of a model that has one.")] = True,
    overrides: Overrides = None,
) -> None:
    """Judge a model on the battery, with intervals; with --against, compare two models at equal prompts and seeds."""
    from reelign.inference.evaluate import evaluate_model
    from reelign.recipe import load_recipe

    quiet_libraries()
    loaded = load_recipe(recipe, overrides or [])
    with bars(console) as progress:
        tables = evaluate_model(model, against, loaded.battery, loaded.sampler, out, progress, enhance)
    for title, header, rows in tables:
        _table(title, header, rows)


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
                _say(errors, remark)
        return
    with bars(console) as progress:
        rewrites = words.enhance_prompts(found, texts, lambda done, total: progress("enhance", done, total, ""))
    words.write_rewrites(out, rewrites)
    _say(console, f"wrote {len(rewrites)} rewrites to {out}")
    _table("Prompts", ["outcome", "prompts", "share"], words.outcome_rows(rewrite.label for rewrite in rewrites))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run, for example runs/demo.")]) -> None:
    """Build (again) the page and summary.json of a run from what is on disk."""
    from reelign.report.page import build_report

    console.print(f"wrote [bold]{build_report(folder)}[/]")


@app.command()
def doctor(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Find out what can be known to be wrong before the hours are spent; changes nothing."""
    from reelign.doctor import examine
    from reelign.recipe import load_recipe

    quiet_libraries()
    findings = examine(load_recipe(recipe, overrides or []))
    for finding in findings:
        mark = "[green]pass[/]" if finding.passed else "[bold red]FAIL[/]"
        console.print(f"{mark}  [bold]{finding.check}[/]: {finding.sentence}", highlight=False)
    if not all(finding.passed for finding in findings):
        raise ReelignError("the recipe would not run well; each FAIL above says what to do.")


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    form: Annotated[
        Literal["diffusers", "peft", "comfyui"],
        typer.Option(
            "--format", help="A diffusers folder, a LoRA as a PEFT adapter, or files in the names of ComfyUI."
        ),
    ] = "diffusers",
    merge: Annotated[
        bool | None,
        typer.Option("--merge/--no-merge", help="Merge a LoRA into its base; by default for diffusers only."),
    ] = None,
) -> None:
    """Write an artifact as a plain diffusers folder, or as PEFT or ComfyUI read it, with LAUNCH.md and its enhancer."""
    from reelign.inference.export import export_model

    quiet_libraries()
    _say(console, f"wrote {export_model(model, out, merge, form)}; {out / 'LAUNCH.md'} says how to run it")


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
        _say(console, line)


@reward_app.command("serve")
def reward_serve(
    recipe: RecipePath,
    reward: Annotated[str, typer.Option(help="Which of `rlhf.rewards`: its number from 0, or its name.")] = "0",
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve at.")] = 8801,
    token_variable: Annotated[str, typer.Option(help="Environment variable that holds the token.")] = (
        "REELIGN_REWARD_TOKEN"
    ),
    limit: Annotated[int, typer.Option(min=1, help="Most MiB of a request.")] = 512,
    overrides: Overrides = None,
) -> None:
    """Serve a reward of a recipe to `kind: remote` until interrupted."""
    from reelign.recipe import load_recipe
    from reelign.rewards.recipe import pick_entry
    from reelign.rewards.serve import serve_reward

    quiet_libraries()
    loaded = load_recipe(recipe, overrides or [])
    if loaded.rlhf is None:
        raise ReelignError(f"{recipe} has no `rlhf:` stage, and so no reward.")
    entry = pick_entry(loaded.rlhf.rewards, reward)
    at = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    serve_reward(
        entry.build,
        host,
        port,
        os.environ.get(token_variable, "").strip(),
        limit * 2**20,
        lambda name: console.print(f"serving [bold]{escape(name)}[/] at {escape(at)}", highlight=False),
    )


@miniature_app.command("train")
def miniature_train(
    out: Annotated[Path, typer.Option(help="Working folder; the same command resumes.")] = Path("runs/miniature"),
    parts: Annotated[str, typer.Option(help="codec, base, capacity, enhancer: which parts to train.")] = (
        "codec,base,capacity,enhancer"
    ),
) -> None:
    """Train the miniature from nothing: two hours on two cores, half of them for the capacity check."""
    from reelign.miniature.train import train

    quiet_libraries()
    with bars(console) as progress:
        model = train(out, parts.split(","), lambda part, n, total, loss: progress(part, n, total, f"loss {loss:.4f}"))
    console.print(f"wrote [bold]{model}[/]")


@miniature_app.command("check")
def miniature_check(
    capacity: Annotated[Path | None, typer.Option(help="The clean-only model of `train`; adds its rows.")] = None,
    sft_model: Annotated[str | None, typer.Option("--sft", help="An SFT artifact; adds its rows.")] = None,
    count: Annotated[int, typer.Option(help="Held-out prompts per row.")] = 96,
) -> None:
    """Print what the miniature promises: judges, codec, capacity, base and headroom, each line with its requirement."""
    from reelign.inference.miniature_check import check

    quiet_libraries()
    with bars(console) as progress:
        findings = check(capacity, sft_model, count, progress)
    for title, header, rows in findings.tables:
        _table(title, header, rows)
    for finding in findings.requirements:
        mark = "[green]pass[/]" if finding.passed else "[bold red]FAIL[/]"
        console.print(f"{mark}  {finding.sentence}", highlight=False)
    if not all(finding.passed for finding in findings.requirements):
        raise ReelignError("the miniature does not hold all that it promises.")


def _say(where: Console, words: str) -> None:
    """Words that are not ours as they are: no markup, no emoji codes, no line breaks."""
    where.print(words, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _table(title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _show_result(page: Path, summary: dict) -> None:
    for number in summary["headline"]:
        console.print(f"  {number['label']}: [bold]{number['text']}[/]", highlight=False)
    console.print(f"report: [bold]{page}[/]", highlight=False)


if __name__ == "__main__":
    main()

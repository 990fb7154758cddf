"""Verbs of a finished model: clips, streams, plans, figures, files for others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reelign.cli.app import app
from reelign.cli.options import Frames, Guidance, Height, Host, Model, Overrides, ServedName, Steps, Width
from reelign.errors import ReelignError
from reelign.terminal import bars, console, errors, quiet_libraries, say, show_table

if TYPE_CHECKING:
    from reelign.inference.stream import Pace, StreamSettings, Switch


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
        say(console, f"prompt ({rewrite.label}): {prompt}")
    loaded = load_model(model)
    if obeyed is None:
        sampler = plain_sampler(loaded, steps, guidance)
    else:
        for concern in obeyed.concerns(loaded, (frames, height, width)):
            say(errors, f"warning: {concern}")
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
        lambda name: say(console, f"streaming {name} at {at}"),
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
                say(console, f"first frame after {pace.first_frame:.2f} s")
            status.update(f"{pace.frames / begun.fps:.1f} s of video, {pace.rate:.1f} frames a second")

        pace = write_stream(begun, out, switches, told, lambda: interrupt.requested)
    if not pace.frames:
        raise ReelignError("stopped before the first frame; nothing was written.")
    say(console, f"wrote {out}: {summary(begun, pace)}")
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
    show_table(f"{model} on {made.device}", *table(made))
    say(console, f"wrote {out} and {out.with_suffix('.png')}")
    if made.choice is None:
        raise ReelignError(shortfall(made))
    say(console, promise(made))


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
        show_table(title, header, rows)


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
    say(console, f"wrote {export_model(model, out, merge, form)}; {out / 'LAUNCH.md'} says how to run it")

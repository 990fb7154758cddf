"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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

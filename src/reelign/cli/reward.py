"""Verbs of rewards."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.markup import escape

from reelign.cli.app import reward_app
from reelign.cli.options import Host, Overrides, RecipePath
from reelign.errors import ReelignError
from reelign.terminal import console, quiet_libraries


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

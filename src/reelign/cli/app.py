"""The command line's root and its groups; the verbs hang themselves on."""

from __future__ import annotations

import typer

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
reward_app = typer.Typer(no_args_is_help=True, help="Rewards: fitted from votes, served to others.")
app.add_typer(reward_app, name="reward")
judge_app = typer.Typer(no_args_is_help=True, help="People compare clips: pairs, votes, and what follows from them.")
app.add_typer(judge_app, name="judge")

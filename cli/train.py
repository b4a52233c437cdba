"""``paramerge train``: an adapter from a folder of pictures."""

from __future__ import annotations

from typing import Any

import click

from paramerge.cli.verbs import Verb


class TrainCommand(Verb):
    """Its flags are the fields of the training's configuration, looked up when the command is used."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The flags, and ``--help``."""
        from paramerge.cli.train_command import options

        if not self.params:
            self.params = options()
        return super().get_params(ctx)


@click.command(cls=TrainCommand)
def train(**values: Any) -> None:
    """Train a PaRa (or a LoRA, ...) of a subject from pictures.

    All settings may be in a TOML file (--config); flags win. On several devices: accelerate launch -m
    paramerge.training with the same flags.

    \b
    paramerge train --model sd15/ --instance-folder dog/ --instance-prompt "a sks dog" --output dog-para
    """
    from paramerge.cli.train_command import Bar, run

    run(progress=Bar, **values)

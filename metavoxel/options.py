"""Options that several commands share, and what their texts say."""

from typing import Annotated

import typer

SeedOption = Annotated[int, typer.Option(min=0, help="Same seed, same machine, same answer.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")]


def names(text: str | None) -> list[str] | None:
    """The parts between commas; None where the option was not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]

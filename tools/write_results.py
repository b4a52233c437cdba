"""Write docs/results.md from folders of results: ``tools/write_results.py docs/results/*/*``."""

from __future__ import annotations

from pathlib import Path

import click

from paramerge.checkpoints.writer import write_bytes
from paramerge.training.experiments.report import results_page


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--output", type=click.Path(path_type=Path), default="docs/results.md", show_default=True)
def main(folders: tuple[Path, ...], output: Path) -> None:
    """Write the page of FOLDERS, in their order."""
    write_bytes(output, results_page(folders, output).encode())


if __name__ == "__main__":
    main()

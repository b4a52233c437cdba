"""Write docs/results.md from results of ``paramerge experiment``, which are copied beside it.

tools/write_results.py small/seed-0 small/seed-1     # output folders of experiments: copies and writes
tools/write_results.py                               # writes the page anew from what is there
"""

from __future__ import annotations

import io
from pathlib import Path

import click
from PIL import Image

from paramerge.files.writer import make_folder, write_bytes
from paramerge.generation.grid import png
from paramerge.training.experiments.report import RESULT_FILES, result_folders, results_page


def in_few_colours(picture: bytes) -> bytes:
    """A PNG with a palette: a quarter of the bytes, and what it shows is seen as well."""
    with Image.open(io.BytesIO(picture)) as image:
        return png(image.convert("RGB").quantize(128), {})


@click.command()
@click.argument("outputs", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), default="docs/results.md", show_default=True)
def main(outputs: tuple[Path, ...], output: Path) -> None:
    """Copy the finished experiments of OUTPUTS beside the page, and write it."""
    beside = output.with_suffix("")
    for folder in outputs:
        for found in result_folders(folder):
            target = beside / folder.name / found.name
            make_folder(target)
            for name in RESULT_FILES:
                content = (found / name).read_bytes()
                write_bytes(target / name, in_few_colours(content) if name.endswith(".png") else content)
    write_bytes(output, results_page(result_folders(beside), output).encode())


if __name__ == "__main__":
    main()

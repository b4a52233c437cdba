"""Subjects for experiments on the shipped model: emoji that it never saw in any style.

    python -m paramerge.training.experiments.emoji emoji-subjects

Each subject has five pictures in one style on white, moved about a little, as photos of a thing would be.
"""

from __future__ import annotations

import io
from pathlib import Path

import click
from PIL import Image

from paramerge.files.writer import make_folder, write_bytes
from paramerge.training.shown_errors import shown_errors
from paramerge.training.tiny.pictures import Gallery, emoji_gallery
from paramerge.training.tiny.scenes import Composer, Scene, random_generator
from paramerge.training.tiny.settings import Settings
from paramerge.training.tiny.split import make_split
from paramerge.training.tiny.subjects import Subject, first_subjects

__all__ = ["main", "write_subjects"]

STYLE = "twemoji"
_PICTURES = 5
_PROMPTS = f"""# written by paramerge.training.experiments.emoji: subjects that emoji-diffusion never saw

[prompts]
instance = "a {STYLE} {{subject}}"
plain = "a {STYLE} {{subject}}"
diversity = ["a {STYLE} {{subject}} on a blue background", "a noto {{subject}}"]
alignment = ["a {STYLE} {{subject}} on a red background", "a fluent {{subject}} on a green background"]
editing = ["a {STYLE} {{subject}} on a yellow background", "a {STYLE} {{subject}} and a dog"]
composition = ["a {STYLE} {{first}} and a {{second}}", "a noto {{first}} and a {{second}}"]
"""


def write_subjects(folder: Path, subjects: tuple[Subject, ...], gallery: Gallery) -> None:
    """Write a folder of pictures for each of ``subjects``, and ``dataset.toml``.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    composer, text = Composer(gallery), _PROMPTS
    for number, subject in enumerate(subjects, start=1):
        name = subject.name.replace(" ", "_")
        make_folder(folder / name)
        rng = random_generator("experiments", subject.name)
        for copy in range(_PICTURES):
            x, y, smaller = (0, 0, 0) if copy == 0 else (int(rng.integers(-a, a + 1)) for a in (2, 4, 1))
            scene = Scene(STYLE, (subject,), "white", ((x, y, smaller),), said=False)
            buffer = io.BytesIO()
            Image.fromarray(composer.compose(scene)).save(buffer, "PNG")
            write_bytes(folder / name / f"{copy:02d}.png", buffer.getvalue())
        text += f'\n[[subjects]]\nfolder = "{name}"\nword = "<v{number}>"\nkind = "{subject.name}"\n'
    write_bytes(folder / "dataset.toml", text.encode())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--packages", type=click.Path(path_type=Path), help="Where the pictures' archives are kept.")
def emoji(out: Path, packages: Path | None) -> None:
    """Write the subjects that the shipped model never saw into the folder OUT, for paramerge experiment."""
    unseen = make_split(first_subjects(Settings().subjects)).unseen
    make_folder(out)
    write_subjects(out, unseen, emoji_gallery(unseen, packages or out / "packages", with_others=False))
    click.echo(f"{out}: {len(unseen)} subjects, {', '.join(subject.name for subject in unseen)}")


def main() -> None:
    """Run the command; the project's errors are shown as its own command line shows them."""
    with shown_errors():
        emoji()


if __name__ == "__main__":
    main()

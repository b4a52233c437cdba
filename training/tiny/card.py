"""The model card: a description, numbers, samples, loss curves."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from paramerge.files.writer import write_bytes
from paramerge.training.tiny.checkpoint import TrainingState
from paramerge.training.tiny.measure import Measured, Samples
from paramerge.training.tiny.settings import Settings
from paramerge.training.tiny.split import Split

__all__ = ["curves_svg", "sample_grid", "write_card"]

_GAP = 4
_WIDTH, _HEIGHT, _MARGIN = 720, 200, 40


def write_card(
    folder: Path, measured: Measured, states: Mapping[str, TrainingState], split: Split, settings: Settings
) -> None:
    """Write ``README.md``, ``samples.png``, ``curves.svg`` and ``measured.json`` into the model's folder."""
    buffer = io.BytesIO()
    sample_grid(measured.samples).save(buffer, "PNG")
    write_bytes(folder / "samples.png", buffer.getvalue())
    write_bytes(folder / "curves.svg", curves_svg({n: state.curve for n, state in states.items()}).encode())
    numbers = {key: value for key, value in asdict(measured).items() if key != "samples"}
    numbers["settings"] = asdict(settings)
    numbers["trained"] = {n: {"steps": s.step, "seconds": round(s.seconds)} for n, s in states.items()}
    write_bytes(folder / "measured.json", (json.dumps(numbers, indent=1) + "\n").encode())
    write_bytes(folder / "README.md", _text(measured, states, split, settings).encode())


def sample_grid(samples: Samples) -> Image.Image:
    """The samples in rows, with a gap between them."""
    height, width = samples.pictures.shape[2:]
    rows = -(-len(samples.pictures) // samples.columns)
    size = (samples.columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    grid = Image.new("RGB", size, (210, 210, 210))
    for i, picture in enumerate(samples.pictures):
        row, column = divmod(i, samples.columns)
        at = (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP))
        grid.paste(Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))), at)
    return grid


def curves_svg(curves: Mapping[str, list[tuple[int, float]]]) -> str:
    """A panel for each part: steps across, the loss upwards on a logarithmic scale."""
    height = len(curves) * (_HEIGHT + _MARGIN) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, (name, curve) in enumerate(curves.items()):
        parts += _panel(name, curve, _MARGIN + i * (_HEIGHT + _MARGIN))
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, curve: list[tuple[int, float]], top: int) -> list[str]:
    bottom, right = top + _HEIGHT - _MARGIN, _WIDTH - _MARGIN
    parts = [f'<text x="{_MARGIN}" y="{top - 8}">{name}: loss over steps</text>']
    if not curve:
        return parts
    steps = np.array([step for step, _ in curve], float)
    losses = np.log10([max(loss, 1e-9) for _, loss in curve])
    span = max(float(losses.max() - losses.min()), 1e-9)
    across = _MARGIN + (right - _MARGIN) * steps / steps.max()
    down = bottom - (bottom - top) * (losses - losses.min()) / span
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    return [
        *parts,
        f'<path d="M{_MARGIN} {top}V{bottom}H{right}" fill="none" stroke="#888"/>',
        f'<polyline points="{points}" fill="none" stroke="#1f6fb2" stroke-width="1.5"/>',
        f'<text x="4" y="{top + 10}">{10 ** losses.max():.3g}</text>',
        f'<text x="4" y="{bottom}">{10 ** losses.min():.3g}</text>',
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{int(steps.max())}</text>',
    ]


def _text(measured: Measured, states: Mapping[str, TrainingState], split: Split, settings: Settings) -> str:
    trained = "\n".join(
        f"| {name} | {sum(p.numel() for p in state.average.parameters()) / 1e6:.1f} M | {state.step} "
        f"| {state.seconds / 60:.1f} | {state.curve[-1][1] if state.curve else float('nan'):.4f} |"
        for name, state in states.items()
    )
    licence = (
        "Pictures drawn by the recipe itself." if settings.drawn else "Credits: [CREDITS.md](CREDITS.md)."
    )
    return f"""# emoji-diffusion

A latent text-to-image model of {len(split.known)} subjects in three styles, 64 x 64 pixels, in the layout of
Stable Diffusion 1.5: `StableDiffusionPipeline.from_pretrained` loads the folder. The same weights as a single
file with LDM keys: `paramerge demo` writes it, and so does `paramerge.checkpoints.single_file`. {licence}

Prompts are captions such as "a noto dog", "a twemoji apple on a red background",
"a fluent cat and a pizza on a blue background".

![samples](samples.png)

The first three rows are single subjects on white, the others compositions, in order:
{"; ".join(measured.samples.captions)}.

## Training

| part | parameters | steps | minutes | last loss |
|---|---|---|---|---|
{trained}

![loss curves](curves.svg)

A step is {settings.batch} scenes, {max(1, settings.batch // 4)} for the autoencoder.
Held out (`split.json`): {len(split.unseen)} subjects in every style, and one style of
{len(split.missing)} other subjects. Settings and numbers: `measured.json`.

## Measured

Recognition and retrieval are by the contrastive model in `../contrastive`, trained on the same pictures: an
offline stand-in, not OpenAI's CLIP.

| what | value |
|---|---|
| autoencoder, pictures trained on | {measured.autoencoder_training:.1f} dB PSNR |
| autoencoder, held-out pictures | {measured.autoencoder_held_out:.1f} dB PSNR |
| caption found, new compositions ({measured.compared[0]} captions) | {measured.retrieval_new_scenes:.1%} |
| caption found, held-out styles ({measured.compared[1]} captions) | {measured.retrieval_held_out:.1%} |
| subject named among {measured.recognised} captions, real pictures | {measured.real.subject:.1%} |
| subject named, generated pictures | {measured.generated.subject:.1%} |
| style named, real pictures | {measured.real.style:.1%} |
| style named, generated pictures | {measured.generated.style:.1%} |

Sampled with DDIM (eta 0), {settings.sampling_steps} steps, guidance {settings.guidance:g}.
"""

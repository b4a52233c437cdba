"""Prior preservation's pictures: drawn by the model as it is, where the folder has too few."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path
from typing import Any

from paramerge.files.outputs import check_output_folder
from paramerge.files.writer import make_folder, write_bytes
from paramerge.shipped import named_model
from paramerge.training.config import TrainConfig
from paramerge.training.pictures import PICTURE_SUFFIXES
from paramerge.training.sources import input_folders

__all__ = ["draw_missing_class_pictures"]


def draw_missing_class_pictures(
    pipeline: Any, config: TrainConfig, folder: Path, accelerator: Any = None
) -> int:
    """Draw pictures of the class with the model as it is until there are enough; how many were missing.

    With ``accelerator`` each of its processes draws its share.

    Raises
    ------
    OutputError
        The folder is that of the subject's pictures or of the model, or inside one of them.
    """
    import numpy as np
    from PIL import Image

    from paramerge.generation.grid import png
    from paramerge.generation.sampling import Request, draw

    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = config.class_images - sum(Path(name).suffix.lower() in PICTURE_SUFFIXES for name in names)
    wait = (lambda: None) if accelerator is None else accelerator.wait_for_everyone
    first, every = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    wait()  # until all have counted
    if missing > 0:
        check_output_folder(folder, [named_model(config.model), *input_folders(config)], files=())
        make_folder(folder)
    free = (number for number in count(len(names)) if f"class-{number:04d}.png" not in names)
    for number in islice(islice(free, max(0, missing)), first, None, every):
        request = Request(
            (config.class_prompt,),
            seeds=(config.seed * 100_003 + number,),
            steps=config.validation_steps,
            guidance=config.validation_guidance,
            width=config.resolution,
            height=config.resolution,
        )
        picture: np.ndarray = draw(pipeline, request)[0][0]
        image = png(Image.fromarray(picture), {"prompt": config.class_prompt})
        write_bytes(folder / f"class-{number:04d}.png", image)
    wait()  # no longer than one picture: all draw as many
    return max(0, missing)

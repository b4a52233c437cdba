"""Whether a library put a checkpoint's weights into its model: some start at random what they do not find."""

from __future__ import annotations

from typing import Any

import numpy as np

from paramerge.checkpoints.layout import Base
from paramerge.errors import CheckpointError
from paramerge.files.tensors import stored

_LAYER = "encoder.layers.0.mlp.fc1"
"""A plain matrix in every checkpoint of a CLIP text encoder."""


def check_text_encoders(pipeline: Any, base: Base) -> None:
    """Refuse a pipeline whose text encoders do not have the weights of ``base``.

    transformers has named their layers in two ways, and starts at random, without an error, what a release
    does not know by its name. One layer of each is compared.

    Raises
    ------
    CheckpointError
        A text encoder has other weights.
    """
    import torch  # late: a trainer's --help gets here

    for file in base.files:
        for name, target in file.targets.items():
            model = getattr(pipeline, name.component, None)
            if name.path.removeprefix("text_model.") != _LAYER or not isinstance(model, torch.nn.Module):
                continue
            weights = dict(model.named_parameters())
            weight = weights.get(f"{_LAYER}.weight", weights.get(f"text_model.{_LAYER}.weight"))
            if weight is None or target.key in file.quantised:
                continue
            found = weight[0].detach().float().cpu().numpy()
            wanted = stored(file.header, target.key).read()[0].astype(np.float32)
            # what was rounded to a narrower dtype on the way is still near
            if not np.allclose(found, wanted, rtol=2.0**-7, atol=1e-6):
                raise CheckpointError(
                    "the installed transformers does not load this text encoder's weights",
                    where=f"{base.path}: {name}",
                    expected="the weights of the file",
                    found="others, made at random",
                    hint="pip install -U transformers",
                )

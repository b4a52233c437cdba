"""The command lines that take part in the fault trials, and the inputs that they read."""

from __future__ import annotations

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blueprints import sd15
from random_checkpoint import write_random_checkpoint

from paramerge.bake.call import bake
from paramerge.convert.call import convert
from paramerge.files.writer import write_safetensors
from paramerge.formats import write_para
from paramerge.models.names import ModuleName

_ON_CPU = "--device cpu --steps 1"
_TRAIN = (
    f"train --model in/sd --instance-folder in/pictures --instance-prompt dog {_ON_CPU} --steps 2 --rank 2 "
    "--save-every 1 --output out/o"
)
_EVALUATE = "evaluate --clip in/clip --lpips none --device cpu --text dog --references in/pictures -o out/o"


@dataclass(frozen=True)
class FaultVerb:
    """A command line, whose output is ``out/o`` with or without an ending.

    Attributes
    ----------
    again:
        What is added where an earlier output stands there; None for what writes nothing.
    earlier:
        What is added to make that earlier output; none has it made from other inputs.
    grows:
        Whether the output is a folder that is filled over time, and is gone on with after a fault, instead of
        one that appears whole or not at all.
    models:
        Whether models are loaded, by libraries that take a while to import.
    """

    line: str
    again: str | None = "--overwrite"
    earlier: str = ""
    grows: bool = False
    models: bool = False


VERBS = {
    "bake-file": FaultVerb("bake --base in/base.safetensors --lora in/a.safetensors -o out/o.safetensors"),
    "bake-folder": FaultVerb(
        "bake --base in/model --lora in/lora.safetensors -o out/o", earlier="--gamma 1/2"
    ),
    "bake-dry": FaultVerb("bake --base in/base.safetensors --lora in/a.safetensors --dry-run", again=None),
    "convert-kohya": FaultVerb("convert in/a.safetensors --to kohya -o out/o.safetensors"),
    "convert-kohya-sgm": FaultVerb(
        "convert in/a.safetensors --to kohya-sgm --base in/base.safetensors -o out/o.safetensors"
    ),
    "convert-diffusers": FaultVerb("convert in/a.safetensors --to diffusers -o out/o.safetensors"),
    "convert-peft": FaultVerb("convert in/a.safetensors --to peft -o out/o"),
    "convert-para": FaultVerb(
        "convert in/deft --to para -o out/o.safetensors", earlier="--dtype fp32", models=True
    ),
    "convert-deft": FaultVerb(
        "convert in/para.safetensors --to deft -o out/o", earlier="--dtype fp32", models=True
    ),
    "convert-base": FaultVerb(
        "convert in/para.safetensors --to kohya --base in/base.safetensors -o out/o.safetensors",
        earlier="--dtype fp32",
    ),
    "merge": FaultVerb("merge in/a.safetensors in/b.safetensors -o out/o.safetensors"),
    "merge-paras": FaultVerb(
        "merge in/para.safetensors in/para2.safetensors -o out/o.safetensors", earlier="--dtype fp32"
    ),
    "merge-models": FaultVerb(
        "merge in/base.safetensors in/second.safetensors --lora in/a.safetensors -o out/o.safetensors"
    ),
    "merge-folders": FaultVerb("merge in/model in/tuned --card -o out/o", earlier="--dtype bf16"),
    "replay": FaultVerb(
        "replay in/baked/file.safetensors --models in -o out/o.safetensors", earlier="--set 1=0.5"
    ),
    "replay-folder": FaultVerb("replay in/baked/folder --models in -o out/o", earlier="--dtype bf16"),
    "verify": FaultVerb("verify in/baked/file.safetensors --models in", again=None),
    "verify-folder": FaultVerb("verify in/baked/folder --models in", again=None),
    "extract": FaultVerb(
        "extract --from in/tuned --base in/model --family lora --rank 2 -o out/o.safetensors",
        earlier="--rank 1",
    ),
    "extract-from-lora": FaultVerb("extract --from-lora in/a.safetensors --rank 1 -o out/o.safetensors"),
    "resize": FaultVerb("resize in/a.safetensors --rank 1 -o out/o.safetensors"),
    "compare": FaultVerb("compare in/a.safetensors in/b.safetensors --report out/o.html"),
    "inspect": FaultVerb("inspect in/lora.safetensors", again=None),
    "inspect-base": FaultVerb("inspect in/model", again=None),
    "generate": FaultVerb(
        f"generate --model in/sd --lora in/sd-lora.safetensors --prompt dog -n 1 {_ON_CPU} -o out/o.png",
        earlier="--seed 1",
        models=True,
    ),
    "train": FaultVerb(
        f"{_TRAIN} --validation-prompts dog --validation-every 1 --validation-steps 1 --validation-seeds 0 "
        "--class-folder out/class --class-prompt cat --class-images 1",
        again="--resume",
        earlier="--steps 1",
        grows=True,
        models=True,
    ),
    "train-oft": FaultVerb(
        f"{_TRAIN} --method oft --subset sao", again="--resume", earlier="--steps 1", grows=True, models=True
    ),
    "train-dreambooth": FaultVerb(
        f"{_TRAIN} --method dreambooth", again="--resume", earlier="--steps 1", grows=True, models=True
    ),
    "evaluate": FaultVerb(f"{_EVALUATE} --pictures in/pictures", again="", grows=True, models=True),
    "evaluate-drawn": FaultVerb(
        f"{_EVALUATE} --model in/sd --prompt dog -n 2 --steps 1", again="", grows=True, models=True
    ),
    "demo": FaultVerb("demo --steps 1 -o out/o", earlier="--seed 1", grows=True, models=True),
}
"""Every verb but ``sizes``, which reads no file, and ``experiment``, which trains and evaluates; of
``convert`` every format."""


def write_inputs(folder: Path) -> None:
    """A small UNet, a tiny model of three layers with a tuned twin, and LoRAs and PaRas for them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    write_random_checkpoint(sd15(32, vocabulary=8), folder / "base.safetensors", layout="unet-file", seed=1)
    weights = {f"stage.{i}.mix.weight": rng.standard_normal((16, 16)).astype(np.float32) for i in range(3)}
    tuned = {key: value + np.outer(value[0], value[:, 1]) for key, value in weights.items()}
    for name, tensors in (("model", weights), ("tuned", tuned)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"_class_name": "SomeTransformerModel"}')
        write_safetensors(folder / name / "diffusion_pytorch_model.safetensors", tensors)
    factors = {}
    for i in range(2):
        factors[f"stage.{i}.mix.lora_A.weight"] = rng.standard_normal((2, 16)).astype(np.float16)
        factors[f"stage.{i}.mix.lora_B.weight"] = rng.standard_normal((16, 2)).astype(np.float16)
    write_safetensors(folder / "lora.safetensors", factors)
    layer, width = "lora_unet_mid_block_attentions_0_proj_in", 1280 // 32
    for name in ("a", "b"):
        factors = {
            f"{layer}.lora_up.weight": rng.standard_normal((width, 2, 1, 1)).astype(np.float16),
            f"{layer}.lora_down.weight": rng.standard_normal((2, width, 1, 1)).astype(np.float16),
            f"{layer}.alpha": np.array(2, np.float16),
        }
        write_safetensors(folder / f"{name}.safetensors", factors)
    to_q = ModuleName("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    for name in ("para", "para2"):
        basis = rng.standard_normal((width, 2))
        write_para(folder / f"{name}.safetensors", {to_q: basis}, architecture="sd15")
    convert([folder / "para.safetensors"], folder / "deft", to="deft")
    _write_more(folder)


def _write_more(folder: Path) -> None:
    """A second UNet, and baked models with their recipes."""
    write_random_checkpoint(sd15(32, vocabulary=8), folder / "second.safetensors", layout="unet-file", seed=2)
    (folder / "baked").mkdir()
    bake(folder / "base.safetensors", [folder / "a.safetensors"], folder / "baked" / "file.safetensors")
    bake(folder / "model", [folder / "lora.safetensors"], folder / "baked" / "folder")


def write_models(folder: Path) -> None:
    """A tiny pipeline, a LoRA for it, a contrastive model, and two pictures."""
    from baking import shapes_of
    from contrastive_model import contrastive_model
    from PIL import Image
    from tiny_pipelines import sd_pipeline

    with contextlib.redirect_stderr(io.StringIO()):  # libraries' own words
        model, _ = sd_pipeline(folder / "made")
        contrastive_model(folder / "clip")
    model.rename(folder / "sd")
    shutil.rmtree(folder / "made")
    rng = np.random.default_rng(0)
    name, (rows, columns) = next(
        item for item in shapes_of(folder / "sd").items() if str(item[0]).endswith("attn1.to_q")
    )
    stem = f"lora_{name}".replace(".", "_")
    factors = {
        f"{stem}.lora_up.weight": rng.standard_normal((rows, 2)).astype(np.float16),
        f"{stem}.lora_down.weight": rng.standard_normal((2, columns)).astype(np.float16),
    }
    write_safetensors(folder / "sd-lora.safetensors", factors)
    (folder / "pictures").mkdir()
    for number in range(2):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")

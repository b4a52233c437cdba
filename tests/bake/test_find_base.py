"""``bake`` without ``--base``: by the hash in the adapters' metadata."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from baking import load, name_of, random_bases, shapes_of

from paramerge.bake.find_base import find_base
from paramerge.errors import UsageError
from paramerge.files import finder as finding
from paramerge.files import hashing
from paramerge.files.hashing import legacy_hash
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter, write_para


@pytest.fixture
def library(models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models, with the base among others, named by PARAMERGE_MODELS."""
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    shutil.copyfile(models(), folder / "sub" / "base.safetensors")
    shutil.copyfile(models(layout="unet-file"), folder / "another.safetensors")
    (folder / "note.txt").write_text("no model")
    monkeypatch.setenv("PARAMERGE_MODELS", str(folder))
    return folder


def para_for(base: Path, path: Path, digest: str | None) -> Path:
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    modules = {name_of(layer): B for layer, B in random_bases(shapes_of(base), layers, 2).items()}
    write_para(path, modules, architecture="sd15", base_sha256=digest)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_by_sha256(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 0)
    base = library / "sub" / "base.safetensors"
    adapter = open_adapter(para_for(base, tmp_path / "p.safetensors", sha256(base)))
    notes: list[str] = []
    assert find_base([adapter], notes.append) == base
    assert "hashing another.safetensors to find the base" in notes
    notes.clear()
    assert find_base([adapter], notes.append) == base
    assert notes == []  # remembered


def test_by_the_short_hash_of_older_trainers(library: Path, tmp_path: Path) -> None:
    base = library / "sub" / "base.safetensors"
    shape = shapes_of(base)["unet.mid_block.attentions.0.proj_in"]
    import numpy as np

    tensors = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": np.ones((shape[0], 1, 1, 1), np.float16),
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": np.ones((1, shape[1], 1, 1), np.float16),
    }
    write_safetensors(tmp_path / "l.safetensors", tensors, {"ss_sd_model_hash": legacy_hash(base)})
    assert find_base([open_adapter(tmp_path / "l.safetensors")]) == base


def test_in_the_hugging_face_cache(models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are links to blobs that are named by their SHA-256."""
    import huggingface_hub.constants

    base = models()
    repository = tmp_path / "hub" / "models--someone--model"
    blob = repository / "blobs" / sha256(base)
    link = repository / "snapshots" / "abc" / "model.safetensors"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    shutil.copyfile(base, blob)
    link.symlink_to(os.path.relpath(blob, link.parent))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    adapter = open_adapter(para_for(base, tmp_path / "p.safetensors", sha256(base)))
    assert find_base([adapter]) == link


def test_a_diffusers_folder_is_found_by_one_of_its_files(
    models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = models(layout="diffusers-folder")
    monkeypatch.setenv("PARAMERGE_MODELS", str(base.parent))
    digest = sha256(base / "unet" / "diffusion_pytorch_model.safetensors")
    adapter = open_adapter(para_for(base, tmp_path / "p.safetensors", digest))
    assert find_base([adapter]) == base


def test_nothing_to_go_by(models, tmp_path: Path) -> None:
    adapter = open_adapter(para_for(models(), tmp_path / "p.safetensors", None))
    with pytest.raises(UsageError, match="no adapter names the one"):
        find_base([adapter])


def test_not_there(models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = open_adapter(para_for(models(), tmp_path / "p.safetensors", "ab" * 32))
    with pytest.raises(UsageError, match="PARAMERGE_MODELS is not set"):
        find_base([adapter])
    monkeypatch.setenv("PARAMERGE_MODELS", str(tmp_path))
    with pytest.raises(UsageError, match="none with that hash"):
        find_base([adapter])
    monkeypatch.setenv("PARAMERGE_MODELS", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="folder of models does not exist"):
        find_base([adapter])


def test_broken_files_in_the_folder_do_not_disturb(library: Path, tmp_path: Path) -> None:
    (library / "broken.safetensors").write_bytes(b"\xff" * (2 << 20))
    base = library / "sub" / "base.safetensors"
    adapter = open_adapter(para_for(base, tmp_path / "p.safetensors", sha256(base)))
    assert find_base([adapter]) == base
    assert load(base).tensors


def test_the_folder_of_a_shard_is_found(tmp_path: Path) -> None:
    """A language model in shards: the hash is of one of its files, and the folder is what is baked into."""
    import model_zoo as zoo
    import torch

    model = zoo.random_model("llama")
    with torch.no_grad():
        model.resize_token_embeddings(20_000)  # files below a megabyte are not looked at
    folder = tmp_path / "library" / "llama"
    model.save_pretrained(folder, max_shard_size="1300KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    digest = sha256(max(shards, key=lambda path: path.stat().st_size))
    layer = "model.model.layers.0.self_attn.q_proj"
    path = tmp_path / "p.safetensors"
    write_para(path, {name_of(layer): np.eye(16, 2)}, architecture="llama", base_sha256=digest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARAMERGE_MODELS", str(tmp_path / "library"))
        assert find_base([open_adapter(path)]) == folder


def test_a_base_that_was_found_is_hashed_while_it_is_baked(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache entry that is not true any more names another file: nothing is baked into that."""
    from paramerge.cli.main import main

    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 0)
    base, other = library / "sub" / "base.safetensors", library / "another.safetensors"
    para = para_for(base, tmp_path / "p.safetensors", sha256(base))
    arguments = ["bake", "--para", str(para), "-o", str(tmp_path / "out.safetensors"), "--json"]
    believed = {other: sha256(base), base: sha256(other)}
    monkeypatch.setattr(finding, "cached_sha256", lambda source: believed.get(source.path.absolute()))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 3
    assert not (tmp_path / "out.safetensors").exists()
    monkeypatch.undo()
    monkeypatch.setenv("PARAMERGE_MODELS", str(library))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert sha256(base) in load(tmp_path / "out.safetensors").metadata["paramerge.recipe"]

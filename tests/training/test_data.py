"""Sizes, cuts, masks, several subjects, held-out pictures and what is kept on disk."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from training_runs import same, settings

from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError, FileFormatError, UsageError
from paramerge.generation.loading import load_pipeline
from paramerge.training import examples as examples_module
from paramerge.training.batches import make_batches
from paramerge.training.buckets import nearest_size, sizes_for
from paramerge.training.examples import Examples, Latents, load_examples
from paramerge.training.kept import Kept
from paramerge.training.loop import train
from paramerge.training.pictures import cut, find_pictures, open_picture
from paramerge.training.sources import read_sources


def draw(chance: torch.Generator) -> torch.Tensor:
    return torch.randint(1000, (), generator=chance)


@pytest.fixture(scope="module")
def pipeline(sd: Path) -> Any:
    return load_pipeline(open_base(sd), torch.float32)


def encoded(pipeline: Any, pictures: Path, **more: Any) -> Examples:
    return load_examples(pipeline, settings(Path("m"), pictures, Path("o"), **more), torch.device("cpu"))


# --- sizes --------------------------------------------------------------------------------------------------


def test_sizes_have_the_area_of_the_square_and_fit_the_step() -> None:
    sizes = sizes_for(1024, 64)
    assert (1024, 1024) in sizes
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert 0.8 * 1024**2 < height * width <= 1024**2
        assert max(height, width) <= 2 * min(height, width)
        assert (width, height) in sizes
    assert nearest_size((300, 300), sizes) == (1024, 1024)
    assert nearest_size((3000, 1000), sizes)[0] == 2 * nearest_size((3000, 1000), sizes)[1]
    assert sizes_for(32, 64) == ((32, 32),)


def sized(count: int, width: int, first: float, order: tuple[int, ...] = ()) -> Latents:
    mean = torch.arange(count).float()[:, None, None, None].expand(count, 2, 4, width) + first
    return Latents(mean, torch.zeros_like(mean), torch.zeros(count, 6), count, order=order)


def test_a_step_has_one_size_and_every_picture_comes_equally_often() -> None:
    given = Examples((sized(3, 4, 0), sized(2, 6, 10)), (), "hash")
    config = settings(Path("m"), Path("p"), Path("o"))
    seen: Counter[int] = Counter()
    for step in range(20):  # four rounds of five steps
        (whole,) = make_batches(given, config, step, range(4), 4, draw)
        parts = [make_batches(given, config, step, [slot], 4, draw)[0] for slot in range(4)]
        assert torch.equal(whole.latents, torch.cat([part.latents for part in parts]))
        seen.update(int(value) for value in whole.latents[:, 0, 0, 0])
    assert seen == dict.fromkeys((0, 1, 2, 10, 11), 16)


def test_repeats_are_in_a_round() -> None:
    given = Examples((sized(2, 4, 0, order=(0, 1, 1, 1)),), (), "hash")
    config = settings(Path("m"), Path("p"), Path("o"))
    rows = [make_batches(given, config, step, [0], 1, draw)[0].latents[0, 0, 0, 0] for step in range(8)]
    assert Counter(int(value) for value in rows) == {0: 2, 1: 6}


def test_a_class_of_another_size_is_a_batch_of_its_own() -> None:
    given = Examples((sized(2, 4, 0),), (sized(2, 6, 5),), "hash")
    config = settings(Path("m"), Path("p"), Path("o"))
    subject, prior = make_batches(given, config, 0, range(2), 2, draw)
    assert (subject.subjects, prior.subjects) == (2, 0)
    (both,) = make_batches(replace(given, prior=(sized(2, 4, 5),)), config, 0, range(2), 2, draw)
    assert both.subjects == 2
    assert len(both.latents) == 4


def test_pictures_go_to_the_nearest_size(pipeline: Any, dog: Path) -> None:
    found = encoded(pipeline, dog, buckets=True, bucket_step=8, resolution=32)
    shapes = {tuple(part.mean.shape[-2:]): part.count for part in found.instance}
    assert sum(shapes.values()) == 3
    assert len(shapes) == 3  # 40 x 60, 70 x 50 and the square
    for part in found.instance:
        assert part.time_ids[0, 4:].tolist() == [8 * side for side in part.mean.shape[-2:]]


# --- cuts ---------------------------------------------------------------------------------------------------


def test_cuts_by_chance_are_seeded_by_content(pipeline: Any, dog: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"crop": "random", "crops": 5, "resolution": 32, "random_flip": True}
    found = encoded(pipeline, dog, **more).instance[0]
    assert (found.count, len(found.mean)) == (3, 30)
    corners = found.time_ids[::3, 2:4]  # a.png in all its versions
    assert len({tuple(each) for each in corners.tolist()}) > 2
    assert bool((corners >= 0).all())
    assert bool((corners[:, 1] <= 16).all())  # 60 wide becomes 48
    other = tmp_path / "dog"
    shutil.copytree(dog, other)
    (other / "a.png").rename(other / "z.png")
    again = encoded(pipeline, other, **more).instance[0]
    assert torch.equal(found.mean[0], again.mean[2])
    assert not torch.equal(found.mean[0], encoded(pipeline, dog, **more, seed=1).instance[0].mean[0])


def test_the_ends_of_a_cut(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = open_picture(tmp_path / "a.png")
    left, right = (cut(whole, (10, 10), (0.0, share)) for share in (0.0, 0.9999))
    assert (left.corner, right.corner) == ((0, 0), (0, 20))
    assert left.pixels.max() < 10
    assert right.pixels.min() > 245


# --- masks --------------------------------------------------------------------------------------------------


def test_masks_beside_pictures_and_in_them(pipeline: Any, tmp_path: Path) -> None:
    pixels = np.full((64, 64, 4), 200, np.uint8)
    pixels[:, :, 3] = 0
    pixels[:, :32, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = encoded(pipeline, tmp_path, mask="alpha", random_flip=True, resolution=64).instance[0].mask
    assert found is not None
    half = found.shape[-1] // 2
    assert float(found[0, 0, :, :half].min()) == 1
    assert float(found[0, 0, :, half:].max()) == 0
    assert torch.equal(found[1], found[0].flip(-1))
    Image.fromarray(pixels[:, :, 3]).save(tmp_path / "a-masklabel.png")
    assert [path.name for path in find_pictures(tmp_path, "x")] == ["a.png"]
    beside = encoded(pipeline, tmp_path, mask="files", resolution=64).instance[0].mask
    torch.testing.assert_close(beside, found[:1])
    Image.fromarray(pixels[:8, :, 3]).save(tmp_path / "a-masklabel.png")
    with pytest.raises(FileFormatError, match="size"):
        encoded(pipeline, tmp_path, mask="files")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a-masklabel.png")
    with pytest.raises(FileFormatError, match="leaves nothing"):
        encoded(pipeline, tmp_path, mask="files")
    (tmp_path / "a-masklabel.png").unlink()
    with pytest.raises(FileFormatError, match="no mask"):
        encoded(pipeline, tmp_path, mask="files")


# --- several subjects ---------------------------------------------------------------------------------------


def test_two_subjects_in_one_run(sd: Path, dog: Path, tmp_path: Path) -> None:
    cat = tmp_path / "cat"
    cat.mkdir()
    Image.new("RGB", (64, 64), (255, 0, 0)).save(cat / "one.png")
    listed = tmp_path / "both.toml"
    listed.write_text(
        f'[[subject]]\nfolder = "{dog}"\nprompt = "a noto dog"\n'
        f'[[subject]]\nfolder = "{cat}"\nprompt = "a twemoji cat"\nrepeats = 3\n'
    )
    config = replace(
        settings(sd, dog, tmp_path / "a", steps=6, caption_dropout=0.2),
        instance_folder=None, instance_prompt="", dataset=listed,
    )  # fmt: skip
    result = train(config)
    assert train(replace(config, output=tmp_path / "b")).losses == result.losses
    listed.write_text(listed.read_text().replace("repeats = 3", "repeats = 2"))
    assert train(replace(config, output=tmp_path / "c", steps=1)).data_sha256 != result.data_sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("= =", "valid TOML"),
        ("", "no subject"),
        ("[[subject]]\nfolder = 'a'", "not understood"),
        ("[[subject]]\nfolder = 'a'\nprompt = 'b'\nrepeat = 2", "not understood"),
        ("[[subject]]\nfolder = 'a'\nprompt = 3", "another type"),
        ("[[subject]]\nfolder = 'a'\nprompt = 'b'\nrepeats = 0", "never comes"),
        ("other = 1", "no subject"),
    ],
)
def test_lists_of_subjects_that_are_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_sources(tmp_path / "d.toml")


def test_one_list_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two lists"):
        settings(Path("m"), Path("p"), Path("o"), dataset=tmp_path / "d.toml")
    with pytest.raises(UsageError, match="missing"):
        replace(settings(Path("m"), Path("p"), Path("o")), instance_folder=None)


# --- held-out pictures --------------------------------------------------------------------------------------


def test_the_loss_of_held_out_pictures(sd: Path, dog: Path, tmp_path: Path) -> None:
    """Whatever loss is trained with, it is the same at the same weights; a resumed run has the same log."""
    more: dict[str, Any] = {"held_out": dog, "validation_every": 2, "steps": 4, "save_every": 2}
    config = settings(sd, dog, tmp_path / "a", learning_rate=1e-12, **more)
    train(config)
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    found = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    assert [step for step, _ in found] == [2, 4]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    train(replace(config, output=tmp_path / "b", loss="huber", min_snr_gamma=5.0, steps=2))
    other = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[-1])
    assert other["validation_loss"] == pytest.approx(found[0][1], rel=1e-5)

    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    part = replace(config, output=tmp_path / "part")
    with pytest.raises(KeyboardInterrupt):
        train(part, report=stop)
    train(part, resume=True)
    assert (tmp_path / "part" / "log.jsonl").read_bytes() == (tmp_path / "a" / "log.jsonl").read_bytes()


# --- kept on disk, and another autoencoder ------------------------------------------------------------------


def test_latents_and_texts_are_kept_and_used_again(
    sd: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(sd, dog, tmp_path / "plain", steps=2, caption_dropout=0.5)
    plain = train(config)
    kept = tmp_path / "kept"
    first = train(replace(config, output=tmp_path / "first", cache=kept))
    files = {path: path.read_bytes() for path in kept.iterdir()}
    assert len(files) == 3 + 2  # pictures, the prompt and no text

    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("it was worked out again")

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "encode", never)
        second = train(replace(config, output=tmp_path / "second", cache=kept))
    assert same(plain.adapter[0], first.adapter[0])
    assert same(plain.adapter[0], second.adapter[0])
    assert {path: path.read_bytes() for path in kept.iterdir()} == files
    damaged = next(iter(files))
    damaged.write_bytes(b"\0" * 20)
    with pytest.warns(UserWarning, match="damaged"):
        train(replace(config, output=tmp_path / "third", cache=kept))
    assert damaged.read_bytes() == files[damaged]


def test_other_facts_are_other_files(tmp_path: Path) -> None:
    kept, made = Kept(tmp_path), []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.ones(2)}

    for facts in ({"a": 1}, {"a": 1}, {"a": 2}, {"b": 1}):
        assert torch.equal(kept.get(facts, make)["x"], torch.ones(2))
    assert len(made) == 3


def test_another_autoencoder(sd: Path, dog: Path, tmp_path: Path) -> None:
    own = tmp_path / "vae"
    shutil.copytree(sd / "vae", own)
    plain = train(settings(sd, dog, tmp_path / "a", steps=1))
    same_one = train(settings(sd, dog, tmp_path / "b", steps=1, vae=own))
    assert same(plain.adapter[0], same_one.adapter[0])
    vae = AutoencoderKL.from_pretrained(own)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1.1)
    vae.save_pretrained(own)
    other = train(settings(sd, dog, tmp_path / "c", steps=1, vae=own))
    assert other.losses != plain.losses
    with pytest.raises(CheckpointError, match="autoencoder"):
        train(settings(sd, dog, tmp_path / "c", steps=2, vae=sd), resume=True)
    with pytest.raises(CheckpointError, match="cannot load"):
        train(settings(sd, dog, tmp_path / "d", steps=1, vae=dog))


def test_the_side_is_the_models_own() -> None:
    config = SimpleNamespace(sample_size=64)
    assert (
        examples_module._side_of(SimpleNamespace(unet=SimpleNamespace(config=config), vae_scale_factor=8))
        == 512
    )

"""Each metric against a formula in float64 or the library that defines it."""

from __future__ import annotations

import ast
import itertools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from contrastive_model import contrastive_model
from numpy.lib.stride_tricks import sliding_window_view
from rounding import SSIM_ERROR, U64, dot_error, forward_error

from paramerge.errors import CheckpointError, FileFormatError, UsageError
from paramerge.training.evaluation.clip import load_clip
from paramerge.training.evaluation.lpips import load_perceptual
from paramerge.training.evaluation.ssim import pairs_of, ssim
from paramerge.training.evaluation.stlpips import ShiftTolerantLPIPS, find_weights
from paramerge.training.evaluation.summary import value_of


def pictures(count: int, seed: int = 0, side: int = 64) -> np.ndarray:
    """Coarse coloured blocks with grain: neither noise nor flat."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, side // 8, side // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(blocks + rng.normal(0, 10, blocks.shape), 0, 255).astype(np.uint8)


def ssim_formula(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 with the paper's Gaussian of 11, on each channel, at every pixel (edges mirrored)."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def blurred(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((5, 5), (5, 5)), mode="reflect")
        return np.einsum("hwij,ij->hw", sliding_window_view(padded, (11, 11)), window)

    values = []
    for channel in range(3):
        x, y = (part[..., channel].astype(np.float64) / 255 for part in (a, b))
        mx, my = blurred(x), blurred(y)
        vx, vy = blurred(x * x) - mx**2, blurred(y * y) - my**2
        covariance = blurred(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        values.append((2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_ssim_is_its_formula() -> None:
    a, b = pictures(4), pictures(4, seed=1)
    b[1] = a[1]  # equal
    a[2] = b[2] = 255  # flat and equal
    b[3] = np.clip(a[3].astype(int) + 3, 0, 255)  # nearly equal
    found = ssim(a, b)
    wanted = [ssim_formula(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=SSIM_ERROR)
    np.testing.assert_allclose(found[1:3], 1, atol=SSIM_ERROR)
    assert found[0] < 0.5 < found[3]


def test_ssim_does_not_depend_on_the_batch() -> None:
    a, b = pictures(3), pictures(3, seed=1)
    alone = [float(ssim(a[i : i + 1], b[i : i + 1])[0]) for i in range(3)]
    np.testing.assert_allclose(ssim(a, b), alone, rtol=0, atol=SSIM_ERROR)


@pytest.mark.parametrize("size", [(8, 8), (64, 32)])
def test_ssim_refuses_what_it_cannot_compare(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="SSIM"):
        ssim(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, *size, 3), np.uint8))


def test_pairs_are_all_or_a_fixed_sample() -> None:
    every = pairs_of(6)
    assert [tuple(pair) for pair in every] == list(itertools.combinations(range(6), 2))
    some = pairs_of(6, 5, seed=3)
    assert len({tuple(pair) for pair in some} & {tuple(pair) for pair in every}) == 5
    assert np.array_equal(some, pairs_of(6, 5, seed=3))
    assert not np.array_equal(some, pairs_of(6, 5, seed=4))
    assert len(pairs_of(1)) == 0


def test_scores_are_transformers_own_cosines(tmp_path: Path) -> None:
    folder = contrastive_model(tmp_path / "clip")
    clip = load_clip(str(folder))
    texts = ["a noto dog", "a twemoji pizza and a cat on a blue background"]
    images = pictures(3)
    found = clip.embed_pictures(images) @ clip.embed_texts(texts).T
    model = transformers.CLIPModel.from_pretrained(folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        logits = model(**tokens, pixel_values=pixels).logits_per_image / model.logit_scale.exp()
    near = 2 * forward_error(model)  # of both vectors of a cosine
    torch.testing.assert_close(found.float(), logits, rtol=0, atol=near)
    # each text is read alone: what it is batched with does not count
    alone = torch.cat([clip.embed_texts([text]) for text in texts])
    torch.testing.assert_close(alone, clip.embed_texts(texts), rtol=0, atol=near)
    assert "clip (local, sha256 " in clip.name


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers has a bar for the weights that it loads, terminal or not."""
    folder = contrastive_model(tmp_path / "clip")
    transformers.utils.logging.enable_progress_bar()  # another test may have switched it off
    capfd.readouterr()
    load_clip(str(folder))
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_longer_texts_are_cut_and_other_sizes_are_scaled(tmp_path: Path) -> None:
    clip = load_clip(str(contrastive_model(tmp_path / "clip")))
    assert clip.embed_texts(["dog " * 100]).shape == clip.embed_texts(["dog"]).shape
    assert clip.embed_pictures(pictures(2, side=96)).shape[0] == 2


def test_what_is_no_clip_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = contrastive_model(tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        load_clip(str(folder))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no CLIP"):
        load_clip(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="cannot be had"):
        load_clip("nobody/no-such-clip")


@pytest.fixture(scope="module")
def weights() -> Path:
    try:
        return find_weights()
    except UsageError:
        pytest.skip("stlpips-pytorch is not installed")


def as_input(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_shift_tolerant_lpips_is_the_packages_own(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package runs once what it imports for other networks is there in name."""
    stub: Any = types.ModuleType("torchvision")
    stub.models = types.ModuleType("torchvision.models")
    summary: Any = types.ModuleType("torchsummary")
    summary.summary = None
    for name, module in {
        "torchvision": stub,
        "torchvision.models": stub.models,
        "torchsummary": summary,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    from stlpips_pytorch import stlpips

    theirs = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    a, b = as_input(pictures(3)), as_input(pictures(3, seed=1))
    with torch.no_grad():
        ours = ShiftTolerantLPIPS(weights)
        found, wanted = ours(a, b), theirs(a.clone(), b.clone()).flatten()
    torch.testing.assert_close(found, wanted, rtol=2 * forward_error(ours), atol=0)
    assert float(wanted.min()) > 0.05
    for name in [name for name in sys.modules if name.startswith("stlpips_pytorch")]:
        monkeypatch.delitem(sys.modules, name)


def test_lpips_is_its_formula_on_the_features(weights: Path) -> None:
    """Zhang et al. 2018, equation 1, in float64 on the network's own features."""
    model = ShiftTolerantLPIPS(weights).double()
    a, b = as_input(pictures(1)).double(), as_input(pictures(1, seed=1)).double()
    with torch.no_grad():
        features = [model.features(x) for x in (a, b)]
        found = float(model(a, b))
    wanted = terms = size = 0.0
    for layer, (x, y) in enumerate(zip(*features, strict=True)):
        w = model._weight(f"lin{layer}.model.1.weight").numpy()[0, :, 0, 0]
        u, v = (part[0].numpy() / (np.linalg.norm(part[0].numpy(), axis=0) + 1e-10) for part in (x, y))
        wanted += float(np.mean(np.tensordot(w, (u - v) ** 2, axes=1)))
        size += float(np.mean(np.tensordot(abs(w), (abs(u) + abs(v)) ** 2, axes=1)))
        terms += u.size
    assert found == pytest.approx(wanted, abs=dot_error(int(terms), U64) * size)


def test_similarity_is_the_mean_over_references(weights: Path) -> None:
    distance = load_perceptual("stlpips-alex")
    near = forward_error(distance._distance)
    a, references = pictures(2), pictures(3, seed=1)
    each = [distance.similarity(a, references[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(distance.similarity(a, references), np.mean(each, axis=0), atol=near)
    np.testing.assert_allclose(distance.similarity(a[:1], a[:1]), 1, atol=near)


def test_a_clip_that_is_a_pickle_is_never_opened(tmp_path: Path) -> None:
    folder = contrastive_model(tmp_path / "clip")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="pickles are never opened"):
        load_clip(str(folder))
    (folder / "model.safetensors").write_bytes(whole)
    load_clip(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter of PEFT"):
        load_clip(str(folder))


def test_nothing_is_downloaded_unasked_or_in_silence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The network is asked only after it was said what is fetched."""
    from paramerge.training.evaluation import clip as module

    asked: list[bool] = []

    def parts(place: object, *, local: bool) -> object:
        asked.append(local)
        raise OSError("not here")

    monkeypatch.setattr(module, "_parts", parts)
    monkeypatch.setattr(module, "_size_on_hub", lambda source: "1.71 GB")
    with pytest.raises(UsageError, match="nothing is downloaded unasked"):
        load_clip("openai/clip-vit-large-patch14")
    assert asked == [True]
    said: list[str] = []
    with pytest.raises(UsageError, match="cannot be had"):
        load_clip("openai/clip-vit-large-patch14", download=said.append)
    assert asked == [True, True, False]
    (line,) = said
    assert "openai/clip-vit-large-patch14" in line and "1.71 GB" in line
    monkeypatch.setattr("paramerge.training.evaluation.lpips.find_spec", lambda name: True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UsageError, match="nothing is downloaded unasked"):
        load_perceptual("lpips-vgg")


def test_every_from_pretrained_takes_safetensors_and_no_network_alone() -> None:
    """Of models; those of configurations and processors have no weights."""
    for folder in ("paramerge", "training", "cli"):
        for path in sorted((Path(__file__).parents[2] / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if node.func.attr != "from_pretrained":
                    continue
                name = ast.unparse(node.func.value).rpartition(".")[2]
                if not (name.startswith("Auto") or name.endswith(("Config", "tokenizer"))):
                    assert "use_safetensors=True" in ast.unparse(node), f"{path}: {node.lineno}"


def test_distances_that_cannot_be_had_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no such perceptual"):
        load_perceptual("lpips")
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(FileFormatError, match="shift-tolerant"):
        ShiftTolerantLPIPS(tmp_path / "other.pth")
    monkeypatch.setattr("paramerge.training.evaluation.stlpips.find_spec", lambda name: None)
    monkeypatch.setattr("paramerge.training.evaluation.lpips.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="stlpips-pytorch"):
        load_perceptual("stlpips-alex")
    with pytest.raises(UsageError, match="torchvision"):
        load_perceptual("lpips-alex")


def test_error_bars_are_the_deviation_of_the_runs() -> None:
    runs = [0.1, 0.2, 0.4]
    assert value_of(runs).mean == pytest.approx(np.mean(runs))
    assert value_of(runs).deviation == pytest.approx(np.std(runs, ddof=1))
    assert value_of([0.1]).deviation is None

"""``--private`` in every verb that writes weights: no name of an input, and none from its metadata."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from adapter_files import save
from fault_verbs import write_inputs
from safetensors import safe_open
from safetensors.numpy import load_file

from paramerge.cli.main import main

VERBS = {
    "bake": "bake --base secret-base --lora secret-a -o out",
    "bake with a card": "bake --base secret-base --lora secret-a --card -o out",
    "merge checkpoints": "merge secret-base secret-other --lora secret-a -o out",
    "convert": "convert secret-a --to diffusers -o out",
    "convert to a folder": "convert secret-a --to peft -o out-folder",
    "convert a PaRa": "convert secret-para --to kohya --base secret-base -o out",
    "convert in place": "convert secret-para --to para -o out",
    "merge": "merge secret-a secret-b -o out",
    "merge PaRas": "merge secret-para secret-para2 -o out",
    "resize": "resize secret-a --rank 1 -o out",
    "resize a PaRa": "resize secret-para --energy 0.5 --base secret-base -o out",
    "extract": "extract --from-lora secret-a --rank 1 -o out",
    "extract from two": "extract --from secret-tuned --base secret-base --family lora --rank 1 -o out",
}
METADATA = {
    "ss_output_name": "secret-name",
    "ss_tag_frequency": '{"10_secret-tag": {"secret-tag": 10}}',
    "ss_dataset_dirs": '{"/home/secret-user": {"img_count": 1}}',
    "modelspec.title": "secret title",
    "modelspec.trigger_phrase": "secret-phrase",
    "modelspec.architecture": "stable-diffusion-v1/lora",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private")
    write_inputs(folder / "in")
    for path in (folder / "in").glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        save(folder / f"secret-{path.name}", load_file(path), {**metadata, **METADATA})
    base = load_file(folder / "secret-base.safetensors")
    key = next(key for key, value in base.items() if key.endswith("attn1.to_q.weight"))
    base[key] = base[key] + base[key][:, :1]
    save(folder / "secret-tuned.safetensors", base)
    save(folder / "secret-other.safetensors", {key: value + value for key, value in base.items()})
    return folder


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("verb", VERBS)
def test_no_name_is_in_a_private_output(
    verb: str, private: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = re.sub(r"(secret-[\w]+)", r"\1.safetensors", VERBS[verb]).split()
    words[-1] = str(tmp_path / ("out" if words[-1] == "out-folder" else "out.safetensors"))
    with pytest.raises(SystemExit) as ended:
        main([*words, *(["--private"] if private else [])])
    assert ended.value.code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    secret = any(b"secret" in path.read_bytes() for path in files)
    assert secret == (not private and not verb.startswith("extract"))
    assert any(b"sha256" in path.read_bytes() for path in files)


@pytest.mark.parametrize("verb", ["bake", "merge checkpoints"])
def test_a_private_output_is_replayed_and_verified(
    verb: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Inputs are found by their hashes alone; the replay is private, too, and no name is shown."""
    monkeypatch.chdir(folder)
    out, again = tmp_path / "out" / "o.safetensors", tmp_path / "again.safetensors"
    out.parent.mkdir()
    words = re.sub(r"(secret-[\w]+)", r"\1.safetensors", VERBS[verb]).split()
    for arguments in (
        [*words[:-1], out, "--private"],
        ["replay", out, "--models", folder, "-o", again],
        ["verify", out, "--models", folder],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0
    assert again.read_bytes() == out.read_bytes()
    for arguments in (["verify", out, "--json"], ["replay", out, "-o", tmp_path / "new.safetensors"]):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments])
        printed = "".join(capsys.readouterr())
        assert "a file (sha256" in " ".join(printed.split()) and "secret-" not in printed

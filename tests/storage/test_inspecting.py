"""``inspect`` says which layers are stored quantised, and what a GGUF file is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from quantised_models import CASES, write_model
from toy_packages import run


@pytest.mark.parametrize(
    ("name", "title"), [("blocks", "scaled fp8"), ("nvfp4", "NVFP4"), ("int8", "scaled int8")]
)
def test_quantised_layers_are_counted(
    name: str, title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("comfy_kitchen")
    base, _ = write_model(tmp_path / "base", CASES[name])
    code, text = run(capsys, "inspect", base)
    assert code == 0
    assert f"3 layers stored quantised: {title}" in text
    _, text = run(capsys, "inspect", base, "--json")
    assert json.loads(text)["quantised"] == {title: 3}


def test_a_gguf_file_is_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "lumina2")
    kind = gguf.GGMLQuantizationType.Q8_0
    for key in ("cap_embedder.1", "layers.0.attention.out", "layers.0.feed_forward.w1"):
        codes = gguf.quantize(np.ones((64, 64), np.float32), kind)
        writer.add_tensor(f"{key}.weight", codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    code, text = run(capsys, "inspect", path)
    assert code == 0
    assert "3 layers stored quantised: GGUF" in text
    assert "Q8_0" in text

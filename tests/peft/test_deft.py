"""PEFT's own PaRa, DeftConfig(para=True, decomposition_method="qr"), as the oracle and as a format."""

from __future__ import annotations

import pytest
import torch
from peft import DeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from small_models import distance, inputs, random_para, small
from torch import nn

from paramerge.errors import FamilyError, UsageError
from paramerge.peft import PaRaConfig, deft_config, deft_state_dict, para_config, para_state_dict

LINEAR = ["lin", "bare", "tall"]


def deft() -> PeftModel:
    torch.manual_seed(9)
    config = DeftConfig(r=3, target_modules=LINEAR, para=True, decomposition_method="qr")
    return get_peft_model(small(), config)


def as_para(model: PeftModel) -> PeftModel:
    ours = get_peft_model(small(), para_config(model.peft_config["default"]))
    result = set_peft_model_state_dict(ours, para_state_dict(get_peft_model_state_dict(model)))
    assert not result.unexpected_keys
    return ours


def test_the_same_outputs_gradients_and_merged_weights() -> None:
    theirs = deft()
    ours = as_para(theirs)
    results = []
    for model in (theirs, ours):
        y = model(*inputs())
        sum(part.square().sum() for part in y).backward()
        grads = [p.grad for name, p in sorted(model.named_parameters()) if p.grad is not None]
        assert len(grads) == len(LINEAR)
        model.merge_adapter()
        merged = [model.base_model.model.get_submodule(path).get_base_layer().weight for path in LINEAR]
        results.append((y, grads, merged))
    for part in range(3):
        assert distance(results[1][part], results[0][part]) < 3e-6


def test_there_and_back() -> None:
    theirs = deft()
    state = get_peft_model_state_dict(theirs)
    again = deft_state_dict(get_peft_model_state_dict(as_para(theirs)))
    assert set(again) == set(state)
    assert all(torch.equal(again[key], state[key]) for key in state)
    config = deft_config(para_config(theirs.peft_config["default"]))
    assert config.to_dict() == theirs.peft_config["default"].to_dict()


def test_a_saved_folder_of_ours_is_read_by_peft_as_deft(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    model = get_peft_model(small(), random_para(target_modules=LINEAR))
    model.save_pretrained(tmp_path)
    tensors = tmp_path / "adapter_model.safetensors"
    save_file(deft_state_dict(load_file(tensors)), tensors)
    deft_config(PaRaConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(small(), tmp_path).eval()
    assert theirs.peft_config["default"].peft_type == "DEFT"
    with torch.no_grad():
        assert distance(theirs(*inputs()), model.eval()(*inputs())) < 3e-6


def test_what_is_no_para_is_refused() -> None:
    with pytest.raises(FamilyError, match="no PaRa"):
        para_config(DeftConfig(r=2, target_modules=LINEAR))
    with pytest.raises(FamilyError, match="relu"):
        para_config(DeftConfig(r=2, target_modules=LINEAR, para=True))
    with pytest.raises(UsageError, match="different ranks"):
        deft_config(random_para(gamma=0.5))
    model = get_peft_model(small(), DeftConfig(r=2, target_modules=["lin"], decomposition_method="qr"))
    with pytest.raises(FamilyError, match="deft_R"):
        para_state_dict(get_peft_model_state_dict(model))
    assert isinstance(model, nn.Module)

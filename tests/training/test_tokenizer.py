"""The tokenizer's own vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from paramerge.training.tiny.models import token_ids
from paramerge.training.tiny.subjects import SUBJECTS
from paramerge.training.tiny.tokenizer import (
    MAX_TOKENS,
    PLACEHOLDERS,
    caption_words,
    learn_merges,
    make_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return make_tokenizer()


def test_each_word_of_the_captions_is_a_token(tokenizer: CLIPTokenizer) -> None:
    words = caption_words()
    assert {"noto", "white", "background", *SUBJECTS[0].name.split()} <= set(words)
    assert all(tokenizer.tokenize(word) == [f"{word}</w>"] for word in words)


def test_tokens_have_different_numbers(tokenizer: CLIPTokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(tokenizer)))


def test_placeholders_are_tokens_without_pieces(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize(f"a noto {PLACEHOLDERS[2]} and a dog")[2] == PLACEHOLDERS[2]
    assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS))


@given(text=st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_is_spelled_out(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids or "<|endoftext|>" in text


def test_prompts_are_padded_and_cut(tokenizer: CLIPTokenizer) -> None:
    ids = token_ids(tokenizer, ["a noto dog", "", "dog " * 50])
    assert ids.shape == (3, MAX_TOKENS)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
    assert (ids[1, 1:] == tokenizer.eos_token_id).all()


def test_it_survives_saving(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    prompt = f"A Noto dog, on a RED background {PLACEHOLDERS[0]} qwx"
    assert loaded(prompt).input_ids == tokenizer(prompt).input_ids
    assert len(loaded) == len(tokenizer)


@given(words=st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=8, unique=True))
@settings(deadline=None)
def test_merges_put_every_word_together(words: list[str]) -> None:
    merges = learn_merges(words)
    assert len(set(merges)) == len(merges)
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for first, second in merges:
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == (first, second):
                    pieces[i : i + 2] = [first + second]
                i += 1
        assert pieces == [f"{word}</w>"]

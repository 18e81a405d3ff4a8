"""Applying templates, and giving a format to a model. TRL's answers: see test_formats."""

from __future__ import annotations

import pytest
import torch
from chat_cases import ANSWER, ASK, CONVERSATIONS, TEMPLATES, TOOLS, make_tokenizer, says
from transformers import GPT2Config, GPT2LMHeadModel

import fastrl
from fastrl.data.chat import render, render_marked

CHATML = TEMPLATES["chatml"][0]


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_many_at_once_are_as_one_by_one(style, prompt):
    tokenizer = make_tokenizer(TEMPLATES[style][0])
    talks = list(CONVERSATIONS.values())
    one_by_one = [
        tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt)
        for talk in talks
    ]
    assert render(talks, tokenizer, [], add_generation_prompt=prompt) == one_by_one


def test_tools_and_keywords_reach_the_template():
    tokenizer = make_tokenizer(TEMPLATES["qwen"][0])
    (text,) = render([[ASK]], tokenizer, TOOLS, True, enable_thinking=False)
    assert text.startswith('<|im_start|>system\n{"type": "function"')
    assert text.endswith("<think>\n\n</think>\n\n")


def test_absent_fields_that_arrow_filled_are_not_printed():
    template = "{% for m in messages %}{{ m.content }}{{ m.extra is defined }}{% endfor %}"
    talk = [{"role": "user", "content": "a", "extra": None}]
    assert render([talk], make_tokenizer(template)) == ["aFalse"]


def test_marked_text_is_the_text_and_names_the_characters():
    tokenizer = make_tokenizer(TEMPLATES["chatml"][1])
    texts, spans = render_marked([CONVERSATIONS["three turns"]], tokenizer)
    assert texts == render([CONVERSATIONS["three turns"]], tokenizer)
    said = [texts[0][start:end] for start, end in spans[0]]
    assert said == [
        "The cat is.<|im_end|>\n",
        "Oui, 東京 🗼!<|im_end|>\n",
        "bye<|im_end|>\n",
    ]


def test_keywords_of_the_call_come_before_the_rows():
    """TRL raises a TypeError for a keyword given twice."""
    tokenizer = make_tokenizer(TEMPLATES["qwen"][0])
    row = {"prompt": [ASK], "chat_template_kwargs": {"enable_thinking": True}}
    thinking = fastrl.apply_chat_template(row, tokenizer)["prompt"]
    silent = fastrl.apply_chat_template(row, tokenizer, enable_thinking=False)["prompt"]
    assert silent == thinking + "<think>\n\n</think>\n\n"


def test_empty_keywords_of_a_row():
    tokenizer = make_tokenizer(CHATML)
    row = {"messages": [ASK], "chat_template_kwargs": None}
    expected = tokenizer.apply_chat_template([ASK], tokenize=False)
    assert fastrl.apply_chat_template(row, tokenizer) == {"text": expected}


def test_the_old_name_of_the_tokenizer():
    tokenizer = make_tokenizer(CHATML)
    row = {"messages": [ASK]}
    assert fastrl.apply_chat_template(row, tokenizer=tokenizer) == fastrl.apply_chat_template(
        row, processing_class=tokenizer
    )
    assert fastrl.maybe_apply_chat_template({"text": "a"}, tokenizer=tokenizer) == {"text": "a"}
    with pytest.raises(TypeError, match="takes one tokenizer"):
        fastrl.apply_chat_template(row)
    with pytest.raises(TypeError, match="takes one tokenizer"):
        fastrl.apply_chat_template(row, tokenizer, tokenizer=tokenizer)


def test_a_row_without_messages_says_what_to_call():
    with pytest.raises(TypeError, match=r"\['chosen', 'rejected'\] hold no messages.*maybe_apply"):
        fastrl.apply_chat_template({"chosen": "a", "rejected": "b"}, make_tokenizer(CHATML))


def test_messages_given_stay_as_they_are():
    messages = [says("system", "a"), says("user", [{"type": "image"}])]
    prepared = fastrl.prepare_multimodal_messages(messages, ["x"])
    assert prepared[1]["content"] == [{"type": "image", "image": "x"}]
    assert messages == [says("system", "a"), says("user", [{"type": "image"}])]


def tiny_model(rows):
    config = GPT2Config(
        vocab_size=rows, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("multiple", [None, 64])
def test_clone_chat_template(tmp_path, multiple):
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|call|>")
    source = make_tokenizer(CHATML, special)
    source.eos_token = "<|im_end|>"
    source.save_pretrained(tmp_path)
    tokenizer = make_tokenizer(None, ("<|endoftext|>", "<|im_start|>"))
    model = tiny_model(len(tokenizer))
    before, known = model.get_input_embeddings().weight.detach().clone(), len(tokenizer)

    cloned = fastrl.clone_chat_template(model, tokenizer, str(tmp_path), multiple)
    assert cloned[:2] == (model, tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == len(tokenizer) == (known + 2 if multiple is None else 320)
    assert cloned[2] == list(range(known, rows))
    assert tokenizer.convert_ids_to_tokens(cloned[2][:2]) == ["<|im_end|>", "<|call|>"]
    if multiple:
        assert tokenizer.convert_ids_to_tokens(cloned[2][2:4]) == ["<extra_id_0>", "<extra_id_1>"]
    assert tokenizer.chat_template == CHATML
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.config.eos_token_id == model.generation_config.eos_token_id == known
    torch.testing.assert_close(model.get_input_embeddings().weight[:known], before)


def test_setup_chat_format():
    tokenizer = make_tokenizer(None, ("<|endoftext|>",))
    model = tiny_model(len(tokenizer))
    known = len(tokenizer)
    assert fastrl.setup_chat_format(model, tokenizer, resize_to_multiple_of=16) == (
        model,
        tokenizer,
    )
    assert render([[ASK, ANSWER]], tokenizer, add_generation_prompt=True) == [
        "<|im_start|>user\nIs it there?<|im_end|>\n<|im_start|>assistant\nThe cat is.<|im_end|>\n"
        "<|im_start|>assistant\n"
    ]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert {start, end} == {known, known + 1}
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"][::2] == [start, end]
    assert model.get_input_embeddings().weight.shape[0] == 272
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (start, end, end)


def test_setup_chat_format_knows_one_format():
    with pytest.raises(ValueError, match="format='alpaca' is not available"):
        fastrl.setup_chat_format(None, None, format="alpaca")

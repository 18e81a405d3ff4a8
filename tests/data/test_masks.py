"""Masks of assistant turns. What is right is what transformers makes of hand-put marks."""

from __future__ import annotations

import pytest
from chat_cases import (
    ANSWER,
    ASK,
    CONVERSATIONS,
    COUNTING,
    SYSTEM,
    TEMPLATES,
    TOOLS,
    make_tokenizer,
    says,
    tool_call,
)

from fastrl.data.masks import (
    assistant_mask,
    assistant_masks,
    assistant_spans,
    is_chat_template_stop_token_trained,
    tokenize_spans,
)

STEADY = ("chatml", "llama", "zephyr", "mistral")
HEADLESS = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"


def by_transformers(talk, template, tools=None):
    out = make_tokenizer(template).apply_chat_template(
        talk, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    return out["input_ids"], out["assistant_masks"]


def said(tokenizer, ids, mask):
    return tokenizer.decode([token for token, one in zip(ids, mask, strict=True) if one])


@pytest.mark.parametrize("style", STEADY)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_rendering_anew_finds_what_marks_say(style, name):
    plain, marked = TEMPLATES[style]
    expected = by_transformers(CONVERSATIONS[name], marked)
    assert assistant_mask(CONVERSATIONS[name], make_tokenizer(plain)) == expected
    assert 1 in expected[1]


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_marks_are_read_as_transformers_reads_them(style, name):
    marked = TEMPLATES[style][1]
    mask = assistant_mask(CONVERSATIONS[name], make_tokenizer(marked))
    assert mask == by_transformers(CONVERSATIONS[name], marked)


@pytest.mark.parametrize("style", STEADY)
def test_a_batch_is_as_its_rows(style):
    tokenizer = make_tokenizer(TEMPLATES[style][0])
    talks = [*CONVERSATIONS.values(), [ASK]]
    ids, masks = assistant_masks(talks, tokenizer)
    assert list(zip(ids, masks, strict=True)) == [assistant_mask(t, tokenizer) for t in talks]
    assert 1 not in masks[-1]
    assert assistant_masks([], tokenizer) == ([], [])


def test_the_turn_ends_with_its_end():
    tokenizer = make_tokenizer(TEMPLATES["chatml"][0])
    ids, mask = assistant_mask(CONVERSATIONS["user last"], tokenizer)
    assert said(tokenizer, ids, mask) == "The cat is.<|im_end|>\n"


def test_a_token_on_the_border_is_the_assistants():
    """The header's line break and the content's first become one token."""
    tokenizer = make_tokenizer(TEMPLATES["chatml"][0])
    ids, mask = assistant_mask([ASK, says("assistant", "\n\nhe")], tokenizer)
    assert said(tokenizer, ids, mask) == "\n" + "\n\nhe<|im_end|>\n"


def test_an_assistant_that_begins():
    for style in ("chatml", "llama", "zephyr"):
        plain, marked = TEMPLATES[style]
        talk = [ANSWER, ASK, says("assistant", "ok")]
        assert assistant_mask(talk, make_tokenizer(plain)) == by_transformers(talk, marked)


def test_tools():
    plain, marked = TEMPLATES["qwen"]
    call = says("assistant", None, tool_calls=[tool_call({"a": 1})], reasoning_content="hm")
    talk = [SYSTEM, ASK, call, says("tool", "2"), says("assistant", "2 it is")]
    found = assistant_mask(talk, make_tokenizer(plain), TOOLS)
    assert found == by_transformers(talk, marked, TOOLS)
    tokenizer = make_tokenizer(plain)
    assert said(tokenizer, *found) == (
        "<think>\nhm\n</think>\n\n\n<tool_call>\n"
        '{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        "<think>\n\n</think>\n\n2 it is<|im_end|>\n"
    )


def test_reasoning_that_the_prompt_opens_is_the_assistants():
    """Turns begin at the same place whether thinking is on or off."""
    plain, _ = TEMPLATES["qwen"]
    tokenizer = make_tokenizer(plain)
    on = assistant_mask([ASK, ANSWER], tokenizer)
    assert assistant_mask([ASK, ANSWER], tokenizer, enable_thinking=False) == on
    assert said(tokenizer, *on) == "<think>\n\n</think>\n\nThe cat is.<|im_end|>\n"


def test_a_prompt_that_opens_what_the_turn_lacks():
    """As DeepSeek-R1's: the generation prompt ends with a word that finished turns do not have."""
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>Well, ' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    for content in ("yes", "We know", "Well, yes"):  # shares 0, 2 and all letters with the prompt
        talk = [ASK, says("assistant", content), ASK, says("assistant", "no")]
        _, (spans,) = assistant_spans([talk], tokenizer)
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        turns = [text[start:end] for start, end in spans]
        assert turns == [content.removeprefix("Well, ") + "<|im_end|>", "no<|im_end|>"]


def test_the_last_turn_may_end_otherwise():
    """As gpt-oss's: the very last turn has an end token of its own."""
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
        "{% if loop.last and m.role == 'assistant' and not add_generation_prompt %}"
        "{{ '<|eot_id|>' }}{% else %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    ids, mask = assistant_mask(CONVERSATIONS["three turns"], tokenizer)
    assert said(tokenizer, ids, mask) == (
        "The cat is.<|im_end|>Oui, 東京 🗼!<|im_end|>bye<|eot_id|>"
    )


REFUSED = {
    "rewrites an earlier turn": (COUNTING, CONVERSATIONS["three turns"], "message 1"),
    "drops earlier reasoning": (
        TEMPLATES["qwen"][0],
        [ASK, says("assistant", "<think>a</think>b"), ASK, ANSWER],
        "message 1",
    ),
    "has no prompt": (HEADLESS, [ANSWER, ASK, ANSWER], "message 0"),
    "drops turns": (
        "{% for m in messages[-2:] %}{{ '<|im_start|>' + m.role + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
        CONVERSATIONS["three turns"],
        "message 1",
    ),
    "reverses turns": (
        "{% for m in messages | reverse %}{{ '<|im_start|>' + m.role + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
        [ASK, ANSWER],
        "message 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_proven_is_refused(name):
    template, talk, where = REFUSED[name]
    tokenizer = make_tokenizer(template)
    with pytest.raises(ValueError, match=f"conversation 1 cannot be proven at {where}") as refused:
        assistant_masks([[ASK], talk], tokenizer)
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    assert str(refused.value).endswith(text[:600])


def test_what_the_template_refuses_is_named():
    tokenizer = make_tokenizer(TEMPLATES["mistral"][0])
    with pytest.raises(ValueError, match=r"\['user', 'user'\].*roles must alternate"):
        assistant_masks([[ASK, ANSWER], [ASK, ASK]], tokenizer)


def test_marks_that_leave_an_answer_out_are_refused():
    template = (
        "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tokenizer(template)
    assert 1 in assistant_mask([ASK, ANSWER], tokenizer)[1]
    with pytest.raises(ValueError, match="Message 1 of conversation 0"):
        assistant_mask(CONVERSATIONS["three turns"], tokenizer)


class Slow:
    """A tokenizer that cannot tell which characters a token stands for."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, text, **kwargs):
        return {"input_ids": self.tokenizer(text, add_special_tokens=False)["input_ids"]}


def test_slow_tokenizers_compare_ids():
    fast = make_tokenizer(TEMPLATES["chatml"][0])
    talks = [CONVERSATIONS["three turns"], CONVERSATIONS["user last"]]
    texts, spans = assistant_spans(talks, fast)
    slow = Slow(fast)
    wrapped = type("Processor", (), {"tokenizer": slow})()
    assert tokenize_spans(texts, spans, wrapped) == tokenize_spans(texts, spans, fast)
    texts, spans = assistant_spans([CONVERSATIONS["line breaks first"]], fast)
    with pytest.raises(ValueError, match="do not begin with those of its own beginning"):
        tokenize_spans(texts, spans, wrapped)


def test_stop_token():
    for style, (plain, marked) in TEMPLATES.items():
        assert is_chat_template_stop_token_trained(make_tokenizer(marked)), style
        if style in STEADY:
            assert is_chat_template_stop_token_trained(make_tokenizer(plain)), style
    without = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    prompt = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    assert not is_chat_template_stop_token_trained(make_tokenizer(without + prompt))
    assert not is_chat_template_stop_token_trained(make_tokenizer(), without + prompt)

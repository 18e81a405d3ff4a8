"""Training templates: what is derived marks and keeps what templates marked by hand do.

Where TRL is installed, its own pairs of templates are tried as well.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from chat_cases import (
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

import fastrl
from fastrl.data.chat import render
from fastrl.data.jinja_source import parse, unparse
from fastrl.data.masks import assistant_mask
from fastrl.data.templates import has_generation_markers, is_chat_template_prefix_preserving
from fastrl.data.training_template import NotProven

REASONED = [
    ASK,
    says("assistant", "<think>\nbecause\n</think>\n\nyes"),
    says("user", "why?"),
    says("assistant", "no", reasoning_content="so"),
]
CALLING = [
    SYSTEM,
    ASK,
    says("assistant", "let me", tool_calls=[tool_call({"a": 1}), tool_call('{"a": 2}')]),
    says("tool", "2"),
    says("assistant", "it is 2"),
]


@pytest.fixture(scope="module")
def derived():
    return {
        style: fastrl.get_training_chat_template(make_tokenizer(plain))
        for style, (plain, _) in TEMPLATES.items()
    }


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_derived_marks_are_those_put_by_hand(derived, style, name):
    tokenizer, talk = make_tokenizer(), CONVERSATIONS[name]
    found = assistant_mask(talk, tokenizer, chat_template=derived[style])
    assert found == assistant_mask(talk, tokenizer, chat_template=TEMPLATES[style][1])


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_text_is_that_of_the_original_unless_it_drops(derived, style, prompt):
    kept = [
        talk
        for name, talk in CONVERSATIONS.items()
        if style != "qwen" or name in ("one turn", "with system", "line breaks first")
    ]
    tokenizer = make_tokenizer(TEMPLATES[style][0])
    texts = render(kept, tokenizer, add_generation_prompt=prompt)
    assert texts == render(
        kept, tokenizer, add_generation_prompt=prompt, chat_template=derived[style]
    )


def test_earlier_reasoning_is_kept(derived):
    tokenizer = make_tokenizer()
    plain, marked = TEMPLATES["qwen"]
    assert "because" not in render([REASONED], tokenizer, chat_template=plain)[0]
    (text,) = render([REASONED], tokenizer, chat_template=derived["qwen"])
    assert "<think>\nbecause\n</think>\n\nyes" in text
    assert "<think>\nso\n</think>\n\nno" in text
    assert assistant_mask(REASONED, tokenizer, chat_template=derived["qwen"]) == assistant_mask(
        REASONED, tokenizer, chat_template=marked
    )


def test_reasoning_that_even_the_last_turn_lacks_is_kept():
    """As DeepSeek-R1's: what precedes </think> is cut off every turn."""
    plain = (
        "{% for m in messages %}{% set said = m.content %}{% if '</think>' in said %}"
        "{% set said = said.split('</think>')[-1] %}{% endif %}"
        "{{ '<|' + m.role + '|>' + said + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
    )
    template = fastrl.get_training_chat_template(make_tokenizer(plain))
    tokenizer = make_tokenizer()
    ids, mask = assistant_mask(REASONED[:2], tokenizer, chat_template=template)
    spoken = tokenizer.decode([token for token, one in zip(ids, mask, strict=True) if one])
    assert spoken == "<think>\nbecause\n</think>\n\nyes<|im_end|>"


def test_what_the_original_renders_steadily_is_never_changed():
    """Fixed to true, the condition would leave the last turn's block out, and hold as well."""
    plain = TEMPLATES["chatml"][0].replace(
        "message['content'] +",
        "('' if message['role'] != 'assistant' else "
        "'' if loop.index < messages | length else '<think></think>') + message['content'] +",
    )
    template = fastrl.get_training_chat_template(make_tokenizer(plain))
    (text,) = render([CONVERSATIONS["user last"]], make_tokenizer(template))
    assert text == (
        "<|im_start|>user\nIs it there?<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>The cat is.<|im_end|>\n"
        "<|im_start|>user\nthanks<|im_end|>\n"
    )


def test_exchanges_with_tools(derived):
    tokenizer = make_tokenizer()
    for tools in (None, TOOLS):
        found = assistant_mask(CALLING, tokenizer, tools, chat_template=derived["qwen"])
        assert found == assistant_mask(
            CALLING, tokenizer, tools, chat_template=TEMPLATES["qwen"][1]
        )


def test_turns_stay_as_they_are_when_others_follow(derived):
    tokenizer = make_tokenizer()
    for template in (derived["qwen"], derived["llama"]):
        talk = CONVERSATIONS["three turns"]
        whole = render([talk], tokenizer, chat_template=template)[0]
        for end in range(1, len(talk)):
            assert whole.startswith(render([talk[:end]], tokenizer, chat_template=template)[0])


def test_keywords_of_the_original_still_work(derived):
    tokenizer = make_tokenizer(derived["qwen"])
    (text,) = render([[ASK]], tokenizer, None, True, enable_thinking=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("style", TEMPLATES)
def test_what_is_marked_already_needs_nothing(derived, style):
    assert fastrl.get_training_chat_template(make_tokenizer(derived[style])) is None
    assert fastrl.get_training_chat_template(make_tokenizer(TEMPLATES[style][1])) is None


def test_marks_that_are_there_stay_where_earlier_turns_are_mended():
    """Marked by its author, but a call of a tool looks otherwise once it is answered."""
    plain = TEMPLATES["qwen"][0].replace(
        "        {%- if loop.last or", "        {%- generation %}{%- if loop.last or"
    )
    marked = plain.replace(
        "        {{- '<|im_end|>\n' }}\n    {%- elif message.role == 'tool'",
        "        {{- '<|im_end|>\n' }}{%- endgeneration %}\n    {%- elif message.role == 'tool'",
    )
    marked = marked.replace("loop.last or loop.index0 > seen.query", "loop.last")
    tokenizer = make_tokenizer(marked)
    assert has_generation_markers(marked)
    assert not is_chat_template_prefix_preserving(tokenizer)
    template = fastrl.get_training_chat_template(tokenizer)
    assert assistant_mask(CALLING, tokenizer, chat_template=template) == assistant_mask(
        CALLING, tokenizer, chat_template=TEMPLATES["qwen"][1]
    )


def test_what_cannot_be_mended_is_refused():
    with pytest.raises(NotProven, match="fixing up to 2 of its conditions does not mend it"):
        fastrl.get_training_chat_template(make_tokenizer(COUNTING))
    with pytest.raises(ValueError, match="renders no conversation"):
        fastrl.get_training_chat_template(make_tokenizer("{{ messages[0].content }}"))


def test_a_print_that_is_partly_the_next_turns_is_refused():
    template = (
        "{{ '<|user|>' }}{% for m in messages %}"
        "{{ m.content + '<|im_end|>' + ('<|assistant|>' if m.role == 'user' else "
        "'' if loop.last else '<|user|>') }}{% endfor %}"
    )
    with pytest.raises(NotProven, match="its marks would be"):
        fastrl.get_training_chat_template(make_tokenizer(template))


def test_the_old_name_of_the_tokenizer():
    tokenizer = make_tokenizer(TEMPLATES["chatml"][0])
    with pytest.warns(FutureWarning, match="processing_class"):
        old = fastrl.get_training_chat_template(tokenizer=tokenizer)
    assert old == fastrl.get_training_chat_template(tokenizer)
    with pytest.raises(TypeError, match="takes one tokenizer"):
        fastrl.get_training_chat_template()
    with pytest.raises(ValueError, match="chat_template"):
        fastrl.get_training_chat_template(make_tokenizer())


SOURCES = {
    "macro": "{% macro f(a, b='x') %}{{ a ~ b }}{% endmacro %}{{ f(1) }}{{ f('y', b=2) }}",
    "for": "{% for a, b in [(1, 2), (3, 4)] if a > 1 %}{{ a }}{{ b }}{% else %}none{% endfor %}",
    "empty for": "{% for a in [] %}{{ a }}{% else %}none{% endfor %}",
    "if": "{% if 1 > 2 %}a{% elif 2 >= 2 and not false %}b{% else %}c{% endif %}",
    "loop control": "{% for a in [1,2,3] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}"
    "{% if a == 3 %}{% break %}{% endif %}{% endfor %}",
    "captured": "{% set a %} x {% endset %}{{ a | trim }}{% set b | upper %}y{% endset %}{{ b }}",
    "filter block": "{% filter upper | replace('A', 'b') %}a c{% endfilter %}",
    "call": "{% macro f() %}[{{ caller('z') }}]{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}",
    "arithmetic": "{{ 2 + 3 * 4 - 5 // 2 % 2 ** 2 }}{{ -3 | abs }}{{ (-3) | abs }}{{ 7 / 2 }}",
    "strings": r"""{{ 'a\n"b"' ~ "c'\\d" ~ '\u00e9' }}é{{ 'x' * 3 }}""",
    "slices": "{{ 'abcdef'[1:4] ~ 'abcdef'[::-1] ~ 'abcdef'[::2] ~ [1, 2][-1] ~ 'abc'[:2] }}",
    "tests": "{{ 3 is odd and none is none and 4 is divisibleby(2) and 'a' is not number }}",
    "compare": "{{ 1 < 2 <= 2 != 3 }}{{ 'a' in 'abc' }}{{ 'a' not in ['b'] }}{{ 1 == 1.0 }}",
    "literals": "{{ {'a': [1, (2,), ()]} }}{{ true }}{{ none }}{{ 1.5 }}",
    "conditional": "{{ 'a' if false else 'b' }}{{ 'a' if false }}",
    "namespace": "{% set n = namespace(i=0) %}{% for a in [1, 2] %}{% set n.i = n.i + a %}"
    "{% endfor %}{{ n.i }}",
    "white space": "a  \n  {%- if true %}\n   b\n{% endif -%}\n  c\n\n{# d #}\n{{ 'e' }}\n",
    "star arguments": "{{ dict(*[[('a', 1)]], **{'b': 2}) }}",
    "raw": "{% raw %}{{ a }}{% endraw %}",
    "generation": "{% generation %}a{{ 1 }}{% endgeneration %}b",
    "unpacked": "{% set a, b = (1, 2) %}{{ a }}{{ b }}",
}


@pytest.mark.parametrize("name", SOURCES)
def test_unparsed_templates_mean_the_same(name):
    tokenizer = make_tokenizer()
    expected = render([[ASK]], tokenizer, chat_template=SOURCES[name])
    written = unparse(parse(SOURCES[name]))
    assert render([[ASK]], tokenizer, chat_template=written) == expected
    assert expected != [""]


def test_what_chat_templates_do_not_use_is_refused():
    with pytest.raises(ValueError, match="line 1: Include is not for chat templates"):
        unparse(parse("{% include 'a' %}"))


_TRL = importlib.util.find_spec("trl")
_FOLDER = Path(_TRL.origin).parent / "chat_templates" if _TRL and _TRL.origin else Path()
_NAMES = sorted(path.stem[: -len("_training")] for path in _FOLDER.glob("*_training.jinja"))
# Where TRL's hand-made template differs, and how.
_OTHERWISE = {
    "deepseek_r1_distill": "counts the header as the assistant's",
    "deepseekv3": "counts the header as the assistant's",
    "diffusion_gemma": "cannot be proven: a call and its answer are one turn",
    "glm4moe": "moves the next header into the assistant's turn",
    "gptoss": "leaves earlier reasoning out",
    "nemotron_3_5_lightning": "leaves earlier reasoning out",
    "nemotron_3_nano": "leaves earlier reasoning out",
    "nemotron_3_super": "leaves earlier reasoning out",
    "nemotron_3_ultra": "leaves earlier reasoning out",
    "qwen2_5": "counts the line break after the header",
}


@pytest.mark.slow
@pytest.mark.skipif(not _NAMES, reason="TRL is not installed")
@pytest.mark.parametrize("name", _NAMES)
def test_derived_templates_equal_trls(name):
    plain = (_FOLDER / f"{name}.jinja").read_text()
    training = (_FOLDER / f"{name}_training.jinja").read_text()
    tokenizer = make_tokenizer(plain)
    talks = []
    for talk in (*CONVERSATIONS.values(), REASONED[:2] * 2, CALLING):
        try:
            render([talk], tokenizer)
        except Exception:  # of the template's making: it knows no system, no tools or no strings
            continue
        talks.append(talk)
    try:
        template = fastrl.get_training_chat_template(tokenizer)
        found = [assistant_mask(talk, tokenizer, chat_template=template) for talk in talks]
    except ValueError:
        found = None
    expected = [assistant_mask(talk, tokenizer, chat_template=training) for talk in talks]
    assert (found == expected) == (name not in _OTHERWISE)

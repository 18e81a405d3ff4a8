"""A tokenizer made on the spot, chat templates in the styles met in the wild, and conversations.

Each template is written twice: plain, and with `{% generation %}` put in by hand, which says what
the masks must be.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|endoftext|>",
    "<s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<think>",
    "</think>",
)
_MERGES = [("Ċ", "Ċ"), ("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("e", "s")]


def make_tokenizer(template: str | None = None, special: tuple[str, ...] = SPECIAL) -> Any:
    """Byte-level BPE with five merges, one of them of two line breaks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*special, *alphabet, *(a + b for a, b in _MERGES)]
    vocabulary = {word: k for k, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if "<s>" in special else None,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The turn is put together in a variable first, the text is trimmed.
_LLAMA = (
    "{% for m in messages %}"
    "{% set turn = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' %}"
    "{% set turn = turn + (m['content'] | trim) + '<|eot_id|>' %}"
    "{% if loop.first %}{% set turn = bos_token + turn %}{% endif %}{{ turn }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA_MARKED = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ (m['content'] | trim) + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ (m['content'] | trim) + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Plain text between tags; every text ends with the end-of-text token unless a turn is begun.
_ZEPHYR = """{% for m in messages -%}
{% if m.role == 'user' -%}
<|user|>
{{ m.content }}<|im_end|>
{% elif m.role == 'system' -%}
<|system|>
{{ m.content }}<|im_end|>
{% else -%}
<|assistant|>
{{ m.content }}<|im_end|>
{% endif -%}
{% endfor -%}
{% if add_generation_prompt -%}
{{ '<|assistant|>\n' }}
{%- else -%}
{{ eos_token }}
{%- endif %}"""
_ZEPHYR_MARKED = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% elif messages[-1].role == 'assistant' %}"
    "{% generation %}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ eos_token }}{% endif %}"
)

# The system message goes into the first user turn; roles must alternate.
_MISTRAL = (
    "{% set system = '' %}{% set talk = messages %}"
    "{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content ~ '\n\n' %}{% set talk = messages[1:] %}{% endif %}"
    "{{ bos_token }}{% for m in talk %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}MARK{{ ' ' + m.content + eos_token }}KRAM{% endif %}{% endfor %}"
)

# Earlier reasoning is dropped, the last turn always has a (perhaps empty) block of it; tools.
_QWEN = """{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- set seen = namespace(query=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set seen.query = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set text = message.content if message.content is string else '' %}
    {%- if message.role in ('user', 'system') %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ text ~ '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = message.reasoning_content or '' %}
        {%- if not thought and '</think>' in text %}
            {%- set thought = text.split('</think>')[0].split('<think>')[-1] %}
            {%- set text = text.split('</think>')[-1] %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if KEPT %}
            {{- MARK'<think>\n' + (thought | trim) + '\n</think>\n\n' }}
        {%- endif %}
        {{- text | trim }}
        {%- for call in message.tool_calls or [] %}
            {%- set made = call.function or call %}
            {{- '\n<tool_call>\n{"name": "' + made.name + '", "arguments": ' }}
            {%- if made.arguments is string %}
                {{- made.arguments }}
            {%- else %}
                {{- made.arguments | tojson }}
            {%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}KRAM
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + text + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""


def _filled(template: str, **parts: str) -> str:
    for name, text in parts.items():
        template = template.replace(name, text)
    return template


def _marks(template: str) -> str:
    return _filled(template, MARK="{% generation %}", KRAM="{% endgeneration %}")


_QWEN_MARKED = _QWEN.replace(
    "        {%- if KEPT %}\n            {{- MARK'<think>",
    "        {%- generation %}{%- if true %}\n            {{- '<think>",
).replace("KRAM", "{%- endgeneration %}")

# name -> (as a model ships it, marked by hand and with reasoning kept)
TEMPLATES = {
    "chatml": (_CHATML, _CHATML_MARKED),
    "llama": (_LLAMA, _LLAMA_MARKED),
    "zephyr": (_ZEPHYR, _ZEPHYR_MARKED),
    "mistral": (_filled(_MISTRAL, MARK="", KRAM=""), _marks(_MISTRAL)),
    "qwen": (
        _filled(_QWEN, KEPT="loop.last or loop.index0 > seen.query", MARK="", KRAM=""),
        _QWEN_MARKED,
    ),
}

# Rewrites earlier turns in a way that no fixed condition mends.
COUNTING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content ~ ' (' ~ messages | length ~ ')<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def says(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def tool_call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "arguments": arguments}}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
ASK, ANSWER = says("user", "Is it there?"), says("assistant", "The cat is.")
SYSTEM = says("system", "Be brief.")
CONVERSATIONS = {
    "one turn": [ASK, ANSWER],
    "with system": [SYSTEM, ASK, ANSWER],
    "three turns": [
        ASK,
        ANSWER,
        says("user", "é 東京?"),
        says("assistant", "Oui, 東京 🗼!"),
        says("user", "ok"),
        says("assistant", "bye"),
    ],
    "user last": [ASK, ANSWER, says("user", "thanks")],
    "says the same": [ASK, says("assistant", "Is it there?"), ASK, says("assistant", "user")],
    "line breaks first": [ASK, says("assistant", "\n\nThe cat")],
    "quotes the header": [says("user", "what does <|im_start|>assistant\n mean"), ANSWER],
}

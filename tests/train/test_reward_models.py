"""Reward models as reward functions, against the padded batch given to the model itself."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator

from fastrl import GRPOConfig
from fastrl.rewards.running import RewardFunctions, name_of
from fastrl.train.reward_models import reward_callables
from tests.algos.offline_parity import making

PROMPTS = ["abab?", "abab?", "abab?", "why so?", "a"]
COMPLETIONS = ["no", "abba, yes", "", "abcdefghij klm", "no"]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def build(tmp_path: Any) -> Any:
    """build(reward_funcs, processing_classes, **fields of the config) -> reward functions."""

    def make(entries: Any, tokenizers: Any = None, **fields: Any) -> Any:
        config = GRPOConfig(str(tmp_path / "run"), use_cpu=True, report_to="none", **fields)
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        return reward_callables(entries, tokenizers, config, accelerator)

    return make


def chat(texts: list[str], role: str) -> list[list[dict[str, str]]]:
    return [[making.turn(role, text)] for text in texts]


@torch.no_grad()
def padded(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """What the model says of the texts, side by side."""
    batch = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
    )
    return model.eval()(**batch).logits[:, 0].float()


def fed_tokens(model: Any) -> list[int]:
    fed: list[int] = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: fed.append(out.shape[0] * out.shape[1])
    )
    return fed


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_scores_are_those_of_the_padded_batch(kind, build):
    model, tokenizer = making.model(kind, "score"), making.tokenizer()
    texts = ["abab?no", "abab?abba, yes", "abab?", "why so?abcdefghij klm", "ano"]
    want = padded(copy.deepcopy(model), tokenizer, texts)
    assert want.std() > 1e-3
    (score,) = build(model, tokenizer)
    fed = fed_tokens(model)
    got = score(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=None, extra=[1] * 5)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, **CLOSE)
    # One character a token. The prompt of the first three is read once, but for its last token:
    # the empty completion is judged there.
    assert fed == [sum(map(len, texts)) - 2 * 4]


def test_messages_are_rendered_with_the_arguments_of_the_template(build):
    template = making.CHATML + "{{ ending }}"
    model, tokenizer = making.model("qwen2", "score"), making.tokenizer(template)
    texts = [
        f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n!!"
        for prompt, answer in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    want = padded(copy.deepcopy(model), tokenizer, texts)
    (score,) = build([model], [tokenizer], chat_template_kwargs={"ending": "!!"})
    prompts, completions = chat(PROMPTS, "user"), chat(COMPLETIONS, "assistant")
    torch.testing.assert_close(score(prompts, completions), want, **CLOSE)
    assert prompts == chat(PROMPTS, "user")  # not extended in place


def test_a_tokenizer_without_padding_pads_with_its_eos(build):
    """And then a text's own EOS at its end counts as padding, as transformers has it."""
    model, tokenizer = making.model("qwen2", "score"), making.tokenizer()
    tokenizer.pad_token = None
    (score,) = build([model], tokenizer)
    assert tokenizer.pad_token == "<eos>"
    assert model.config.pad_token_id == tokenizer.eos_token_id == 1
    texts = ["abc<eos>", "ab<eos>c", "abcdef"]
    plain = making.model("qwen2", "score")
    plain.config.pad_token_id = 1
    got = score([""] * 3, texts)
    torch.testing.assert_close(got, padded(plain, tokenizer, texts), **CLOSE)
    alone = padded(plain, tokenizer, ["abc"])
    torch.testing.assert_close(got[:1], alone, **CLOSE)
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"reward_processing_classes\[1\].*set its pad_token"):
        build([len, model], [None, tokenizer])


def bert(labels: int) -> Any:
    config = transformers.BertConfig(
        vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128, num_labels=labels, pad_token_id=0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def two_labels() -> Any:
    config = copy.deepcopy(making.model("qwen2", "score").config)
    config.num_labels = 2
    return transformers.AutoModelForSequenceClassification.from_config(config)


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=80, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, num_labels=1,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=1,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.BartForSequenceClassification(config)


@pytest.mark.parametrize("make", [lambda: bert(1), lambda: bert(3), two_labels, bart])
def test_other_models_read_the_padded_batch(make, build):
    torch.manual_seed(0)
    model, tokenizer = make(), making.tokenizer()
    for parameter in model.parameters():  # far enough from 0 to tell rows apart
        torch.nn.init.normal_(parameter, std=0.3)
    texts = [prompt + answer + "<eos>" for prompt, answer in zip(PROMPTS, COMPLETIONS, strict=True)]
    want = padded(copy.deepcopy(model), tokenizer, texts)
    assert want.std() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (score,) = build(model, tokenizer)
    completions = [answer + "<eos>" for answer in COMPLETIONS]
    torch.testing.assert_close(score(PROMPTS, completions), want, **CLOSE)


def test_it_is_said_why_a_model_is_read_with_padding(build):
    with pytest.warns(UserWarning, match="a reward model is read with padding: .*num_labels=2"):
        build(two_labels(), making.tokenizer())


@pytest.mark.parametrize(
    ("keywords", "dtype"), [({}, torch.bfloat16), ({"dtype": "float32"}, torch.float32)]
)
def test_a_model_by_name_brings_its_tokenizer(tmp_path, keywords, dtype, build):
    model, tokenizer = making.model("llama", "score"), making.tokenizer()
    folder = tmp_path / "some" / "judge"
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    given = [len, str(folder)]
    same, score = build(given, None, model_init_kwargs=keywords or None)
    assert same is len
    assert given == [len, str(folder)]
    assert name_of(score) == "judge"
    assert score.model.dtype == dtype
    want = padded(model.to(dtype), tokenizer, [p + c for p, c in zip("abc", "def", strict=True)])
    got = score(list("abc"), list("def"))
    torch.testing.assert_close(got, want, **(CLOSE if keywords else {"rtol": 0.02, "atol": 0.01}))


def test_dropout_is_off(build):
    model = making.model("gpt2", "score")
    model.transformer.drop.p = 0.5
    model.train()
    (score,) = build(model, making.tokenizer())
    first, second = (score(PROMPTS, COMPLETIONS) for _ in range(2))
    assert first.equal(second)


def test_it_runs_as_any_reward_function_does(build):
    """With a time limit too, where functions go to other processes."""
    model, tokenizer = making.model("qwen2", "score"), making.tokenizer()
    model.config._name_or_path = "someone/judge"
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, COMPLETIONS, strict=True)]
    want = padded(copy.deepcopy(model), tokenizer, texts)

    async def lengths(completions: list[str], **kwargs: Any) -> list[int]:
        return [len(completion) for completion in completions]

    entries = build([lengths, model], [None, tokenizer])
    functions = RewardFunctions(entries, timeout=20.0)
    assert functions.names == ["lengths", "judge"]
    found = functions.score(
        prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 5, trainer_state=None,
        columns={"answer": [0] * 5}, log_extra=print, log_metric=print,
    )  # fmt: skip
    functions.close()
    assert found.values[:, 0].tolist() == [2, 9, 0, 14, 2]
    torch.testing.assert_close(found.values[:, 1], want, **CLOSE)


@pytest.mark.parametrize(
    ("entries", "tokenizers", "error", "message"),
    [
        (None, None, ValueError, "reward_funcs is required"),
        ([], None, ValueError, "reward_funcs is required"),
        ([len, 3], None, TypeError, r"reward_funcs\[1\] must be .* got int"),
        ([torch.nn.Linear(1, 1)], None, TypeError, r"reward_funcs\[0\] is a Linear without a con"),
        ([len, len], "one", ValueError, "has 1 entries for 2 reward_funcs"),
        (len, ["one", "two"], ValueError, "has 2 entries for 1 reward_funcs"),
    ],
)
def test_what_does_not_fit_is_named(entries, tokenizers, error, message, build):
    with pytest.raises(error, match=message):
        build(entries, tokenizers)


def test_a_model_without_a_tokenizer_to_be_found_is_named(tmp_path, build):
    model = making.model("qwen2", "score")
    model.config._name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match=r"\[0\]: found no tokenizer for Qwen2.*give one"):
        build(model)


def test_functions_alone_pass_as_they_are(build):
    assert build(len) == [len]
    assert build((len, print), [None, None]) == [len, print]

"""What `fastrl run` gives back to transformers, and that it is all taken away again."""

from __future__ import annotations

import importlib
import math
import sys
import warnings

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedModel,
    TrainingArguments,
)

import fastrl.legacy
from fastrl.compat.transformers_names import GONE, MOVED
from fastrl.compat.transformers_patch import patch_transformers, restore_transformers
from fastrl.legacy.changes import Refused
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS

SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 16, "vocab_size": 20}
SHAPE |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
# A value for each field removed from TrainingArguments; others take True.
VALUES = {
    "evaluation_strategy": "steps",
    "fp16_opt_level": "O1",
    "logging_dir": "logs",
    "no_cuda": True,
    "per_gpu_eval_batch_size": 3,
    "per_gpu_train_batch_size": 3,
    "push_to_hub_model_id": "some/model",
    "push_to_hub_token": "secret",
    "ray_scope": "last",
    "tpu_num_cores": 8,
    "warmup_ratio": 0.25,
}


@pytest.fixture
def patched(monkeypatch):
    """transformers patched, with every warning still to be said."""
    monkeypatch.setattr(fastrl.legacy, "_said", set())
    patch_transformers()
    yield
    restore_transformers()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(GPT2Config(**SHAPE)).save_pretrained(path)
    return str(path)


def arguments(tmp_path, **fields):
    device = {} if "no_cuda" in fields else {"use_cpu": True}
    with pytest.warns(FutureWarning, match="TrainingArguments, old spellings"):
        return TrainingArguments(str(tmp_path), **device, **fields)


# --- TrainingArguments ---------------------------------------------------------------------------
def test_every_removed_field_is_taken(patched, tmp_path):
    taken = [n for n, change in TRAINING_ARGUMENTS.items() if not isinstance(change, Refused)]
    assert len(taken) > 20
    for name in set(taken) - {"xpu_backend"}:  # which starts a process group
        made = arguments(tmp_path, **{name: VALUES.get(name, True)})
        assert not hasattr(made, name)
    made = arguments(
        tmp_path,
        evaluation_strategy="epoch",
        no_cuda=True,
        warmup_ratio=0.1,
        group_by_length=True,
        push_to_hub_token="t",
        save_safetensors=True,
        overwrite_output_dir=True,
        logging_dir="logs",
        fp16_full_eval=False,  # never removed
    )
    assert (made.eval_strategy, made.use_cpu, made.warmup_steps) == ("epoch", True, 0.1)
    assert (made.train_sampling_strategy, made.hub_token) == ("group_by_length", "t")


def test_warnings_name_the_new_spelling_once(patched, tmp_path):
    with pytest.warns(FutureWarning, match="evaluation_strategy= is eval_strategy=") as told:
        TrainingArguments(str(tmp_path), evaluation_strategy="no", use_cpu=True)
    assert len(told) == 1 and told[0].filename == __file__
    with pytest.raises(TypeError, match="no field 'evaluation_strateg'; did you mean 'evaluation_"):
        TrainingArguments(str(tmp_path), evaluation_strateg="no")
    with pytest.raises(TypeError, match="no longer takes past_index=3"):
        TrainingArguments(str(tmp_path), past_index=3)


def test_command_lines_of_before(patched, tmp_path):
    words = ["--output_dir", str(tmp_path), "--evaluation_strategy", "epoch", "--no_cuda"]
    words += ["--overwrite_output_dir", "--warmup_ratio", "0.25", "--max_steps=3"]
    parser = HfArgumentParser(TrainingArguments)
    with pytest.warns(FutureWarning, match="--evaluation_strategy is --eval_strategy"):
        (made,) = parser.parse_args_into_dataclasses(words)
    assert (made.eval_strategy, made.use_cpu, made.warmup_steps) == ("epoch", True, 0.25)
    assert made.max_steps == 3


def test_command_lines_in_sys_argv(patched, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["s.py", "--output_dir", str(tmp_path), "--no_cuda"])
    with pytest.warns(FutureWarning, match="--no_cuda is --use_cpu"):
        (made,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    assert made.use_cpu


# --- loading -------------------------------------------------------------------------------------
def test_loading_keywords_of_before(patched, folder):
    with pytest.warns(FutureWarning, match="use_auth_token= is token=") as told:
        model = AutoModelForCausalLM.from_pretrained(
            folder, use_auth_token=False, torch_dtype=torch.float16
        )
    assert model.dtype == torch.float16
    old = [w for w in told if w.category is FutureWarning]
    assert len(old) == 2 and {warning.filename for warning in old} == {__file__}
    with pytest.raises(TypeError, match="give only dtype="):
        GPT2LMHeadModel.from_pretrained(folder, torch_dtype="auto", dtype="float16")
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        AutoModelForCausalLM.from_pretrained(folder, load_in_8bit=True)
    assert GPT2LMHeadModel.from_pretrained(folder, load_in_8bit=False).dtype == torch.float32


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_bits_become_a_quantization_config(monkeypatch, folder, bits):
    given = {}
    keep = classmethod(lambda cls, *args, **keywords: given.update(keywords))
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", keep)
    monkeypatch.setattr("fastrl.models.loading.importlib.util.find_spec", lambda name: name)
    patch_transformers()
    try:
        GPT2LMHeadModel.from_pretrained(folder, **{bits: True}, device_map="auto")
    finally:
        restore_transformers()
    assert given.keys() == {"quantization_config", "device_map"}
    assert getattr(given["quantization_config"], bits) is True


@pytest.mark.parametrize("name", ["AutoConfig", "GenerationConfig", "GPT2Config"])
def test_other_classes_take_use_auth_token(patched, folder, name):
    loaded = getattr(transformers, name).from_pretrained(folder, use_auth_token="t")
    assert not hasattr(loaded, "use_auth_token") and loaded.bos_token_id == 0


# --- pipelines -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def classifier():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: place for place, word in enumerate(["<pad>", "good", "bad", "so", "film"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    torch.manual_seed(3)
    labels = dict(enumerate(("NEGATIVE", "POSITIVE", "NEUTRAL")))
    config = GPT2Config(**SHAPE, num_labels=3, id2label=labels, initializer_range=1.0)
    return GPT2ForSequenceClassification(config).eval(), tokenizer


def scores_of(classifier, text):
    """[(label, logit)] in the order of the labels, computed without the pipeline."""
    model, tokenizer = classifier
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
    return [(model.config.id2label[n], logit) for n, logit in enumerate(logits.tolist())]


def test_return_all_scores_keeps_the_labels_order(patched, classifier):
    texts = ["so good", "bad film", "so bad film"]
    expected = [scores_of(classifier, text) for text in texts]
    assert any(pairs != sorted(pairs, key=lambda pair: -pair[1]) for pairs in expected)
    settings = {"function_to_apply": "none", "return_all_scores": True}
    model, tokenizer = classifier
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    with pytest.warns(FutureWarning, match="return_all_scores= is top_k="):
        found = pipe(texts, batch_size=2, **settings)
    built = transformers.pipeline(
        "sentiment-analysis", model=model, tokenizer=tokenizer, **settings
    )
    for answers in (found, built(texts)):
        for row, pairs in zip(answers, expected, strict=True):
            assert [item["label"] for item in row] == [label for label, _ in pairs]
            assert [item["score"] for item in row] == pytest.approx([s for _, s in pairs], rel=1e-5)
    (alone,) = pipe(texts[0], **settings)  # one text came in a list of its own
    assert [item["label"] for item in alone] == [label for label, _ in expected[0]]
    best = max(expected[0], key=lambda pair: pair[1])[0]
    assert pipe([texts[0]], return_all_scores=False)[0]["label"] == best


def test_pipeline_takes_use_auth_token(patched, classifier):
    model, tokenizer = classifier
    pipe = transformers.pipeline(
        "text-classification", model=model, tokenizer=tokenizer, use_auth_token=None
    )
    assert pipe("good")[0]["label"] in model.config.id2label.values()


# --- Trainer -------------------------------------------------------------------------------------
def test_trainers_written_before_methods_gained_arguments(patched, classifier, tmp_path):
    tokenizer = classifier[1]
    model = GPT2LMHeadModel(GPT2Config(**SHAPE))
    losses = []

    class Old(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            outputs = model(**inputs)
            losses.append(outputs.loss)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

        def log(self, logs):
            logs["name"] = type(self.tokenizer).__name__
            super().log(logs)

    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, logging_steps=1)
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    with pytest.warns(FutureWarning, match="processing_class"):
        trainer = Old(model, args, train_dataset=rows, tokenizer=tokenizer)
    trainer.train()
    assert len(losses) == 1 and trainer.processing_class is tokenizer is trainer.tokenizer
    assert {row.get("name") for row in trainer.state.log_history} == {type(tokenizer).__name__}
    with pytest.raises(TypeError, match="both"):
        Old(model, args, tokenizer=tokenizer, processing_class=tokenizer)


# --- names that are gone -------------------------------------------------------------------------
def test_every_name_is_there_and_says_what_replaced_it(patched):
    for module, names in GONE.items():
        loaded = importlib.import_module(module)
        for name, (_, instead) in names.items():
            with pytest.warns(FutureWarning) as told:
                assert getattr(loaded, name) is not None
            assert str(told[0].message) == f"{module}.{name} is {instead}"
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                getattr(loaded, name)
    from transformers import AutoModelForImageTextToText, AutoModelForVision2Seq

    assert AutoModelForVision2Seq is AutoModelForImageTextToText
    with pytest.raises(AttributeError, match="NoSuchModel"):
        _ = transformers.NoSuchModel


def test_modules_that_moved(patched):
    from transformers.integrations import deepspeed

    for name, now in MOVED.items():
        with pytest.warns(FutureWarning, match=f"{name} is {now}"):
            found = importlib.import_module(name)
        assert found is importlib.import_module(now) and found.__spec__.name == now
    from transformers.deepspeed import is_deepspeed_zero3_enabled

    assert is_deepspeed_zero3_enabled is deepspeed.is_deepspeed_zero3_enabled


def test_adamw_by_hand(patched):
    """Two steps on one number, as the formula says; torch's differs in where eps goes."""
    from transformers import AdamW

    start, grads, lr, eps, decay = 2.0, (0.5, -0.25), 0.1, 1e-2, 0.5
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = AdamW([weight], lr=lr, eps=eps, weight_decay=decay, no_deprecation_warning=True)
    x, m, v = start, 0.0, 0.0
    for step, grad in enumerate(grads, 1):
        weight.grad = torch.tensor([grad], dtype=torch.float64)
        optimizer.step()
        m = 0.9 * m + 0.1 * grad
        v = 0.999 * v + 0.001 * grad * grad
        size = lr * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        x -= size * m / (math.sqrt(v) + eps)
        x -= lr * decay * x
        assert weight.item() == pytest.approx(x, rel=1e-12)
    plain = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    plain.grad = torch.tensor([1.0], dtype=torch.float64)
    AdamW([plain], lr=lr, eps=0.0, correct_bias=False).step()
    assert plain.item() == pytest.approx(1 - lr * 0.1 / math.sqrt(0.001), rel=1e-12)
    with pytest.raises(ValueError, match="betas must lie"):
        AdamW([plain], betas=(1.0, 0.9))


def test_top_k_top_p_filtering_by_hand(patched):
    from transformers import top_k_top_p_filtering

    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]]))
    gone = -math.inf

    def kept(**settings):
        return (top_k_top_p_filtering(logits.clone(), **settings) != gone).tolist()

    assert kept() == [[True] * 4] * 2
    assert kept(top_k=1) == [[True, False, False, False]] * 2
    assert kept(top_p=0.65) == [[True, True, False, False], [True, False, False, False]]
    assert kept(top_p=0.1, min_tokens_to_keep=2)[0] == [True, True, False, False]
    filled = top_k_top_p_filtering(logits.clone(), top_k=2, filter_value=-5.0)
    assert filled[0].tolist()[2:] == [-5.0, -5.0]


def test_hf_folder(patched, monkeypatch, tmp_path):
    from huggingface_hub import HfFolder, constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hub" / "token"))
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    assert HfFolder.get_token() is None
    HfFolder.save_token("abc")
    assert HfFolder.get_token() == "abc"


# --- undone --------------------------------------------------------------------------------------
def state():
    """What the patch touches, as it is."""
    import huggingface_hub
    import peft

    owners = [TrainingArguments, transformers.Seq2SeqTrainingArguments, HfArgumentParser]
    owners += [PreTrainedModel, transformers.PreTrainedTokenizerBase, transformers.PreTrainedConfig]
    owners += [AutoModelForCausalLM, transformers.AutoTokenizer, transformers.Trainer]
    owners += [transformers.AutoConfig, transformers.TextClassificationPipeline]
    names = ("__init__", "_legacy_fields", "from_pretrained", "parse_args_into_dataclasses")
    names += ("_sanitize_parameters", "tokenizer")
    kinds = [type(m) for m in (transformers, huggingface_hub, peft, transformers.generation)]
    pipeline = (transformers.pipeline, transformers.pipelines.pipeline)
    return [vars(owner).get(n) for owner in owners for n in names], kinds, pipeline


def test_all_is_undone(tmp_path):
    _ = transformers.pipeline, transformers.TextClassificationPipeline, transformers.Trainer
    finders, before = list(sys.meta_path), state()
    patch_transformers()
    patch_transformers()
    assert len(sys.meta_path) == len(finders) + 1
    changed = sum(a is not b for a, b in zip(before[0], state()[0], strict=True))
    assert changed >= 12
    restore_transformers()
    assert sys.meta_path == finders
    kept, kinds, pipeline = state()
    assert all(a is b for a, b in zip(before[0], kept, strict=True))
    assert (kinds, pipeline) == before[1:]
    with pytest.raises(TypeError, match="evaluation_strategy"):
        TrainingArguments(str(tmp_path), evaluation_strategy="no")
    with pytest.raises(ImportError):
        from transformers import AdamW  # noqa: F401
    restore_transformers()


def test_configs_of_fastrl_are_not_concerned(patched, tmp_path):
    from fastrl import SFTConfig

    with pytest.warns(FutureWarning, match="SFTConfig, old spellings"):
        made = SFTConfig(str(tmp_path), evaluation_strategy="no", use_cpu=True, max_seq_length=7)
    assert made.max_length == 7 and SFTConfig._legacy_fields is not TRAINING_ARGUMENTS

"""A module around a transformers model that loads and saves like one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import PushToHubMixin

from fastrl.legacy import closest
from fastrl.models import adapters, checkpoint, loading

_INNER = "pretrained_model."


class PreTrainedModelWrapper(nn.Module, PushToHubMixin):
    """Base of the value-head models. Subclasses name the auto class that loads what they wrap.

    Args:
        pretrained_model: a transformers model, or one wrapped by PEFT.
        score_module: scoring head of a reward adapter.
        supports_rm_adapter: whether the model carries a reward adapter.
        rm_adapter_name: that adapter's name.

    Raises:
        ValueError: if there is no model to wrap.
        TypeError: for an argument that neither this class nor the subclass's `supported_args` know.
    """

    transformers_parent_class: Any = None
    supported_args: tuple[str, ...] = ()
    supported_modules = ("v_head",)
    supported_rm_modules = ("score",)
    lm_head_namings: tuple[str, ...] = ()
    pretrained_model: Any
    v_head: Any
    score: Any

    def __init__(
        self,
        pretrained_model: nn.Module,
        score_module: nn.Module | None = None,
        supports_rm_adapter: bool = False,
        rm_adapter_name: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if not isinstance(pretrained_model, nn.Module) or not hasattr(pretrained_model, "config"):
            raise ValueError(
                "pretrained_model must be a transformers model, or one wrapped by PEFT, got "
                f"{type(pretrained_model).__name__}; {type(self).__name__}.from_pretrained loads "
                "one by its name"
            )
        for name in others:
            if name not in self.supported_args:
                known = closest(name, self.supported_args)
                raise TypeError(f"{type(self).__name__} has no argument {name!r}{known}")
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        self.is_loaded_in_8bit = getattr(pretrained_model, "is_loaded_in_8bit", False)
        self.is_loaded_in_4bit = getattr(pretrained_model, "is_loaded_in_4bit", False)
        self.is_sequential_parallel = False
        self.is_peft_model = adapters.is_peft(pretrained_model)
        self.current_device = loading.current_device()
        self.supports_rm_adapter = supports_rm_adapter
        self.rm_adapter_name = rm_adapter_name
        self.policy_adapter_name = "default"
        if score_module is not None:
            self.score = score_module

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | nn.Module,
        *model_args: Any,
        peft_config: Any = None,
        reward_adapter: str | None = None,
        reward_adapter_name: str = "reward_adapter",
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> PreTrainedModelWrapper:
        """Wrap a model given by folder, hub name, or as an object.

        Args:
            pretrained_model_name_or_path: folder or hub name of a model, of a value-head model or
                of a PEFT adapter; or a transformers or PEFT model.
            model_args: handed on to the auto class.
            peft_config: gives the model a fresh adapter.
            reward_adapter: folder or hub name of a second adapter, for `compute_reward_score`.
            reward_adapter_name: what that adapter is called.
            is_trainable: whether an adapter found in the checkpoint goes on being trained.
            kwargs: arguments of the value head, of `prepare_model_for_kbit_training`, and of the
                auto class (old names are understood, see `fastrl.models.loading`).

        Warns:
            UserWarning: for arguments of a loading that a model object no longer needs.

        Raises:
            ValueError: naming the argument that does not fit.
        """
        adapters.check_config(peft_config)
        if reward_adapter is not None and not isinstance(reward_adapter, str):
            raise ValueError(
                "reward_adapter must be the folder or hub name of an adapter, got "
                f"{type(reward_adapter).__name__}"
            )
        source = pretrained_model_name_or_path
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        own = {name: kwargs.pop(name) for name in cls.supported_args if name in kwargs}
        kbit, keywords = adapters.split_kbit(kwargs)
        if isinstance(source, str):
            keywords = loading.modernise(keywords)
            model = cls._load(source, model_args, keywords, peft_config, kbit, is_trainable)
        else:
            model = cls._adopt(source, peft_config, kbit)
            cls._tell_unused(keywords, is_trainable, reward_adapter)
        adapters.refuse_soft_prompts(model)
        if reward_adapter is not None:
            if not adapters.is_peft(model):
                raise ValueError("reward_adapter needs a PEFT model; give peft_config as well")
            own["score_module"] = adapters.add_reward_adapter(
                model, reward_adapter, reward_adapter_name, keywords, cls.supported_rm_modules
            )
            own.update(supports_rm_adapter=True, rm_adapter_name=reward_adapter_name)
        wrapped = cls(model, **own)
        wrapped.post_init(cls._value_head_state(source, keywords))
        return wrapped

    @classmethod
    def _load(
        cls,
        source: str,
        model_args: tuple[Any, ...],
        keywords: dict[str, Any],
        peft_config: Any,
        kbit: dict[str, Any],
        is_trainable: bool,
    ) -> nn.Module:
        parent = cls.transformers_parent_class
        model = adapters.load(parent, source, model_args, keywords, is_trainable)
        if model is None:
            model = parent.from_pretrained(source, *model_args, **keywords)
            return model if peft_config is None else adapters.add(model, peft_config, kbit)
        if peft_config is not None:
            warnings.warn(
                f"peft_config is ignored: {source!r} holds a trained adapter", stacklevel=3
            )
        return model

    @classmethod
    def _adopt(cls, model: Any, peft_config: Any, kbit: dict[str, Any]) -> nn.Module:
        if adapters.is_peft(model):
            if peft_config is not None:
                raise ValueError("peft_config: the model given carries an adapter already")
            return model
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                "pretrained_model_name_or_path must be a name, a transformers PreTrainedModel or a "
                f"PEFT model, got {type(model).__name__}"
            )
        return model if peft_config is None else adapters.add(model, peft_config, kbit)

    @classmethod
    def _tell_unused(
        cls, keywords: dict[str, Any], is_trainable: bool, reward_adapter: str | None
    ) -> None:
        """Say which arguments only matter when a model is loaded, and this one is already."""
        used = {} if reward_adapter is None else checkpoint.hub_arguments(keywords)
        unused = [name for name in keywords if name not in used]
        unused += ["is_trainable"] if is_trainable else []
        if unused:
            hints = "".join(closest(name, cls.supported_args) for name in unused)
            warnings.warn(
                f"from_pretrained was given a model, so it does nothing with {', '.join(unused)}"
                f"{hints}",
                stacklevel=3,
            )

    @classmethod
    def _value_head_state(cls, source: Any, keywords: dict[str, Any]) -> dict[str, torch.Tensor]:
        if not isinstance(source, str):
            return checkpoint.value_head_of(source)
        state = checkpoint.load_value_head(source, checkpoint.hub_arguments(keywords))
        if not state:
            warnings.warn(
                f"no v_head weight is found in {source!r}, so the value head starts afresh. "
                "This IS expected if you are not resuming PPO training.",
                stacklevel=3,
            )
        return state

    def post_init(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Take over value-head weights (with or without `v_head.`) and follow the model's devices.

        Raises:
            ValueError: if part of the model is offloaded to CPU or disk.
        """
        state = {name.removeprefix(checkpoint.PREFIX): value for name, value in state_dict.items()}
        own = self.v_head.state_dict()
        known = {name: value for name, value in state.items() if name in own}
        self.v_head.load_state_dict(known, strict=False)
        devices = set(getattr(self.pretrained_model, "hf_device_map", {}).values())
        if not devices or devices == {"cpu"}:
            return
        if devices & {"cpu", "disk"}:
            raise ValueError(
                "device_map: part of the model is offloaded to CPU or disk, which a model with a "
                "value head does not support"
            )
        head = self.pretrained_model.get_output_embeddings()
        self.v_head.to(next(head.parameters()).device)
        self.is_sequential_parallel = True

    @property
    def prepare_inputs_for_generation(self) -> Any:
        """The wrapped model's."""
        return self.pretrained_model.prepare_inputs_for_generation

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The wrapped model's."""
        self.pretrained_model.gradient_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """The wrapped model's."""
        self.pretrained_model.gradient_checkpointing_disable()

    def enable_input_require_grads(self) -> None:
        """The wrapped model's; reentrant checkpointing with frozen embeddings needs it."""
        self.pretrained_model.enable_input_require_grads()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's own keys and `v_head.*`; of a PEFT model `v_head.*` alone."""
        given = dict(zip(("destination", "prefix", "keep_vars"), args, strict=False)) | kwargs
        prefix = given.pop("prefix", "")
        if not self.is_peft_model:
            given["destination"] = self.pretrained_model.state_dict(prefix=prefix, **given)
        return self.v_head.state_dict(prefix=prefix + checkpoint.PREFIX, **given)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` gave, or what TRL or the wrapped model saved.

        Keys may carry `pretrained_model.` in front. A PEFT model may be given `v_head.*` alone.
        """
        head = {n: v for n, v in state_dict.items() if n.startswith(checkpoint.PREFIX)}
        base = {n.removeprefix(_INNER): v for n, v in state_dict.items() if n not in head}
        result = self.v_head.load_state_dict(
            checkpoint.stripped(head), strict=strict, assign=assign
        )
        if base or not self.is_peft_model:
            result = self.pretrained_model.load_state_dict(base, strict=strict, assign=assign)
        return result

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Write a checkpoint that this class, TRL and (without the value head) transformers load.

        A PEFT model is saved as its adapter, with the value head in `pytorch_model.bin`; a reward
        adapter goes whole to a folder of its name inside. Keywords are those of the wrapped model's
        `save_pretrained`.
        """
        state = kwargs.pop("state_dict", None)
        state = self.state_dict() if state is None else state
        if not self.is_peft_model:
            return self.pretrained_model.save_pretrained(save_directory, state_dict=state, **kwargs)
        publish = kwargs.pop("push_to_hub", False)
        repository = kwargs.pop("repo_id", Path(save_directory).name)
        result = self.pretrained_model.save_pretrained(save_directory, **kwargs)
        head = {name: value for name, value in state.items() if checkpoint.PREFIX in name}
        torch.save(head, Path(save_directory, checkpoint.BIN))
        if self.supports_rm_adapter:
            adapters.keep_score(Path(save_directory, str(self.rm_adapter_name)), self.score)
        if publish:
            self.push_to_hub(repository)
        return result

    def compute_reward_score(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        ppo_adapter_name: str | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Scores of every position by the reward adapter, without gradient.

        Args:
            input_ids, attention_mask: (B, T).
            ppo_adapter_name: the adapter to go back to; `policy_adapter_name` if None.
            kwargs: handed on to the model.

        Returns:
            (B, T, labels).

        Raises:
            ValueError: if the model was not loaded with a `reward_adapter`.
        """
        if not self.supports_rm_adapter:
            raise ValueError(
                "compute_reward_score: this model has no reward adapter; give from_pretrained "
                "one by reward_adapter="
            )
        training = self.pretrained_model.training
        self.pretrained_model.set_adapter(self.rm_adapter_name)
        self.pretrained_model.eval()
        try:
            with torch.no_grad():
                output = self.pretrained_model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    output_hidden_states=True,
                    return_dict=True,
                    **kwargs,
                )
                return self.score(output.hidden_states[-1].to(self.score.weight.dtype))
        finally:
            self.pretrained_model.set_adapter(ppo_adapter_name or self.policy_adapter_name)
            self.pretrained_model.train(training)

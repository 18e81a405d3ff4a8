"""Merging the weights of two models of one architecture: the trained one and another."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from torch import nn
from transformers import AutoConfig, AutoTokenizer

State = dict[str, torch.Tensor]

_BY_DENSITY = {
    "policy_model_weight": 1.0,
    "policy_model_density": [1.0, 0.7, 0.1],
    "target_model_weight": 1.0,
    "target_model_density": [1.0],
    "normalize": 1.0,
}
_METHODS: dict[str, dict[str, Any]] = {
    "linear": {"policy_model_weight": 0.5, "target_model_weight": 0.5},
    "slerp": {"t_values": 0.5},
    "ties": _BY_DENSITY,
    "dare_ties": _BY_DENSITY,
}
_OURS = ("linear", "slerp")
# Directions that differ by less than this are mixed linearly: their angle's sine would be noise.
_PARALLEL = 0.9995


def _mergekit(module: str, what: str) -> Any:
    if importlib.util.find_spec("mergekit") is None:
        raise ImportError(f"{what} needs a package that is missing: pip install mergekit")
    return importlib.import_module(module)


class MergeConfig:
    """How to merge. Attributes and defaults are TRL's; set them after construction.

    Attributes:
        policy_model_path, target_model_path: folder or hub name of the trained and of the other
            model.
        policy_model_weight, target_model_weight: of linear, ties and dare_ties.
        policy_model_density, target_model_density, normalize: of ties and dare_ties.
        t_values: of slerp: 0 is the policy, 1 the target.
        dtype: of the merged weights.

    Args:
        method: linear (a weighted mean), slerp (along the arc between the two, for each tensor
            apart), ties (arXiv 2306.01708) or dare_ties (arXiv 2311.03099).

    Raises:
        ValueError: for another method.
        ImportError: for ties and dare_ties, the package `mergekit` is not installed.
    """

    def __init__(self, method: str = "linear") -> None:
        if method not in _METHODS:
            raise ValueError(f"method={method!r} is none of {', '.join(_METHODS)}")
        if method not in _OURS:
            _mergekit("mergekit", f"MergeConfig({method!r})")
        self.method = method
        self.policy_model_path: str | None = None
        self.target_model_path: str | None = None
        self.dtype = "float16"
        vars(self).update(_METHODS[method])

    def create(self) -> Any:
        """The same as a configuration of mergekit.

        Raises:
            ImportError: mergekit is not installed.
        """
        config = _mergekit("mergekit.config", "MergeConfig.create")
        made: dict[str, Any] = {"merge_method": self.method, "dtype": self.dtype}
        own = vars(self)
        sides = ("policy", "target")
        made["models"] = [
            {
                "model": own[f"{side}_model_path"],
                "parameters": {
                    name: own[f"{side}_model_{name}"]
                    for name in ("weight", "density")
                    if f"{side}_model_{name}" in own
                },
            }
            for side in sides
        ]
        if self.method != "linear":
            made["base_model"] = self.policy_model_path
        if "normalize" in own:
            made["parameters"] = {"normalize": bool(own["normalize"])}
        if "t_values" in own:
            made["parameters"] = {"t": own["t_values"]}
        return config.MergeConfiguration.model_validate(made)


def _mean(policy: torch.Tensor, target: torch.Tensor, own: dict[str, Any]) -> torch.Tensor:
    """Weighted by the weights' shares."""
    share = own["target_model_weight"] / (own["policy_model_weight"] + own["target_model_weight"])
    return torch.lerp(policy, target, share)


def _arc(policy: torch.Tensor, target: torch.Tensor, own: dict[str, Any]) -> torch.Tensor:
    """Spherical interpolation (Shoemake, SIGGRAPH 1985) of tensors seen as vectors."""
    t = own["t_values"]
    cosine = nn.functional.cosine_similarity(policy.flatten(), target.flatten(), dim=0)
    if abs(cosine) > _PARALLEL:
        return torch.lerp(policy, target, t)
    angle = cosine.acos()
    return (((1 - t) * angle).sin() * policy + (t * angle).sin() * target) / angle.sin()


def merge_states(config: MergeConfig, policy: State, target: State) -> State:
    """Two models' weights merged in fp32, linearly or by slerp; what is no float is the policy's.

    Raises:
        ValueError: for other methods, weights that do not sum to a positive number, or models of
            different parameters, which are named.
    """
    own = vars(config)
    if config.method not in _OURS:
        raise ValueError(f"merge_states merges by {' and '.join(_OURS)}, not {config.method}")
    if (
        config.method == "linear"
        and not own["policy_model_weight"] + own["target_model_weight"] > 0
    ):
        raise ValueError("policy_model_weight and target_model_weight must sum to more than 0")
    alike = {n for n, w in policy.items() if n in target and target[n].shape == w.shape}
    unlike = sorted((policy.keys() | target.keys()) - alike)
    if unlike:
        raise ValueError(
            f"the models differ in {unlike[0]} and {len(unlike) - 1} more: only models of one "
            "architecture can be merged"
        )
    mix = _mean if config.method == "linear" else _arc
    return {
        name: mix(weight.float(), target[name].float(), own)
        if weight.is_floating_point()
        else weight
        for name, weight in policy.items()
    }


def _loaded(path: str) -> Any:
    """The model of a checkpoint in fp32, of the class that was saved."""
    (name,) = AutoConfig.from_pretrained(path).architectures
    return getattr(transformers, name).from_pretrained(path, dtype=torch.float32)


def merge_models(config: Any, out_path: str) -> None:
    """Merge two checkpoints into a third, with the tokenizer that lies beside the policy.

    Args:
        config: a `MergeConfig` with both paths, or what its `create` makes.
        out_path: the folder.

    Raises:
        ImportError: mergekit is needed and not installed.
        ValueError: a path is missing, or as `merge_states`.
    """
    if not isinstance(config, MergeConfig) or config.method not in _OURS:
        merge = _mergekit("mergekit.merge", "merge_models")
        made = config.create() if isinstance(config, MergeConfig) else config
        options = merge.MergeOptions(cuda=torch.cuda.is_available(), copy_tokenizer=True)
        merge.run_merge(made, out_path=out_path, options=options)
        return
    policy_path, target_path = config.policy_model_path, config.target_model_path
    if not policy_path or not target_path:
        raise ValueError("policy_model_path and target_model_path must be set to merge models")
    policy, target = _loaded(policy_path), _loaded(target_path)
    policy.load_state_dict(merge_states(config, policy.state_dict(), target.state_dict()))
    policy.to(getattr(torch, config.dtype)).save_pretrained(out_path)
    if (Path(policy_path) / "tokenizer_config.json").exists():
        AutoTokenizer.from_pretrained(policy_path).save_pretrained(out_path)


def upload_model_to_hf(folder_path: str, repo_id: str) -> None:
    """Put a folder on the hub, in a model repository that is made for it."""
    api = HfApi()
    made = api.create_repo(repo_id, repo_type="model", exist_ok=True)
    api.upload_folder(folder_path=folder_path, repo_id=made.repo_id, repo_type="model")

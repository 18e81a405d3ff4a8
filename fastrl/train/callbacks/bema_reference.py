"""A reference that follows the averaged weights (BEMA, arXiv 2508.00180) of the policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from fastrl.train.callbacks.bema import BEMACallback as _Averages


class BEMACallback(_Averages):
    """Averages the policy's weights, and puts the averages into the reference now and then.

    As TRL's `trl.experimental.bema_for_ref_model.BEMACallback`; DPO's and KTO's trainers tell it
    which model their reference is.

    Args:
        update_freq, ema_power, bias_power, lag, update_after, multiplier, min_ema_multiplier,
            device: as of `fastrl.BEMACallback`.
        update_ref_model: whether the reference follows.
        ref_model_update_freq: steps between its updates.
        ref_model_update_after: steps before its first.

    Raises:
        ValueError: `ref_model_update_freq` is below 1; in training, where the reference is to
            follow and is no model apart, or one of other weights than the policy.
    """

    def __init__(
        self,
        update_freq: int = 400,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: int = 10,
        update_after: int = 0,
        multiplier: float = 1.0,
        min_ema_multiplier: float = 0.0,
        device: str = "cpu",
        update_ref_model: bool = False,
        ref_model_update_freq: int = 400,
        ref_model_update_after: int = 0,
    ) -> None:
        if ref_model_update_freq < 1:
            raise ValueError(f"ref_model_update_freq={ref_model_update_freq}: at least 1 is needed")
        super().__init__(
            update_freq,
            ema_power,
            bias_power,
            lag,
            update_after,
            multiplier,
            min_ema_multiplier,
            device,
        )
        self.update_ref_model = update_ref_model
        self.ref_model_update_freq = ref_model_update_freq
        self.ref_model_update_after = ref_model_update_after
        self._reference: nn.Module | None = None

    def follow_with(self, reference: nn.Module | None) -> None:
        """Take the model that is to follow, from a trainer that has one."""
        self._reference = reference

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that there is a reference to follow, then begin to average."""
        if self.update_ref_model and self._reference is None:
            raise ValueError(
                "update_ref_model=True needs a reference apart from the policy, in DPOTrainer or "
                "KTOTrainer; an adapter's is the model itself without it"
            )
        super().on_train_begin(args, state, control, **kwargs)
        if self.update_ref_model:
            self._check_the_weights()

    def _check_the_weights(self) -> None:
        """Raise unless each weight of the reference has one of its name and shape to take."""
        shapes = {name: weight.shape for name, weight in self._model.state_dict().items()}
        for name, weight in self._followers():
            if shapes.get(name) != weight.shape:
                raise ValueError(
                    "update_ref_model=True: the policy has no weight of the name and shape of the "
                    f"reference's {name}, {tuple(weight.shape)}, as with an adapter on the policy "
                    "alone; give a ref_model built as the policy is, or leave it out"
                )

    def _followers(self) -> list[tuple[str, nn.Parameter]]:
        """The reference's parameters, by their names in the policy."""
        named = self._reference.named_parameters()  # type: ignore[union-attr]
        return [(name.removeprefix("module."), parameter) for name, parameter in named]

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Average; then update the reference if its turn has come."""
        super().on_step_end(args, state, control, **kwargs)
        age = state.global_step - self.ref_model_update_after
        if self.update_ref_model and age >= 0 and age % self.ref_model_update_freq == 0:
            averaged = self.weights()
            for name, parameter in self._followers():
                parameter.copy_(averaged[name])

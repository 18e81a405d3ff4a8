"""Which generation of TRL a program's calls mean, where the calls themselves do not say."""

from __future__ import annotations

from fastrl.legacy import generation


def set_api(api: str | None) -> None:
    """Read calls that fit several releases of TRL as this one's; `FASTRL_API` does the same.

    Most calls show what they were written for, by an argument, a field or a type that only one
    release had, and **what a call shows wins over the pin**: under `set_api("1")` a trainer called
    with `tokenizer=` is still read as 0.11's, and under `set_api("0.7")` a `GRPOTrainer` is the one
    there ever was. The pin decides what is left:

    - fields that a config is not given take the defaults of that release (learning rate, lengths,
      `logging_steps`, …), and so does a trainer that is given no config or plain
      `TrainingArguments`;
    - such a call of `SFTTrainer` ends plain texts with EOS ("1") or leaves them as they are;
    - `PPOConfig` with no field of either form is the `step()` form's ("0.7", "0.11", and unpinned)
      or the `train()` form's ("1"), and so are the flags of a parser that is given `PPOConfig`;
    - positional arguments that fit today's order and an old one are read in the pinned one's.

    Args:
        api: "0.7" (releases to 0.7), "0.11" (0.8 to 0.11), "1" (from 0.12 on), or None for no pin
            of the program's own.

    Raises:
        ValueError: any other value.
    """
    generation.pin(api)

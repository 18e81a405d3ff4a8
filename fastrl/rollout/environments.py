"""Environments: one object a row, whose methods are the row's tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastrl.rollout.tools import Toolbox, toolbox

Message = dict[str, Any]
Factory = Callable[[], Any]
_OWN = ("reset", "get_reward")  # not for the model


def tool_methods(environment: Any) -> list[Callable[..., Any]]:
    """The public methods of an environment, by name, but `reset` and `get_reward`."""
    found = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    return [
        getattr(environment, name)
        for name, _ in found
        if name not in _OWN and not name.startswith("_")
    ]


class Environments:
    """Makes environments, gives one to each row, and begins their episodes.

    ```python
    class Counter:
        def reset(self, **row) -> str | None:  # the row's columns; begins an episode
            self.total = 0
            return "Count to three."  # put at the end of the prompt's last message

        def add(self, number: int) -> int:
            \"\"\"Adds to the total.

            Args:
                number: How much.
            \"\"\"
            self.total += number
            return self.total

        def get_reward(self) -> float:  # optional: a reward beside the reward functions
            return float(self.total == 3)
    ```

    An object is made once and reset for every episode; two rows of a batch never share one.

    Args:
        factory: called without arguments, gives an environment; or such by name, and the column
            `environment` of a row says which.
        tools: functions that every row has beside its environment's methods.

    Attributes:
        named: whether a row says in its column `environment` which one it is for.
        tools: all tools there are, of every environment.
        rewards: a name and a reward function for each class that has `get_reward`: called with
            `environments=` it gives their rewards, None for one of another class.

    Raises:
        TypeError: a factory that cannot be called.
        ValueError: an environment without `reset`, or whose methods make no tools.
    """

    def __init__(
        self,
        factory: Factory | Mapping[str, Factory],
        tools: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.named = isinstance(factory, Mapping)
        self._factories: dict[str | None, Factory] = {}
        if isinstance(factory, Mapping):
            self._factories.update(factory)
        else:
            self._factories[None] = factory
        if not self._factories:
            raise ValueError("environment_factory is an empty mapping: name an environment")
        self._made: dict[str | None, list[Any]] = {}
        self.tools: list[Callable[..., Any]] = list(tools)
        self.rewards: list[tuple[str, Callable[..., Any]]] = []
        rewarding: set[type] = set()
        for name, make in self._factories.items():
            first = _checked(name, make, tools)
            self._made[name] = [first]
            self.tools += tool_methods(first)
            if hasattr(first, "get_reward") and type(first) not in rewarding:
                rewarding.add(type(first))
                self.rewards.append((type(first).__name__, _reward_of(type(first))))

    def open(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[list[Message]]]:
        """An environment for each row, reset with its columns, and the prompt it begins with.

        Args:
            rows: `prompt` is a conversation; without one it is an empty message of the user. Where
                environments are named, `environment` is not given to `reset`.

        Returns:
            (environments, conversations): what `reset` returns, a text or blocks of one, stands
            at the end of the last message. The rows stay as they are.

        Raises:
            ValueError: a row names no environment there is.
            TypeError: a prompt that is no conversation, or a `reset` that returns something else.
        """
        names = [self._name(i, row) for i, row in enumerate(rows)]
        prompts = [_prompt(i, row) for i, row in enumerate(rows)]
        taken = dict.fromkeys(self._factories, 0)
        environments = []
        for name in names:
            if taken[name] == len(self._made[name]):
                self._made[name].append(self._factories[name]())
            environments.append(self._made[name][taken[name]])
            taken[name] += 1
        conversations = []
        for environment, row, prompt in zip(environments, rows, prompts, strict=True):
            columns = {k: v for k, v in row.items() if not (self.named and k == "environment")}
            conversations.append(_observed(prompt, environment.reset(**columns)))
        return environments, conversations

    def _name(self, i: int, row: Mapping[str, Any]) -> str | None:
        if not self.named:
            return None
        name = row.get("environment")
        if name not in self._factories:
            raise ValueError(
                f"Row {i} has environment={name!r}; environment_factory has "
                f"{', '.join(map(repr, self._factories))}"
            )
        return name


def _checked(name: str | None, make: Factory, tools: Sequence[Callable[..., Any]]) -> Any:
    """The first environment of a factory."""
    which = "environment_factory" if name is None else f"environment_factory[{name!r}]"
    if not callable(make):
        raise TypeError(f"{which} is {make!r}: give a class or a function that makes environments")
    first = make()
    reset = getattr(first, "reset", None)
    if not callable(reset) or inspect.iscoroutinefunction(reset):
        raise ValueError(
            f"{which} gives a {type(first).__name__} without a plain method reset(**row), which "
            "begins an episode: define it"
        )
    try:
        toolbox([*tools, *tool_methods(first)])
    except ValueError as error:
        raise ValueError(
            f"{which} gives a {type(first).__name__}, whose public methods are tools. {error} (a "
            "method that is not for the model begins with an underscore)"
        ) from error
    return first


def joined(tools: Toolbox, environment: Any, known: dict[type, Toolbox]) -> Toolbox:
    """A row's tools: those of all rows, then its environment's methods.

    Args:
        tools: of all rows.
        environment: of this row.
        known: what was found for its class, kept: schemas are made once a class.
    """
    methods = tool_methods(environment)
    kind = type(environment)
    if kind not in known:
        known[kind] = toolbox([*tools.functions.values(), *methods])
    bound = {method.__name__: method for method in methods}
    return Toolbox({**known[kind].functions, **bound}, known[kind].schemas)


def _prompt(i: int, row: Mapping[str, Any]) -> list[Message]:
    prompt = row.get("prompt")
    if prompt is None:
        return [{"role": "user", "content": ""}]
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[-1], str):
        raise TypeError(
            f"The prompt of row {i} is {prompt!r}: with environments a prompt is a list of "
            "messages, [{'role': 'user', 'content': ...}]"
        )
    return prompt


def _observed(prompt: list[Message], observation: Any) -> list[Message]:
    if observation is None:
        return list(prompt)
    if not isinstance(observation, str | list):
        raise TypeError(
            f"reset returned {observation!r}: return a text, a list of content blocks or None"
        )
    content = prompt[-1]["content"]
    if isinstance(observation, list) and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    elif isinstance(observation, str) and isinstance(content, list):
        observation = [{"type": "text", "text": observation}]
    return [*prompt[:-1], {**prompt[-1], "content": content + observation}]


def _reward_of(kind: type[Any]) -> Callable[..., Any]:
    """A reward function named after the class; a coroutine where `get_reward` is one."""

    def own(environments: Sequence[Any], **_: Any) -> list[float | None]:
        return [e.get_reward() if type(e) is kind else None for e in environments]

    async def awaited(environments: Sequence[Any], **_: Any) -> list[float | None]:
        return [await e.get_reward() if type(e) is kind else None for e in environments]

    reward = awaited if inspect.iscoroutinefunction(kind.get_reward) else own
    reward.__name__ = kind.__name__
    return reward

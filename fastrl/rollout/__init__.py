"""Prompts to rollouts: the in-process engine and what stands in for it."""

from fastrl.rollout.answering import generate
from fastrl.rollout.completion import Completion, Request, Rollout
from fastrl.rollout.engine import Engine
from fastrl.rollout.plan import Plan
from fastrl.rollout.sampling import Sampling

__all__ = ["Completion", "Engine", "Plan", "Request", "Rollout", "Sampling", "generate"]

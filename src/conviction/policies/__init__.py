"""Policies: what to start, stop and count. One file per family."""

from dataclasses import fields
from inspect import isclass
from typing import Any

from conviction.core import InvalidSettingError
from conviction.policies.adaptive import AdaptiveConsistency, EarlyStoppingConsistency
from conviction.policies.base import (
    Action,
    Conditions,
    Done,
    Policy,
    Standing,
    Start,
    Stop,
    may_vote,
)
from conviction.policies.deepconf_offline import DeepConfOffline
from conviction.policies.deepconf_online import DeepConfHigh, DeepConfLow, DeepConfOnline
from conviction.policies.majority import Majority, Single
from conviction.policies.ranked import BestOfN, Borda
from conviction.registry import load, names

__all__ = [
    "Action",
    "AdaptiveConsistency",
    "BestOfN",
    "Borda",
    "Conditions",
    "DeepConfHigh",
    "DeepConfLow",
    "DeepConfOffline",
    "DeepConfOnline",
    "Done",
    "EarlyStoppingConsistency",
    "Majority",
    "Policy",
    "Single",
    "Standing",
    "Start",
    "Stop",
    "may_vote",
    "policy",
    "policy_names",
]

GROUP = "conviction.policies"


def policy_names() -> tuple[str, ...]:
    """Names of all policies, plug-ins included."""
    return names(GROUP)


def policy(name: str, **settings: Any) -> Policy:
    """The policy registered as `name`, with these settings.

    Raises:
        UnknownNameError: there is no policy of that name.
        InvalidSettingError: the policy has no such setting, or refuses its value.
    """
    kind = load(GROUP, name)
    if not (isclass(kind) and issubclass(kind, Policy)):
        raise InvalidSettingError(
            tried=f"use the policy {name!r}",
            found=f"its entry point names {kind!r}, which is no Policy",
            remedy="Mend the package that registers it.",
        )
    known = [item.name for item in fields(kind) if item.init]  # type: ignore[arg-type]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise InvalidSettingError(
            tried=f"set {', '.join(unknown)} of the policy {name!r}",
            found="it has no such setting",
            remedy=f"Its settings: {', '.join(known) or 'none'}.",
        )
    return kind(**settings)

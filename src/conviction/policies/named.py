"""Policies by name, with settings as they are written on the command line.

majority
deepconf-low:window=32,keep=0.2
deepconf-low:keep=0.1/0.3/0.9       alternatives, for `conviction lab`
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from conviction.core import InvalidSettingError
from conviction.errors import ConvictionError
from conviction.policies.base import Policy
from conviction.registry import Registry, unknown_name

POLICIES = Registry(
    "conviction.policies",
    "policy",
    {
        "single": "conviction.policies.majority:Single",
        "majority": "conviction.policies.majority:Majority",
        "adaptive-consistency": "conviction.policies.adaptive:AdaptiveConsistency",
        "esc": "conviction.policies.adaptive:EarlyStoppingConsistency",
        "best-of-n": "conviction.policies.offline:BestOfN",
        "borda": "conviction.policies.offline:Borda",
        "deepconf-offline": "conviction.policies.offline:DeepConfOffline",
        "deepconf-low": "conviction.policies.deepconf_online:DeepConfLow",
        "deepconf-high": "conviction.policies.deepconf_online:DeepConfHigh",
        "settle": "conviction.policies.settle:Settle",
        "settle-lean": "conviction.policies.settle:SettleLean",
        "settle-exact": "conviction.policies.settle:SettleExact",
        "settle-confident": "conviction.policies.settle:SettleConfident",
        "settle-regenerate": "conviction.policies.settle:SettleRegenerate",
    },
)

_PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "none",
}


def policy_names() -> tuple[str, ...]:
    """Names of all policies, plug-ins included."""
    return POLICIES.names()


def policy(spec: str, **settings: Any) -> Policy:
    """The policy that "name" or "name:setting=value,setting=value" specifies.

    Further settings win over those of the specification.

    Raises:
        UnknownNameError: there is no such policy, or no such value.
        InvalidSettingError: the policy has no such setting, or refuses its value.
    """
    name, alternatives = read_spec(spec)
    given: dict[str, Any] = {}
    for setting, values in alternatives.items():
        if len(values) > 1:
            raise InvalidSettingError(
                tried=f"use the policy {spec!r}",
                found=f"it names {len(values)} values of {setting}",
                remedy="Give one; `conviction lab` compares several on a recording.",
            )
        given[setting] = values[0]
    return build(name, {**given, **settings})


def build(name: str, settings: Mapping[str, Any]) -> Policy:
    """The policy registered as `name`, with these settings.

    Raises:
        UnknownNameError: there is no policy of that name.
        InvalidSettingError: the policy has no such setting, or refuses its value.
    """
    kind = _class(name)
    known = list(setting_types(name))
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        others = " or ".join(_with_settings(unknown))
        raise InvalidSettingError(
            tried=f"set {', '.join(unknown)} of the policy {name!r}",
            found="it has no such setting",
            remedy=f"Its settings: {', '.join(known) or 'none'}."
            + (f" For yours, take the policy {others}." if others else ""),
        )
    return kind(**settings)


def setting_types(name: str) -> dict[str, Any]:
    """Settings of the policy registered as `name`, and their types.

    Raises:
        UnknownNameError: there is no policy of that name.
        PluginError: a plug-in brings it and cannot be used.
    """
    kind = _class(name)
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind) if item.init}


def read_spec(spec: str) -> tuple[str, dict[str, list[Any]]]:
    """A specification's name, and the values of each setting that it gives.

    Raises:
        UnknownNameError: there is no such policy, or no such value.
        InvalidSettingError: it is written wrongly, or a value has the wrong type.
    """
    name, colon, rest = spec.strip().partition(":")
    types = setting_types(name)
    given: dict[str, list[Any]] = {}
    for part in rest.split(",") if colon else ():
        setting, equals, values = (piece.strip() for piece in part.partition("="))
        if not (setting and equals and values):
            raise InvalidSettingError(
                tried=f"read the policy {spec!r}",
                found=f"{part!r} is no setting",
                remedy="Write it as name:setting=value,setting=value.",
            )
        given[setting] = [
            _converted(value.strip(), types.get(setting, str), setting, name)
            for value in values.split("/")
        ]
    return name, given


def _with_settings(settings: Sequence[str]) -> Iterator[str]:
    for name in policy_names():
        # A policy that does not load is no reason to hide what is wrong with this one.
        with suppress(ConvictionError):
            if set(settings) <= set(setting_types(name)):
                yield name


def written(value: object) -> str:
    """A setting's value as a specification has it."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _class(name: str) -> type[Policy]:
    return POLICIES.subclass(name, Policy)


def _converted(text: str, kind: Any, setting: str, name: str) -> Any:
    kinds = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    if text.lower() == "none" and type(None) in kinds:
        return None
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        pass
    for one in kinds:
        if isinstance(one, type) and issubclass(one, Enum):
            raise unknown_name(setting, text, [str(member.value) for member in one])
    wanted = " or ".join(_PLAIN.get(one, getattr(one, "__name__", str(one))) for one in kinds)
    raise InvalidSettingError(
        tried=f"set {setting} of the policy {name!r} to {text!r}",
        found=f"it takes {wanted}",
        remedy="Change it and retry.",
    )

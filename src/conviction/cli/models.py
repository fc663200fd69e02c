"""`conviction models`: list, fetch and remove models."""

import sys
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from conviction.cli.progress import download_bar
from conviction.cli.terminal import print_json, shown
from conviction.display import safe
from conviction.models import ModelStore

app = App(name="models", help="List, fetch and remove models.")


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One line of the list, and one object of its JSON."""

    short_name: str
    name: str
    size: int
    sha256: str | None
    fetched: bool
    prompt_style: str
    default: bool = False
    licence: str | None = None
    aliases: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    note: str = ""


@app.default
@app.command(name="list")
def show(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the models that are known by name, and those that were fetched by address.

    Args:
        json: Print the list as JSON on stdout.
    """
    models = _listed(ModelStore())
    if json:
        print_json([asdict(model) for model in models])
    else:
        _print(models)


@app.command
def pull(target: str | None = None) -> None:
    """Fetch a model into the cache and print the path of its file on stdout.

    An interrupted fetch continues where it broke off. A model whose file was brought to this
    machine by other means is pulled by the path of that file.

    Args:
        target: A name from the list, hf:owner/repository/file.gguf, an address that begins
            with https://, or the path of a file. The default model unless given.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with download_bar(console) as progress:
        store = ModelStore()
        model = store.pull(
            target or store.catalogue.default,
            progress=progress,
            notice=lambda text: console.print(shown(text)),
        )
    if model.sha256:
        console.print(f"{shown(model.name)} is ready (sha256 {model.sha256}).")
    else:
        console.print(f"{shown(model.name)} is ready; it is used where it is.")
    print(model.path)


@app.command(name="rm")
def remove(name: str) -> None:
    """Remove a model from the cache, with what an interrupted fetch of it left.

    Args:
        name: A name from the list, or the address that the model was fetched from.
    """
    removed, freed = ModelStore().remove(name)
    print(f"Removed {safe(removed)} ({decimal(freed)}).")


def _listed(store: ModelStore) -> list[ListedModel]:
    known = [
        ListedModel(
            short_name=model.short_name,
            name=model.name,
            size=model.size,
            sha256=model.sha256,
            fetched=store.holds(model),
            default=model.name == store.catalogue.default,
            licence=model.licence,
            prompt_style=model.prompt_style,
            aliases=model.aliases,
            sources=tuple(source.label for source in model.sources),
            note=model.note,
        )
        for model in store.catalogue.models
    ]
    others = [
        ListedModel(
            short_name=model.name,
            name=model.name,
            size=model.path.stat().st_size,
            sha256=model.sha256,
            fetched=True,
            prompt_style=model.prompt_style,
            note="fetched by address",
        )
        for model in store.others()
    ]
    return [*known, *others]


def _print(models: list[ListedModel]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("Name (-m)", "Size", "Fetched", "Licence", "Model"):
        table.add_column(heading, no_wrap=heading != "Model")
    for model in models:
        full = "" if model.name == model.short_name else f"{model.name}, "
        table.add_row(
            shown(model.short_name),
            decimal(model.size),
            "yes" if model.fetched else "no",
            model.licence or "not known",
            shown(f"{full}{'the default: ' if model.default else ''}{model.note}"),
        )
    # A pipe has no width: each model stays on one line.
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, width=width).print(table)

"""The cluster: how it is reached, what it has, and how many engines it has room for."""

import logging
import os
import socket
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from typing import Any, cast

from conviction.core import require
from conviction.errors import EngineStartError, InvalidSettingError, MissingExtraError

_REACH_SECONDS = 5.0
_BUILT_IN = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def check_extra() -> None:
    """Check that Ray is installed.

    Raises:
        MissingExtraError: it is not.
    """
    # Programs that `uv run` starts would be packed up and made anew on every node.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray reports its use over the network unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray as _  # noqa: F401, PLC0415  # an extra
    except ImportError:
        raise MissingExtraError(
            tried="use a Ray cluster",
            found="Ray is not installed",
            remedy='Install it here and on every node: pip install "conviction[ray]".',
        ) from None


def parse_resources(given: Sequence[str]) -> dict[str, float]:
    """What an engine needs, from "GPU=1", "CPU=4", "memory=8e9" (bytes), or names of your own.

    Raises:
        InvalidSettingError: one is of another form, or its amount is no number above 0.
    """
    resources: dict[str, float] = {}
    for one in given:
        name, equals, amount = one.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = 0.0
        if not name or not equals or not isfinite(value) or value <= 0:
            raise InvalidSettingError(
                tried=f"use --engine-resources {one}",
                found="it is no name and an amount above 0",
                remedy="Give it as NAME=AMOUNT, as in GPU=1 or CPU=4.",
            )
        resources[name] = value
    return resources


def actor_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """The options of an actor that needs these resources."""
    known = {_BUILT_IN[name]: amount for name, amount in resources.items() if name in _BUILT_IN}
    others = {name: amount for name, amount in resources.items() if name not in _BUILT_IN}
    return {"num_cpus": 0.0, **known, "resources": others}


def _ray() -> Any:
    import ray  # noqa: PLC0415  # an extra

    return cast("Any", ray)  # Its types are not those that pyright wants to see.


@contextmanager
def connected(address: str | None = None) -> Generator[None]:
    """A connection to a cluster, as long as the context lasts.

    Args:
        address: HOST:PORT of the cluster's head. None for the cluster that RAY_ADDRESS names, or
            that runs on this machine; if there is none, one is started here for the time being.
            "local" starts one in any case.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidSettingError: the address is of another form.
        EngineStartError: there is no cluster, or it cannot be used from here.
    """
    check_extra()
    place = address or None
    if place not in (None, "auto", "local"):
        _check_reachable(place)
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=place,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({"include_dashboard": False} if place in (None, "local") else {}),
        )
    except Exception as error:
        raise EngineStartError(
            tried=f"use the Ray cluster {place or 'of this machine'}",
            found=_first_line(error),
            remedy="See whether it runs (`ray status`), and that Ray and Python have the same "
            f"versions there as here: Ray {ray.__version__}, Python {sys.version.split()[0]}.",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise InvalidSettingError(
            tried=f"use the Ray cluster {address}",
            found="that is not of the form HOST:PORT",
            remedy="Give the address that `ray start --head` printed, as in 10.0.0.1:6379.",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise EngineStartError(
            tried=f"reach the Ray cluster {address}",
            found=getattr(error, "strerror", None) or str(error),
            remedy="See whether it runs (`ray status` on its head), and whether this machine may "
            "reach it.",
        ) from None


class Cluster:
    """What the cluster has, of all its nodes that live, and how many `nodes` these are."""

    def __init__(self) -> None:
        nodes: list[dict[str, Any]] = _ray().nodes()
        self._nodes: list[dict[str, float]] = [node["Resources"] for node in nodes if node["Alive"]]
        self.nodes = len(self._nodes)

    def room(self, resources: Mapping[str, float]) -> int:
        """How many actors with these resources fit, if nobody else uses the cluster.

        Raises:
            InvalidSettingError: an amount is not above 0.
        """
        for name, amount in resources.items():
            require(name, amount, low=1e-9)
        each = (
            min((node.get(name, 0.0) / amount for name, amount in resources.items()), default=inf)
            for node in self._nodes
        )
        # Resources are counted in ten-thousandths.
        return sum(int(fits + 1e-4) if fits < inf else 1 << 20 for fits in each)

    def __str__(self) -> str:
        totals: dict[str, float] = {}
        for node in self._nodes:
            for name, amount in node.items():
                if not name.startswith(("node:", "object_store_memory", "accelerator_type")):
                    totals[name] = totals.get(name, 0.0) + amount
        listed = [f"{name} {_amount(name, totals[name])}" for name in sorted(totals)]
        nodes = f"{self.nodes} node{'s' if self.nodes != 1 else ''}"
        largest = {name: max(node.get(name, 0.0) for node in self._nodes) for name in totals}
        most = [f"{name} {_amount(name, largest[name])}" for name in sorted(totals)]
        if self.nodes <= 1:
            return f"{nodes} with {', '.join(listed) or 'nothing'}"
        return f"{nodes} with {', '.join(listed)} together, and at most {', '.join(most)} on one"


def wanted(resources: Mapping[str, float]) -> str:
    """Resources for people: "GPU 1, CPU 4"."""
    return ", ".join(f"{name} {_amount(name, amount)}" for name, amount in resources.items())


def _amount(name: str, amount: float) -> str:
    return f"{amount / (1 << 30):.1f} GiB" if name == "memory" else f"{amount:g}"


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)

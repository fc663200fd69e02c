"""A real Ray cluster of two nodes on this machine, for tests and benchmarks.

Each node is a raylet of its own, with worker processes of its own, as on two hosts.
"""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A token would be written into the home of whoever runs the tests.
    "RAY_AUTH_MODE": "disabled",
    # Else workers give way to whatever else a busy machine does.
    "RAY_worker_niceness": "0",
    # Actors import engines from here, and must not wait for names of other machines.
    "PYTHONPATH": str(Path(__file__).parent),
    # One node must be able to be found dead before a test's time is up.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}


@contextmanager
def two_nodes() -> Generator[Any]:
    """The cluster, 8 CPUs on each node; the first has "head", the second "second" and "any"."""
    with NamedTemporaryFile(prefix="told") as told:
        yield from _two_nodes({**_SETTINGS, "TOLD": told.name})


def _two_nodes(settings: dict[str, str]) -> Generator[Any]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    from ray.cluster_utils import Cluster  # an extra

    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster: Any = None
    try:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 8,
                "resources": {"head": 8},
                "include_dashboard": False,
            },
        )
        cluster.add_node(num_cpus=8, resources={"second": 8, "any": 1})
        yield cluster
    finally:
        if cluster is not None:
            cluster.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

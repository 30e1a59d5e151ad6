"""The parts of a batch on a Ray cluster.

Each part is one task: the same run as by hand, on another machine. Ray gives a task whose node has
died to another node, and the receipts tell that one what is done already.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pikfix.batch.manifest import Shard
from pikfix.cli.problems import CommandError

PARTS_PER_NODE = 4
_MOST_DEATHS = 10


def run_parts(
    address: str, count: int | None, work: Callable[[Shard], int], *, serves: bool
) -> Iterator[tuple[Shard, int]]:
    """Run all parts, and yield each with its exit code when it ends.

    Args:
        address: of the cluster, or ``auto`` for the one that this machine belongs to.
        count: of the parts; None for four on each node.
        work: called with its part on some node.
        serves: each task runs a server of its own, and needs a GPU, or a node where there is none.

    Raises:
        CommandError: there is no such cluster.
    """
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CommandError(f"--ray {address}: {' '.join(str(error).split())}") from error
    # Ray's own notes on nodes that die are no results.
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stdout(sys.stderr))
    try:
        nodes = [node["Resources"] for node in _nodes(ray) if node["Alive"]]
        count = count or PARTS_PER_NODE * len(nodes)
        task = ray.remote(max_retries=_MOST_DEATHS, **_needs(nodes, serves=serves))(work)
        running = {task.remote(part): part for part in (Shard(i, count) for i in range(count))}
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(ended), _code(ray, ended)
    finally:
        ray.shutdown()
        stack.close()


def _nodes(ray: Any) -> Any:
    return ray.nodes()  # without types


def _needs(nodes: list[dict[str, float]], *, serves: bool) -> dict[str, Any]:
    if not serves:
        return {"num_cpus": 1}
    if any(node.get("GPU") for node in nodes):
        return {"num_gpus": 1}
    # The server takes all cores; the smallest node decides what every node can give.
    return {"num_cpus": min(node["CPU"] for node in nodes if node.get("CPU"))}


def _code(ray: Any, ended: Any) -> int:
    try:
        return int(ray.get(ended))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except ray.exceptions.RayError as error:
        raise CommandError(f"Ray gave up a part: {str(error).splitlines()[0]}") from error

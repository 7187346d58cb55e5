"""The processes of one run: how they find each other, agree, and end together.

A large run is one program on many machines: a process per TPU host or per GPU, all started with the same command. JAX
finds the others by itself, from what the environment says:

    Cloud TPU        the machine's metadata (MEGASCALE_* variables for several slices)
    GKE with TPUs    TPU_WORKER_ID and TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES (MEGASCALE_* likewise)
    SLURM            SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID, SLURM_LOCALID: what srun sets
    Open MPI         OMPI_MCA_orte_hnp_uri, OMPI_COMM_WORLD_SIZE, _RANK and _LOCAL_RANK: what mpirun sets
    Kubernetes Job   KUBERNETES_SERVICE_HOST and JOB_COMPLETION_INDEX, where the package `kubernetes` is installed

A process that a failure of machines or network ends has exit code 42, as has one that was told to stop or that hung:
xpk and other schedulers can be told to start it again. 2 is a user's mistake and 1 a bug: they would only happen again.

SLURM and Open MPI give every process the one GPU of its local rank, so they start one process per GPU.
JAX_COORDINATOR_PORT chooses another port for the coordinator.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32

from wamjax.errors import UserError

TOGETHER = (
    "--coordinator, --processes and --process belong together: give all three, or none on TPU pods, GKE, SLURM and "
    "Open MPI, which are detected, or just --processes 1 to run alone"
)

LOST = 42
"""Exit code where a machine or the network failed, or the run was told to stop: the same command goes on. (xpk starts
again on 42 and above 126.)"""

_STATUS = "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): "
"""How messages of a lost machine or connection begin; their class is now JaxRuntimeError, now ValueError."""

_FAILED, _ENDED = "wamjax/failed", "wamjax/ended"
GRACE = 2.0
"""Seconds that processes leave each other to say what they know before they end."""

_POLL, _LINGER = 60.0, 10.0  # seconds
_leaving = threading.Event()


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins this process to its run; call it before anything else of JAX. A plain single process does nothing.

    Args:
        coordinator: HOST:PORT of process 0. processes: how many there are. process: which one this is.
            None of them: the cluster is detected. `processes` = 1 alone: no other processes, whatever the cluster says.

    Raises:
        UserError: arguments that do not fit together, or a cluster in which the processes do not find each other.
    """
    given = (coordinator, processes, process)
    if given == (None, None, None):
        if (cluster := detected()) is not None:
            _initialize(f"this is a process of a cluster ({cluster})")
        return
    if given == (None, 1, None):
        return
    if coordinator is None or processes is None or process is None:
        raise UserError(TOGETHER)
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator {coordinator}: give HOST:PORT of process 0, for instance 10.0.0.1:8476")
    if not 0 <= process < processes:
        raise UserError(f"--process {process} of --processes {processes}: they are numbered 0 to {processes - 1}")
    _initialize(f"--coordinator {coordinator}", coordinator, processes, process)


def detected() -> str | None:
    """JAX's name of the cluster that this process was started in; None for a plain process."""
    from jax._src.clusters import ClusterEnv  # private: `jax.distributed.initialize` does not say what it would detect

    kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
    return next((kind.name for kind in kinds if kind.is_env_present()), None)


def _initialize(
    where: str, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    detection = None if coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(coordinator, processes, process, cluster_detection_method=detection)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise UserError(
            f"{where}, but it cannot join the others: {str(error).splitlines()[0]}; see that all processes run and "
            "reach the coordinator's port, give --coordinator, --processes and --process, or --processes 1 to run alone"
        ) from error


def first() -> bool:
    """Whether this is process 0, which prints and writes for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if first():
        print(text, flush=True)


def agree(**facts: Any) -> None:
    """Raises a UserError in every process unless all hold the same facts (which have a stable `repr`)."""
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(repr(value).encode()).digest() for value in facts.values()]
    everyone = multihost_utils.process_allgather(np.frombuffer(b"".join(digests), np.uint8).reshape(len(facts), -1))
    differing = [name for number, name in enumerate(facts) if (everyone[:, number] != everyone[0, number]).any()]
    if differing:
        own = ", ".join(f"{name.replace('_', ' ')} (here {facts[name]!s:.200})" for name in differing)
        raise UserError(
            f"the processes disagree about {own}: start all with the same command, and give --data and --out in a "
            "file system that they share"
        )


def meet(where: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def see(path: Path, seconds: float = 60.0) -> None:
    """Waits until this process sees a file that process 0 has written; a UserError where it never does."""
    deadline = time.monotonic() + seconds
    while not path.exists():  # network file systems may show it late
        if time.monotonic() > deadline:
            raise UserError(
                f"process {jax.process_index()} does not see {path}, which process 0 wrote: choose a folder in a file "
                "system that all machines share"
            )
        time.sleep(0.1)


def whole(array: Any) -> np.ndarray:
    """An array on this host, also where other processes hold parts of it (all must then ask for it)."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def total(value: int) -> jax.Array | int:
    """The sum of a number over all processes (all must then ask for it); who does not read it does not wait for it."""
    if jax.process_count() == 1:
        return value
    mesh = Mesh(np.array(jax.devices()), ("device",))
    own = np.zeros(jax.local_device_count(), np.int32)
    own[0] = value
    spread = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("device")), own)
    return jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(spread)


def joined(rows: Int32[np.ndarray, "n d"]) -> Int32[np.ndarray, "m d"]:
    """The rows of all processes, which may have different numbers of them (all must then ask for it)."""
    if jax.process_count() == 1:
        return rows
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    padded = np.pad(rows, ((0, max(counts) - len(rows)), (0, 0)))
    everyone = multihost_utils.process_allgather(padded)
    return np.concatenate([each[:count] for each, count in zip(everyone, counts, strict=True)])


@contextlib.contextmanager
def together(report: Callable[[BaseException], int]) -> Iterator[None]:
    """Around a run: an error in one process ends all of them, which would else wait for it forever.

    Args:
        report: prints an error and returns the exit code; raises what it does not know.
    """
    if not jax.distributed.is_initialized():
        yield
        return
    watcher = threading.Thread(target=_watch, daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        fail(error)
        _leaving.set()
        code = _reported(error, report)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # what came first counts, here or elsewhere
            code = _failure(GRACE)[0]
        _leave(code)
    jax.distributed.shutdown()
    watcher.join(_LINGER)  # it wakes up now; while Python ends, that would abort the process


def fail(error: BaseException) -> None:
    """Tells the other processes, which then end too, of an error in this one; nothing in a plain single process.

    For cleaning up that waits for others: tell them first. The first failure of a run is the one they report.
    """
    if jax.distributed.is_initialized():
        text = f"process {jax.process_index()} of {jax.process_count()} stopped: {type(error).__name__}: {error}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
            _client().key_value_set(_FAILED, f"{_code(error)} {' '.join(text.split())[:2000]}")


def _reported(error: BaseException, report: Callable[[BaseException], int]) -> int:
    try:
        return report(error)
    except BaseException:
        traceback.print_exc()
        return _code(error)


def _code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return 2
    return LOST if re.match(_STATUS, str(error)) else 1


def _watch() -> None:
    """Waits for a failure elsewhere and ends this process, whatever its main thread is waiting for."""
    while True:
        try:
            code, failure = _failure(_POLL)
            break
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return  # the run is over; or process 0 is gone, upon which JAX ends this process
    if not _leaving.wait(GRACE):  # most mistakes are found by all processes at once: each then ends by itself
        print(f"wamjax: error: {failure}", file=sys.stderr)
        _leave(code)


def _failure(seconds: float) -> tuple[int, str]:
    """Exit code and description of the first failure of the run; waits for one so long."""
    code, text = _client().blocking_key_value_get(_FAILED, int(seconds * 1000)).split(" ", 1)
    return int(code), text


def _leave(code: int) -> None:
    """Ends the process once all have heard of the failure: with process 0 the way to tell them would go."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier(_ENDED, int(_LINGER * 1000))
    if first():
        time.sleep(GRACE)  # the coordinator goes last: JAX aborts a process that sees it go
    os._exit(code)  # ordinary exit would wait for processes that are gone


def _client() -> Any:
    """JAX's own key-value store between processes, which works while devices are stuck; it has no public name."""
    from jax._src.distributed import global_state

    return global_state.client

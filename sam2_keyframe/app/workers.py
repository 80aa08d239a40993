"""Tasks worked through by several workers, in local processes or on Ray; a worker that dies costs its task, no more.

A worker is made once, where it will work, by calling `make`, as to load a model; it is then called with one task after
the other. What it returns or raises comes back to the driver, which alone knows what is done.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar, cast

from sam2_keyframe._checks import brief

T = TypeVar("T")

Worker = Callable[[Any], Any]


@dataclass(frozen=True)
class Failure:
    """A task that failed.

    Attributes:
        error: Why, in a sentence: the kind of error, and what it says.
    """

    error: str


DIED = "its worker process ended {times}; was there too little memory?"


@dataclass(frozen=True)
class Engine:
    """Where workers run.

    Attributes:
        name: "local", processes of this machine, or "ray".
        workers: How many; 1 of "local" works in this process.
        address: Of a Ray cluster: "auto", or a host and port; None starts Ray on this machine alone.
        gpus: Share of a GPU that a worker of Ray takes; 0: none.
        cpus: Cores that it takes.
        retries: How often a task is given to another worker when one dies.
    """

    name: str = "local"
    workers: int = 1
    address: str | None = None
    gpus: float = 0.0
    cpus: int = 1
    retries: int = 1

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.name not in ("local", "ray"):
            raise ValueError(f"--engine {self.name}: choose local or ray")
        if self.workers < 1 or self.cpus < 1 or self.retries < 0 or self.gpus < 0:
            raise ValueError(
                f"--workers {self.workers}, --gpus {self.gpus:g}, --retries {self.retries}: give at least one worker, "
                "and no number below 0"
            )
        if self.name == "local" and (self.address is not None or self.gpus):
            raise ValueError("--address and --gpus are for --engine ray; local processes share the device as it is")

    def run(self, tasks: Iterable[T], make: Callable[[], Worker]) -> Iterator[tuple[T, Any]]:
        """Yield each task with what its worker returned, or with a `Failure`, as they are done.

        Args:
            tasks: What is to be done; taken one at a time, as a worker is free.
            make: Makes a worker, in its process. It must be picklable, and so are tasks and results.

        Raises:
            ValueError: A worker cannot be made: what `make` raised, of any kind, in a sentence.
            ImportError: Ray is not installed.
            ConnectionError: There is no cluster at the address.
        """
        if self.name == "ray":
            return _on_ray(iter(tasks), make, self)
        return _here(tasks, make) if self.workers == 1 else _in_processes(iter(tasks), make, self)


def add_engine_arguments(parser: Any) -> None:
    """Add the options that `engine_of` reads."""
    group = parser.add_argument_group("where workers run")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="processes of this machine, or Ray")
    group.add_argument("--address", help="of a Ray cluster: auto, or host:port (default: Ray on this machine alone)")
    group.add_argument("--gpus", type=float, default=0.0, help="Ray: share of a GPU a worker, as 0.5 (default: none)")
    group.add_argument(
        "--retries", type=int, default=1, help="how often what a worker was at when it died is tried again (default: 1)"
    )


def engine_of(options: Any) -> Engine:
    """Return the engine that options name."""
    cpus = getattr(options, "threads", 1)
    return Engine(options.engine, options.workers, options.address, options.gpus, cpus, options.retries)


def explained(error: BaseException) -> str:
    """Return an error on one line, with its kind."""
    return f"{type(error).__name__}: {brief(error, 500)}"


def _called(worker: Worker, task: Any) -> Any:
    try:
        return worker(task)
    except Exception as error:  # a task that fails must not end the others
        return Failure(explained(error))


def _here(tasks: Iterable[T], make: Callable[[], Worker]) -> Iterator[tuple[T, Any]]:
    worker = make()
    for task in tasks:
        yield task, _called(worker, task)


class _Tasks(Generic[T]):
    """What is to be done, and how often each was begun.

    Args:
        tasks: What is to be done; taken one at a time.
        retries: How often what a worker was at when it died is tried again.
    """

    def __init__(self, tasks: Iterator[T], retries: int) -> None:
        self._tasks, self._retries = tasks, retries
        self._again: deque[tuple[T, int]] = deque()

    def take(self) -> tuple[T, int] | None:
        """Return a task and the number of this try; None where there is no more."""
        return self._again.popleft() if self._again else next(((each, 1) for each in self._tasks), None)

    def died(self, task: T, times: int) -> Iterator[tuple[T, Failure]]:
        """Put back what a worker died of; yield it as failed where that was so often enough."""
        if times <= self._retries:
            self._again.append((task, times + 1))
        else:
            yield task, Failure(DIED.format(times=f"{times} times" if times > 1 else ""))


# -- processes of this machine ---------------------------------------------------------------------------------------


def _in_processes(tasks: Iterator[T], make: Callable[[], Worker], engine: Engine) -> Iterator[tuple[T, Any]]:
    context = multiprocessing.get_context("spawn")
    queue = _Tasks(tasks, engine.retries)
    given: dict[Connection, tuple[Any, tuple[T, int] | None]] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(make, theirs))
        process.start()
        theirs.close()
        given[ours] = process, None

    def give(pipe: Connection) -> None:
        process, _ = given[pipe]
        task = queue.take()
        given[pipe] = process, task
        if task is not None:
            with suppress(OSError):  # it may have died already; its end of the pipe tells
                pipe.send(task[0])

    try:
        for _ in range(engine.workers):
            start()
        while given:
            for pipe in cast(list[Connection], wait(list(given))):
                process, task = given[pipe]
                try:
                    kind, answer = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    del given[pipe]
                    if task is None:
                        raise ValueError(f"a worker cannot be started: {DIED.format(times='at once')}") from None
                    yield from queue.died(*task)
                    start()
                    continue
                if kind == "broken":
                    raise ValueError(answer)
                if kind == "done" and task is not None:
                    yield task[0], answer
                give(pipe)
                if given[pipe][1] is None:
                    del given[pipe]
                    pipe.close()  # which ends it
                    process.join()
    finally:
        for process, _ in given.values():
            process.terminate()
        for process, _ in given.values():
            process.join()


def _serve(make: Callable[[], Worker], pipe: Connection) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        try:
            worker = make()
        except Exception as error:
            pipe.send(("broken", str(error) if isinstance(error, ValueError | OSError) else explained(error)))
            return
        pipe.send(("ready", None))
        while True:
            pipe.send(("done", _called(worker, pipe.recv())))
    except (KeyboardInterrupt, EOFError, OSError):
        return


def end_with_parent() -> None:
    """End this process when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# -- Ray -------------------------------------------------------------------------------------------------------------


def connect(engine: Engine) -> tuple[Any, bool]:
    """Return Ray, connected to the engine's cluster, or to one that is started here; and whether this did it.

    Raises:
        ImportError: It is not installed.
        ConnectionError: There is no cluster at the address.
    """
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine takes longer than Ray's 30 s
    try:
        import ray
    except ImportError:
        raise ImportError("--engine ray: Ray is not installed: pip install 'sam2-keyframe[ray]'") from None
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    here: dict[str, Any] = {"include_dashboard": False, "num_cpus": engine.workers * engine.cpus}
    here["_system_config"] = {
        "worker_niceness": 0
    }  # Ray's own is 15: on a machine that has other work they would starve
    try:
        ray.init(engine.address, log_to_driver=False, logging_level=logging.ERROR, **({} if engine.address else here))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"--address {engine.address}: there is no Ray cluster ({brief(error)}); start one with `ray start --head`, "
            "or leave --address out to start Ray here"
        ) from None
    return ray, True


def _on_ray(tasks: Iterator[T], make: Callable[[], Worker], engine: Engine) -> Iterator[tuple[T, Any]]:
    ray, ours = connect(engine)

    class Served:
        def __init__(self, make: Callable[[], Worker]) -> None:
            try:
                self.worker, self.broken = make(), ""
            except Exception as error:
                self.broken = str(error) if isinstance(error, ValueError | OSError) else explained(error)

        def ready(self) -> tuple[str, int]:
            return self.broken, os.getpid()

        def work(self, task: Any) -> Any:
            return _called(self.worker, task)

    # Placed on all nodes alike; a worker that dies is made anew here, so that what it was at is counted.
    served = ray.remote(num_cpus=engine.cpus, num_gpus=engine.gpus, scheduling_strategy="SPREAD")(Served)
    queue = _Tasks(tasks, engine.retries)
    under_way: dict[Any, tuple[Any, tuple[T, int] | None]] = {}

    def start() -> None:
        actor = served.remote(make)
        under_way[actor.ready.remote()] = actor, None

    def give(actor: Any) -> None:
        task = queue.take()
        if task is None:
            ray.kill(actor)
        else:
            under_way[actor.work.remote(task[0])] = actor, task

    try:
        for _ in range(engine.workers):
            start()
        while under_way:
            (ref,), _ = ray.wait(list(under_way), num_returns=1)
            actor, task = under_way.pop(ref)
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayError as error:
                if task is None:
                    raise ValueError(f"a worker cannot be started on Ray: {explained(error)}") from None
                yield from queue.died(*task)
                start()
                continue
            if task is None and answer[0]:
                raise ValueError(answer[0])
            if task is not None:
                yield task[0], answer
            del answer
            give(actor)
    finally:
        for actor, _ in under_way.values():
            ray.kill(actor)
        if ours:
            ray.shutdown()

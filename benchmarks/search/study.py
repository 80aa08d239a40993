"""A study of Optuna that several processes share, that goes on where it was killed, and repeats to the last digit.

Every trial has a place: 0, 1, 2, ... One that was cut off gives its place back, and the next one takes it. The sampler
is made anew for each place and seeded by it, so that what is tried there depends on the trials that are finished alone:
a search by one process, killed or not, tries the same. Several processes see each other's trials as they finish, and
then it is a matter of time which these are.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sam2_keyframe._checks import did_you_mean

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, IntDistribution
    from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
    raise ImportError(f"a search needs Optuna ({error}): pip install 'sam2-keyframe[search]'") from error

optuna.logging.set_verbosity(optuna.logging.ERROR)

SAMPLERS = ("nsga2", "tpe", "grid", "random")
"""Of a search, by name."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
DRAWS = np.iinfo(np.uint32).max
"""Seeds of samplers lie below."""


def make_sampler(
    name: str, seed: int, population: int, grid: Sequence[Mapping[str, str]]
) -> Callable[[int], BaseSampler]:
    """Return what makes the sampler of a place."""

    def make(place: int) -> BaseSampler:
        drawn = int(np.random.default_rng((seed, place)).integers(DRAWS))
        if name == "nsga2":
            return NSGAIISampler(population_size=population, seed=drawn)
        if name == "tpe":
            return TPESampler(n_startup_trials=population, seed=drawn)
        if name == "grid":
            return _Given(grid[place] if place < len(grid) else {}, drawn)
        return RandomSampler(seed=drawn)

    return make


class _Given(RandomSampler):
    """Samples given values, as texts by parameter; the others at random."""

    def __init__(self, values: Mapping[str, str], seed: int) -> None:
        super().__init__(seed=seed)
        self._values = values

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        if param_name not in self._values:
            return super().sample_independent(study, trial, param_name, param_distribution)
        text = self._values[param_name]
        if isinstance(param_distribution, CategoricalDistribution):
            return text
        return int(text) if isinstance(param_distribution, IntDistribution) else float(text)


class _InTurn(BaseSampler):
    """The sampler of each trial's own place."""

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self._make = make
        self._inner = make(0)
        self.place = 0

    def before_trial(self, study: Any, trial: FrozenTrial) -> None:
        self.place = _free_place(study, trial.number)
        self._inner = self._make(self.place)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)


def cut_off(trial: FrozenTrial) -> bool:
    """Return whether a trial ended with its process, so that its place is free."""
    return trial.state == TrialState.FAIL and "error" not in trial.user_attrs


def _free_place(study: Any, number: int) -> int:
    """Return the place of a trial: the first that is free, after those of older ones that have not said theirs yet."""
    older = [each for each in study.get_trials(deepcopy=False) if each.number < number and not cut_off(each)]
    taken = {each.user_attrs["place"] for each in older if "place" in each.user_attrs}
    free = (place for place in itertools.count() if place not in taken)
    return next(itertools.islice(free, len(older) - len(taken), None))


class Study:
    """A study under a name in a storage, opened by this process.

    Args:
        name: Of the study.
        storage: Path of a journal, or a database's URL.
        about: What it searches, in plain values: all of it must agree for a study to go on.
        directions: "maximize" or "minimize", by objective.
        make: Makes the sampler of a place.
        folder: Where this process says that it lives.

    Raises:
        ValueError: The storage cannot be opened, or the study is of another search.
    """

    def __init__(
        self,
        name: str,
        storage: str,
        about: Mapping[str, Any],
        directions: Sequence[str],
        make: Callable[[int], BaseSampler],
        folder: Path,
    ) -> None:
        self.name, self._folder, self._sampler = name, folder, _InTurn(make)
        self._home = f"{socket.gethostname()}:{folder.resolve()}"
        try:
            opened = optuna.storages.get_storage(storage) if "://" in storage else _journal(Path(storage))
            self._study = optuna.create_study(
                study_name=name, storage=opened, directions=list(directions), sampler=self._sampler, load_if_exists=True
            )
        except Exception as error:  # of any database's driver
            raise ValueError(
                f"--storage {storage} cannot be opened ({' '.join(str(error).split()) or type(error).__name__}); give "
                "the path of a journal, or a URL such as sqlite:///study.db"
            ) from error
        whole = json.loads(json.dumps(about))
        found = self._study.user_attrs.get("about")
        if found is None and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr("about", whole)
        elif found != whole:
            differing = [key for key in whole if (found or {}).get(key) != whole[key]]
            shown = "; ".join(f"{key} was {(found or {}).get(key)!r} and is {whole[key]!r}" for key in differing)
            raise ValueError(
                f"the study {name!r} in {storage} is of another search: {shown or 'of another version'}. Give another "
                "--study, or another --storage"
            )

    @contextmanager
    def _alive(self) -> Iterator[str]:
        """Hold a file of this process's own, whose lock goes with the process; yields its name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / uuid.uuid4().hex
        fresh = path.with_name(f".{path.name}")  # seen by others once it is locked
        with open(fresh, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fresh.rename(path)
            try:
                yield path.name
            finally:
                path.unlink(missing_ok=True)

    def _clear(self, own: str) -> None:
        """Fail trials whose process is gone."""
        files = (path for path in self._folder.glob("[!.]*") if path.name != own)
        others = {path.name: _held(path) for path in files}
        alone = not any(others.values())
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("process")
            here = owner is None or (self._folder / owner).exists() or trial.user_attrs.get("home") == self._home
            if here and (alone if owner is None else not others.get(owner, False)):
                self._study.tell(trial.number, state=TrialState.FAIL)
        for name, held in others.items():
            if not held:
                (self._folder / name).unlink(missing_ok=True)

    def search(self, trials: int, evaluate: Callable[[Trial], Sequence[float]]) -> None:
        """Try until the study has so many trials, those of other processes included.

        `evaluate` returns a value an objective. It raises `TrialPruned` for a trial that is stopped early, and any
        other exception for one that failed; the search goes on with the next.
        """
        with self._alive() as own:
            self._clear(own)
            while self.places < trials:
                trial = self._study.ask()
                try:
                    trial.set_user_attr("process", own)
                    trial.set_user_attr("home", self._home)
                    trial.set_user_attr("place", self._sampler.place)
                    if self._sampler.place >= trials:  # another process was first
                        self._study.tell(trial, state=TrialState.FAIL)
                        break
                    values = list(evaluate(trial))
                except optuna.TrialPruned:
                    self._study.tell(trial, state=TrialState.PRUNED)
                except Exception as error:
                    trial.set_user_attr("error", f"{type(error).__name__}: {error}")
                    self._study.tell(trial, state=TrialState.FAIL)
                except BaseException:
                    self._study.tell(trial, state=TrialState.FAIL)
                    raise
                else:
                    self._study.tell(trial, values)

    @property
    def places(self) -> int:
        """How many trials there are, those under way included."""
        return sum(not cut_off(trial) for trial in self._study.get_trials(deepcopy=False))

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials that ended by themselves, by place."""
        ended = self._study.get_trials(deepcopy=False, states=FINISHED)
        return sorted((t for t in ended if not cut_off(t)), key=lambda t: t.user_attrs["place"])

    @property
    def complete(self) -> list[FrozenTrial]:
        """Those of them that were measured on every video."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def front(self) -> list[FrozenTrial]:
        """Those that no other beats in every objective."""
        numbers = {trial.number for trial in self._study.best_trials}
        return [trial for trial in self.complete if trial.number in numbers]


def check_sampler(name: str) -> None:
    """Raise ValueError unless there is such a sampler."""
    if name not in SAMPLERS:
        raise ValueError(
            f"there is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}{did_you_mean(name, SAMPLERS)}"
        )


def _held(path: Path) -> bool:
    """Return whether the process whose file this is lives."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _journal(path: Path) -> JournalStorage:
    """Return the storage in a journal; a line that was cut off as its process was killed is taken away."""
    path = path.resolve()  # Optuna waits for ever for a lock that was left behind beside a relative path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path))
    if path.exists():
        lock.acquire()
        try:
            with open(path, "r+b") as file:
                text = file.read()
                file.truncate(text.rfind(b"\n") + 1)
                os.fsync(file.fileno())
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))

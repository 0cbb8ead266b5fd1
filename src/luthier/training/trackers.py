"""Metrics to TensorBoard, Weights & Biases, MLflow and Trackio, by name. No torch is loaded here."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from luthier.errors import Unsupported, UsageError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Tracker -> the module that must be there, and the package of the same name."""
PROJECT = "luthier"
Values = Mapping[str, Any]


class Tracker(Protocol):
    """Something that keeps metrics."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed, before anything is loaded. Errors: Unsupported."""
    missing = [name for name in names if find_spec(PACKAGES[name]) is None]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        raise Unsupported(
            f"training.trackers: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            hint=f"pip install {packages}, or drop it from training.trackers: the run's own files are "
            "always written",
        )


@contextmanager
def open_trackers(
    names: Sequence[str], *, run: str, folder: Path, config: Values, say: Callable[[str], None]
) -> Iterator[tuple[Callable[[Values], None], ...]]:
    """Listeners for the events of a training, one a tracker, closed when the block ends.

    run: its name there; a resumed run goes on under the same. folder: the run's, below which
    TensorBoard and MLflow write unless their own settings say otherwise. config: the recipe. say: told
    when a tracker fails on the way (its server is gone, say); the training goes on without it.

    Errors: Unsupported for one that is not installed, UsageError for one that does not start.
    """
    check_trackers(names)
    makers: dict[str, Callable[[str, Path, Values], Tracker]] = {
        "tensorboard": _TensorBoard,
        "wandb": _Wandb,
        "mlflow": _Mlflow,
        "trackio": _Trackio,
    }
    with ExitStack() as stack:
        listeners = []
        for name in names:
            try:
                tracker = makers[name](run, folder, config)
            except Exception as error:  # their own exceptions, and those of what they stand on
                raise UsageError(
                    f"training.trackers: {name} does not start: {error}",
                    hint=f"see to its own settings, or drop {name} from training.trackers",
                ) from error
            stack.callback(_quietly, name, tracker.close, say)
            listeners.append(_listener(name, tracker, say))
        yield tuple(listeners)


def flat(values: Values, prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``training.epochs`` -> 3."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = (
                ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            )
    return found


def _quietly(name: str, call: Callable[..., None], say: Callable[[str], None], *words: Any) -> bool:
    """Whether a tracker's call went well; a failure is told and costs the run nothing."""
    try:
        call(*words)
    except Exception as error:  # their own exceptions, and those of what they stand on
        say(f"{name} takes no more metrics: {error}")
        return False
    return True


def _listener(name: str, tracker: Tracker, say: Callable[[str], None]) -> Callable[[Values], None]:
    """Pass on the numbers of each step and validation, until the tracker fails."""
    alive = True

    def listen(values: Values) -> None:
        nonlocal alive
        if not alive or values.get("kind") not in ("step", "validation"):
            return
        group = "train" if values["kind"] == "step" else "validation"
        numbers = {
            f"{group}/{key}": float(value)
            for key, value in values.items()
            if key not in ("step", "total_steps")
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
        }
        alive = _quietly(name, tracker.log, say, numbers, int(values["step"]))

    return listen


class _TensorBoard:
    def __init__(self, run: str, folder: Path, config: Values) -> None:
        # The package's own writer: torch's would do too, and load torch.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder / "tensorboard"))
        del run, config  # the folder is the run's; its recipe stands beside

    def log(self, metrics: dict[str, float], step: int) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: str, folder: Path, config: Values) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT, name=run, id=run, resume="allow", dir=str(folder), config=dict(config)
        )

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, run: str, folder: Path, config: Values) -> None:
        import mlflow

        client = mlflow.MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        )
        known = client.get_experiment_by_name(PROJECT)
        experiment = client.create_experiment(PROJECT) if known is None else known.experiment_id
        before = client.search_runs([experiment], f"attributes.run_name = '{run}'", max_results=1)
        if before:
            self._id = before[0].info.run_id
        else:
            self._id = client.create_run(experiment, run_name=run).info.run_id
            for key, value in flat(config).items():
                client.log_param(self._id, key, str(value)[:500])
        self._client = client

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    def __init__(self, run: str, folder: Path, config: Values) -> None:
        import trackio

        del folder
        self._trackio = trackio
        trackio.init(project=PROJECT, name=run, config=flat(config), resume="allow")

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._trackio.log(metrics, step=step)

    def close(self) -> None:
        self._trackio.finish()

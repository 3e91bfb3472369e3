"""Trackers of a training: TensorBoard's files in its folder and, where a machine asks for them, other tools' stores.

TensorBoard's files lie in the output, so they go with the person's other data and may show sample pictures. The stores
of Weights & Biases, MLflow and Trackio are shared by all trainings of a machine, so they get numbers and the values of
settings under an opaque id, and neither pictures nor texts. Nothing is sent: each tool runs in its offline or local
mode. A tracker that fails is dropped with one warning and never ends a training. No result depends on this module.
"""

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin

from zimage.core.folder import make_private
from zimage.core.section import Section
from zimage.training.divergence import StepMetrics
from zimage.training.params import TrackerName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PROJECT = "zimage"  # under which each tool shows the trainings
SHOWN_EVERY_S = 5
RUN_TAG = "zimage.run"  # of MLflow, by which a resumed training finds its run


class Tracker(Protocol):
    """What shows the numbers of a training while it runs."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers that hold after so many steps; steps never go back within a process."""

    def picture(self, step: int, number: int, image: "NDArray[np.uint8]") -> None:
        """Write the sample picture (H, W, 3) of a prompt after so many steps, or leave it out."""

    def close(self) -> None:
        """Write all pending numbers."""


class TensorBoard:
    """Event files that grow while the run does.

    Args:
        folder: Gets one file for each process of the run.
        begin: How many steps are done already; what an earlier process wrote beyond them is no longer shown.
    """

    def __init__(self, folder: Path, begin: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=begin + 1 if begin else None, flush_secs=SHOWN_EVERY_S)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write each number under `train/`."""
        for name, value in numbers.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def picture(self, step: int, number: int, image: "NDArray[np.uint8]") -> None:
        """Write a picture by the number of its prompt; the prompt itself is not written."""
        self._writer.add_image(f"samples/{number}", image, step, dataformats="HWC")

    def close(self) -> None:
        """Write all pending numbers and pictures."""
        self._writer.close()


class _NumbersOnly:
    """A tracker that takes no pictures."""

    def picture(self, step: int, number: int, image: "NDArray[np.uint8]") -> None:
        """Leave the picture out: the store is shared, and outlives the person's data."""


class Wandb(_NumbersOnly):
    """A run of Weights & Biases in offline mode, in `wandb/`; `wandb sync FOLDER` sends it if somebody wants that.

    Args:
        store: The folder of all trackers' stores.
        run: The id of the run.
        settings: Values of settings that it shows.
    """

    def __init__(self, store: Path, run: str, settings: Mapping[str, Any]) -> None:
        import wandb

        quiet = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project=PROJECT, name=run, id=run, dir=str(store), mode="offline", config=dict(settings), settings=quiet
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write each number under `train/`."""
        self._run.log({f"train/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """End the run's process."""
        self._run.finish()


class Mlflow(_NumbersOnly):
    """A run in MLflow's SQLite store `mlflow.db`; `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows it.

    Args:
        store: The folder of all trackers' stores.
        run: The id of the run; a resumed training goes on with the run that has it.
        settings: Values of settings that it shows.
    """

    def __init__(self, store: Path, run: str, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # A new store takes the working directory, which may be a person's workspace, as the place of its artifacts.
        with contextlib.chdir(store):
            self._client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
            experiment = self._client.get_experiment_by_name(PROJECT)
        id_ = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        known = self._client.search_runs([id_], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
        found = known[0] if known else self._client.create_run(id_, tags={RUN_TAG: run}, run_name=run)
        self._id = found.info.run_id
        self._client.update_run(self._id, "RUNNING")
        if not known:
            params = [Param(name, str(value)) for name, value in settings.items()]
            self._client.log_batch(self._id, params=params)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write each number under `train/`."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._id, metrics=[Metric(f"train/{name}", value, now_ms, step) for name, value in numbers.items()]
        )

    def close(self) -> None:
        """Mark the run as ended; a training that goes on marks it as running again."""
        self._client.set_terminated(self._id)


class Trackio(_NumbersOnly):
    """A run of Trackio in its local store, the folder TRACKIO_DIR; `trackio show --project zimage` shows it.

    Args:
        store: Not used: Trackio takes its folder from the environment, which the command line has set.
        run: The id of the run; a resumed training goes on with it.
        settings: Values of settings that it shows.
    """

    def __init__(self, store: Path, run: str, settings: Mapping[str, Any]) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # advice on how to look at it
            self._run = trackio.init(
                project=PROJECT,
                name=run,
                config=dict(settings),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write each number under `train/`."""
        self._run.log({f"train/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """Write all pending numbers."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


_MAKERS: dict[TrackerName, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "mlflow": Mlflow,
    "trackio": Trackio,
    "wandb": Wandb,
}


class Trackers:
    """All trackers of a training behind one interface; one that fails is dropped with a warning.

    Args:
        tensorboard: The folder of the event files.
        begin: How many steps are done already.
        names: The other trackers.
        store: The folder of their stores; made if one is asked for.
        run: What identifies the training; a part of it, in hex, is the id of its runs.
        settings: The section of the training; numbers, switches and choices of it are shown, no free texts.
    """

    def __init__(
        self,
        tensorboard: Path,
        begin: int,
        names: Sequence[TrackerName],
        *,
        store: Path,
        run: str,
        settings: Section,
    ) -> None:
        self._trackers: dict[str, Tracker] = {}
        makers: dict[str, Callable[[], Tracker]] = {"tensorboard": partial(TensorBoard, tensorboard, begin)}
        makers |= {name: partial(_opened, _MAKERS[name], store, run, settings) for name in names}
        for name, maker in makers.items():
            with self._surviving(name):
                self._trackers[name] = maker()

    def add(self, readings: list[StepMetrics], rate: Callable[[int], float], numbers: dict[str, float]) -> None:
        """Write steps: loss, gradients' norm and learning rate of each, and numbers that hold for the last."""
        for step, loss, norm in readings:
            last = numbers if step == readings[-1].step else {}
            self._log(step + 1, {"loss": loss, "gradient_norm": norm, "learning_rate": rate(step), **last})

    def number(self, name: str, done: int, value: float) -> None:
        """Write a number that holds after so many steps."""
        self._log(done, {name: value})

    def picture(self, number: int, done: int, image: "NDArray[np.uint8]") -> None:
        """Write the sample picture (H, W, 3) of a prompt after so many steps."""
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.picture(done, number, image)

    def close(self) -> None:
        """Write all that is pending."""
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.close()

    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.log(step, numbers)

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        """Drop a tracker that fails in this block: no tool that only shows a training may end it."""
        try:
            yield
        except ModuleNotFoundError as error:
            self._trackers.pop(name, None)
            logger.warning(
                "the tracker %s is not used: the package %s is not installed; run `pip install 'zimage[%s]'`, or take "
                "it out of machine.trackers",
                *(name, error.name, name),
            )
        except Exception as error:  # noqa: BLE001 - each tool has errors of its own, and none may end the training
            self._trackers.pop(name, None)
            logger.warning("the tracker %s failed and is not used any more (%s: %s)", name, type(error).__name__, error)


def _opened(
    maker: Callable[[Path, str, Mapping[str, Any]], Tracker], store: Path, run: str, settings: Section
) -> Tracker:
    make_private(store)
    return maker(store.absolute(), run[:16], shown_settings(settings))


def shown_settings(section: Section, prefix: str = "") -> dict[str, Any]:
    """Return the numbers, switches and choices of a section by dotted key.

    Free texts are left out: they may be paths of files or names.
    """
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        choices = _choices(field.annotation)
        if isinstance(value, Section):
            found |= shown_settings(value, f"{key}.")
        elif isinstance(value, int | float) or (isinstance(value, str) and value in choices):
            found[key] = value
        elif isinstance(value, list) and all(
            isinstance(each, int | float | str) and (not isinstance(each, str) or each in choices) for each in value
        ):
            found[key] = " ".join(map(str, value))
    return found


def _choices(annotation: Any) -> set[Any]:
    """Return the values of all `Literal` in an annotation."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return set(parts)
    return {choice for part in parts for choice in _choices(part)}

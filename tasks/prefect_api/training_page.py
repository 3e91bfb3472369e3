"""A page in the store that shows a running training: the loss so far and all sample pictures.

The pictures are of a person: Prefect's database gets nothing but a link to the page, which goes with the subject.
"""

import hashlib
import time
from pathlib import Path
from uuid import UUID

from prefect.logging import get_run_logger
from prefect.runtime import task_run

from tasks.policy import SERVER_ERRORS
from tasks.prefect_api.artifact_calls import create_artifact, update_artifact
from tasks.prefect_api.artifacts import artifact_key
from tasks.settings import Settings
from tasks.store.s3 import open_store, store_errors
from tasks.transfer.checkpoint_mirror import LastState, last_state
from tasks.workspace.scratch import scratch
from tasks.workspace.tombstones import ForgottenError, unless_forgotten
from zimage.core.errors import InputError
from zimage.core.folder import aside_of
from zimage.core.jsonl import read_rows
from zimage.core.plain_yaml import load_trusted
from zimage.evaluation.wording import quantity
from zimage.model.rows import TextRow
from zimage.training.page import PageContent, render, seen

NAME = "training.html"


class TrainingPage:
    """The page of one training, made with its first checkpoint and made again with each that follows.

    Its address in the store stays, so that an open page finds what is new; the link is renewed before it expires.

    Args:
        settings: Where things are.
        workspace: The subject's.
    """

    def __init__(self, settings: Settings, workspace: Path) -> None:
        self._store = open_store(settings.store, pages=settings.pages)
        self._subject, self._workspace = settings.subject(workspace), workspace
        run = hashlib.sha256(f"{task_run.id}".encode()).hexdigest()
        self._key = f"subjects/{self._subject}/pages/{run[:16]}/{NAME}"
        self._artifact: UUID | None = None
        self._pictures: dict[tuple[int, int], str] = {}
        self._last: LastState | None = None
        self._linked = time.monotonic()

    def refresh(self) -> None:
        """Update the page if there is a new checkpoint."""
        aside = aside_of(self._workspace / "data" / "train")
        last = last_state(aside)
        if last != self._last:
            self._last = last
            self._show(aside, working=True)
        elif self._artifact and time.monotonic() - self._linked > self._store.link_max_s / 2:
            self._show(aside, working=True)

    def end(self) -> None:
        """Write the final page."""
        self._show(self._workspace / "data" / "train", working=False)

    def _show(self, folder: Path, *, working: bool) -> None:
        """Write the page and its link; if the store or the server fails, only this update is lost."""
        away: tuple[type[Exception], ...] = (InputError, *store_errors(), *SERVER_ERRORS)
        try:
            found = seen(folder, self._pictures)
            self._pictures = found.pictures
            self._write(found, working=working)
            self._tell(found, working=working)
        except ForgottenError:
            raise
        except away as error:
            get_run_logger().warning("The course of the training could not be shown: %s", error)

    def _write(self, found: PageContent, *, working: bool) -> None:
        params = load_trusted((self._workspace / "params.yaml").read_text(encoding="utf-8"))["train"]
        texts = self._workspace / "data" / "encode" / "texts.jsonl"
        prompts = [row.prompt for row in read_rows(texts, TextRow) if row.sample] if texts.is_file() else []
        page = render(
            found,
            prompts,
            title=f"Training of {self._subject}",
            total=params["steps"],
            pictured=params["samples"] is not None,
            working=working,
        )
        with scratch(self._workspace, "course") as folder:
            path = folder / NAME
            path.write_text(page, encoding="utf-8")
            with unless_forgotten(self._store, self._subject, self._workspace) as written:
                written.append(self._key)
                if not self._store.put_if_absent(self._key, path):
                    self._store.overwrite(self._key, path)

    def _tell(self, found: PageContent, *, working: bool) -> None:
        address = self._store.link(self._key, seconds=self._store.link_max_s)
        steps = len({step for step, _ in found.pictures})
        pictures = f"; {quantity(len(found.pictures), 'picture')} of {quantity(steps, 'checkpoint')}" if steps else ""
        loss = "" if found.loss is None else f", loss {found.loss:.4g}"
        text = f"step {found.done}{loss}{pictures}{'' if working else '; it has ended'}"
        self._linked = time.monotonic()
        link = f"[Loss and sample pictures of {self._subject}]({address})"
        if self._artifact is None:
            self._artifact = create_artifact(
                "markdown", link, key=artifact_key(self._subject, "training"), description=text
            )
            return
        update_artifact(self._artifact, link, description=text)

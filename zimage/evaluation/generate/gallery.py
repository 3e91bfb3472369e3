"""The pictures of an evaluation: from the cache, or generated if they are missing."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zimage.core.progress import Progress
from zimage.evaluation.generate.image_cache import ImageCache, Request
from zimage.model.base import import_pipeline

if TYPE_CHECKING:
    from zimage.evaluation.generate.generator import Generator

logger = logging.getLogger(__name__)


class Gallery:
    """Makes pictures on demand, and opens the pipeline only if one is missing.

    Args:
        image_cache: Where pictures are kept.
        open_studio: Opens the pipeline and reads all prompts.
    """

    def __init__(self, image_cache: ImageCache, open_studio: Callable[[], "Generator"]) -> None:
        self._image_cache, self._open = image_cache, open_studio
        self._generator: Generator | None = None
        self._importing = threading.Thread(target=import_pipeline, daemon=True)
        self.shown: list[Request] = []
        self.made = 0

    def expect(self, requests: Sequence[Request]) -> None:
        """Import the pipeline's libraries in the background if one of these pictures is missing.

        That takes 5 s of one core, while other processes search the real photos for faces. Nothing is opened: how much
        of a GPU's memory is free is looked at later.
        """
        if self._image_cache.missing(requests):
            self._importing.start()

    def files(self, requests: Sequence[Request], what: str) -> list[Path]:
        """Return where the picture of each request lies; `what` names them in the progress."""
        missing = self._image_cache.missing(requests)
        if missing:
            if self._importing.is_alive():
                self._importing.join()  # before processes are forked
            self._generator = self._generator or self._open()
            with Progress(f"pictures ({what})", len(requests), len(requests) - len(missing)) as progress:
                for request, picture in self._generator.pictures(missing):
                    self._image_cache.keep(request, picture)
                    progress.advance()
        self.made += len(missing)
        self.shown += requests
        logger.info("%s: %d pictures made, %d kept from before", what, len(missing), len(requests) - len(missing))
        return [self._image_cache.path(request) for request in requests]

    @property
    def used(self) -> set[Path]:
        """Where the pictures lie that were asked for."""
        return {self._image_cache.path(request) for request in self.shown}

    def close(self) -> None:
        """Delete the cached pictures that this evaluation did not use."""
        self._image_cache.forget_all_but(self.shown)

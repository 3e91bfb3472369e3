"""The pictures of an evaluation: from the cache, or generated if they are missing."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zimage.core.progress import Progress
from zimage.evaluation.generate.image_cache import ImageCache, Request

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
        self.shown: list[Request] = []
        self.made = 0

    def files(self, requests: Sequence[Request], what: str) -> list[Path]:
        """Return where the picture of each request lies; `what` names them in the progress."""
        missing = self._image_cache.missing(requests)
        if missing:
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

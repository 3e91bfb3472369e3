"""The pictures of an evaluation: taken from the album, or made where they are missing."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from zimage.core.progress import Progress
from zimage.evaluation.generate.generator import Studio
from zimage.evaluation.generate.image_cache import Album, Request

logger = logging.getLogger(__name__)


class Gallery:
    """Makes pictures on demand, and opens the pipeline only if one is missing.

    Args:
        album: Where pictures are kept.
        open_studio: Opens the pipeline and reads all prompts.
    """

    def __init__(self, album: Album, open_studio: Callable[[], Studio]) -> None:
        self._album, self._open = album, open_studio
        self._studio: Studio | None = None
        self.shown: list[Request] = []
        self.made = 0

    def files(self, requests: Sequence[Request], what: str) -> list[Path]:
        """Return where the picture of each request lies; `what` names them in the progress."""
        missing = self._album.missing(requests)
        if missing:
            self._studio = self._studio or self._open()
            with Progress(f"pictures ({what})", len(requests), len(requests) - len(missing)) as progress:
                for request, picture in self._studio.pictures(missing):
                    self._album.keep(request, picture)
                    progress.advance()
        self.made += len(missing)
        self.shown += requests
        logger.info("%s: %d pictures made, %d kept from before", what, len(missing), len(requests) - len(missing))
        return [self._album.path(request) for request in requests]

    def close(self) -> None:
        """Forget the pictures that this evaluation did not show."""
        self._album.forget_all_but(self.shown)

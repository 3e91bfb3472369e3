"""Check whether the subject's consent allows a stage on the day it runs.

Above the stages and in none of their fingerprints: the day may stop a stage, and makes none stale.
"""

import datetime
from collections.abc import Iterable

from zimage.consent import Consent, Purpose, require

PURPOSES: dict[str, Purpose] = {"evaluate": "evaluation"}  # all other stages are there for training


def require_for(stages: Iterable[str], consent: Consent, today: datetime.date) -> None:
    """Pass if the subject agreed to what `stages` do and still does on the day `today`.

    Raises:
        InputError: see `zimage.consent.require`.
    """
    for stage in stages:
        require(consent, PURPOSES.get(stage, "training"), today)


def today() -> datetime.date:
    """Return the day, in UTC as everywhere in the project."""
    return datetime.datetime.now(datetime.UTC).date()

"""The profiles that lie beside records."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qbench.results import store

if TYPE_CHECKING:
    from qbench.meters.profile import Profile
    from qbench.results.ranking import Ranking

PROFILE_BYTES = 4 * 2**20  # of a profile, at most


def profiles_of(ranking: Ranking) -> dict[str, Profile]:
    """The profiles beside this ranking's records, by run."""
    from qbench.meters.profile import Profile

    found = {}
    for record, folder in zip(ranking.records, ranking.folders, strict=True):
        text = store.read_beside(folder, record.files.get("profile", ""), PROFILE_BYTES)
        if text is not None:
            with contextlib.suppress(ValueError):  # no profile: the chart goes without it
                found[record.run] = Profile.model_validate_json(text)
    return found

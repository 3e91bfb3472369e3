"""Default limits of each face engine."""

from pathlib import Path

from zimage.faces.engine import PACKS, EngineParams

# Scores of the detectors, and distances of the recognisers, mean different things: see params.yaml.
YUNET_SFACE_PARAMS = EngineParams(name="yunet-sface", pack=None, identity=None, min_score=0.6, max_distance=0.637)
DLIB_PARAMS = EngineParams(name="dlib", pack=None, identity=None, min_score=0.0, max_distance=0.6)
EMBEDDED = {params.name: params for params in (YUNET_SFACE_PARAMS, DLIB_PARAMS)}
# For each embedded engine, the independent one: it shares neither code nor weights with it.
OTHER_EMBEDDED = {YUNET_SFACE_PARAMS.name: DLIB_PARAMS, DLIB_PARAMS.name: YUNET_SFACE_PARAMS}
INSIGHTFACE_MIN_SCORE = 0.5
INSIGHTFACE_MAX_DISTANCE = 0.6  # 1 - cosine


def engine_of(name: str, *, packs: Path = PACKS) -> EngineParams:
    """Return the settings of an embedded engine or of an insightface pack, which is pinned by its files.

    Args:
        name: `yunet-sface`, `dlib`, the name of a pack below `packs`, or the folder of one.
        packs: Folder in which insightface packs lie by name.

    Raises:
        InputError: insightface or the pack is missing, or a file of the pack is not the released one.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    from zimage.faces.insightface_engine import checked_hashes, identify_pack, pack_folder, require_insightface

    require_insightface()
    folder = pack_folder(name, packs)
    checked_hashes(folder, None)
    by_name = folder == packs.expanduser() / name
    return EngineParams(
        name="insightface",
        pack=name if by_name else str(folder.absolute()),
        identity=identify_pack(folder),
        min_score=INSIGHTFACE_MIN_SCORE,
        max_distance=INSIGHTFACE_MAX_DISTANCE,
    )

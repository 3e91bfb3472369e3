"""ICC profiles (ICC.1:2022) that hold the numbers of a colour space and nothing else."""

import struct

# ICC.1:2022, 8.3 and 8.4: the tags of a profile that is three curves and a matrix, or one curve for grey.
PROFILE_TAGS = {
    b"RGB ": (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC", b"wtpt"),
    b"GRAY": (b"kTRC", b"wtpt"),
}
# Of its header: version, class, colour space and space of connection; signature; intent and illuminant (table 17).
PROFILE_HEADER = ((8, 24), (36, 40), (64, 80))
MAX_PROFILE_TAGS = 100
PARAMETERS = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}  # numbers of a parametric curve by its type (table 68)


def bare_profile(profile: bytes) -> bytes:
    """Return an ICC profile with the numbers of its colour space only; nothing where it is a table of colours."""
    wanted = PROFILE_TAGS.get(profile[16:20], ())
    found = _profile_tags(profile)
    tags = {name: _numbers(found[name]) for name in wanted if name in found}
    if not wanted or not all(tags.get(name) for name in wanted) or any(name[:3] == b"A2B" for name in found):
        return b""
    table, body, places = b"", b"", dict[bytes, int]()
    start = 132 + 12 * len(tags)
    for name, tag in tags.items():
        if tag not in places:
            places[tag] = start + len(body)
            body += tag + bytes(-len(tag) % 4)
        table += struct.pack(">4sII", name, places[tag], len(tag))
    header = bytearray(128)
    for first, last in PROFILE_HEADER:
        header[first:last] = profile[first:last]
    header[:4] = struct.pack(">I", start + len(body))
    return bytes(header) + struct.pack(">I", len(tags)) + table + body


def _profile_tags(profile: bytes) -> dict[bytes, bytes]:
    """Return the tags of a profile; what is no profile has none."""
    if len(profile) < 132:
        return {}
    (count,) = struct.unpack_from(">I", profile, 128)
    count = min(count, MAX_PROFILE_TAGS, (len(profile) - 132) // 12)
    entries = [struct.unpack_from(">4sII", profile, 132 + 12 * number) for number in range(count)]
    return {name: profile[offset : offset + size] for name, offset, size in entries}


def _numbers(tag: bytes) -> bytes:
    """Return the numbers of a colour or a curve, without what may lie behind them; nothing of other types of tags."""
    if len(tag) < 12:
        return b""
    kind, _, number = struct.unpack_from(">4sII", tag)
    match kind:
        case b"XYZ ":
            size = 20
        case b"curv":
            size = 12 + 2 * number
        case b"para":
            size = 12 + 4 * PARAMETERS.get(number >> 16, 0)
        case _:
            return b""
    return kind + bytes(4) + tag[8:size] if len(tag) >= size else b""

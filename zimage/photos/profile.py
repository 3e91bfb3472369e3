"""ICC profiles (ICC.1:2022) that hold the numbers of a colour space and nothing else."""

import struct
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]

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
    header = bytearray(128)
    for first, last in PROFILE_HEADER:
        header[first:last] = profile[first:last]
    return _with_tags(header, tags)


def _with_tags(header: bytearray, tags: dict[bytes, bytes]) -> bytes:
    """Return a profile of a header of 128 bytes, whose size is filled in, and tags; equal ones lie there once."""
    table, body, places = b"", b"", dict[bytes, int]()
    start = 132 + 12 * len(tags)
    for name, tag in tags.items():
        if tag not in places:
            places[tag] = start + len(body)
            body += tag + bytes(-len(tag) % 4)
        table += struct.pack(">4sII", name, places[tag], len(tag))
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


D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)  # chromaticities x, y
# ITU-T H.273 (2023), table 2: name, and chromaticities of red, green, blue and white.
PRIMARIES: dict[int, tuple[str, tuple[tuple[float, float], ...]]] = {
    1: ("BT.709", ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)),
    4: ("BT.470 M", ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316))),
    5: ("BT.470 BG", ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), D65)),
    6: ("SMPTE 170M", ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65)),
    7: ("SMPTE 240M", ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65)),
    9: ("BT.2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65)),
    11: ("DCI-P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351))),
    12: ("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65)),
    22: ("EBU Tech 3213", ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), D65)),
}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
CURVE_POINTS = 4096
WHITE_NITS, PEAK_NITS = 203.0, 1000.0  # of a diffuse white and of the brightest parts of HDR (ITU-R BT.2408, 2.1)
KNEE = 0.8  # of the diffuse white: what is darker stays as it is, what is brighter is compressed


@cache
def profile_of_codes(primaries: int, transfer: int) -> bytes:
    """Return the ICC profile of a colour space that codes of ITU-T H.273 name; nothing for sRGB and unknown codes.

    HDR (PQ, HLG) is brought to SDR by the profile's curve: light up to KNEE times the diffuse white stays as it is, and
    the rest up to PEAK_NITS is compressed into what is left, in each channel.

    Args:
        primaries: Code of the colour primaries, table 2; 12 is Display P3.
        transfer: Code of the transfer function, table 3; 16 is PQ, 18 is HLG.
    """
    name, chromaticities = PRIMARIES.get(primaries, PRIMARIES[1])
    label, curve = TRANSFERS.get(transfer, ("", _srgb))
    if chromaticities == PRIMARIES[1][1] and curve is _srgb:
        return b""
    points = np.clip(curve(np.linspace(0, 1, CURVE_POINTS)), 0, 1)
    trc = struct.pack(f">4s4xI{CURVE_POINTS}H", b"curv", CURVE_POINTS, *np.round(points * 65535).astype(int).tolist())
    tags = {b"desc": _description(f"{name} {label}".strip())}
    tags |= {b"wtpt": _xyz(_white(D50)), b"rTRC": trc, b"gTRC": trc, b"bTRC": trc}
    for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), _to_xyz_d50(chromaticities).T, strict=True):
        tags[tag] = _xyz(column)
    header = bytearray(128)
    header[8:24] = struct.pack(">I4s4s4s", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header[36:40], header[68:80] = b"acsp", struct.pack(">3i", 63190, 65536, 54061)
    return _with_tags(header, tags)


def _to_xyz_d50(chromaticities: tuple[tuple[float, float], ...]) -> Curve:
    """Return the matrix from linear RGB to XYZ, adapted from the space's white to D50 (ICC.1:2022, annex E)."""
    *primaries, white = (_white(each) for each in chromaticities)
    columns = np.column_stack(primaries)
    matrix = columns * np.linalg.solve(columns, white)
    cones = (BRADFORD @ _white(D50)) / (BRADFORD @ white)
    return np.asarray(np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ matrix)


def _white(xy: tuple[float, float]) -> Curve:
    """Return X, Y, Z of a chromaticity, with Y = 1."""
    x, y = xy
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _srgb(signal: Curve) -> Curve:
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def _pq(signal: Curve) -> Curve:
    """Return linear light of PQ (SMPTE ST 2084, 5.2), brought to SDR."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    return _in_sdr(10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1))


def _hlg(signal: Curve) -> Curve:
    """Return linear light of HLG (ITU-R BT.2100, table 5) on a display of PEAK_NITS, brought to SDR."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return _in_sdr(PEAK_NITS * scene**1.2)


def _in_sdr(nits: Curve) -> Curve:
    light, peak = nits / WHITE_NITS, PEAK_NITS / WHITE_NITS
    over = np.clip((light - KNEE) / (peak - KNEE), 0, 1)
    slope = (peak - KNEE) / (1 - KNEE)  # so that the curve goes on at the knee without a bend
    return np.where(light <= KNEE, light, KNEE + (1 - KNEE) * over * slope / (1 + over * (slope - 1)))


# ITU-T H.273 (2023), table 3. The functions of BT.709 and its kin are shown as sRGB, as browsers and phones show them.
TRANSFERS: dict[int, tuple[str, Callable[[Curve], Curve]]] = {
    4: ("gamma 2.2", lambda signal: signal**2.2),
    5: ("gamma 2.8", lambda signal: signal**2.8),
    8: ("linear", lambda signal: signal),
    16: ("PQ, brought from HDR to SDR", _pq),
    18: ("HLG, brought from HDR to SDR", _hlg),
}


def _description(text: str) -> bytes:
    content = text.encode("ascii") + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(content)) + content + bytes(78)


def _xyz(values: Curve) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in values))

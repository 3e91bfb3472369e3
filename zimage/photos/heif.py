"""Rewrite HEIF and AVIF files without metadata: the primary picture's coded data in boxes that are written anew.

Both are ISO base media files (ISO/IEC 14496-12) whose `meta` box lists items: tiles, the grid that they form,
thumbnails, depth maps, EXIF and so on, with properties (ISO/IEC 23008-12). The primary item and the items that it is
derived from are copied, with the properties that decoding needs:

    ftyp    the brands of still pictures that it names
    meta    pitm primary item   iinf kinds   iref grid -> tiles   iprp properties   iloc where the data lies
    mdat    the coded data of these items, bit for bit
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from zimage.photos.profile import bare_profile

# Still pictures; a file of another major brand is coded anew.
BRANDS = frozenset(
    [b"mif1", b"mif2", b"miaf", b"heic", b"heix", b"heim", b"heis", b"MiHB", b"MiHE", b"avif", b"MA1A", b"MA1B"]
)
# Properties that decoding needs, and how many bytes of each: the decoder's configuration, which is a part of the coded
# data, and size, depth, aspect, crop, rotation and mirroring. Colours (colr) follow rules of their own.
PROPERTIES = {
    b"hvcC": None, b"av1C": None, b"ispe": 12, b"pixi": 8, b"pasp": 8, b"clap": 32, b"irot": 1, b"imir": 1,
}  # fmt: skip
MAX_ITEMS = 4096
HIDDEN = 1  # flag of an item that is shown only as a part of another


class _UnknownFormError(ValueError):
    """A box of a form that still pictures do not have."""


@dataclass
class _Items:
    """The contents of a `meta` box, by item number.

    Args:
        primary: Number of the item that is the photo.
        kinds: Such as hvc1, av01 or grid.
        sources: The items that one is derived from, such as a grid's tiles in their order.
        extents: Where an item's data lies: offset and length in the file, or in `idat` where the last value is True.
        properties: Each as a whole box, and whether a reader must know it.
    """

    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict)
    sources: dict[int, list[int]] = field(default_factory=dict)
    extents: dict[int, list[tuple[int, int, bool]]] = field(default_factory=dict)
    properties: dict[int, list[tuple[bool, bytes]]] = field(default_factory=dict)


def bare_heif(content: bytes) -> bytes:
    """Return a file that holds the primary picture alone; nothing where the boxes are not those of a still picture.

    Args:
        content: A HEIF or AVIF file.
    """
    try:
        boxes = _by_kind(content)
        meta = _by_kind(boxes[b"meta"][4:])
        items = _read_items(meta)
        needed = _needed(items)
        return _written(boxes[b"ftyp"], items, _content_of(needed, items, content, meta.get(b"idat", b"")))
    except (_UnknownFormError, LookupError, struct.error):
        return b""


def colour_codes(content: bytes) -> tuple[int, int] | None:
    """Return the codes of colour primaries and transfer function (ITU-T H.273) that a file states for its picture.

    Args:
        content: A HEIF or AVIF file.

    Returns:
        None where the file states none, as where it has an ICC profile only.
    """
    try:
        items = _read_items(_by_kind(_by_kind(content)[b"meta"][4:]))
        for item in _needed(items):
            for _, box in items.properties.get(item, []):
                if box[4:12] == b"colrnclx":
                    primaries, transfer = struct.unpack_from(">HH", box, 12)
                    return primaries, transfer
    except (_UnknownFormError, LookupError, struct.error):
        pass
    return None


def _needed(items: _Items) -> list[int]:
    """Return the primary item and all that it is derived from."""
    needed = {items.primary: None}
    waiting = [items.primary]
    for item in waiting:  # grows
        more = [each for each in dict.fromkeys(items.sources.get(item, [])) if each not in needed]
        needed |= dict.fromkeys(more)
        waiting += more
        if len(needed) > MAX_ITEMS:
            raise _UnknownFormError
    return list(needed)


def _by_kind(content: bytes) -> dict[bytes, bytes]:
    """Return the content of the first box of each kind."""
    found: dict[bytes, bytes] = {}
    for kind, box in _boxes(content):
        found.setdefault(kind, box)
    return found


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each box."""
    at = 0
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", content, at + 8), 16
        end = at + size if size else len(content)
        if end < at + head:
            raise _UnknownFormError
        yield kind, content[at + head : end]
        at = end


class _Reader:
    """Takes big-endian numbers of a box one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def number(self, size: int) -> int:
        """Return a number of `size` bytes."""
        return int.from_bytes(self.take(size))

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        if self._at + size > len(self._content):
            raise _UnknownFormError
        self._at += size
        return self._content[self._at - size : self._at]

    def version_and_flags(self) -> tuple[int, int]:
        """Return version and flags of a full box."""
        head = self.number(4)
        return head >> 24, head & 0xFFFFFF

    @property
    def rest(self) -> bytes:
        """The bytes that have not been read yet."""
        return self._content[self._at :]


def _read_items(meta: dict[bytes, bytes]) -> _Items:
    items = _Items()
    pitm = _Reader(meta[b"pitm"])
    items.primary = pitm.number(2 if pitm.version_and_flags()[0] == 0 else 4)
    _read_kinds(items, _Reader(meta[b"iinf"]))
    _read_references(items, _Reader(meta.get(b"iref", bytes(4))))
    _read_extents(items, _Reader(meta[b"iloc"]))
    properties = _by_kind(meta[b"iprp"])
    _read_properties(items, list(_boxes(properties[b"ipco"])), _Reader(properties[b"ipma"]))
    return items


def _read_kinds(items: _Items, iinf: _Reader) -> None:
    iinf.number(2 if iinf.version_and_flags()[0] == 0 else 4)
    for kind, entry in _boxes(iinf.rest):
        infe = _Reader(entry)
        version, _ = infe.version_and_flags()
        if kind != b"infe" or version not in (2, 3):
            raise _UnknownFormError
        item, protection = infe.number(2 if version == 2 else 4), infe.number(2)
        if protection == 0:
            items.kinds[item] = infe.take(4)


def _read_references(items: _Items, iref: _Reader) -> None:
    size = 2 if iref.version_and_flags()[0] == 0 else 4
    for kind, entry in _boxes(iref.rest):
        if kind == b"dimg":
            reference = _Reader(entry)
            item, count = reference.number(size), reference.number(2)
            items.sources[item] = [reference.number(size) for _ in range(count)]


def _read_extents(items: _Items, iloc: _Reader) -> None:
    version, _ = iloc.version_and_flags()
    sizes, more = iloc.number(1), iloc.number(1)
    offset_size, length_size, base_size = sizes >> 4, sizes & 15, more >> 4
    index_size = more & 15 if version else 0
    for _ in range(iloc.number(2 if version < 2 else 4)):
        item = iloc.number(2 if version < 2 else 4)
        method, outside = iloc.number(2) & 15 if version else 0, iloc.number(2)
        base, extents = iloc.number(base_size), []
        for _ in range(iloc.number(2)):
            iloc.number(index_size)
            start, length = base + iloc.number(offset_size), iloc.number(length_size)
            extents.append((start, length, method == 1))
        if method < 2 and not outside:
            items.extents[item] = extents


def _read_properties(items: _Items, listed: list[tuple[bytes, bytes]], ipma: _Reader) -> None:
    version, flags = ipma.version_and_flags()
    size = 2 if flags & 1 else 1
    bare = [_bare_property(kind, content) for kind, content in listed]
    for _ in range(ipma.number(4)):
        found = items.properties.setdefault(ipma.number(2 if version == 0 else 4), [])
        for _ in range(ipma.number(1)):
            number = ipma.number(size)
            essential, index = bool(number >> (8 * size - 1)), number & (1 << (8 * size - 1)) - 1
            if index == 0:  # stands for no property
                continue
            if bare[index - 1]:
                found.append((essential, bare[index - 1]))


def _bare_property(kind: bytes, content: bytes) -> bytes:
    """Return a property's box with what decoding needs; nothing of properties that it does not need."""
    if kind in PROPERTIES:
        return _box(kind, content[: PROPERTIES[kind]])
    if kind == b"colr" and content[:4] == b"nclx":
        return _box(kind, content[:11])
    if kind == b"colr" and content[:4] in (b"prof", b"rICC") and (profile := bare_profile(content[4:])):
        return _box(kind, content[:4] + profile)
    return b""


def _content_of(needed: Iterable[int], items: _Items, file: bytes, idat: bytes) -> dict[int, bytes]:
    """Return the coded data of the items; all of it together is no larger than the file, whatever the boxes claim."""
    found, left = {}, len(file)
    for item in needed:
        parts = [(idat if inside else file)[start : start + length] for start, length, inside in items.extents[item]]
        left -= sum(map(len, parts))
        if left < 0:
            raise _UnknownFormError
        found[item] = b"".join(parts)
    return found


def _written(ftyp: bytes, items: _Items, content: dict[int, bytes]) -> bytes:
    """Return the file; items are numbered anew from 1, the primary one first."""
    numbers = {item: number for number, item in enumerate(content, start=1)}
    brands = [ftyp[at : at + 4] for at in (0, *range(8, len(ftyp), 4))]
    if brands[0] not in BRANDS:
        raise _UnknownFormError
    ftyp = brands[0] + bytes(4) + b"".join(brand for brand in dict.fromkeys(brands[1:]) if brand in BRANDS)
    fixed = [
        _box(b"hdlr", bytes(8) + b"pict" + bytes(13)),
        _box(b"pitm", struct.pack(">IH", 0, 1)),
        _written_kinds(items, numbers),
        _written_references(items, numbers),
        _written_properties(items, numbers),
    ]
    lengths = [len(each) for each in content.values()]
    start = len(_head(ftyp, fixed, 0, lengths)) + 8  # the length does not depend on where the data begins
    return _head(ftyp, fixed, start, lengths) + _box(b"mdat", b"".join(content.values()))


def _head(ftyp: bytes, fixed: list[bytes], start: int, lengths: list[int]) -> bytes:
    """Return the boxes before the data, which begins at byte `start`."""
    iloc = struct.pack(">IBBH", 1 << 24, 0x44, 0, len(lengths))
    for number, length in enumerate(lengths, start=1):
        iloc += struct.pack(">HHHHII", number, 0, 0, 1, start, length)
        start += length
    return _box(b"ftyp", ftyp) + _box(b"meta", bytes(4) + b"".join([*fixed, _box(b"iloc", iloc)]))


def _written_kinds(items: _Items, numbers: dict[int, int]) -> bytes:
    flags = [0, *[HIDDEN] * (len(numbers) - 1)]
    entries = [
        _box(b"infe", struct.pack(">IHH4sx", 2 << 24 | flag, number, 0, items.kinds[item]))
        for (item, number), flag in zip(numbers.items(), flags, strict=True)
    ]
    return _box(b"iinf", struct.pack(">IH", 0, len(entries)) + b"".join(entries))


def _written_references(items: _Items, numbers: dict[int, int]) -> bytes:
    references = [
        _box(b"dimg", struct.pack(f">HH{len(found)}H", number, len(found), *(numbers[each] for each in found)))
        for item, number in numbers.items()
        if (found := items.sources.get(item, []))
    ]
    return _box(b"iref", bytes(4) + b"".join(references)) if references else b""


def _written_properties(items: _Items, numbers: dict[int, int]) -> bytes:
    found = {number: items.properties.get(item, []) for item, number in numbers.items()}
    listed = list(dict.fromkeys(box for properties in found.values() for _, box in properties))
    index = {box: at for at, box in enumerate(listed, start=1)}
    ipma = struct.pack(">II", 1, len(found))  # flags 1: a number of a property has two bytes
    for number, properties in found.items():
        ipma += struct.pack(">HB", number, len(properties))
        ipma += b"".join(struct.pack(">H", essential << 15 | index[box]) for essential, box in properties)
    return _box(b"iprp", _box(b"ipco", b"".join(listed)) + _box(b"ipma", ipma))


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content

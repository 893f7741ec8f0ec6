"""XMP sidecars with Adobe's ``crs:`` crop: Lightroom, Camera Raw, and darktable, which reads them.

A crop is given in shares of the frame *as stored*, before the EXIF orientation; ``CropLeft, CropTop`` is the corner that was top left
and ``CropRight, CropBottom`` the one that was bottom right, both after the turn by ``CropAngle``, clockwise on the screen.  Checked with
the example at https://community.adobe.com/t5/lightroom-classic-discussions/sdk-computing-the-corners-of-a-crop-rectangle/td-p/12995794
and a crop of a 3:2 picture that was turned by -10 degrees there (see the tests).

Sidecars that are there are edited in place: only the bytes of the crop's own properties change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from cropreg import __version__
from cropreg.boxes import Box, from_stored, to_stored
from cropreg.errors import InputError
from cropreg.interchange.turned import corners, from_corners, mirrored_angle

_CRS, _TIFF = "http://ns.adobe.com/camera-raw-settings/1.0/", "http://ns.adobe.com/tiff/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_PREFIXES = {_CRS: "crs", _TIFF: "tiff"}
_MAX_BYTES = 64 * 2**20
_TAG = re.compile(rb"""<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""")
_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")
_EMPTY = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="cropreg {__version__}">
 <rdf:RDF xmlns:rdf="{_RDF}">
  <rdf:Description rdf:about=""/>
 </rdf:RDF>
</x:xmpmeta>
"""

_Name = tuple[str, str]  # namespace, local name


def write(box: Box, angle_deg: float, size_wh: tuple[int, int], orientation: int, existing: bytes | None, name: str) -> bytes:
    """A sidecar with a crop; everything else that ``existing`` holds stays as it is, byte for byte.

    Args:
        box, angle_deg: pixels of the upright original; clockwise about the box's centre.
        size_wh, orientation: the original's: upright pixels, EXIF value.
        existing: the sidecar that is there.
        name: of that sidecar, for messages.

    Raises:
        InputError: ``existing`` is no XMP that can be added to.
    """
    stored_wh = (size_wh[1], size_wh[0]) if orientation >= 5 else size_wh
    stored, angle = to_stored(box, size_wh, orientation), mirrored_angle(angle_deg, orientation)
    (left, top), _, (right, bottom), _ = corners(stored, angle)
    shares = {"CropLeft": left, "CropTop": top, "CropRight": right, "CropBottom": bottom}
    crop = {
        "HasCrop": "True",
        **{key: _number(value / stored_wh[i % 2]) for i, (key, value) in enumerate(shares.items())},
        "CropAngle": _number(angle),
        "CropConstrainToWarp": "0",
    }
    facts = {
        **{(_TIFF, key): str(value) for key, value in zip(("ImageWidth", "ImageLength"), stored_wh, strict=True)},
        (_TIFF, "Orientation"): str(orientation),
        **{(_CRS, key): value for key, value in (("Version", "15.0"), ("ProcessVersion", "11.0"), ("HasSettings", "True"))},
        (_CRS, "AlreadyApplied"): "False",
    }
    return _edited(existing or _EMPTY.encode(), {(_CRS, key): value for key, value in crop.items()}, facts, name)


def read(data: bytes, size_wh: tuple[int, int], orientation: int, name: str) -> tuple[Box, float]:
    """The crop that a sidecar asks for: box in pixels of the upright original, and its angle, clockwise.

    The orientation is that of the original's file: a turn that a sidecar adds to it moves nothing in the frame as stored.

    Raises:
        InputError: no XMP, or none with a crop.
    """
    said: dict[str, str] = {}
    for description in _parse(data, name):
        said |= {local: item.text.strip() for (space, local), item in description.values.items() if space == _CRS}
    if said.get("HasCrop", "").lower() != "true":
        raise InputError(f"{name}: this sidecar holds no crop.")
    try:
        left, top, right, bottom = (float(said[f"Crop{side}"]) for side in ("Left", "Top", "Right", "Bottom"))
        angle = float(said.get("CropAngle") or 0)
        w, h = (size_wh[1], size_wh[0]) if orientation >= 5 else size_wh
        stored = from_corners((left * w, top * h), (right * w, bottom * h), angle)
    except (KeyError, ValueError) as error:
        raise InputError(f"{name}: the crop of this sidecar is damaged ({error}).") from error
    return from_stored(stored, (w, h), orientation), mirrored_angle(angle, orientation)


def _number(value: float) -> str:
    text = f"{value:.9f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


@dataclass
class _Value:
    text: str
    start: int
    end: int


@dataclass
class _Description:
    """A top-level ``rdf:Description``: where its start tag lies, which prefixes hold there, and its simple properties."""

    start: int
    end: int
    prefixes: dict[str, str]  # by namespace
    values: dict[_Name, _Value] = field(default_factory=dict)


def _edited(data: bytes, replaced: dict[_Name, str], added: dict[_Name, str], name: str) -> bytes:
    """XMP with some properties set: those in ``added`` only where they are missing."""
    found = _parse(data, name)
    if not found:
        raise InputError(f"{name}: this sidecar describes nothing (no rdf:Description), so no crop can be added.")
    there = {key for description in found for key in description.values}
    wanted = {**{key: value for key, value in added.items() if key not in there}, **replaced}
    first = found[0]
    tag = data[first.start : first.end]
    attributes = list(_ATTRIBUTE.finditer(tag))
    at = first.start + (attributes[-1].end() if attributes else len(tag.rstrip(b"/>").rstrip()))
    gap = re.match(rb"\s+", attributes[-1][0]) if attributes else None
    space = gap[0] if gap and b"\n" in gap[0] else b"\n   "
    cuts = [(v.start, v.end, b"") for d in found for key, v in d.values.items() if key in replaced]
    cuts.append((at, at, b"".join(space + text for text in _attributes(wanted, first.prefixes))))
    for start, end, text in sorted(cuts, reverse=True):  # an insertion lies behind what is cut just before it
        data = data[:start] + text + data[end:]
    return data


def _attributes(wanted: dict[_Name, str], known: dict[str, str]) -> Iterator[bytes]:
    """The attributes as text, behind the declarations of prefixes they need."""
    prefixes = dict(known)
    for space in dict.fromkeys(space for space, _ in wanted):
        if space not in prefixes:
            prefix = _PREFIXES[space]
            while prefix in prefixes.values():
                prefix += "1"
            prefixes[space] = prefix
            yield f'xmlns:{prefix}="{space}"'.encode()
    for (space, local), value in wanted.items():
        yield f'{prefixes[space]}:{local}="{value}"'.encode()


def _parse(data: bytes, name: str) -> list[_Description]:
    """The top-level descriptions of an XMP packet, in order."""
    if len(data) > _MAX_BYTES:
        raise InputError(f"{name}: larger than 64 MiB, so it is no sidecar.")
    try:
        return _Reader(data, name).found
    except (expat.ExpatError, ValueError) as error:
        raise InputError(f"{name}: this sidecar is no well-formed XMP in UTF-8 ({error}).") from error


class _Reader:
    """Walks through XMP and notes where the properties of its top-level descriptions lie."""

    def __init__(self, data: bytes, name: str) -> None:
        self.found: list[_Description] = []
        self._data, self._name = data, name
        self._path: list[str] = []
        self._scope: list[tuple[str, str]] = []  # prefix, namespace
        self._text, self._from = "", 0
        self._parser = expat.ParserCreate("UTF-8", " ")
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartNamespaceDeclHandler = lambda prefix, uri: self._scope.append((prefix or "", uri or ""))
        self._parser.EndNamespaceDeclHandler = lambda _: self._scope.pop()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.Parse(data, True)

    def _refuse(self, *_: object) -> None:
        raise InputError(f"{self._name}: this sidecar declares a document type, which XMP never does; it is not read.")

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        self._path.append(element)
        at = self._parser.CurrentByteIndex
        if self._path[-2:] == [f"{_RDF} RDF", f"{_RDF} Description"] and f"{_RDF} Description" not in self._path[:-1]:
            self.found.append(self._description(at, attributes))
        elif self._is_property():
            self._text, self._from = "", at

    def _is_property(self) -> bool:
        return self._path[-3:-1] == [f"{_RDF} RDF", f"{_RDF} Description"] and self._path.count(f"{_RDF} Description") == 1

    def _tag_end(self, at: int) -> int:
        tag = _TAG.match(self._data, at)
        assert tag is not None  # expat has read it
        return tag.end()

    def _description(self, at: int, attributes: dict[str, str]) -> _Description:
        end, spaces = self._tag_end(at), dict(self._scope)
        description = _Description(at, end, {uri: prefix for prefix, uri in spaces.items() if prefix})
        for item in _ATTRIBUTE.finditer(self._data, at, end):
            prefix, _, local = item[1].decode().rpartition(":")
            space = spaces.get(prefix, "")
            if prefix and f"{space} {local}" in attributes:
                description.values[space, local] = _Value(attributes[f"{space} {local}"], *item.span())
        return description

    def _characters(self, text: str) -> None:
        self._text += text

    def _end(self, element: str) -> None:
        if self._is_property():
            end = self._tag_end(self._from)
            if not self._data[self._from : end].endswith(b"/>"):
                end = self._data.index(b">", self._parser.CurrentByteIndex) + 1
            start = self._from
            while self._data[start - 1 : start].isspace():
                start -= 1
            space, _, local = element.rpartition(" ")
            self.found[-1].values[space, local] = _Value(self._text, start, end)
        self._path.pop()

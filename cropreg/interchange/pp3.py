"""RawTherapee's sidecars (``.pp3``): a crop in whole pixels of the picture as it is displayed, and a turn of the picture under it.

RawTherapee turns the whole picture about its centre and cuts then, where cropreg turns the box.  Its ``Degree`` has cropreg's sign: in
``rtengine/iptransform.cc`` a place (x, y) of the result, from the centre, shows the place (x cos - y sin, x sin + y cos) of the picture,
y pointing down, so for a positive angle the result's x axis lies turned clockwise in the picture.  With ``AutoFill`` the result is also
enlarged until no empty corner is left.
"""

from __future__ import annotations

import math

from cropreg.boxes import Box
from cropreg.errors import InputError
from cropreg.interchange.turned import around, turn

_NEW = b"[Version]\nAppVersion=5.9\nVersion=349\n"  # the version whose rules the values below follow
_BENDING = (("Perspective", "Horizontal"), ("Perspective", "Vertical"), ("Distortion", "Amount"))
_CAMERA = (("Perspective", "CameraRoll"), ("Perspective", "CameraPitch"), ("Perspective", "CameraYaw"))
_TRANSFORMS = "Common Properties for Transformations"
_MOST_LOST_PX = 1.0  # by rounding

_Sections = dict[str, dict[str, str]]


def write(box: Box, angle_deg: float, size_wh: tuple[int, int], existing: bytes | None, name: str) -> bytes:
    """A sidecar with a crop; every other line of ``existing`` stays as it is.

    Args:
        box, angle_deg: pixels of the upright original; clockwise about the box's centre.
        size_wh: of the original, upright.
        existing: the sidecar that is there.
        name: of that sidecar, for messages.

    Raises:
        InputError: ``existing`` turns, mirrors or bends the picture before it is cropped, so that the box would mean another place; or the
            turn puts a part of the crop outside the frame, in which RawTherapee turns the picture.
    """
    _refuse_bent(_parse(existing or b"", name), name, "so a crop cannot be added to it")
    w, h = size_wh
    (x, y), (box_w, box_h) = box.center_xy, box.size_wh
    dx, dy = turn(x - w / 2, y - h / 2, -angle_deg)
    turned = around((w / 2 + dx, h / 2 + dy), (box_w, box_h)) if angle_deg else box
    lost_px = max(-turned.x1, -turned.y1, turned.x2 - w, turned.y2 - h)
    if lost_px > _MOST_LOST_PX:
        raise InputError(
            f"{name}: RawTherapee turns a picture within its frame, beyond which {lost_px:.0f} px of this crop would lie, "
            f"so it cannot be written as a sidecar. Take another format for it."
        )
    placed = turned.rounded(size_wh)
    values = {"Enabled": "true", "X": placed.x1, "Y": placed.y1, "W": placed.x2 - placed.x1, "H": placed.y2 - placed.y1}
    sections = {
        "Crop": {**{key: str(value) for key, value in values.items()}, "FixedRatio": "false"},
        "Rotation": {"Degree": f"{angle_deg:g}"},
    }
    if angle_deg:
        sections[_TRANSFORMS] = {"AutoFill": "false"}
    return _edited(existing or _NEW, sections)


def read(data: bytes, size_wh: tuple[int, int], name: str) -> tuple[Box, float]:
    """The crop that a sidecar asks for: box in pixels of the upright original, and its angle, clockwise.

    Raises:
        InputError: no crop, or the picture is turned, mirrored or bent before it is cropped.
    """
    said = _parse(data, name)
    crop = said.get("Crop", {})
    if crop.get("Enabled", "").lower() != "true":
        raise InputError(f"{name}: this sidecar holds no crop.")
    _refuse_bent(said, name, "so the place of its crop is not known")
    try:
        x, y, box_w, box_h = (float(crop[key]) for key in "XYWH")
        angle = _number(said, "Rotation", "Degree", name)
        scale, (w, h) = _scale(said.get(_TRANSFORMS, {}), angle, size_wh), size_wh
        dx, dy = turn(scale * (x + box_w / 2 - w / 2), scale * (y + box_h / 2 - h / 2), angle)
        return around((w / 2 + dx, h / 2 + dy), (scale * box_w, scale * box_h)), angle
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{name}: the crop of this sidecar is damaged ({error}).") from error


def _scale(transforms: dict[str, str], angle_deg: float, size_wh: tuple[int, int]) -> float:
    """Pixels of the picture per pixel of RawTherapee's result."""
    if transforms.get("AutoFill", "true").lower() != "true":
        return 1 / float(transforms.get("Scale", 1))
    (w, h), cos, sin = size_wh, abs(math.cos(math.radians(angle_deg))), abs(math.sin(math.radians(angle_deg)))
    return min(w / (w * cos + h * sin), h / (w * sin + h * cos))


def _refuse_bent(said: _Sections, name: str, so: str) -> None:
    coarse = said.get("Coarse Transformation", {})
    if _number(said, "Coarse Transformation", "Rotate", name) or "true" in (
        coarse.get("HorizontalFlip"),
        coarse.get("VerticalFlip"),
    ):
        raise InputError(f"{name}: this sidecar turns or mirrors the picture before it is cropped, {so}.")
    camera = said.get("Perspective", {}).get("Method") == "camera_based"
    for section, key in (*_BENDING, *(_CAMERA if camera else ())):
        if _number(said, section, key, name):
            raise InputError(f"{name}: this sidecar changes the picture's shape ([{section}] {key}), {so}.")


def _number(said: _Sections, section: str, key: str, name: str) -> float:
    try:
        return float(said.get(section, {}).get(key) or 0)
    except ValueError as error:
        raise InputError(f"{name}: this sidecar is damaged ([{section}] {key}: {error}).") from error


def _parse(data: bytes, name: str) -> _Sections:
    said: _Sections = {}
    section: dict[str, str] = {}
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: this sidecar is not in UTF-8 ({error}).") from error
    for line in map(str.strip, lines):
        if line.startswith("[") and line.endswith("]"):
            section = said.setdefault(line[1:-1], {})
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section[key.strip()] = value.strip()
    return said


def _edited(data: bytes, sections: _Sections) -> bytes:
    """Key-file text with some keys set: where they stand, else at the end of their section, else in a new one at the end."""
    missing = {section: dict(values) for section, values in sections.items()}
    ending = b"\r\n" if b"\r\n" in data else b"\n"
    out: list[bytes] = []
    section, last = "", {"": 0}  # behind which line of out a section's last entry stands
    for line in data.splitlines(keepends=True):
        text = line.strip()
        key = text.partition(b"=")[0].strip().decode(errors="replace")
        if text.startswith(b"[") and text.endswith(b"]"):
            section = text[1:-1].decode(errors="replace")
        elif key in sections.get(section, {}):
            line = f"{key}={sections[section][key]}".encode() + ending
            missing[section].pop(key, None)
        out.append(line)
        if text:
            last[section] = len(out)
    if out and not out[-1].endswith(b"\n"):
        out[-1] += ending
    for section, values in sorted(missing.items(), key=lambda item: -last.get(item[0], len(out) + 1)):
        lines = [f"{key}={value}".encode() + ending for key, value in values.items()]
        if section not in last:
            out += [ending, f"[{section}]".encode() + ending, *lines]
        else:
            out[last[section] : last[section]] = lines
    return b"".join(out)

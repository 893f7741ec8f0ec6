"""Crops in other programs' languages: there and back again, for all eight orientations, and what a file held before stays in it."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cropreg import storage
from cropreg.boxes import Box, from_stored, to_stored
from cropreg.errors import InputError, UsageError
from cropreg.interchange import coco, exports, hugging_face, label_studio, pp3, table, xmp
from cropreg.interchange.turned import corners, from_corners, turn
from cropreg.schema import PREDICTIONS, csv_bytes

ORIENTATIONS = range(1, 9)
SIZE = (600, 400)
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
CRS = "{http://ns.adobe.com/camera-raw-settings/1.0/}"


@st.composite
def boxes(draw: st.DrawFn, size_wh: tuple[int, int] = SIZE) -> Box:
    """Any box inside a picture, its edges anywhere between pixels."""
    edges = []
    for side in size_wh:
        low = draw(st.floats(0, side - 3))
        edges.append((low, draw(st.floats(low + 2, side))))
    (x1, x2), (y1, y2) = edges
    return Box(x1, y1, x2, y2)


def far(a: Box, b: Box) -> float:
    return max(abs(p - q) for p, q in zip(a, b, strict=True))


def row(box: Box | None, uri: str = "/in/a.jpg", size_wh: tuple[int, int] = SIZE, **more: Any) -> dict[str, Any]:
    edges = dict(zip(("x1", "y1", "x2", "y2"), box or (None,) * 4, strict=True))
    rest = {"orientation": 1, "angle_deg": 0.0, "confidence": 0.75, "verdict": "accept" if box else "failed"}
    whole = {"image_uri": uri, "width": size_wh[0], "height": size_wh[1], **edges, **rest, **more}
    return {name: whole.get(name) for name in PREDICTIONS.names}


# -- frames


@given(boxes(), st.sampled_from(ORIENTATIONS))
def test_box_comes_back_from_the_frame_as_stored(box: Box, orientation: int) -> None:
    stored_wh = SIZE[::-1] if orientation >= 5 else SIZE
    stored = to_stored(box, SIZE, orientation)
    assert stored.x1 >= 0 and stored.x2 <= stored_wh[0] and stored.y1 >= 0 and stored.y2 <= stored_wh[1]
    assert far(from_stored(stored, stored_wh, orientation), box) < 1e-9


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_box_as_stored_holds_the_same_pixels(orientation: int) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (40, 60), np.uint8)
    picture = Image.fromarray(stored)
    picture.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(picture))
    box = Box(3, 5, 31, 33)
    x1, y1, x2, y2 = map(int, to_stored(box, (upright.shape[1], upright.shape[0]), orientation))
    piece = Image.fromarray(stored[y1:y2, x1:x2])
    piece.getexif()[0x0112] = orientation
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(piece)), upright[5:33, 3:31])


@given(boxes(), st.floats(-180, 180))
def test_box_comes_back_from_its_turned_corners(box: Box, angle: float) -> None:
    top_left, _, bottom_right, _ = corners(box, angle)
    assert far(from_corners(top_left, bottom_right, angle), box) < 1e-6


# -- XMP


@given(boxes(), st.sampled_from(ORIENTATIONS), st.one_of(st.just(0.0), st.floats(-45, 45)))
def test_xmp_crop_comes_back(box: Box, orientation: int, angle: float) -> None:
    data = xmp.write(box, angle, SIZE, orientation, None, "a.xmp")
    found, turned = xmp.read(data, SIZE, orientation, "a.xmp")
    assert far(found, box) < 1e-4 and abs(turned - angle) < 1e-8


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, (0.1, 0.2, 0.6, 0.9)),
        (2, (0.4, 0.2, 0.9, 0.9)),
        (3, (0.4, 0.1, 0.9, 0.8)),
        (4, (0.1, 0.1, 0.6, 0.8)),
        (5, (0.2, 0.1, 0.9, 0.6)),
        (6, (0.2, 0.4, 0.9, 0.9)),
        (7, (0.1, 0.4, 0.8, 0.9)),
        (8, (0.1, 0.1, 0.8, 0.6)),
    ],
)
def test_xmp_crop_is_in_shares_of_the_frame_as_stored(orientation: int, expected: tuple[float, ...]) -> None:
    data = xmp.write(Box(60, 80, 360, 360), 0, SIZE, orientation, None, "a.xmp")
    said = attributes_of(data)
    assert tuple(float(said[f"{CRS}Crop{side}"]) for side in ("Left", "Top", "Right", "Bottom")) == pytest.approx(expected)
    assert said[f"{CRS}HasCrop"] == "True" and said[f"{CRS}CropAngle"] == "0"
    tiff = "{http://ns.adobe.com/tiff/1.0/}"
    assert [said[f"{tiff}{key}"] for key in ("ImageWidth", "ImageLength", "Orientation")] == [
        *map(str, SIZE[::-1] if orientation >= 5 else SIZE),
        str(orientation),
    ]


def test_xmp_angle_has_the_sign_that_lightroom_gives_it() -> None:
    """Turned by -10 degrees there, the crop (.4, .3, .9, .8) of a picture of 3:2 became these four numbers."""
    text = xmp.write(Box(0.4 * 3000, 0.3 * 1992.6, 0.9 * 3000, 0.8 * 1992.6), -10, (3000, 1993), 1, None, "a.xmp")
    said = attributes_of(text)
    edges = [float(said[f"{CRS}Crop{side}"]) for side in ("Left", "Top", "Right", "Bottom")]
    assert edges == pytest.approx([0.374965, 0.36916, 0.925035, 0.73084], abs=3e-4)


def attributes_of(data: bytes) -> dict[str, str]:
    description = ET.fromstring(data).find(f"{RDF}RDF/{RDF}Description")
    assert description is not None
    return dict(description.attrib)


RICH = """\ufeff<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- kept: a < b -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:odd="urn:odd>one"
    xmlns:c="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:Rating='5'
   odd:note="two&#xA;lines &amp; a &quot;quote&quot; > crs:CropTop=&quot;9&quot;"
   c:Exposure2012="+0.35"
   c:CropTop="0.5"
   c:HasCrop="False">
   <dc:creator>
    <rdf:Seq><rdf:li>Zoë &lt;zoe@example.org&gt;</rdf:li></rdf:Seq>
   </dc:creator>
   <c:CropAngle>3.5</c:CropAngle><c:CropLeft/>
   <c:Look>
    <rdf:Description c:Name="Old" c:CropTop="0.25"/>
   </c:Look>
   <![CDATA[ ]]>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
""".encode()


def test_merged_xmp_keeps_everything_else_byte_for_byte() -> None:
    box = Box(60, 80, 360, 360)
    merged = xmp.write(box, 0, SIZE, 6, RICH, "a.xmp")
    assert far(xmp.read(merged, SIZE, 6, "a.xmp")[0], box) < 1e-4
    for gone in (b'\n   c:CropTop="0.5"', b'\n   c:HasCrop="False"', b"\n   <c:CropAngle>3.5</c:CropAngle>", b"<c:CropLeft/>"):
        assert RICH.count(gone) == 1
    added = re.compile(rb'\s+(xmlns:tiff|tiff:\w+|c:(HasCrop|Crop\w+|Version|ProcessVersion|HasSettings|AlreadyApplied))="[^"]*"')
    look = b'<rdf:Description c:Name="Old" c:CropTop="0.25"/>'
    assert look in merged
    ours, theirs = added.sub(b"", merged.replace(look, b"")), added.sub(b"", RICH.replace(look, b""))
    assert ours == theirs.replace(b"\n   <c:CropAngle>3.5</c:CropAngle><c:CropLeft/>", b"")
    said = attributes_of(merged.removeprefix("\ufeff".encode()))
    assert said["{urn:odd>one}note"] == 'two\nlines & a "quote" > crs:CropTop="9"'
    assert said[f"{CRS}Exposure2012"] == "+0.35"


@given(st.lists(boxes(), min_size=2, max_size=2), st.sampled_from(ORIENTATIONS), st.booleans())
def test_xmp_written_twice_is_as_if_written_once(two: list[Box], orientation: int, rich: bool) -> None:
    start = RICH if rich else None
    once = xmp.write(two[1], 0, SIZE, orientation, start, "a.xmp")
    twice = xmp.write(two[1], 0, SIZE, orientation, xmp.write(two[0], 7, SIZE, orientation, start, "a.xmp"), "a.xmp")
    assert sorted(twice.split()) == sorted(once.split())
    assert xmp.write(two[1], 0, SIZE, orientation, once, "a.xmp") == once


@given(st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,8}", fullmatch=True), st.text(max_size=20), max_size=5))
def test_merged_xmp_keeps_any_foreign_value(values: Mapping[str, str]) -> None:
    values = {f"{{urn:x}}{key}": re.sub(r"[^\t\n\r -\ud7ff]", "", text) for key, text in values.items()}
    root = ET.Element("{adobe:ns:meta/}xmpmeta")
    description = ET.SubElement(ET.SubElement(root, f"{RDF}RDF"), f"{RDF}Description", {f"{RDF}about": "", **values})
    for key, text in values.items():
        ET.SubElement(description, key).text = text
    merged = xmp.write(Box(60, 80, 360, 360), 0, SIZE, 1, ET.tostring(root), "a.xmp")
    found = ET.fromstring(merged).find(f"{RDF}RDF/{RDF}Description")
    original = ET.fromstring(ET.tostring(root)).find(f"{RDF}RDF/{RDF}Description")
    assert found is not None and original is not None
    assert {key: found.get(key) for key in original.attrib} == dict(original.attrib)
    assert [(item.tag, item.text) for item in found] == [(item.tag, item.text) for item in original]


def test_merged_xmp_leaves_the_photographers_own_turn_alone() -> None:
    there = xmp.write(Box(0, 0, 10, 10), 0, SIZE, 8, None, "a.xmp")
    merged = xmp.write(Box(60, 80, 360, 360), 0, SIZE, 1, there, "a.xmp")
    assert attributes_of(merged)["{http://ns.adobe.com/tiff/1.0/}Orientation"] == "8"


def test_prefix_that_means_something_else_is_not_used() -> None:
    there = RICH.replace(b"xmlns:odd=", b"xmlns:tiff=").replace(b"odd:note", b"tiff:note")
    said = attributes_of(xmp.write(Box(60, 80, 360, 360), 0, SIZE, 1, there, "a.xmp").removeprefix("\ufeff".encode()))
    assert said["{http://ns.adobe.com/tiff/1.0/}ImageWidth"] == "600" and "{urn:odd>one}note" in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no well-formed XMP"),
        (b"text", "no well-formed XMP"),
        (RICH[:600], "no well-formed XMP"),
        (b"<a/>", "describes nothing"),
        ("<a>\u00e9</a>".encode("latin-1"), "no well-formed XMP in UTF-8"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares a document type"),
    ],
)
def test_sidecar_that_is_no_xmp_is_not_added_to(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=rf"^a\.xmp: .*{message}"):
        xmp.write(Box(0, 0, 10, 10), 0, SIZE, 1, data or b" ", "a.xmp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b'crs:HasCrop="True"', b'crs:HasCrop="False"'), "holds no crop"),
        ((b'crs:HasCrop="True"', b""), "holds no crop"),
        ((b'crs:CropLeft="0.1"', b""), "is damaged"),
        ((b'crs:CropLeft="0.1"', b'crs:CropLeft="left"'), "is damaged"),
        ((b'crs:CropLeft="0.1"', b'crs:CropLeft="nan"'), "is damaged"),
        ((b'crs:CropLeft="0.1"', b'crs:CropLeft="0.6"'), "is damaged"),
    ],
)
def test_sidecar_without_a_whole_crop_is_named(change: tuple[bytes, bytes], message: str) -> None:
    data = xmp.write(Box(60, 80, 360, 360), 0, SIZE, 1, None, "a.xmp")
    assert change[0] in data
    with pytest.raises(InputError, match=rf"^a\.xmp: .*{message}"):
        xmp.read(data.replace(*change), SIZE, 1, "a.xmp")


# -- pp3


@given(boxes(), st.one_of(st.just(0.0), st.floats(-15, 15)))
def test_pp3_cuts_the_same_place_after_turning_the_picture(box: Box, angle: float) -> None:
    angle = round(angle, 3)
    try:
        data = pp3.write(box, angle, SIZE, None, "a.pp3")
    except InputError:  # in a corner that is turned out of the frame
        around = Box(0, 0, *SIZE).center_xy
        out = [turn(x - around[0], y - around[1], -angle) for x, y in corners(box, angle)]
        assert angle and any(abs(x) > around[0] or abs(y) > around[1] for x, y in out)
        return
    found, turned = pp3.read(data, SIZE, "a.pp3")
    assert turned == angle
    if not angle:
        assert found == box.rounded(SIZE)
    else:
        assert far(found, box) < 2.5  # whole pixels, and one that may lie outside


def test_pp3_cuts_nothing_off_silently() -> None:
    """Turned about the picture's centre, a crop in its corner lies outside the frame."""
    with pytest.raises(InputError, match=r"^a\.pp3: .* beyond which 2 px of this crop would lie"):
        pp3.write(Box(1, 1, 30, 30), 1.0, SIZE, None, "a.pp3")


def test_pp3_degree_turns_the_result_as_rawtherapee_does() -> None:
    box, angle = Box(200, 150, 380, 260), 8.0
    text = pp3.write(box, angle, SIZE, None, "a.pp3").decode()
    said = dict(line.split("=") for line in text.splitlines() if "=" in line)
    x, y, w, h = (float(said[key]) for key in "XYWH")
    assert said["AutoFill"] == "false"
    cos, sin = math.cos(math.radians(float(said["Degree"]))), math.sin(math.radians(float(said["Degree"])))
    for (px, py), wanted in zip([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], corners(box, angle), strict=True):
        dx, dy = px - SIZE[0] / 2, py - SIZE[1] / 2
        place = (dx * cos - dy * sin + SIZE[0] / 2, dx * sin + dy * cos + SIZE[1] / 2)  # rtengine/iptransform.cc, "rotate"
        assert math.dist(place, wanted) < 1.5


def test_pp3_that_fills_the_frame_is_read_at_its_scale() -> None:
    data = b"[Crop]\nEnabled=true\nX=0\nY=0\nW=600\nH=400\n[Rotation]\nDegree=5\n"
    box, angle = pp3.read(data, SIZE, "a.pp3")
    inside = corners(box, angle)
    assert all(-1e-6 <= x <= 600 + 1e-6 and -1e-6 <= y <= 400 + 1e-6 for x, y in inside)
    assert min(min(x, y, 600 - x, 400 - y) for x, y in inside) < 1e-6, "enlarged no more than it takes"


def test_merged_pp3_keeps_every_other_line() -> None:
    there = (
        "[Version]\r\nAppVersion=5.9\r\n\r\n[Crop]\r\nEnabled=false\r\nX=-1\r\nGuide=Rule of thirds\r\n\r\n"
        "[Rotation]\r\nDegree=2.5\r\n\r\n[IPTC]\r\nCaption=a=b;ö\r\n#Crop\r\n"
    ).encode()
    merged = pp3.write(Box(60, 80, 360, 361), 0, SIZE, there, "a.pp3")
    assert pp3.read(merged, SIZE, "a.pp3") == (Box(60, 80, 360, 361), 0)
    ours = re.compile(rb"^(Enabled|X|Y|W|H|FixedRatio|Degree)=.*\r\n", re.MULTILINE)
    assert ours.sub(b"", merged) == ours.sub(b"", there)
    assert pp3.write(Box(60, 80, 360, 361), 0, SIZE, merged, "a.pp3") == merged


def test_pp3_whose_last_line_has_no_end_is_added_to() -> None:
    merged = pp3.write(Box(60, 80, 360, 361), 0, SIZE, b"[Crop]\nX=7", "a.pp3")
    assert pp3.read(merged, SIZE, "a.pp3")[0] == Box(60, 80, 360, 361)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no crop"),
        ("[Crop]\nEnabled=false", "holds no crop"),
        ("[Crop]\nEnabled=true\nX=1", "is damaged"),
        ("[Crop]\nEnabled=true\nX=1\nY=1\nW=0\nH=5", "is damaged"),
        ("[Crop]\nEnabled=true\n[Coarse Transformation]\nRotate=90", "turns or mirrors"),
        ("[Crop]\nEnabled=true\n[Coarse Transformation]\nHorizontalFlip=true", "turns or mirrors"),
        ("[Crop]\nEnabled=true\n[Perspective]\nHorizontal=3", "changes the picture's shape"),
        ("[Crop]\nEnabled=true\n[Distortion]\nAmount=x", "is damaged"),
    ],
)
def test_pp3_without_a_crop_that_can_be_placed_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^a\.pp3: .*{message}"):
        pp3.read(text.encode(), SIZE, "a.pp3")


# -- lists

ODD = ["a b.jpg", 'quo"te.jpg', "=cmd|' !A0'.jpg", "new\nline.jpg", "sub/ä,ö;.jpg", os.fsdecode(b"latin-\xe9.jpg")]


@given(st.lists(boxes(), min_size=1, max_size=4), st.floats(-30, 30))
def test_coco_and_csv_give_back_what_was_written(many: list[Box], angle: float) -> None:
    rows = [(f"{i}.jpg", row(box, f"/in/{i}.jpg", angle_deg=angle)) for i, box in enumerate(many)]
    for found in (coco.read(coco.write(rows), "a.json"), table.read(csv_bytes([r for _, r in rows], PREDICTIONS.names), "a.csv")):
        assert [item.angle_deg for item in found] == [angle] * len(many)
        assert all(item.edges and far(Box(*item.edges), box) < 1e-9 for item, box in zip(found, many, strict=True))
        assert {item.size_wh for item in found} == {SIZE}


def test_coco_holds_score_and_verdict_and_leaves_out_what_could_not_be_read() -> None:
    doubtful = row(Box(0, 0, 9, 9), verdict="review", confidence=None)
    whole = json.loads(coco.write([("a.jpg", row(Box(1, 2, 11, 22))), ("b.jpg", row(None)), ("c.jpg", doubtful)]))
    first, second = whole["annotations"]
    assert first["bbox"] == [1, 2, 10, 20] and first["area"] == 200 and first["score"] == 0.75
    assert "score" not in second and second["attributes"]["verdict"] == "review"
    assert [image["file_name"] for image in whole["images"]] == ["a.jpg", "c.jpg"]
    assert [category["name"] for category in whole["categories"]] == ["crop"]


def test_coco_of_another_program_is_read_by_its_category() -> None:
    base: dict[str, Any] = {
        "images": [{"id": "x", "file_name": "a.jpg"}, {"id": "y", "file_name": "b.jpg", "width": 5, "height": 6}],
        "annotations": [{"id": 7, "image_id": "x", "category_id": 3, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 3, "name": "crop"}, {"id": 4, "name": "dog"}],
    }
    crop, bare = coco.read(json.dumps(base).encode(), "a.json")
    assert (crop.name, crop.key, crop.edges, crop.size_wh) == ("a.jpg", "7", (1, 2, 4, 6), None)
    assert (bare.name, bare.edges, bare.size_wh) == ("b.jpg", None, (5, 6))
    for change, message in (
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]}, "none is called 'crop'"),
        ({"annotations": base["annotations"] * 2}, "same id"),
        ({"annotations": [{"id": 1}]}, "not a COCO file"),
        ({"images": base["images"][1:]}, "annotation 7 is of the image x, which the file does not list. Add that image"),
        ({"annotations": [{"id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}]}, "annotation 1 is of the image None"),
        ({"images": None}, "not a COCO file"),
    ):
        with pytest.raises(InputError, match=message):
            coco.read(json.dumps(base | change).encode(), "a.json")
    with pytest.raises(InputError, match="not a COCO file"):
        coco.read(b"{", "a.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the columns .*; it has none"),
        ("original,x1,y1,x2,y2\n", "names no picture: below its header stands no row"),
        ("name,x1\na,1\n", "it has name, x1"),
        ("original,x1,y1,x2,y2\na,1,2,b,4\n", "row 2"),
        ("original,x1,y1,x2,y2\na,1,2\n", "row 2: lacks x2, y2. Give all of"),
        ("original,x1,y1,x2,y2\na,,,,\nb,,2,3,4\n", "row 3: lacks x1. Give all of"),
        ("original,x1,y1,x2,y2\na,\xff,2,3,4\n", "UTF-8"),
    ],
)
def test_table_that_lacks_something_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^a\.csv: .*{message}"):
        table.read(text.encode("latin-1"), "a.csv")


def test_row_of_a_table_that_comes_twice_counts_once() -> None:
    found = table.read(b"original,x1,y1,x2,y2\na,1,2,3,4\nb,1,2,3,4\na,1,2,3,4\na,1,2,3,5\nc,,,,\nc,,,,\n", "a.csv")
    assert [(item.name, item.key, item.edges) for item in found] == [
        ("a", "1", (1, 2, 3, 4)),
        ("b", "1", (1, 2, 3, 4)),
        ("a", "2", (1, 2, 3, 5)),
        ("c", "1", None),
    ]


@given(boxes(), st.floats(-90, 90))
def test_label_studio_places_the_turned_box_by_its_corner(box: Box, angle: float) -> None:
    (task,) = json.loads(label_studio.write([("a.jpg", row(box, angle_deg=angle))], "/in"))
    (prediction,) = task["predictions"]
    (result,) = prediction["result"]
    value, (w, h) = result["value"], SIZE
    assert (result["original_width"], result["original_height"], prediction["score"]) == (*SIZE, 0.75)
    top_left = (value["x"] * w / 100, value["y"] * h / 100)
    turn = math.radians(value["rotation"])
    width, height = value["width"] * w / 100, value["height"] * h / 100
    bottom_right = (
        top_left[0] + width * math.cos(turn) - height * math.sin(turn),
        top_left[1] + width * math.sin(turn) + height * math.cos(turn),
    )
    assert far(from_corners(top_left, bottom_right, angle), box) < 1e-6


@pytest.mark.parametrize("name", ODD)
def test_label_studio_can_be_asked_for_any_name(name: str) -> None:
    uri = storage.path_to_uri(f"/data/in/{name}")
    (task,) = json.loads(label_studio.write([(name, row(Box(0, 0, 9, 9), uri))], "/data/in"))
    assert unquote_to_bytes(task["data"]["image"].removeprefix("/data/local-files/?d=")) == b"in/" + os.fsencode(name)
    (task,) = json.loads(label_studio.write([(name, row(Box(0, 0, 9, 9), "s3://b/x y.jpg"))], "s3://b"))
    assert task["data"]["image"] == "s3://b/x y.jpg"


def test_hugging_face_takes_one_line_a_picture_whatever_its_name() -> None:
    lines = hugging_face.write([(storage.as_text(name), row(Box(1, 2, 11, 22))) for name in ODD]).decode().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == [storage.as_text(name) for name in ODD]
    assert json.loads(lines[0])["objects"]["bbox"] == [[1, 2, 10, 20]]


# -- into a folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, out = tmp_path / "in", tmp_path / "out"
    for folder in (images, out):
        folder.mkdir()
    return images, out


def write(folders: tuple[Path, Path], rows: Mapping[str, dict[str, Any]], *formats: str, **more: Any) -> dict[str, int]:
    images, out = map(str, folders)
    options = {"doubtful": False, "overwrite": False, "max_pixels": 10**8, **more}
    return exports.write(
        formats, {name: {**r, "image_uri": storage.join(images, name)} for name, r in rows.items()}, images, out, **options
    )


def test_odd_names_are_written_in_every_format(folders: tuple[Path, Path]) -> None:
    _, out = folders
    counts = write(folders, {name: row(Box(1, 2, 11, 22)) for name in ODD}, *exports.FORMATS)
    assert counts == dict.fromkeys(exports.FORMATS, len(ODD))
    for name in ODD:
        sidecars = (out / f"{os.path.splitext(name)[0]}.xmp").read_bytes(), (out / f"{name}.pp3").read_bytes()
        assert far(xmp.read(sidecars[0], SIZE, 1, "a")[0], Box(1, 2, 11, 22)) < 1e-4
        assert pp3.read(sidecars[1], SIZE, "a")[0] == Box(1, 2, 11, 22)
    assert len(json.loads((out / "coco.json").read_bytes())["images"]) == len(ODD)
    assert len(json.loads((out / "label-studio.json").read_bytes())) == len(ODD)
    assert (out / "hf" / "metadata.jsonl").read_bytes().count(b"\n") == len(ODD)


def test_only_accepted_crops_get_sidecars_unless_all_are_asked_for(folders: tuple[Path, Path]) -> None:
    rows = {"a.jpg": row(Box(1, 2, 11, 22)), "b.jpg": row(Box(1, 2, 11, 22), verdict="review"), "c.jpg": row(None)}
    assert write(folders, rows, "xmp", "coco", "hf") == {"xmp": 1, "coco": 2, "hf": 1}
    assert write(folders, rows, "xmp", "hf", doubtful=True) == {"xmp": 2, "hf": 2}
    assert sorted(p.name for p in folders[1].glob("*.xmp")) == ["a.xmp", "b.xmp"]
    rows["b.jpg"] |= {"reviewed_by": "ann"}  # who said no
    assert write(folders, rows, "xmp", "hf", doubtful=True) == {"xmp": 1, "hf": 1}
    assert sorted(p.name for p in folders[1].glob("*.xmp")) == ["a.xmp"]
    assert write(folders, rows, "xmp", overwrite=True) == {"xmp": 1}
    assert sorted(p.name for p in folders[1].glob("*.xmp")) == ["a.xmp"], "what has no crop any more has no sidecar"


def test_sidecar_starts_as_the_photographers_and_the_originals_stay_untouched(folders: tuple[Path, Path]) -> None:
    images, out = folders
    (images / "a.xmp").write_bytes(RICH)
    (images / "b.jpg.xmp").write_bytes(RICH)
    (images / "a.jpg.pp3").write_text("[IPTC]\nCaption=mine\n")
    rows = {"a.jpg": row(Box(1, 2, 11, 22)), "b.jpg": row(Box(1, 2, 11, 22))}
    write(folders, rows, "xmp", "pp3")
    assert b"zoe@example.org" in (out / "a.xmp").read_bytes() and b"zoe@example.org" in (out / "b.xmp").read_bytes()
    assert b"Caption=mine" in (out / "a.jpg.pp3").read_bytes()
    assert (images / "a.xmp").read_bytes() == RICH and len(list(images.iterdir())) == 3
    edited = (out / "a.xmp").read_bytes().replace(b"'5'", b"'1'")
    (out / "a.xmp").write_bytes(edited)
    write(folders, rows, "xmp")
    assert b"xmp:Rating='1'" in (out / "a.xmp").read_bytes(), "edited after the first export"
    write(folders, rows, "xmp", overwrite=True)
    assert b"xmp:Rating='5'" in (out / "a.xmp").read_bytes()


def test_sidecar_that_cannot_be_added_to_is_left_alone_and_counted(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (folders[1] / "a.xmp").write_text("a diary")
    rows = {"a.jpg": row(Box(1, 2, 11, 22)), "b.jpg": row(Box(1, 2, 11, 22))}
    assert write(folders, rows, "xmp") == {"xmp": 1, "xmp_left_alone": 1}
    assert (folders[1] / "a.xmp").read_text() == "a diary"
    assert "a.xmp: this sidecar is no well-formed XMP" in caplog.text


@pytest.mark.parametrize("overwrite", [False, True])
def test_name_too_long_for_a_sidecar_costs_the_others_nothing(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture, overwrite: bool
) -> None:
    long = "a" * 248 + ".jpg"  # 252 bytes: a name has 255 at most
    rows = {name: row(Box(1, 2, 11, 22)) for name in (long, "b.jpg")}
    assert write(folders, rows, "pp3", "xmp", overwrite=overwrite) == {"pp3": 1, "pp3_left_alone": 1, "xmp": 2}
    assert f"{long}: with .pp3 the name is too long for this disk. Shorten it." in caplog.text
    assert (folders[1] / "b.jpg.pp3").exists()


def test_pictures_that_differ_by_their_ending_have_sidecars_of_their_own(folders: tuple[Path, Path]) -> None:
    rows = {name: row(Box(1, 2, 11, 22)) for name in ("a.jpg", "a.png", "b.jpg")}
    write(folders, rows, "xmp")
    assert sorted(p.name for p in folders[1].iterdir()) == ["a.jpg.xmp", "a.png.xmp", "b.xmp"]
    assert exports.sidecar_names("xmp", ["a.jpg", "a.NEF"]) == {"a.jpg": "a.jpg.xmp", "a.NEF": "a.xmp"}
    assert exports.sidecar_names("xmp", ["a.tif", "a.tif.jpg"]) == {"a.tif": "a.xmp", "a.tif.jpg": "a.tif.jpg.xmp"}
    assert exports.sidecar_names("pp3", ["a.jpg", "a.NEF"]) == {"a.jpg": "a.jpg.pp3", "a.NEF": "a.NEF.pp3"}


def test_orientation_that_the_table_does_not_hold_is_read_from_the_picture(folders: tuple[Path, Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(folders[0] / "a.jpg", exif=exif)
    write(folders, {"a.jpg": row(Box(60, 80, 360, 360), orientation=None)}, "xmp")
    assert far(xmp.read((folders[1] / "a.xmp").read_bytes(), SIZE, 6, "a")[0], Box(60, 80, 360, 360)) < 1e-4


def test_unknown_format_is_refused_with_those_there_are() -> None:
    assert exports.parse_formats(" coco,xmp, coco,") == ("coco", "xmp") and exports.parse_formats("") == ()
    with pytest.raises(UsageError, match=r"'yolo' is no format\. There are csv, coco, label-studio, xmp, pp3, hf"):
        exports.parse_formats("coco,yolo")


def test_predictions_csv_names_no_formula() -> None:
    text = csv_bytes([row(Box(1, 2, 3, 4), "=cmd.jpg")], PREDICTIONS.names).decode()
    assert next(csv.DictReader(io.StringIO(text)))["image_uri"] == "'=cmd.jpg"

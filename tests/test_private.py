"""What ``--metadata safe`` takes out is in no byte of the crop, and everything else is still there."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational
from test_writing import BOX, H, W, exif_block, resource, with_segments

from cropreg.images.containers import TiffTree, png_chunks
from cropreg.writing import cut, private

DEGREES = 52_231_907  # in the GPS latitude; no other number is like it
SECRETS = [
    b"Ann Artist",
    b"Olga Owner",
    b"SN-BODY-77",
    b"SN-LENS-88",
    b"anns-laptop",
    b"By Ann Line",
    b"Carl Caption",
    b"note of camera",
]
NUMBERS = [struct.pack(order + "I", DEGREES) for order in "<>"]
KEPT = [b"Maker X", b"2021:02:03 04:05:06", b"(c) 2021 all rights", b"A title"]
XMP = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:aux="http://ns.adobe.com/exif/1.0/aux/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
 xmp:Rating="4" aux:SerialNumber="SN-BODY-77" aux:LensSerialNumber='SN-LENS-88' exif:GPSLatitude="52,23.1907N"
 photoshop:CaptionWriter="Carl Caption" xmp:CreatorTool="Editor 1.0">
<dc:creator><rdf:Seq><rdf:li>Ann Artist</rdf:li></rdf:Seq></dc:creator><aux:OwnerName>Olga Owner</aux:OwnerName>
<exif:GPSLongitude/><dc:title><rdf:Alt><rdf:li xml:lang="x-default">A title</rdf:li></rdf:Alt></dc:title>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def iptc(*records: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack(">BBBH", 0x1C, 2, number, len(text)) + text for number, text in records)


RECORDS = iptc((5, b"A title"), (80, b"By Ann Line"), (122, b"Carl Caption"), (116, b"(c) 2021 all rights"))


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x010F], made[0x013B], made[0x8298], made[0x013C] = "Maker X", "Ann Artist", "(c) 2021 all rights", "anns-laptop"
    made[0x9C9D] = "Ann Artist".encode("utf-16le")
    inner = made.get_ifd(0x8769)
    inner[0x9003], inner[0xA430], inner[0xA431], inner[0xA435] = "2021:02:03 04:05:06", "Olga Owner", "SN-BODY-77", "SN-LENS-88"
    inner[0x927C] = b"note of camera"
    gps = made.get_ifd(0x8825)
    gps[1], gps[2] = "N", (IFDRational(DEGREES), IFDRational(1), IFDRational(1))
    return made


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def original(kind: str) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (H, W, 3), np.uint8)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"exif": exif()} if kind != "PNG" else {}
    if kind in ("WEBP", "AVIF"):
        options["xmp"] = XMP
    if kind == "TIFF":
        options = {"exif": None, "tiffinfo": tiff_tags()}
    Image.fromarray(pixels).save(buffer, kind, **{key: value for key, value in options.items() if value is not None})
    data = buffer.getvalue()
    if kind == "JPEG":
        shop = b"Photoshop 3.0\0" + resource(1028, RECORDS) + resource(1061, b"digest-of-iptc!!")
        return with_segments(data, (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), (0xED, shop))
    if kind == "PNG":
        texts = [
            (b"eXIf", exif().tobytes().removeprefix(b"Exif\0\0")),
            (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
            (b"tEXt", b"Author\0Ann Artist"),
            (b"tEXt", b"Title\0A title"),
            (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(RECORDS.hex().encode())),
        ]
        return data[:33] + b"".join(chunk(*text) for text in texts) + data[33:]
    return data


def tiff_tags() -> Any:
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in exif().items():
        if tag not in (0x8769, 0x8825):
            tags[tag] = value
    tags[0x8769], tags[0x8825] = exif().get_ifd(0x8769), exif().get_ifd(0x8825)
    for tag, blob in ((700, XMP), (33723, RECORDS), (34377, resource(1028, RECORDS))):
        tags[tag], tags.tagtype[tag] = blob, 7
    return tags


def everything(data: bytes, kind: str) -> bytes:
    """The file's bytes, with what is compressed or in hexadecimal in a PNG laid open."""
    if kind != "PNG":
        return data
    opened = data
    for chunk_kind, start, end in png_chunks(data):
        body = data[start:end]
        if chunk_kind in (b"zTXt", b"iTXt") and b"\x78\x9c" in body:
            text = zlib.decompress(body[body.index(b"\x78\x9c") :])
            opened += text + (bytes.fromhex(text.decode()) if re.fullmatch(rb"[0-9a-f]+", text) else b"")
    return opened


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_safe_crop_holds_nothing_private_in_any_byte_and_the_rest(kind: str) -> None:
    data = original(kind)
    whole = everything(cut(data, "a", BOX, metadata="all"), kind)
    safe = everything(cut(data, "a", BOX, metadata="safe"), kind)
    there = {secret for secret in (*SECRETS, *NUMBERS, b"23.1907N") if secret in everything(data, kind)}
    assert len(there) >= 9, "the original holds them"
    assert {secret for secret in there if secret in whole} >= {b"Ann Artist", b"SN-BODY-77"}, "all keeps them"
    assert not [secret for secret in there if secret in safe]
    assert "Ann Artist".encode("utf-16le") not in safe
    assert [word for word in KEPT if word in whole and word not in safe] == []
    assert b'xmp:Rating="4"' in safe and b'xmp:CreatorTool="Editor 1.0"' in safe
    assert (kind != "JPEG") == (b"digest-of-iptc!!" not in whole) and b"digest-of-iptc!!" not in safe


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_safe_crop_is_read_by_others(kind: str) -> None:
    crop = cut(original(kind), "a", BOX, metadata="safe")
    with Image.open(io.BytesIO(crop)) as image:
        image.load()
        found = image.getexif()
        assert found.get(0x010F) == "Maker X" and found.get(0x8298) == "(c) 2021 all rights"
        assert found.get_ifd(0x8769).get(0x9003) == "2021:02:03 04:05:06"
        assert not found.get_ifd(0x8825) and not {0x013B, 0x013C, 0x9C9D} & set(found)


@pytest.mark.parametrize("end", ["<", ">"])
def test_exif_of_either_byte_order_stays_whole_around_what_is_taken_out(end: str) -> None:
    block = private.strip_exif(exif_block(end=end))
    tree = TiffTree.of(block)
    main, next_at = tree.directory(tree.first)
    assert set(main) == {0x010F, 0x0112, 0x011A, 0x011B, 0x0128, 0x8769}
    inner, _ = tree.directory(tree.number(main[0x8769]))
    assert set(inner) == {0x9003, 0xA002, 0xA003} and tree.value(inner[0x9003]) == b"2021:02:03 04:05:06\0"
    assert b"camera notes" not in block and len(block) == len(exif_block(end=end))
    (thumbnail_at,) = struct.unpack_from(end + "I", block, next_at)
    assert {0x0201, 0x0202} <= set(tree.directory(thumbnail_at)[0]), "the chain of directories holds"


def test_tag_that_stands_twice_goes_twice() -> None:
    rows = b"".join(struct.pack("<HHII", 0x013B, 2, 8, at) for at in (50, 58)) + struct.pack("<HHI4s", 0x010F, 2, 4, b"Mak\0")
    block = b"II*\0" + struct.pack("<IH", 8, 3) + rows + bytes(4)
    block = block.ljust(50, b"\0") + b"Ann One\0Ann Two\0"
    clean = private.strip_exif(block)
    assert b"Ann" not in clean and set(TiffTree.of(clean).directory(8)[0]) == {0x010F}


@given(st.binary(max_size=80), st.integers(0, 400))
def test_damaged_block_never_ends_a_run(noise: bytes, at: int) -> None:
    block = exif_block()
    private.strip_exif(block[:at] + noise + block[at + len(noise) :])
    private.strip_exif(noise)
    private.strip_iptc(noise)
    private.strip_iptc(b"\x1c\x02\x50" + noise)


def test_iptc_that_is_long_or_cut_short_gives_what_is_sound() -> None:
    title, author = iptc((5, b"T")), iptc((80, b"Ann"))
    long = b"\x1c\x02\x78\x80\x04" + struct.pack(">I", 40_000) + bytes(40_000)
    assert private.strip_iptc(author + title + long + author) == title + long
    assert private.strip_iptc(title + b"\x1c\x02\x78\x00\x50Ann") == title


def test_xmp_keeps_what_only_looks_private() -> None:
    packet = (
        b'<d a:creatorTool="1" a:GPS="2" xmlns:GPS="urn:gps"><a:creators>x</a:creators><a:Author x="a>b">y</a:Author><b:z/></d>'
    )
    expected = b'<d a:creatorTool="1" xmlns:GPS="urn:gps"><a:creators>x</a:creators><b:z/></d>'
    assert private.strip_xmp(packet) == expected

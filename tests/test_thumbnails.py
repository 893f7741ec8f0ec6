"""No small copy of the uncropped picture survives in a crop, wherever programs put one: looked for in every byte, however spelt."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from test_writing import BOX, COLOUR, IPTC, RGB, exif_block, opened, resource, saved, with_segments

from cropreg.images.containers import png_chunks
from cropreg.writing import cut

SMALL = cv2.resize(RGB, (64, 44), interpolation=cv2.INTER_AREA)
NOISE = np.random.default_rng(3).integers(-9, 9, SMALL.shape)  # no run of bytes of it comes about by chance
THUMBNAIL = cv2.imencode(".jpg", np.clip(SMALL + NOISE, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
PIXELS = (SMALL + NOISE).astype(np.uint8).tobytes()


def base64_lines(length: int = 76, end: str = "&#xA;") -> str:
    text = base64.b64encode(THUMBNAIL).decode()
    return end.join(text[i : i + length] for i in range(0, len(text), length))


def packet(body: str) -> bytes:
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:xap="http://ns.adobe.com/xap/1.0/" xmlns:xmpGImg="http://ns.adobe.com/xap/1.0/g/img/" '
        f'xmlns:my-xmp="http://ns.adobe.com/xap/1.0/" xmlns:other="urn:other" xmp:Rating="4">{body}'
        "<xmp:Label>still here</xmp:Label></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
    ).encode()


def thumbnails(prefix: str, li: str) -> str:
    return f"<{prefix}:Thumbnails>\n<rdf:Alt>{li}</rdf:Alt>\n</{prefix}:Thumbnails>"


XMP = {
    "element": packet(thumbnails("xmp", f"<rdf:li><xmpGImg:image>{base64_lines()}</xmpGImg:image></rdf:li>")),
    "attribute": packet(thumbnails("xmp", f'<rdf:li xmpGImg:width="64" xmpGImg:image="{base64_lines()}"/>')),
    "old prefix": packet(thumbnails("xap", f"<rdf:li><xmpGImg:image>{base64_lines(76, '&#10;')}</xmpGImg:image></rdf:li>")),
    "odd prefix": packet(thumbnails("my-xmp", f"<rdf:li><xmpGImg:image>{base64_lines(40)}</xmpGImg:image></rdf:li>")),
    "elsewhere, decimal ends": packet(f"<other:data>{base64_lines(76, '&#13;&#10;')}</other:data>"),
    "elsewhere, plain ends": packet(f'<other:data mime="image/jpeg">\n{base64_lines(64, chr(10) + "   ")}\n</other:data>'),
    "elsewhere, one line": packet(f'<rdf:Description other:data="{base64_lines(10**6)}"/>'),
}
PHOTOSHOP = resource(1028, IPTC) + b"".join(resource(number, bytes(28) + THUMBNAIL) for number in (1033, 1036))


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    return with_segments(saved(COLOUR, "JPEG", quality=92), *segments)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    plain = saved(COLOUR, "PNG")
    packed = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return plain[:33] + packed + plain[33:]


def raw_profile(name: str, body: bytes) -> tuple[bytes, bytes]:
    """As ImageMagick writes what PNG has no chunk for: in hexadecimal lines."""
    text = f"\n{name}\n{len(body):8d}\n" + "\n".join(body.hex()[i : i + 72] for i in range(0, 2 * len(body), 72)) + "\n"
    return b"zTXt", f"Raw profile type {name}\0\0".encode() + zlib.compress(text.encode())


CARRIERS: dict[str, bytes] = {
    **{f"JPEG, XMP, {name}": jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)) for name, xmp in XMP.items()},
    **{f"PNG, XMP, {name}": png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)) for name, xmp in XMP.items()},
    **{f"TIFF, XMP, {name}": saved(COLOUR, "TIFF", tiffinfo={700: xmp}) for name, xmp in XMP.items()},
    **{f"WEBP, XMP, {name}": saved(COLOUR, "WEBP", lossless=True, xmp=xmp) for name, xmp in XMP.items()},
    **{f"AVIF, XMP, {name}": saved(COLOUR, "AVIF", xmp=xmp) for name, xmp in XMP.items()},
    "JPEG, Photoshop": jpeg((0xED, b"Photoshop 3.0\0" + PHOTOSHOP)),
    "JPEG, Photoshop in two segments": jpeg(*((0xED, b"Photoshop 3.0\0" + half) for half in (PHOTOSHOP[:900], PHOTOSHOP[900:]))),
    "JPEG, JFIF": jpeg((0xE0, b"JFIF\0\1\2\1\1,\1,\x40\x2c" + PIXELS)),
    "JPEG, JFXX": jpeg((0xE0, b"JFXX\0\x10" + THUMBNAIL)),
    "JPEG, extended XMP": jpeg((0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + XMP["elsewhere, one line"])),
    "TIFF, Photoshop": saved(COLOUR, "TIFF", tiffinfo={34377: PHOTOSHOP}),
    "PNG, raw profile xmp": png(raw_profile("xmp", XMP["element"])),
    "PNG, raw profile iptc": png(raw_profile("iptc", PHOTOSHOP)),
    "PNG, raw profile 8bim": png(raw_profile("8bim", PHOTOSHOP)),
    "PNG, raw profile APP1": png(raw_profile("APP1", b"Exif\0\0" + exif_block())),
}


def spellings(data: bytes) -> list[bytes]:
    """All that stands in some bytes: as they are, PNG's texts unpacked, and of each what its hexadecimal digits spell."""
    texts = [data]
    if data.startswith(b"\x89PNG"):
        for kind, start, end in png_chunks(data):
            body = data[start:end]
            if kind in (b"zTXt", b"iTXt"):
                packed = body.partition(b"\0")[2]
                for skip in range(len(packed)):  # where the packed text begins depends on languages and flags
                    if packed[skip : skip + 1] == b"\x78":
                        try:
                            texts.append(zlib.decompress(packed[skip:]))
                            break
                        except zlib.error:
                            continue
    runs = [run[odd:] for text in texts for run in _runs_of_digits(text) for odd in (0, 1)]  # a length may stand before them
    return texts + [bytes.fromhex(run[: len(run) // 2 * 2].decode()) for run in runs]


def _runs_of_digits(text: bytes) -> list[bytes]:
    return re.findall(rb"[0-9a-f]{40,}", text.replace(b"\n", b""))


def shows_the_whole_picture(data: bytes) -> bool:
    middle = len(THUMBNAIL) * 7 // 8 // 3 * 3  # far behind the tables, which another JPEG may have too
    in_base64 = base64.b64encode(THUMBNAIL[middle : middle + 30])
    ends = re.compile(rb"\s|&#(?:x[aAdD]|1[03]);")
    pixels = PIXELS[len(PIXELS) // 2 :][:30]
    return any(
        THUMBNAIL[middle : middle + 30] in text or pixels in text or in_base64 in ends.sub(b"", text) for text in spellings(data)
    )


@pytest.mark.parametrize("metadata", ["all", "safe", "none"])
@pytest.mark.parametrize("name", CARRIERS)
def test_no_thumbnail_survives(name: str, metadata: Any) -> None:
    data = CARRIERS[name]
    if name != "PNG, raw profile APP1":  # its thumbnail is the one of the EXIF block of other tests
        assert shows_the_whole_picture(data), "or this test could not fail"
    crop = cut(data, "a", BOX, metadata=metadata)
    assert not shows_the_whole_picture(crop) and not any(b"whole picture" in text for text in spellings(crop))
    opened(crop)


@pytest.mark.parametrize("name", [name for name in CARRIERS if "XMP, e" in name or "raw profile xmp" in name])
def test_rest_of_the_packet_is_kept(name: str) -> None:
    texts = spellings(cut(CARRIERS[name], "a", BOX))
    assert any(b"still here" in text and b'xmp:Rating="4"' in text for text in texts)


def test_iptc_beside_a_thumbnail_is_kept() -> None:
    for name in ("JPEG, Photoshop", "TIFF, Photoshop", "PNG, raw profile iptc"):
        assert any(IPTC in text for text in spellings(cut(CARRIERS[name], "a", BOX))), name

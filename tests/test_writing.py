"""Crops keep what their originals were, pixel for pixel where the format allows, and nothing of what was cut away."""

import io
import struct
import sys
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from cropreg.boxes import Box
from cropreg.errors import OutputError, UnreadableImage
from cropreg.images import decode_color, read_header
from cropreg.images.containers import TiffTree, jpeg_segments, png_chunks
from cropreg.writing import cut
from cropreg.writing.cut import import_pyvips
from cropreg.writing.metadata import _append_directory as append_directory

H, W = 90, 130
BOX = Box(17, 9, 17 + 71, 9 + 53)
rng = np.random.default_rng(11)


def smooth(channels: int) -> np.ndarray:
    small = rng.integers(50, 210, (7, 9, channels)).astype(np.uint8)
    return cv2.resize(small, (W, H), interpolation=cv2.INTER_CUBIC).reshape(H, W, channels)


RGB, ALPHA = smooth(3), smooth(1)
GREY = RGB[..., 1]
RGB16 = RGB.astype(np.uint16) * 257 - 31
COLOUR = Image.fromarray(RGB)
WITH_ALPHA = Image.fromarray(np.dstack([RGB, ALPHA]))
PALETTE = COLOUR.quantize(64)
BITS = Image.fromarray(GREY).convert("1")
CMYK = COLOUR.convert("CMYK")
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
THUMBNAIL = b"\xff\xd8\xff\xdb" + b"a thumbnail of the whole picture" * 20 + b"\xff\xd9"


def exif_block(orientation: int = 1, end: str = "<", notes: bytes = b"camera notes") -> bytes:
    """An EXIF block with a maker, resolution, sizes, the camera's own notes, a GPS latitude, and a thumbnail."""

    def directory(at: int, fields: dict[int, tuple[int, int, bytes]], following: int = 0) -> bytes:
        rows, values, values_at = b"", b"", at + 2 + 12 * len(fields) + 4
        for tag, (kind, count, value) in sorted(fields.items()):
            if len(value) > 4:
                place, values = values_at + len(values), values + value + bytes(len(value) & 1)
                value = struct.pack(end + "I", place)
            rows += struct.pack(end + "HHI", tag, kind, count) + value.ljust(4, b"\0")
        return struct.pack(end + "H", len(fields)) + rows + struct.pack(end + "I", following) + values

    def short(n: int) -> tuple[int, int, bytes]:
        return 3, 1, struct.pack(end + "H", n)

    def long(n: int) -> tuple[int, int, bytes]:
        return 4, 1, struct.pack(end + "I", n)

    def ratio(n: int, count: int = 1) -> tuple[int, int, bytes]:
        return 5, count, struct.pack(end + "II", n, 1) * count

    exif = {0x9003: (2, 20, b"2021:02:03 04:05:06\0"), 0xA002: short(W), 0xA003: long(H), 0x927C: (7, len(notes), notes)}
    gps = {1: (2, 2, b"N\0"), 2: ratio(52, 3)}
    main = {0x010F: (2, 6, b"Maker\0"), 0x0112: short(orientation), 0x011A: ratio(300), 0x011B: ratio(300), 0x0128: short(2)}
    sizes = [len(directory(0, {**main, 0x8769: long(0), 0x8825: long(0)})), len(directory(0, exif)), len(directory(0, gps))]
    exif_at, gps_at, small_at = 8 + sizes[0], 8 + sum(sizes[:2]), 8 + sum(sizes)
    small = {0x0103: short(6), 0x0201: long(0), 0x0202: long(len(THUMBNAIL))}
    small[0x0201] = long(small_at + len(directory(0, small)))
    return (
        {"<": b"II", ">": b"MM"}[end]
        + struct.pack(end + "HI", 42, 8)
        + directory(8, {**main, 0x8769: long(exif_at), 0x8825: long(gps_at)}, small_at)
        + directory(exif_at, exif)
        + directory(gps_at, gps)
        + directory(small_at, small)
        + THUMBNAIL
    )


XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    b'xmlns:xmpGImg="http://ns.adobe.com/xap/1.0/g/img/" xmp:Rating="4" tiff:Orientation="6" tiff:ImageWidth="130">'
    b"<exif:PixelXDimension>130</exif:PixelXDimension><xmp:Thumbnails><rdf:Alt><rdf:li><xmpGImg:image>"
    + b"&#xA;".join([b"/9j/4AAQSkZJRgABAgAASABIAAD" * 3 for _ in range(9)])
    + b"</xmpGImg:image></rdf:li></rdf:Alt></xmp:Thumbnails></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
)


def resource(number: int, body: bytes) -> bytes:
    return b"8BIM" + struct.pack(">H", number) + b"\0\0" + struct.pack(">I", len(body)) + body + bytes(len(body) & 1)


IPTC = b"\x1c\x02\x69\x00\x05Title"
PHOTOSHOP = resource(1028, IPTC) + resource(1036, bytes(28) + THUMBNAIL) + resource(1061, bytes(16))


def with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    return jpeg[:2] + b"".join(struct.pack(">BBH", 0xFF, m, len(b) + 2) + b for m, b in segments) + jpeg[2:]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def full_jpeg(
    orientation: int = 1, end: str = "<", notes: bytes = b"camera notes", image: Image.Image = COLOUR, **options
) -> bytes:
    icc = b"ICC_PROFILE\0\1\1" + ICC
    return with_segments(
        saved(image, "JPEG", dpi=(300, 300), **{"quality": 92, **options}),
        (0xE1, b"Exif\0\0" + exif_block(orientation, end, notes)),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        (0xED, b"Photoshop 3.0\0" + PHOTOSHOP),
        (0xE2, icc),
        (0xE2, b"MPF\0" + THUMBNAIL),
        (0xFE, b"a comment"),
    ) + b"".join([THUMBNAIL])  # a second picture behind the first, as phones write it


def full_tiff(end: str = "<", compression: str = "raw") -> bytes:
    """A TIFF with every kind of metadata; in Motorola's byte order only uncompressed."""
    if end == ">":
        fields = {
            256: (3, 1, W),
            257: (3, 1, H),
            259: (3, 1, 1),
            262: (3, 1, 2),
            273: (4, 1, 8),
            277: (3, 1, 3),
            279: (4, 1, H * W * 3),
        }
        fields = {tag: (kind, n, struct.pack(">H" if kind == 3 else ">I", value)) for tag, (kind, n, value) in fields.items()}
        fields[258] = (3, 3, struct.pack(">HHH", 8, 8, 8))
        out, tree = bytearray(b"MM\0*" + bytes(4) + RGB.tobytes()), TiffTree.of(b"MM\0*")
    else:
        plain = saved(COLOUR, "TIFF", compression=compression)
        tree = TiffTree.of(plain)
        fields = {tag: (entry.kind, entry.count, tree.value(entry)) for tag, entry in next(tree.directories()).items()}
        out = bytearray(plain)
    exif = {
        0x9003: (2, 20, b"2021:02:03 04:05:06\0"),
        0xA002: (3, 1, struct.pack(end + "H", W)),
        0x927C: (7, len(THUMBNAIL), THUMBNAIL),
    }
    exif_at = append_directory(out, exif, tree)
    dpi, layers = struct.pack(end + "II", 300, 1), b"Adobe Photoshop Document Data Block\0" + THUMBNAIL
    fields |= {
        271: (2, 6, b"Maker\0"),
        282: (5, 1, dpi),
        283: (5, 1, dpi),
        296: (3, 1, struct.pack(end + "H", 2)),
        315: (2, 4, b"Ann\0"),
    }
    fields |= {tag: (7, len(b), b) for tag, b in ((700, XMP), (33723, IPTC), (34377, PHOTOSHOP), (34675, ICC), (37724, layers))}
    fields[34665] = (4, 1, struct.pack(end + "I", exif_at))
    struct.pack_into(end + "I", out, 4, append_directory(out, fields, tree))
    return bytes(out)


def full_png(orientation: int = 1) -> bytes:
    plain = saved(COLOUR, "PNG", icc_profile=ICC, dpi=(300, 300))
    chunks = [
        (b"eXIf", exif_block(orientation, ">")),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        (b"tEXt", b"Author\0Ann"),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(THUMBNAIL.hex().encode())),
    ]
    packed = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return plain[:33] + packed + plain[33:]


def part(pixels: np.ndarray, box: Box = BOX) -> np.ndarray:
    x1, y1, x2, y2 = (int(edge) for edge in box)
    return pixels[y1:y2, x1:x2]


def distance(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def by_opencv(suffix: str, pixels: np.ndarray) -> bytes:
    pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    return cv2.imencode(suffix, pixels)[1].tobytes()


LOSSLESS = {
    "png": saved(COLOUR, "PNG"),
    "png alpha": saved(WITH_ALPHA, "PNG"),
    "png grey": saved(Image.fromarray(GREY), "PNG"),
    "png palette": saved(PALETTE, "PNG"),
    "png palette, one colour transparent": saved(PALETTE, "PNG", transparency=3),
    "png 1 bit": saved(BITS, "PNG"),
    "png 16 bit": by_opencv(".png", RGB16),
    "png 16 bit alpha": by_opencv(".png", np.dstack([RGB16, ALPHA.astype(np.uint16) * 250])),
    "png 16 bit grey": by_opencv(".png", RGB16[..., 1]),
    "tiff": saved(COLOUR, "TIFF"),
    "tiff LZW": saved(COLOUR, "TIFF", compression="tiff_lzw"),
    "tiff alpha": saved(WITH_ALPHA, "TIFF", compression="tiff_adobe_deflate"),
    "tiff CMYK": saved(CMYK, "TIFF"),
    "tiff palette": saved(PALETTE, "TIFF", compression="packbits"),
    "tiff G4": saved(BITS, "TIFF", compression="group4"),
    "tiff Zstandard": saved(COLOUR, "TIFF", compression="zstd"),
    "tiff 16 bit": by_opencv(".tif", RGB16),
    "tiff 16 bit grey": by_opencv(".tif", RGB16[..., 1]),
    "webp lossless": saved(WITH_ALPHA, "WEBP", lossless=True, exact=True),
    "gif": saved(PALETTE, "GIF"),
    "gif transparent": saved(PALETTE, "GIF", transparency=3),
    "bmp": saved(COLOUR, "BMP", dpi=(300, 300)),
    "jpeg 2000": saved(COLOUR, "JPEG2000"),
    "jpeg 2000 16 bit grey": by_opencv(".jp2", RGB16[..., 1]),
    "ppm": saved(COLOUR, "PPM"),
    "pgm 16 bit": by_opencv(".pgm", RGB16[..., 1]),
    "a.tga": saved(COLOUR, "TGA", compression="tga_rle"),
}


def exact(data: bytes, name: str) -> np.ndarray:
    """The pixels in full depth, transparency included."""
    if read_header(data, name).bit_depth == 16:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    image = opened(data)
    return np.asarray(image.convert("RGBA") if image.mode in ("P", "1") else image)


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_crop_has_the_originals_own_pixels_mode_and_depth(name):
    data = LOSSLESS[name]
    crop = cut(data, name, BOX)
    before, after = read_header(data, name), read_header(crop, name)
    assert (after.format, after.mode, after.bit_depth) == (before.format, before.mode, before.bit_depth)
    assert np.array_equal(exact(crop, name), part(exact(data, name)))
    if after.bit_depth < 16:
        assert opened(crop).mode == opened(data).mode
        assert opened(crop).info.get("compression") == opened(data).info.get("compression")


@pytest.mark.parametrize(
    ("name", "data", "tolerance"),
    [
        ("jpeg", saved(COLOUR, "JPEG", quality=95, subsampling=0), 6),
        ("jpeg 4:2:0", saved(COLOUR, "JPEG", quality=95), 9),
        ("jpeg grey", saved(Image.fromarray(GREY), "JPEG", quality=95), 4),
        ("jpeg CMYK", saved(CMYK, "JPEG", quality=95), 8),
        ("jpeg coded as RGB", saved(COLOUR, "JPEG", quality=95, keep_rgb=True), 6),
        ("jpeg progressive", saved(COLOUR, "JPEG", quality=95, progressive=True, subsampling=0), 6),
        ("webp", saved(COLOUR, "WEBP", quality=95), 16),
        ("avif", saved(COLOUR, "AVIF", quality=95, subsampling="4:4:4"), 12),
        ("avif alpha", saved(WITH_ALPHA, "AVIF", quality=95, subsampling="4:4:4"), 12),
        ("tiff JPEG", saved(COLOUR, "TIFF", compression="jpeg", quality=95), 9),
    ],
)
def test_a_lossy_crop_stays_close_and_keeps_mode_and_kind(name, data, tolerance):
    crop = cut(data, name, BOX)
    before, after = read_header(data, name), read_header(crop, name)
    assert (after.format, after.mode, after.progressive) == (before.format, before.mode, before.progressive)
    assert distance(decode_color(crop, name), part(decode_color(data, name))) <= tolerance
    if before.format == "JPEG":
        assert opened(crop).quantization == opened(data).quantization
        assert [layer[1:3] for layer in opened(crop).layer] == [layer[1:3] for layer in opened(data).layer]


@pytest.mark.parametrize("image", [CMYK, COLOUR])
def test_density_of_a_jpeg_survives_where_encoders_write_none(image):
    data = saved(image, "JPEG", dpi=(300, 300), keep_rgb=image.mode == "RGB")
    assert opened(cut(data, "a.jpg", BOX)).info["dpi"] == (300, 300)


@pytest.mark.parametrize("compression", ["raw", "zstd"])
def test_a_tiff_without_a_resolution_gets_none(compression):
    assert not {282, 283, 296} & set(opened(cut(saved(COLOUR, "TIFF", compression=compression), "a.tif", BOX)).tag_v2)


def test_the_first_frame_of_a_lossless_animation_is_cut_without_loss():
    data = saved(COLOUR, "WEBP", save_all=True, append_images=[COLOUR.rotate(180)], lossless=True)
    assert read_header(data, "a.webp").pages == 2
    assert np.array_equal(decode_color(cut(data, "a.webp", BOX), "a.webp"), part(RGB))


HOW = ({}, {"tile": True, "tile_width": 64, "tile_height": 32}, {"bigtiff": True}, {"compression": "lzw"})
DEEP = {
    "RGB": RGB16,
    "grey": RGB16[..., 0],
    "RGBA": np.dstack([RGB16, ALPHA.astype(np.uint16) * 257]),
    "CMYK": np.dstack([RGB16, RGB16[..., 0]]),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "how", [{}, {"tile": True, "tile_width": 64, "tile_height": 32}, {"bigtiff": True}, {"compression": "lzw"}], ids=str
)
@pytest.mark.parametrize("mode", DEEP)
def test_16_bits_survive_exactly_in_tiles_in_large_tiffs_and_in_every_turn(mode, how, orientation):
    pyvips = import_pyvips()
    kind = {"RGB": "rgb16", "RGBA": "rgb16", "grey": "grey16", "CMYK": "cmyk"}[mode]
    picture = pyvips.Image.new_from_array(DEEP[mode], interpretation=kind)
    picture.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    data = bytes(picture.tiffsave_buffer(**how))
    box = Box(17, 9, 17 + 51, 9 + 43)
    crop = cut(data, "a.tif", box)
    before, after = read_header(data, "a.tif"), read_header(crop, "a.tif")
    assert (after.mode, after.bit_depth, after.orientation) == (before.mode, 16, 1)
    upright = pyvips.Image.new_from_buffer(data, "").autorot().numpy()
    assert np.array_equal(pyvips.Image.new_from_buffer(crop, "").numpy(), part(upright, box))


def test_lab_is_cut_as_it_is():
    lab = Image.merge("LAB", [Image.fromarray(RGB[..., i]) for i in range(3)])
    crop = opened(cut(saved(lab, "TIFF"), "a.tif", BOX))
    assert crop.mode == "LAB" and np.array_equal(np.asarray(crop), part(np.asarray(lab)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF palette", "AVIF"])
def test_a_crop_is_upright_with_orientation_1_whatever_the_originals_was(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 97, "subsampling": 0},
        "AVIF": {"quality": 97, "subsampling": "4:4:4"},
    }
    data = saved(PALETTE if "palette" in kind else COLOUR, kind.split()[0], exif=exif, **options.get(kind, {}))
    upright = decode_color(data, kind)
    box = Box(11, 23, 11 + 60, 23 + 41)
    crop = cut(data, kind, box)
    header = read_header(crop, kind)
    assert (header.orientation, header.size_wh) == (1, (60, 41))
    assert distance(decode_color(crop, kind), part(upright, box)) <= (12 if kind in ("JPEG", "AVIF") else 0)


@pytest.mark.parametrize("end", ["<", ">"])
def test_a_jpeg_crop_carries_exif_xmp_iptc_icc_density_and_comment_but_no_thumbnail(end):
    crop = cut(full_jpeg(6, end), "a.jpg", Box(5, 7, 45, 77))
    image = opened(crop)
    exif = image.getexif()
    assert (exif[0x010F], exif[0x0112], exif[0x011A]) == ("Maker", 1, 300)
    inner = exif.get_ifd(0x8769)
    assert (inner[0xA002], inner[0xA003], inner[0x927C], inner[0x9003]) == (40, 70, b"camera notes", "2021:02:03 04:05:06")
    assert exif.get_ifd(0x8825)[2] == (52, 52, 52)
    assert exif.get_ifd(1) == {}
    assert image.info["icc_profile"] == ICC
    assert image.info["dpi"] == (300, 300)
    assert image.info["comment"] == b"a comment"
    assert b'xmp:Rating="4" tiff:Orientation="1" tiff:ImageWidth="40"' in image.info["xmp"]
    assert b"<exif:PixelXDimension>40<" in image.info["xmp"]
    assert image.info["photoshop"][1028] == IPTC
    assert 1036 not in image.info["photoshop"]
    assert b"whole picture" not in crop
    assert b"AAQSkZJRgABAgAASABIAAD" not in crop
    assert crop.count(b"\xff\xd8\xff") == 1


def test_a_crop_is_not_cropped_once_more_by_what_its_xmp_asks_for():
    asked = (
        b"<rdf:Description xmlns:crs='http://ns.adobe.com/camera-raw-settings/1.0/' crs:Exposure2012='+0.5' crs:HasCrop=\"True\" "
        b"crs:CropTop='0.1' crs:CropAngle='0'><crs:CropLeft>0.2</crs:CropLeft></rdf:Description></rdf:RDF>"
    )
    data = with_segments(saved(COLOUR, "JPEG"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP.replace(b"</rdf:RDF>", asked)))
    crop = cut(data, "a.jpg", BOX)
    assert b"crs:Exposure2012='+0.5'></rdf:Description>" in crop and b"Crop" not in crop.partition(b"crs:Exposure")[2]


def test_previews_inside_the_cameras_own_notes_do_not_survive():
    crop = cut(full_jpeg(notes=b"before" + THUMBNAIL + b"after"), "a.jpg", BOX)
    assert b"whole picture" not in crop
    notes = opened(crop).getexif().get_ifd(0x8769)[0x927C]
    assert notes == b"before" + bytes(len(THUMBNAIL)) + b"after"


def test_without_metadata_only_colour_and_density_remain():
    for data, name in ((full_jpeg(), "a.jpg"), (full_tiff(), "a.tif"), (full_png(), "a.png")):
        crop = cut(data, name, BOX, metadata="none")
        image = opened(crop)
        assert image.info["icc_profile"] == ICC
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        for word in (b"Maker", b"xmpmeta", b"8BIM", b"Ann", b"2021:02", b"comment"):
            assert word not in crop


def test_a_png_crop_carries_exif_xmp_texts_icc_and_density_but_no_thumbnail():
    crop = cut(full_png(3), "a.png", BOX)
    image = opened(crop)
    exif = image.getexif()
    assert (exif[0x010F], exif[0x0112], exif.get_ifd(0x8769)[0xA002]) == ("Maker", 1, 71)
    assert image.info["icc_profile"] == ICC
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert image.info["Author"] == "Ann"
    assert b'tiff:Orientation="1" tiff:ImageWidth="71"' in image.info["xmp"]
    assert b"whole picture" not in crop
    assert b"Raw profile" not in crop
    assert np.array_equal(np.asarray(image), part(RGB[::-1, ::-1]))
    assert [kind for kind, _, _ in png_chunks(crop)][-1] == b"IEND"


@pytest.mark.parametrize(("end", "compression"), [("<", "raw"), (">", "raw"), ("<", "tiff_lzw"), ("<", "zstd")])
def test_a_tiff_crop_carries_every_tag_that_does_not_describe_storage(end, compression):
    crop = cut(full_tiff(end, compression), "a.tif", BOX)
    image = opened(crop)
    tags = image.tag_v2
    assert (tags[271], tags[315], tags[282], tags[296], tags[256], tags[257]) == ("Maker", "Ann", 300, 2, 71, 53)
    exif = image.getexif()
    assert exif.get_ifd(0x8769)[0x9003] == "2021:02:03 04:05:06"
    assert exif.get_ifd(0x8769)[0xA002] == 71
    assert tags[34675] == ICC
    assert tags[33723] == IPTC
    assert b'tiff:ImageWidth="71"' in tags[700]
    assert tags[34377] == resource(1028, IPTC) + resource(1061, bytes(16))
    assert 37724 not in tags
    assert b"whole picture" not in crop
    assert np.array_equal(np.asarray(image), part(RGB))
    assert distance(decode_color(crop, "a.tif"), part(RGB)) == 0
    assert import_pyvips().Image.new_from_buffer(crop, "").width == 71  # libtiff likes the new directory


def test_a_16_bit_tiff_crop_keeps_its_tags_too():
    vips = import_pyvips().Image.new_from_array(RGB16, interpretation="rgb16")
    vips.set_type(import_pyvips().GValue.blob_type, "icc-profile-data", ICC)
    data = bytes(vips.tiffsave_buffer(compression="deflate", predictor="horizontal", xres=11.811, yres=11.811))
    crop = cut(data, "a.tif", BOX)
    tree = TiffTree.of(crop)
    entries = next(tree.directories())
    assert tree.value(entries[34675]) == ICC
    assert (tree.number(entries[259]), tree.number(entries[317]), tree.number(entries[258])) == (8, 2, 16)
    assert np.array_equal(exact(crop, "a.tif"), part(exact(data, "a.tif")))
    assert opened(saved(COLOUR, "TIFF")).size == (W, H)


def test_premultiplied_alpha_comes_out_as_the_same_colours_with_plain_alpha():
    premultiplied = np.dstack([(RGB * (ALPHA / 255)).astype(np.uint8), ALPHA])
    data = bytearray(saved(Image.fromarray(premultiplied), "TIFF"))
    data[next(TiffTree.of(bytes(data)).directories())[338].start] = 1
    crop = cut(bytes(data), "a.tif", BOX)
    assert TiffTree.of(crop).number(next(TiffTree.of(crop).directories())[338]) == 2
    assert distance(decode_color(crop, "a.tif"), part(decode_color(bytes(data), "a.tif"))) == 0


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_a_webp_or_avif_crop_carries_exif_xmp_and_icc_but_no_thumbnail(kind):
    if kind == "WEBP":
        data = saved(COLOUR, kind, exif=exif_block(6, notes=b"notes" + THUMBNAIL), xmp=XMP, icc_profile=ICC)
    else:  # Pillow would leave out the thumbnail
        vips = import_pyvips().Image.new_from_array(RGB, interpretation="srgb")
        for field, blob in (
            ("exif-data", b"Exif\0\0" + exif_block(notes=b"notes" + THUMBNAIL)),
            ("xmp-data", XMP),
            ("icc-profile-data", ICC),
        ):
            vips.set_type(import_pyvips().GValue.blob_type, field, blob)
        data = bytes(vips.copy(xres=300 / 25.4, yres=300 / 25.4).heifsave_buffer(compression="av1"))
    assert b"whole picture" in data
    crop = cut(data, kind, BOX if read_header(data, kind).width == W else Box(9, 17, 9 + 71, 17 + 53))
    image = opened(crop)
    exif = image.getexif()
    assert (exif[0x010F], exif.get(0x0112, 1), exif[0x011A]) == ("Maker", 1, 300)
    assert (exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0x927C]) == (71, b"notes" + bytes(len(THUMBNAIL)))
    assert image.info["icc_profile"] == ICC
    assert b'xmp:Rating="4" tiff:Orientation="1"' in image.info["xmp"]
    assert b"whole picture" not in crop
    assert b"AAQSkZJRgABAgAASABIAAD" not in crop


TURNED = {
    "PNG": LOSSLESS["png"],
    "PNG 16": LOSSLESS["png 16 bit"],
    "PNG alpha": LOSSLESS["png alpha"],
    "PNG palette": LOSSLESS["png palette"],
    "PNG 1 bit": LOSSLESS["png 1 bit"],
    "TIFF 16": LOSSLESS["tiff 16 bit"],
    "TIFF CMYK": LOSSLESS["tiff CMYK"],
    "WEBP": LOSSLESS["webp lossless"],
    "PGM 16": LOSSLESS["pgm 16 bit"],
    "JPEG": saved(COLOUR, "JPEG", quality=97, subsampling=0),
}


@pytest.mark.parametrize("angle_deg", [-3.5, 12.0, 90.0])
@pytest.mark.parametrize("name", TURNED)
def test_a_turned_box_shows_the_picture_at_the_places_the_geometry_says(name, angle_deg):
    box = Box(40, 30, 90, 62)
    data = TURNED[name]
    crop = decode_color(cut(data, name, box, angle_deg), name)
    assert (read_header(cut(data, name, box, angle_deg), name).mode) == read_header(data, name).mode
    assert crop.shape == (32, 50, 3)
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    v, u = np.mgrid[0:32, 0:50] + 0.5
    x, y = 65 + cos * (u - 25) - sin * (v - 16), 46 + sin * (u - 25) + cos * (v - 16)  # corner coordinates in the original
    nearest = "palette" in name or "1 bit" in name
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    shown = cv2.remap(decode_color(data, name), (x - 0.5).astype(np.float32), (y - 0.5).astype(np.float32), how)
    off = np.abs(crop.astype(int) - shown)
    assert off.mean() < (8 if nearest else 1.5)  # a few pixels lie halfway between two and may go either way
    assert nearest or off.max() <= 10


def test_a_turned_box_may_stick_out_and_repeats_the_border():
    crop = decode_color(cut(LOSSLESS["png"], "a.png", Box(-5, -4, 40, 30), 10.0), "a.png")
    assert crop.shape == (34, 45, 3)
    assert np.abs(crop[0, 0].astype(int) - RGB[0, 0]).max() <= 40


@pytest.mark.parametrize("box", [Box(-1, 0, 10, 10), Box(0, 0, W + 1, 10), Box(0.5, 0, 10, 10)])
def test_a_box_that_is_not_whole_or_not_inside_is_a_programming_error(box):
    with pytest.raises(ValueError, match="whole pixels inside 130 x 90"):
        cut(LOSSLESS["png"], "a.png", box)


def test_of_several_pages_the_first_is_cut():
    data = saved(COLOUR, "TIFF", save_all=True, append_images=[COLOUR.rotate(180)])
    crop = cut(data, "a.tif", BOX)
    assert read_header(crop, "a.tif").pages == 1
    assert np.array_equal(np.asarray(opened(crop)), part(RGB))


def test_quality_makes_a_jpeg_smaller():
    data = saved(COLOUR, "JPEG", quality=95)
    assert len(cut(data, "a.jpg", BOX, quality=40)) < len(cut(data, "a.jpg", BOX))


def test_a_crop_of_a_crop_is_a_crop():
    for name in ("png 16 bit", "tiff LZW", "gif", "webp lossless"):
        twice = cut(cut(LOSSLESS[name], name, Box(10, 10, 110, 80)), name, Box(5, 6, 60, 50))
        assert np.array_equal(exact(twice, name), exact(cut(LOSSLESS[name], name, Box(15, 16, 70, 60)), name))


def test_what_cannot_be_written_without_loss_is_refused_by_name():
    with pytest.raises(OutputError, match=r"a\.jp2: JPEG2000 colours of 16 bits cannot be written without loss"):
        cut(by_opencv(".jp2", RGB16), "a.jp2", BOX)


def test_a_raw_file_can_be_read_but_not_written(monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(UnreadableImage, match="cropreg\\[raw\\]"):
        cut(LOSSLESS["tiff"], "a.nef", BOX)


def test_a_heic_file_can_be_read_but_not_written(monkeypatch):
    picture = type("Picture", (), {"size": (W, H), "mode": "RGB", "info": {}, "__len__": lambda self: 1})()
    monkeypatch.setitem(sys.modules, "pi_heif", SimpleNamespace(open_heif=lambda file: picture))
    with pytest.raises(OutputError, match=r"a\.heic: a HEIC file can be read but not written"):
        cut(b"\0\0\0\x18ftypheic" + bytes(40), "a.heic", BOX)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("save", ["pngsave_buffer", "tiffsave_buffer"])
def test_greys_of_few_bits_keep_their_values(save, bits):
    data = bytes(getattr(import_pyvips().Image.new_from_array(GREY), save)(bitdepth=bits))
    crop = cut(data, "a", BOX)
    assert read_header(data, "a").bit_depth == bits
    assert read_header(crop, "a").bit_depth == (bits if save.startswith("png") else 8)
    assert distance(decode_color(crop, "a"), part(decode_color(data, "a"))) == 0


@pytest.mark.parametrize("name", ["png", "tiff", "tiff LZW", "webp lossless", "bmp"])
def test_a_file_cut_short_is_not_cut_again(name):
    with pytest.raises(UnreadableImage, match=f"^{name}: "):
        cut(LOSSLESS[name][:-60], name, Box(0, 0, W, H))


def test_the_segments_of_a_jpeg_crop_are_in_the_order_readers_expect():
    markers = [marker for marker, _, _ in jpeg_segments(cut(full_jpeg(), "a.jpg", BOX))]
    assert markers[:2] == [0xE0, 0xE1]
    assert markers.count(0xE2) == 1

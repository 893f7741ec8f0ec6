"""The one image reader: every format, mode and orientation comes out upright and right, or is refused with a reason."""

import dataclasses
import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from cropreg.errors import UnreadableImage
from cropreg.images import IMAGE_SUFFIXES, Header, decode_color, decode_grey, decode_reduced, encode_jpeg, read_header

H, W = 101, 83  # no multiples of 8, so that libjpeg pads both sides
rng = np.random.default_rng(7)


def smooth(channels: int) -> np.ndarray:
    """A soft (H, W, channels) picture, which lossy formats keep within a few levels."""
    small = rng.integers(60, 200, (6, 5, channels)).astype(np.uint8)
    return cv2.resize(small, (W, H), interpolation=cv2.INTER_CUBIC).reshape(H, W, channels)


RGB, ALPHA = smooth(3), smooth(1)
GREY = RGB[..., 1]
RGB16, GREY16 = (RGB.astype(np.uint16) << 8) + 77, (GREY.astype(np.uint16) << 8) + 77
COLOUR = Image.fromarray(RGB)
WITH_ALPHA = Image.fromarray(np.dstack([RGB, ALPHA]))
PALETTE = COLOUR.quantize(64)
BITS = Image.fromarray(GREY).convert("1")
CMYK = COLOUR.convert("CMYK")
LAB = ImageCms.applyTransform(
    COLOUR, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
)


def saved(image: Image.Image, kind: str, orientation: int = 1, **options: object) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, kind, **({"exif": exif} if orientation != 1 else {}), **options)
    return buffer.getvalue()


def by_opencv(suffix: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(suffix, pixels[..., ::-1] if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels)[1].tobytes()


def tiff(pixels: np.ndarray, photometric: int, end: str = "<", **tags: int) -> bytes:
    """A plain TIFF in one strip, made by hand: kinds that Pillow does not write."""
    h, w = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    body = pixels.astype(pixels.dtype.newbyteorder(end)).tobytes()
    fields = {
        256: w,
        257: h,
        258: 8 * pixels.dtype.itemsize,
        259: 1,
        262: photometric,
        273: 8,
        277: samples,
        278: h,
        279: len(body),
    }
    fields |= {{"sample_format": 339, "extra": 338, "orientation": 274}[name]: value for name, value in tags.items()}
    mark = {"<": b"II", ">": b"MM"}[end]
    out = mark + struct.pack(end + "HI", 42, 8 + len(body) + 2 * samples) + body
    bits_at = len(out)
    out += struct.pack(end + "H", fields[258]) * samples + struct.pack(end + "H", len(fields))
    for tag, value in sorted(fields.items()):
        count = samples if tag == 258 else 1
        value, kind = (bits_at, 3) if count > 2 else (value, 4 if tag in (273, 279) else 3)
        code = "I" if kind == 4 or count > 2 else "H"
        packed = struct.pack(end + code, value) if count != 2 else struct.pack(end + "HH", value, value)
        out += struct.pack(end + "HHI", tag, kind, count) + packed.ljust(4, b"\0")
    return out + bytes(4)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF says: row 0 and column 0 of the stored picture lie at ... of the displayed one."""
    swapped = np.swapaxes(pixels, 0, 1)
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: swapped,
        6: swapped[:, ::-1],
        7: swapped[::-1, ::-1],
        8: swapped[::-1],
    }[orientation]


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return (255 + (rgb.astype(float) - 255) * alpha.reshape(H, W, 1) / 255).round().astype(np.uint8)


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)


def luma(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)


def distance(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


PALETTE_RGB = np.asarray(PALETTE.convert("RGB"))
PALETTE_HOLED = np.where((np.asarray(PALETTE) == 3)[..., None], 255, PALETTE_RGB)
BITS_RGB = grey3(np.asarray(BITS.convert("L")))
LA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA[..., 0])])

# name: (bytes, what it shows, largest difference allowed, Header.mode, bit depth)
CASES = {
    "jpeg": (saved(COLOUR, "JPEG", quality=97, subsampling=0), RGB, 5, "RGB", 8),
    "jpeg progressive": (saved(COLOUR, "JPEG", quality=97, subsampling=0, progressive=True), RGB, 5, "RGB", 8),
    "jpeg grey": (saved(Image.fromarray(GREY), "JPEG", quality=100), grey3(GREY), 1, "L", 8),
    "jpeg coded as RGB": (saved(COLOUR, "JPEG", quality=100, keep_rgb=True), RGB, 1, "RGB", 8),
    "jpeg CMYK": (saved(CMYK, "JPEG", quality=100), RGB, 3, "CMYK", 8),
    "png": (saved(COLOUR, "PNG"), RGB, 0, "RGB", 8),
    "png alpha": (saved(WITH_ALPHA, "PNG"), on_white(RGB, ALPHA), 1, "RGBA", 8),
    "png grey alpha": (saved(LA, "PNG"), on_white(grey3(GREY), ALPHA), 1, "LA", 8),
    "png grey": (saved(Image.fromarray(GREY), "PNG"), grey3(GREY), 0, "L", 8),
    "png 1 bit": (saved(BITS, "PNG"), BITS_RGB, 0, "1", 1),
    "png palette": (saved(PALETTE, "PNG"), PALETTE_RGB, 0, "P", 8),
    "png palette, one colour transparent": (saved(PALETTE, "PNG", transparency=3), PALETTE_HOLED, 0, "PA", 8),
    "png grey, one level transparent": (
        saved(Image.fromarray(GREY), "PNG", transparency=100),
        grey3(np.where(GREY == 100, 255, GREY)),
        0,
        "LA",
        8,
    ),
    "png 16 bit": (by_opencv(".png", RGB16), RGB, 1, "RGB", 16),
    "png 16 bit grey": (by_opencv(".png", GREY16), grey3(GREY), 1, "L", 16),
    "png 16 bit grey, one level transparent": (
        saved(Image.fromarray(GREY16), "PNG", transparency=int(GREY16[9, 9])),
        grey3(np.where(GREY16 - GREY16[9, 9], GREY, 255)),
        1,
        "LA",
        16,
    ),
    "apng": (saved(COLOUR, "PNG", save_all=True, append_images=[COLOUR.rotate(180)]), RGB, 0, "RGB", 8),
    "webp": (saved(COLOUR, "WEBP", quality=97), RGB, 14, "RGB", 8),
    "webp lossless": (saved(COLOUR, "WEBP", lossless=True), RGB, 0, "RGB", 8),
    "webp alpha": (saved(WITH_ALPHA, "WEBP", lossless=True), on_white(RGB, ALPHA), 1, "RGBA", 8),
    "tiff": (saved(COLOUR, "TIFF"), RGB, 0, "RGB", 8),
    "tiff LZW": (saved(COLOUR, "TIFF", compression="tiff_lzw"), RGB, 0, "RGB", 8),
    "tiff deflate": (saved(COLOUR, "TIFF", compression="tiff_adobe_deflate"), RGB, 0, "RGB", 8),
    "tiff JPEG": (saved(COLOUR, "TIFF", compression="jpeg", quality=98), RGB, 8, "RGB", 8),
    "tiff Zstandard": (saved(COLOUR, "TIFF", compression="zstd"), RGB, 0, "RGB", 8),
    "tiff LZMA": (saved(COLOUR, "TIFF", compression="lzma"), RGB, 0, "RGB", 8),
    "tiff G4": (saved(BITS, "TIFF", compression="group4"), BITS_RGB, 0, "1", 1),
    "tiff palette": (saved(PALETTE, "TIFF"), PALETTE_RGB, 0, "P", 8),
    "tiff alpha": (saved(WITH_ALPHA, "TIFF"), on_white(RGB, ALPHA), 1, "RGBA", 8),
    "tiff CMYK": (saved(CMYK, "TIFF"), RGB, 1, "CMYK", 8),
    "tiff CMYK 16 bit": (tiff(np.asarray(CMYK).astype(np.uint16) * 257, 5), RGB, 1, "CMYK", 16),
    "tiff Lab": (saved(LAB, "TIFF"), RGB, 12, "Lab", 8),
    "tiff 16 bit": (tiff(RGB16, 2), RGB, 1, "RGB", 16),
    "tiff 16 bit, Motorola order": (tiff(RGB16, 2, ">"), RGB, 1, "RGB", 16),
    "tiff 16 bit grey": (tiff(GREY16, 1), grey3(GREY), 1, "L", 16),
    "tiff 16 bit grey, 0 is white": (tiff(GREY16, 0), grey3(255 - GREY), 1, "L", 16),
    "tiff 16 bit alpha": (tiff(np.dstack([RGB16, ALPHA.astype(np.uint16) * 257]), 2, extra=2), on_white(RGB, ALPHA), 1, "RGBA", 16),
    "tiff with a fourth channel of no meaning": (tiff(np.dstack([RGB, ALPHA]), 2, extra=0), RGB, 0, "RGBX", 8),
    "avif": (saved(COLOUR, "AVIF", quality=98, subsampling="4:4:4"), RGB, 6, "RGB", 8),
    "avif alpha": (saved(WITH_ALPHA, "AVIF", quality=98, subsampling="4:4:4"), on_white(RGB, ALPHA), 6, "RGBA", 8),
    "gif": (saved(PALETTE, "GIF"), PALETTE_RGB, 0, "P", 8),
    "gif transparent": (saved(PALETTE, "GIF", transparency=3), PALETTE_HOLED, 0, "PA", 8),
    "bmp": (saved(COLOUR, "BMP"), RGB, 0, "RGB", 8),
    "jpeg 2000": (saved(COLOUR, "JPEG2000"), RGB, 0, "RGB", 8),
    "jpeg 2000 code stream": (saved(COLOUR, "JPEG2000", no_jp2=True), RGB, 0, "RGB", 8),
    "jpeg 2000 16 bit": (by_opencv(".jp2", RGB16), RGB, 1, "RGB", 16),
    "ppm": (saved(COLOUR, "PPM"), RGB, 0, "RGB", 8),
    "pgm 16 bit": (by_opencv(".pgm", GREY16), grey3(GREY), 1, "L", 16),
    "pgm 10 bit": (
        b"P5\n# made by hand\n83 101\n1023\n" + (GREY.astype(">u2") * 4).astype(">u2").tobytes(),
        grey3(GREY),
        1,
        "L",
        16,
    ),
    "ppm in words": (b"P3 83 101 255\n" + b" ".join(b"%d" % v for v in RGB.ravel()), RGB, 0, "RGB", 8),
    "scan.tga": (saved(COLOUR, "TGA"), RGB, 0, "RGB", 8),
    "alpha.tga": (saved(WITH_ALPHA, "TGA", compression="tga_rle"), on_white(RGB, ALPHA), 1, "RGBA", 8),
}


@pytest.mark.parametrize("name", CASES)
def test_a_picture_of_any_kind_decodes_to_what_it_shows(name):
    data, shown, tolerance, mode, depth = CASES[name]
    header, color, grey = read_header(data, name), decode_color(data, name), decode_grey(data, name)
    assert (header.size_wh, header.mode, header.bit_depth) == ((W, H), mode, depth)
    assert color.dtype == grey.dtype == np.uint8
    assert distance(color, shown) <= tolerance
    assert distance(grey, luma(color)) <= 1


TURNABLE = {
    "JPEG": {"quality": 97, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "TIFF Zstandard": {"compression": "zstd"},
    "AVIF": {"quality": 98, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNABLE)
@pytest.mark.parametrize("plain", [True, False])
def test_every_orientation_is_applied_once_in_every_format(kind, orientation, plain):
    image = COLOUR if plain else CMYK if kind == "JPEG" else WITH_ALPHA  # the other way through the reader
    data = saved(image, kind.split()[0], orientation, **TURNABLE[kind])
    shown = turned(on_white(RGB, ALPHA) if image is WITH_ALPHA else RGB, orientation)
    header = read_header(data, kind)
    assert (header.orientation, header.size_wh) == (orientation, shown.shape[1::-1])
    assert distance(decode_color(data, kind), shown) <= 8
    assert distance(decode_grey(data, kind), luma(shown)) <= 6


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["JPEG", "JPEG CMYK", "PNG", "TIFF"])
def test_reduced_pixels_are_the_means_of_whole_cells_of_the_upright_picture(kind, factor, grey):
    options = {"quality": 97, "subsampling": 0} if kind.startswith("JPEG") else {}
    for orientation in range(1, 9):
        data = saved(CMYK if "CMYK" in kind else COLOUR, kind.split()[0], orientation, **options)
        full = (decode_grey if grey else decode_color)(data, kind)
        reduced = decode_reduced(data, kind, factor, grey=grey)
        h, w = full.shape[0] // factor, full.shape[1] // factor
        assert (reduced.factor, reduced.pixels.shape) == (factor, (h, w, *full.shape[2:]))
        (x, y), channels = reduced.shift_xy, full.shape[2:]
        cells = full[y : y + h * factor, x : x + w * factor].reshape(h, factor, w, factor, *channels)
        means = cells.astype(float).mean(axis=(1, 3))
        assert np.abs(reduced.pixels - means).max() <= 2.5, f"orientation {orientation}"


@pytest.mark.parametrize("name", CASES)
def test_pillow_converts_strips_as_it_converts_the_whole(name, monkeypatch):
    whole = decode_color(CASES[name][0], name)
    monkeypatch.setattr("cropreg.images.decode.STRIP_ROWS", 16)
    assert np.array_equal(decode_color(CASES[name][0], name), whole)


@pytest.mark.parametrize("options", [{}, {"subsampling": 1}, {"progressive": True}, {"keep_rgb": True}])
@pytest.mark.parametrize("image", [COLOUR, COLOUR.convert("L")])
def test_a_whole_jpeg_is_decoded_without_a_copy_to_the_pixels_opencv_decodes(image, options):
    data = saved(image, "JPEG", quality=80, **options)
    for decode, flag in ((decode_grey, cv2.IMREAD_GRAYSCALE), (decode_color, cv2.IMREAD_COLOR_RGB)):
        pixels = decode(data, "x.jpg")
        assert np.array_equal(pixels, cv2.imdecode(np.frombuffer(data, np.uint8), flag))
        assert pixels.base is not None  # it lies in the room that was made for it


def test_a_jpeg_hardly_damaged_is_read_as_opencv_reads_it():
    data = saved(COLOUR, "JPEG", quality=95)
    damaged = data[:-40] + bytes(20) + data[-20:]
    with pytest.raises(ValueError, match="Corrupt"):
        simplejpeg.decode_jpeg(damaged)
    assert np.array_equal(decode_color(damaged, "x.jpg"), cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR_RGB))


def test_a_picture_narrower_than_a_cell_is_reduced_by_less():
    data = saved(COLOUR.crop((0, 0, 5, 50)), "JPEG", quality=95)
    reduced = decode_reduced(data, "thin.jpg", 8, grey=True)
    assert (reduced.factor, reduced.pixels.shape) == (4, (12, 1))


def test_a_factor_that_libjpeg_does_not_have_is_a_programming_error():
    with pytest.raises(ValueError, match="factor is 1, 2, 4 or 8, got 3"):
        decode_reduced(saved(COLOUR, "JPEG"), "x.jpg", 3, grey=True)


# what a cut at the very end may not change: a trailing mark that decoders do without, the last digits of a number
HARMLESS = {"gif": 2, "gif transparent": 2, "ppm in words": 3, "alpha.tga": 26, "scan.tga": 26}


@pytest.mark.parametrize("name", CASES)
def test_a_file_cut_short_is_refused_and_never_half_a_picture(name, capfd):
    data = CASES[name][0]
    n = len(data)
    for keep in sorted({1, 3, 8, 20, 60, n // 4, n // 2, n * 9 // 10, n * 99 // 100, n - 40, n - 13, n - 3, n - 1}):
        if keep > n - 1 - HARMLESS.get(name, 0) or keep < 0:
            continue
        for decode in (decode_color, decode_grey, lambda data, name: decode_reduced(data, name, 8, grey=True)):
            with pytest.raises(UnreadableImage, match=f"^{name}: "):
                decode(data[:keep], name)
    assert capfd.readouterr().err == ""


FAKES = {
    "empty.jpg": (b"", "is empty"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    "note.png": (b"ceci n'est pas une image\n", "is text, not a picture"),
    "zeros.jpg": (bytes(500), "is not a picture in a known format"),
    "start.jpg": (b"\xff\xd8\xff", "JPEG file cut short"),
    "no_picture.jpg": (b"\xff\xd8\xff\xe0\0\x10" + b"\1" * 14 + b"\xff\xd9", "JPEG file without a picture"),
    "start.png": (b"\x89PNG\r\n\x1a\n", "PNG file cut short"),
    "noise.tif": (b"II*\0" + b"\xff" * 40, "TIFF file cut short"),
    "start.webp": (b"RIFF\x10\0\0\0WEBPVP8 ", "WEBP file cut short"),
    "start.gif": (b"GIF89a", "is a damaged GIF file"),
    "start.avif": (b"\0\0\0\x18ftypavif" + bytes(40), "is a damaged AVIF file"),
    "film.jpg": (b"\0\0\0\x18ftypisom" + bytes(40), "is a video"),
    "paper.jpg": (b"%PDF-1.7", "is a PDF document"),
    "new.jpg": (b"\xff\x0a" + bytes(40), "is a JPEG XL picture"),
    "float.tif": (tiff(RGB.astype(np.float32) / 255, 2, sample_format=3), "is a TIFF file of 32-bit floating-point numbers"),
    "long.tif": (tiff(GREY.astype(np.uint32) << 24, 1), "is a TIFF file of 32-bit integer numbers"),
    "signed.tif": (tiff(GREY.astype(np.int16), 1, sample_format=2), "is a TIFF file of 16-bit signed numbers"),
    "odd.tif": (tiff(np.dstack([GREY16, GREY16]), 1, extra=2), "is a TIFF file of a kind that is not read"),
}


@pytest.mark.parametrize("name", FAKES)
def test_what_is_no_picture_is_refused_with_its_name_and_what_it_is(name):
    data, cause = FAKES[name]
    with pytest.raises(UnreadableImage) as caught:
        decode_color(data, name)
    assert str(caught.value).startswith(f"{name}: {cause}") or cause in caught.value.cause
    assert caught.value.cure.endswith(".")


@pytest.mark.parametrize(
    ("data", "name", "extra"), [(b"\0\0\0\x18ftypheic" + bytes(40), "a.jpg", "heif"), (saved(COLOUR, "TIFF"), "a.NEF", "raw")]
)
def test_a_kind_that_needs_an_extra_names_the_command_that_installs_it(data, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, {"heif": "pi_heif", "raw": "rawpy"}[extra], None)
    with pytest.raises(UnreadableImage, match=rf"pip install 'cropreg\[{extra}\]'"):
        read_header(data, name)


def test_the_content_rules_not_the_name():
    assert read_header(CASES["png"][0], "photo.jpg").format == "PNG"
    assert distance(decode_color(CASES["tiff"][0], "photo.jpg"), RGB) == 0


def png_of(w: int, h: int, body: bytes) -> bytes:
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
    )


def webp_of(w: int, h: int) -> bytes:
    body = b"VP8L" + struct.pack("<IBI", 6, 0x2F, (w - 1) | (h - 1) << 14) + b"\0"
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


@pytest.mark.parametrize(
    "data",
    [
        png_of(30_000, 30_000, zlib.compress(bytes(1000))),
        webp_of(16_000, 16_000),
        CASES["jpeg"][0].replace(struct.pack(">HH", H, W), struct.pack(">HH", 60_000, 60_000)),
        CASES["jpeg 2000 code stream"][0].replace(struct.pack(">II", W, H), struct.pack(">II", 60_000, 60_000)),
    ],
    ids=["png", "webp", "jpeg", "jpeg 2000"],
)
def test_a_bomb_is_refused_from_its_header_and_told_how_to_be_allowed(data):
    for read in (read_header, decode_color, decode_grey):
        with pytest.raises(UnreadableImage, match=r"unpacks to .* more than the limit of 200,000,000\. .*--max-pixels \d+"):
            read(data, "bomb", max_pixels=200_000_000)


def test_the_pixel_limit_can_be_lowered_and_raised_without_touching_pillows():
    before = Image.MAX_IMAGE_PIXELS
    data = saved(Image.new("L", (400, 300)), "GIF")
    with pytest.raises(UnreadableImage):
        decode_color(data, "x.gif", max_pixels=119_999)
    assert decode_color(data, "x.gif", max_pixels=120_000).shape == (300, 400, 3)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_damaged_png_chunk_length_is_seen_before_libpng_allocates_it():
    data = bytearray(CASES["png"][0])
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = struct.pack(">I", 0x7FFF0000)
    with pytest.raises(UnreadableImage, match="cut short or damaged"):
        read_header(bytes(data), "x.png")


def test_pages_are_counted_and_the_first_is_shown():
    frames = {"TIFF": {}, "GIF": {}, "WEBP": {"lossless": True}, "PNG": {}}
    for kind, options in frames.items():
        data = saved(PALETTE, kind, save_all=True, append_images=[PALETTE.rotate(180)], **options)
        assert read_header(data, kind).pages == 2
        assert distance(decode_color(data, kind), PALETTE_RGB) <= 1


def test_a_header_knows_progressive_from_baseline():
    assert [read_header(CASES[name][0], name).progressive for name in ("jpeg", "jpeg progressive")] == [False, True]


@pytest.mark.parametrize("kind", TURNABLE)
def test_what_xmp_says_about_orientation_is_left_to_editors(kind):
    data = saved(
        COLOUR, kind.split()[0], xmp=b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/>', **TURNABLE[kind]
    )
    assert read_header(data, kind).orientation == 1
    assert distance(decode_color(data, kind), RGB) <= 6


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_counts_as_upright(value):
    for kind in ("JPEG", "PNG", "WEBP"):
        header = read_header(saved(COLOUR, kind, value), kind)
        assert dataclasses.replace(header, luma_steps=(), lossless=False) == Header(kind, W, H)


def test_a_damaged_exif_block_is_no_reason_to_refuse_a_sound_picture():
    data = CASES["jpeg"][0]
    block = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + data[2:]
    assert read_header(data, "x.jpg") == read_header(CASES["jpeg"][0], "x.jpg")
    assert distance(decode_color(data, "x.jpg"), RGB) <= 5


@pytest.mark.parametrize("quality", [90, 40])
def test_a_jpeg_says_how_coarsely_its_luma_is_quantised(quality):
    buffer = io.BytesIO()
    COLOUR.save(buffer, "JPEG", quality=quality)
    header = read_header(buffer.getvalue(), "x.jpg")
    assert list(header.luma_steps) == Image.open(buffer).quantization[0]  # Pillow undoes the file's zigzag, too
    assert not header.lossless


def test_files_say_whether_they_hold_the_very_pixels():
    def lossless(kind, picture=COLOUR, **options):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return read_header(buffer.getvalue(), "x").lossless

    assert lossless("PNG")
    assert lossless("TIFF")
    assert lossless("TIFF", compression="tiff_lzw")
    assert not lossless("TIFF", compression="jpeg")
    assert not lossless("PNG", COLOUR.quantize(64))
    assert not lossless("WEBP")


def test_mutated_files_decode_or_are_refused_but_raise_nothing_else():
    chance = np.random.default_rng(3)
    for name, (data, *_) in CASES.items():
        for _ in range(6):
            damaged = bytearray(data)
            for _ in range(int(chance.integers(1, 5))):
                damaged[chance.integers(0, min(len(data), int(chance.choice([64, 400, 10**6]))))] = chance.integers(0, 256)
            try:
                decode_color(bytes(damaged), name, max_pixels=1_000_000)
            except UnreadableImage as error:
                assert error.uri == name


def test_an_encoded_jpeg_shows_what_was_given():
    assert distance(decode_color(encode_jpeg(RGB, 97), "x.jpg"), RGB) <= 8


def test_suffixes_are_lower_case_with_a_dot():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)


def test_importing_the_reader_limits_opencv_before_it_is_imported_and_brings_nothing_heavy():
    code = (
        "import os, sys, cropreg.images; "
        "assert 'OPENCV_IO_MAX_IMAGE_PIXELS' in os.environ; "
        "assert not {'torch', 'ray', 'pyvips', 'pi_heif', 'rawpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("side", [16, 32, 48, 64])
def test_tiles_of_any_size_are_read(side):
    pyvips = pytest.importorskip("pyvips")
    pixels = np.random.default_rng(1).integers(0, 256, (90, 130, 3)).astype(np.uint8)
    data = bytes(
        pyvips.Image.new_from_array(pixels, interpretation="srgb").tiffsave_buffer(tile=True, tile_width=side, tile_height=side)
    )
    assert np.array_equal(decode_color(data, "a.tif"), pixels)

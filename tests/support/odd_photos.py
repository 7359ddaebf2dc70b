"""Photos of every format and kind, drawn by Pillow or byte by byte."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 37, 53
ORIENTATION = 0x0112


def pixels(height=HEIGHT, width=WIDTH, seed=0, channels=3):
    """Smooth uint8 levels with a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return noisy[:, :, :channels] if channels > 1 else noisy[:, :, 0]


def encode(image, kind="JPEG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(mode="RGB", seed=0):
    """A picture of a mode."""
    image = Image.fromarray(pixels(seed=seed))
    if mode in ("LA", "RGBA"):
        image = image.convert(mode[:-1])
        image.putalpha(Image.fromarray(pixels(seed=seed + 1, channels=1)))
        return image
    return image.quantize(60) if mode == "P" else image.convert(mode)


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


# --- JPEG ---------------------------------------------------------------------------------


def segments(jpeg):
    """Yields (code, bytes) of a JPEG of one scan; the last are the scan with its end marker."""
    at = 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        yield jpeg[at + 1], jpeg[at:end]
        at = end
    yield 0xDA, jpeg[at:]


def with_frame(jpeg, code, precision=8):
    """The same JPEG, called another process."""
    at = jpeg.index(b"\xff\xc0")
    return (
        jpeg[: at + 1] + bytes([code]) + jpeg[at + 2 : at + 4] + bytes([precision]) + jpeg[at + 5 :]
    )


def arithmetic(jpeg, seed=0):
    """A JPEG of arithmetic coding: any bytes are a picture."""
    rng = np.random.default_rng(seed)
    out = b"\xff\xd8"
    for code, segment in segments(with_frame(jpeg, 0xC0)):
        if code == 0xDA:
            head = segment[: 2 + int.from_bytes(segment[2:4])]
            return out + head + rng.integers(0, 255, 800, np.uint8).tobytes() + b"\xff\xd9"
        if code != 0xC4:
            out += b"\xff\xc9" + segment[2:] if code == 0xC0 else segment
    raise AssertionError("no scan")


def without_adobe(jpeg):
    return b"\xff\xd8" + b"".join(part for code, part in segments(jpeg) if code != 0xEE)


def ycck(jpeg):
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + b"\x02" + jpeg[at + 1 :]


def scan_bomb(scans, height=HEIGHT, width=WIDTH):
    """A progressive JPEG whose last scan is repeated: some bytes for the time of a whole photo."""
    jpeg = encode(np.full((height, width, 3), 90, np.uint8), progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * (scans - jpeg.count(b"\xff\xda")) + b"\xff\xd9"


def comment(body, code=0xFE):
    return b"\xff" + bytes([code]) + struct.pack(">H", len(body) + 2) + body


def jpegs():
    """JPEGs that both decoders take."""
    rgb, cmyk = photo(), encode(photo("CMYK"))
    inks = Image.fromarray(np.dstack([pixels(), pixels(seed=5, channels=1)]), "CMYK")
    found = {
        f"{name} {s}": encode(rgb, subsampling=s, **options)
        for name, options in (("baseline", {}), ("progressive", {"progressive": True}))
        for s in (0, 1, 2)
    }
    return found | {
        "grey": encode(photo("L")),
        "cmyk": cmyk,
        "cmyk of all inks": encode(inks),
        "cmyk without marker": without_adobe(cmyk),
        "ycck": ycck(cmyk),
        "rgb stored": encode(rgb, keep_rgb=True),
        "restart markers": encode(rgb, restart_marker_blocks=2),
        "extended": with_frame(encode(rgb), 0xC1),
        "arithmetic": arithmetic(encode(rgb)),
        "arithmetic grey": arithmetic(encode(photo("L"))),
        "two pictures": encode(rgb, "MPO", save_all=True, append_images=[photo(seed=2)]),
        "trailing bytes": encode(rgb) + b"\xff\xd8 and more",
        "1 x 1": encode(pixels(1, 1)),
        "7 wide": encode(pixels(100, 7)),
        "3 high": encode(pixels(3, 100)),
    }


# --- PNG ----------------------------------------------------------------------------------


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(bits, colour, extra=b"", seed=0):
    """A PNG of random levels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rng = np.random.default_rng(seed)
    size = (WIDTH * channels * bits + 7) // 8
    rows = b"".join(b"\0" + rng.integers(0, 256, size, np.uint8).tobytes() for _ in range(HEIGHT))
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def pngs():
    found = {mode: encode(photo(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    found |= {f"16 bits {colour}": png(16, colour) for colour in (0, 2, 4, 6)}
    found |= {f"grey of {bits} bits": png(bits, 0) for bits in (1, 2, 4)}
    rng = np.random.default_rng(1)
    for bits in (1, 2, 4, 8):
        palette = rng.integers(0, 256, 3 * 2**bits, np.uint8).tobytes()
        found[f"palette of {bits} bits"] = png(bits, 3, chunk(b"PLTE", palette))
        found[f"half a palette of {bits} bits"] = png(
            bits, 3, chunk(b"PLTE", palette[: 3 * 2 ** (bits - 1)])
        )
    return found | {
        "palette with alpha": encode(photo("P"), "PNG", transparency=bytes(range(60))),
        "grey with a transparent level": encode(photo("L"), "PNG", transparency=100),
        "animation": encode(photo(), "PNG", save_all=True, append_images=[photo(seed=3)]),
        "gamma": png(16, 2, chunk(b"gAMA", struct.pack(">I", 100000))),
        "a remark that unpacks to 32 MB": png(
            8, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**25)))
        ),
        "trailing bytes": encode(photo(), "PNG") + b"and more",
    }


# --- GIF, BMP, WebP -----------------------------------------------------------------------


def gif_at(left, top, width, height, image=None):
    """A GIF whose frame stands at a place on a canvas."""
    data = bytearray(encode(image or photo("P"), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    at = data.index(b",", 13 + 3 * (2 << data[10] % 8))
    data[at + 1 : at + 5] = struct.pack("<HH", left, top)
    return bytes(data)


def gifs():
    return {
        "still": encode(photo(), "GIF"),
        "grey": encode(photo("L"), "GIF"),
        "animation": encode(photo(), "GIF", save_all=True, append_images=[photo(seed=3)]),
        "transparent": encode(photo("P"), "GIF", transparency=3),
        "interlaced": encode(photo("P"), "GIF", interlace=1),
        "at an offset": gif_at(5, 7, 70, 60),
        "beyond its canvas": gif_at(60, 50, 70, 60),
        "larger than its canvas": gif_at(0, 0, 20, 20),
    }


def bmp(
    bits, compression=0, masks=b"", palette=0, colours=0, head=40, flip=False, seed=0, body=None
):
    """A BMP of random levels."""
    rng = np.random.default_rng(seed)
    row = (WIDTH * bits + 7) // 8
    pad = bytes(-row % 4)
    if body is None:
        body = b"".join(rng.integers(0, 256, row, np.uint8).tobytes() + pad for _ in range(HEIGHT))
    table = rng.integers(0, 256, 4 * palette, np.uint8).tobytes()
    start = 14 + head + len(masks) + len(table)
    info = (
        head,
        WIDTH,
        -HEIGHT if flip else HEIGHT,
        1,
        bits,
        compression,
        len(body),
        1,
        1,
        colours,
        0,
    )
    fields = struct.pack("<IiiHHIIiiII", *info) + bytes(head - 40)
    return (
        b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + fields + masks + table + body
    )


def bmps():
    """BMPs that both decoders take."""
    found = {mode: encode(photo(mode), "BMP") for mode in ("L", "P", "RGB", "RGBA")}
    return found | {
        "32 bits": bmp(32),
        "32 bits from the top": bmp(32, flip=True),
        "24 bits from the top": bmp(24, flip=True),
        "32 bits with masks": bmp(32, 3, struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)),
        "longer header": bmp(24, head=108),
        "palette": bmp(8, palette=256),
        "palette of 100": bmp(8, palette=100, colours=100),
    }


def webps():
    more = {"save_all": True, "append_images": [photo(seed=3)]}
    return {
        f"{mode} {name} {frames}": encode(
            photo(mode), "WEBP", lossless=name == "lossless", **(more if frames == "frames" else {})
        )
        for mode in ("RGB", "RGBA")
        for name in ("lossy", "lossless")
        for frames in ("still", "frames")
    }


@functools.cache
def shared():
    """{"PNG palette": bytes}: every photo that graphs and `photo_files` decode alike."""
    groups = {"JPEG": jpegs(), "PNG": pngs(), "GIF": gifs(), "BMP": bmps(), "WEBP": webps()}
    return {
        f"{name} {kind}": data for name, kinds in groups.items() for kind, data in kinds.items()
    }


@functools.cache
def pillow_alone():
    """{name: (format, bytes)} of photos that graphs cannot decode."""
    rgb = photo()
    rle = b"".join(bytes([WIDTH, row, 0, 0]) for row in range(HEIGHT)) + b"\0\1"
    os2 = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    os2 = b"BM" + struct.pack("<IHHI", 26 + 160 * HEIGHT, 0, 0, 26) + os2 + bytes(160 * HEIGHT)
    return {
        "TIFF": ("TIFF", encode(rgb, "TIFF")),
        "TIFF packed": ("TIFF", encode(rgb, "TIFF", compression="tiff_lzw")),
        "TIFF cmyk": ("TIFF", encode(photo("CMYK"), "TIFF")),
        "TIFF of 16 bits": ("TIFF", encode(pixels(channels=1).astype(np.uint16) * 257, "TIFF")),
        "AVIF": ("AVIF", encode(rgb, "AVIF")),
        "JPEG 2000": ("JPEG2000", encode(rgb, "JPEG2000")),
        "JPEG 2000 stream": ("JPEG2000", encode(rgb, "JPEG2000", no_jp2=True)),
        "BMP of 1 bit": ("BMP", encode(photo("1"), "BMP")),
        "BMP of 4 bits": ("BMP", bmp(4, palette=16)),
        "BMP 555": ("BMP", bmp(16)),
        "BMP 565": ("BMP", bmp(16, 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F))),
        "BMP packed": ("BMP", bmp(8, 1, palette=256, body=rle)),
        "BMP of OS/2": ("BMP", os2),
    }


@functools.cache
def turned():
    """{(format, orientation): bytes} of one photo with each EXIF orientation."""
    kinds = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "AVIF": {}}
    return {
        (kind, orientation): encode(photo(), kind, exif=exif(orientation), **options)
        for kind, options in kinds.items()
        for orientation in range(1, 9)
    }

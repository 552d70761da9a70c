"""Opens TIFFs: refuses by its tags what would decode wrongly, and has libtiff decode the rest."""

from typing import Any, Final

from PIL import TiffImagePlugin

from serve.imaging.varieties import Variety, unsupported

# Not Pillow's own decoder of uncompressed TIFFs, which is wrong for some planar ones and shows missing strips as black.
TiffImagePlugin.READ_LIBTIFF = True
# Packed samples have no byte order, so these are read as in little-endian files.
TiffImagePlugin.OPEN_INFO[(b"MM", 1, (1,), 1, (12,), ())] = TiffImagePlugin.OPEN_INFO[(b"II", 1, (1,), 1, (12,), ())]

_OLD_JPEG_AT: Final = 513
_WHERE_PIXELS_ARE: Final = (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS, _OLD_JPEG_AT)
_INK_SET: Final = 332
_CMYK_INKS: Final = 1
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_GREY: Final = (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
_COLOUR: Final = (_RGB, _PALETTE, _CMYK, _YCBCR)
_SEPARATE_PLANES: Final = 2
_UNSPECIFIED, _PREMULTIPLIED = 0, 1
_OLD_JPEG, _JPEG = 6, 7
# Compressions of which Pillow and libtiff know the colours without a tag: of faxes, and of old-style JPEG.
_OF_KNOWN_COLOURS: Final = (2, 3, 4, _OLD_JPEG)
_COMPRESSIONS: Final = {
    9: Variety.TIFF_JBIG,
    10: Variety.TIFF_JBIG,
    22610: Variety.TIFF_JPEG_XR,
    32771: Variety.TIFF_WORD_ALIGNED_FAX,
    33003: Variety.TIFF_JPEG_2000,
    33004: Variety.TIFF_JPEG_2000,
    33005: Variety.TIFF_JPEG_2000,
    33007: Variety.TIFF_JPEG_2000,
    34661: Variety.TIFF_JBIG,
    34676: Variety.TIFF_LOG_LUV,
    34677: Variety.TIFF_LOG_LUV,
    34712: Variety.TIFF_JPEG_2000,
    34887: Variety.TIFF_LERC,
    34892: Variety.TIFF_LOSSY_JPEG,
    34927: Variety.TIFF_WEBP,
    34933: Variety.TIFF_PNG,
    34934: Variety.TIFF_JPEG_XR,
    50001: Variety.TIFF_WEBP,
    50002: Variety.TIFF_JPEG_XL,
    52546: Variety.TIFF_JPEG_XL,
}
_COLOURS: Final = {
    4: Variety.TIFF_MASK,
    8: Variety.TIFF_LAB,
    9: Variety.TIFF_LAB,
    10: Variety.TIFF_LAB,
    32803: Variety.TIFF_RAW,
    32844: Variety.TIFF_LOG,
    32845: Variety.TIFF_LOG,
    34892: Variety.TIFF_RAW,
}
_SAMPLE_FORMATS: Final = {
    2: Variety.TIFF_SIGNED,
    3: Variety.TIFF_FLOAT,
    4: Variety.TIFF_UNDEFINED,
    5: Variety.TIFF_COMPLEX,
    6: Variety.TIFF_COMPLEX,
}
_SUBSAMPLING: Final = 530
_ODD_SUBSAMPLINGS: Final = ((1, 4), (2, 4))
# Bits that Pillow decodes to 16.
_DEEP_GREY: Final = (12, 16)


class TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF, with its orientation not applied yet.

    `info` has `bits` and `white_is_zero` for grey of more than 8 bits. Raises `UnsupportedVariety`.
    """

    def _open(self) -> None:
        fp: Any = self.fp
        if fp.read(4) == b"MM\0+":  # Pillow takes it for a classic TIFF
            raise unsupported(Variety.TIFF_BIG_ENDIAN_BIG)
        fp.seek(0)
        super()._open()

    def _setup(self) -> None:
        tags: Any = self.tag_v2
        if not any(tag in tags for tag in _WHERE_PIXELS_ARE):
            raise SyntaxError("the directory ends before it tells where the pixels are")
        if variety := _wrong_by_pillow(tags):
            raise unsupported(variety)
        tags[TiffImagePlugin.FILLORDER] = 1  # libtiff reverses the bits
        if tags.get(TiffImagePlugin.COMPRESSION) == _OLD_JPEG and TiffImagePlugin.BITSPERSAMPLE not in tags:
            tags[TiffImagePlugin.BITSPERSAMPLE] = (8,) * tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 3)
        if _in_planes(tags) and _PREMULTIPLIED not in _extra(tags):
            tags[TiffImagePlugin.EXTRASAMPLES] = (_UNSPECIFIED,) * len(_extra(tags))  # which Pillow leaves out
        colour, bits = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO), _bits(tags)
        if bits[0] in _DEEP_GREY and colour in _GREY:
            tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = _BLACK_IS_ZERO
            self.info |= {"bits": bits[0], "white_is_zero": colour == _WHITE_IS_ZERO}
        palette = tags.get(TiffImagePlugin.COLORMAP, ())
        if max(palette, default=256) < 256:  # written by programs that take the colours for 8 bits
            tags[TiffImagePlugin.COLORMAP] = tuple(value * 257 for value in palette)
        try:
            super()._setup()
        except SyntaxError as error:
            if isinstance(error.__cause__, KeyError):  # there is no such entry in Pillow's table of layouts
                raise unsupported(_unknown_to_pillow(colour, tags)) from error
            raise
        self._size = self._tile_size  # as stored; Pillow already tells the size of the upright image

    def load_end(self) -> None:
        """Leaves the pixels as stored; Pillow would turn them upright, by XMP too, and read all of the EXIF."""
        self._size = self.im.size


def _wrong_by_pillow(tags: Any) -> Variety | None:
    """Returns the variety that Pillow decodes wrongly, or refuses without a word why; None for the others."""
    compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    if compression in _COMPRESSIONS or compression not in TiffImagePlugin.COMPRESSION_INFO:
        return _COMPRESSIONS.get(compression, Variety.TIFF_COMPRESSION)
    colour = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO)
    if colour in _COLOURS:
        return _COLOURS[colour]
    formats = [_SAMPLE_FORMATS[each] for each in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()) if each in _SAMPLE_FORMATS]
    if formats:
        return formats[0]
    bits, samples = _bits(tags), tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 3 if compression == _OLD_JPEG else 1)
    untagged = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION not in tags and compression not in _OF_KNOWN_COLOURS
    premultiplied, in_planes = _PREMULTIPLIED in _extra(tags), _in_planes(tags)
    return _first(
        (untagged, Variety.TIFF_UNTAGGED),
        (max(bits) > 16, Variety.TIFF_DEEP),
        (len(set(bits)) > 1, Variety.TIFF_MIXED_BITS),
        (samples > TiffImagePlugin.MAX_SAMPLESPERPIXEL, Variety.TIFF_SAMPLES),
        (compression == _JPEG and bits[0] != 8, Variety.TIFF_JPEG_BITS),
        (colour == _YCBCR and (samples != 3 or in_planes), Variety.TIFF_YCBCR),
        (colour == _YCBCR and tags.get(_SUBSAMPLING) in _ODD_SUBSAMPLINGS, Variety.TIFF_SUBSAMPLING),
        (colour in _GREY and samples > 2, Variety.TIFF_GREY_SAMPLES),
        (colour in _GREY and premultiplied, Variety.TIFF_PREMULTIPLIED),
        (in_planes and premultiplied and len(_extra(tags)) > 1, Variety.TIFF_LAYOUT),
        (colour == _CMYK and tags.get(_INK_SET, _CMYK_INKS) != _CMYK_INKS, Variety.TIFF_INKS),
    )


def _unknown_to_pillow(colour: int, tags: Any) -> Variety:
    """Returns the variety of what is not in Pillow's table of layouts."""
    bits, extra = _bits(tags), len(_extra(tags))
    grey = colour in _GREY
    unknown = _first(
        (colour not in _GREY + _COLOUR, Variety.TIFF_COLOURS),
        (bits[0] not in ((1, 2, 4, 8, 12, 16) if grey else (8, 16)), Variety.TIFF_BITS),
        (grey and tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1 + extra, Variety.TIFF_GREY_SAMPLES),
        (grey and extra > 0 and bits[0] != 8, Variety.TIFF_GREY_ALPHA),
    )
    return unknown or Variety.TIFF_LAYOUT


def _first(*varieties: tuple[bool, Variety]) -> Variety | None:
    return next((variety for is_so, variety in varieties if is_so), None)


def _in_planes(tags: Any) -> bool:
    return bool(tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _SEPARATE_PLANES)


def _extra(tags: Any) -> tuple[int, ...]:
    extra: tuple[int, ...] = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    return extra


def _bits(tags: Any) -> tuple[int, ...]:
    bits: tuple[int, ...] = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return bits

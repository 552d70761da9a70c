"""The varieties of the accepted formats that are not decoded, each with its words for the client."""

from enum import Enum
from typing import Final

from serve.errors import UnsupportedVariety


class Variety(Enum):
    """A format and what distinguishes the variety. A decoder's reply holds the position in `VARIETIES`."""

    JPEG_12_BIT = "JPEG", "12 bits a sample"
    JPEG_LOSSLESS = "JPEG", "lossless JPEG of other than 8 bits a sample or with arithmetic coding"
    JPEG_HIERARCHICAL = "JPEG", "hierarchical JPEG"
    JPEG_LS = "JPEG", "JPEG-LS"
    JPEG_COMPONENTS = "JPEG", "two components, or more than four"
    JPEG_SAMPLING = "JPEG", "components whose sizes are not multiples of each other"
    JPEG_LATE_HEIGHT = "JPEG", "a height that follows the pixels (DNL)"
    PNG_CGBI = "PNG", "Apple's CgBI"
    PNG_CHUNK = "PNG", "a critical chunk that the standard does not have"
    BMP_HEADER = "BMP", "the short header of OS/2"
    BMP_DEPTH = "BMP", "a depth other than 1, 4, 8, 16, 24 and 32 bits"
    BMP_BIT_FIELDS = "BMP", "bit fields other than the usual ones, such as 10 bits a colour"
    BMP_JPEG = "BMP", "JPEG data"
    BMP_PNG = "BMP", "PNG data"
    BMP_COMPRESSION = "BMP", "a compression other than run lengths of 4 or 8 bits"
    TIFF_BIG_ENDIAN_BIG = "TIFF", "BigTIFF in big-endian byte order"
    TIFF_WEBP = "TIFF", "WebP compression"
    TIFF_JPEG_2000 = "TIFF", "JPEG 2000 compression"
    TIFF_JPEG_XL = "TIFF", "JPEG XL compression"
    TIFF_JPEG_XR = "TIFF", "JPEG XR compression"
    TIFF_LOSSY_JPEG = "TIFF", "the lossy JPEG compression of DNG"
    TIFF_PNG = "TIFF", "PNG compression"
    TIFF_LERC = "TIFF", "LERC compression"
    TIFF_JBIG = "TIFF", "JBIG compression"
    TIFF_LOG_LUV = "TIFF", "SGI's LogLuv compression"
    TIFF_WORD_ALIGNED_FAX = "TIFF", "word-aligned run lengths (CCITT RLEW)"
    TIFF_COMPRESSION = "TIFF", "a compression that the server does not know"
    TIFF_UNTAGGED = "TIFF", "samples without a tag of what they mean (PhotometricInterpretation)"
    TIFF_SIGNED = "TIFF", "signed samples"
    TIFF_FLOAT = "TIFF", "floating-point samples"
    TIFF_COMPLEX = "TIFF", "complex samples"
    TIFF_UNDEFINED = "TIFF", "samples of an undefined format"
    TIFF_MIXED_BITS = "TIFF", "samples of different depths"
    TIFF_DEEP = "TIFF", "more than 16 bits a sample, such as 32-bit pixels"
    TIFF_BITS = "TIFF", "this number of bits a sample (grey may have 1, 2, 4, 8, 12 or 16, colours 8 or 16)"
    TIFF_JPEG_BITS = "TIFF", "JPEG compression of other than 8 bits a sample"
    TIFF_PREMULTIPLIED = "TIFF", "grey with premultiplied alpha"
    TIFF_GREY_ALPHA = "TIFF", "grey with alpha or other samples at other than 8 bits"
    TIFF_GREY_SAMPLES = "TIFF", "several samples that are tagged as grey"
    TIFF_SAMPLES = "TIFF", "more samples a pixel than six"
    TIFF_MASK = "TIFF", "a transparency mask in place of a picture"
    TIFF_LAB = "TIFF", "CIE Lab colours"
    TIFF_RAW = "TIFF", "raw data of a camera's sensor"
    TIFF_LOG = "TIFF", "logarithmic brightness (LogL, LogLuv)"
    TIFF_INKS = "TIFF", "inks other than CMYK"
    TIFF_YCBCR = "TIFF", "YCbCr colours in separate planes, or of other than three samples"
    TIFF_SUBSAMPLING = "TIFF", "YCbCr colours with a subsampling of 1 × 4 or 2 × 4"
    TIFF_COLOURS = "TIFF", "a colour space that the server does not know"
    TIFF_LAYOUT = "TIFF", "this TIFF layout, a combination of samples, bits and colours"


VARIETIES: Final = tuple(Variety)


def unsupported(variety: Variety) -> UnsupportedVariety:
    """Returns the error of an image of a variety."""
    format_name, words = variety.value
    return UnsupportedVariety(
        f"The {format_name} image is of a variety that is not supported: {words}. "
        "Convert it, for example to a PNG of 8 bits a colour.",
        VARIETIES.index(variety),
    )

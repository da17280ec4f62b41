"""Which images are decoded at all, whoever asks; imports nothing."""

#: Pillow knows more formats, some of which run other programs on the file (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")

#: Pixels from which an image counts as a decompression bomb (Pillow's own warning level, 256 MiB of RGB).
MAX_PIXELS = 89_478_485

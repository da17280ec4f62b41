"""LCL-Composer: Latent Compression Learning (arXiv 2406.07543) on MosaicML Composer."""

__version__ = "0.1.0"

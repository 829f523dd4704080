"""Make quantized networks forget data, and prove it on the int8 file that ships."""

__version__ = "0.1.0"

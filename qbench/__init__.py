"""qbench: what does each quantization and optimization of a text-to-video model buy and cost?"""

__version__ = "0.1.0"

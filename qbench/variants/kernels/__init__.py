"""Attention kernels that qbench brings itself."""

"""aprilcli: find defects in product photos with APRIL-GAN (Chen, Han, Zhang 2023)."""

__version__ = "0.1.0"

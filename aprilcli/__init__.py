"""aprilcli: find defects in images of products with APRIL-GAN (Chen, Han, Zhang 2023).

>>> from aprilcli import Detector
>>> detector = Detector.load(object_name="washer")                     # doctest: +SKIP
>>> detector.detect_file("images/0001.png").score                      # doctest: +SKIP
0.73
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aprilcli.core.detector import Detector

__version__ = "0.1.0"
__all__ = ["Detector", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on demand, so `aprilcli --help` does not load torch.
    if name == "Detector":
        from aprilcli.core.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

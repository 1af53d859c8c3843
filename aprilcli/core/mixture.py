"""Whether a folder looks like images of several parts, which should not be compared with each other."""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

LEAST_SHARE = 0.1  # of the images, in the smaller of the two groups: a few odd images are not another part
GAP = 1.4  # five folders of one part had 1.24 at most; pairs of different materials mostly 2 to 4


def is_mixed(appearances: torch.Tensor) -> bool:
    """Return whether appearances [n, ΣCv] (see ``core/recognition.py``) form two groups with a gap between them.

    The gap, the smallest distance between the groups, is at least ``GAP`` times the largest step within a group
    (single-linkage clustering on the lengths of the differences). Parts of the same material may pass for one.
    """
    if len(appearances) < 4:
        return False
    distances = (2 - 2 * appearances @ appearances.T).clamp(min=0).sqrt().fill_diagonal_(0).double().cpu().numpy()
    merged = linkage(squareform((distances + distances.T) / 2, checks=False), "single")
    gap, step = merged[-1, 2], merged[-2, 2]
    share = np.bincount(fcluster(merged, 2, "maxclust"))[1:].min() / len(appearances)
    return bool(gap > 0 and share >= LEAST_SHARE and gap >= GAP * step)

"""Weights that a training begins with: tensors to copy, and the network of a teacher."""

from __future__ import annotations

import os

from torch import Tensor

from recombinator.data.table import FaceTable
from recombinator.keypoints import check_same_keypoints
from recombinator.models.base import KeypointNet
from recombinator.weights.files import score_map_weights

PathLike = str | os.PathLike[str]


def copy_matching(tensors: dict[str, Tensor], net: KeypointNet) -> list[str]:
    """Load tensors of another network into `net` where name and shape agree; return the names loaded."""
    own, tensors = net.state_dict(), net.adapt(tensors)
    matching = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    net.load_state_dict(matching, strict=False)
    return list(matching)


def load_teacher(weights: PathLike | None, table: FaceTable) -> KeypointNet | None:
    """Load the network whose predictions are learned, and check that its keypoints are those of the table."""
    if weights is None:
        return None
    loaded = score_map_weights(weights)
    check_same_keypoints(table.info.keypoints, loaded.keypoints, str(weights))
    return loaded.net

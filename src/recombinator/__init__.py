"""Recombinator: keypoints found precisely by Recombinator Networks (Honari et al., CVPR 2016).

    import recombinator
    faces = recombinator.load("rcn-6-mtfl").predict("photo.jpg")

Importing this costs nothing; torch is loaded when a name below is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recombinator.errors import InputError

if TYPE_CHECKING:
    from recombinator.evaluation import evaluate
    from recombinator.hub import from_pretrained, push_to_hub
    from recombinator.models import create_model, model_names
    from recombinator.predict.face import Face
    from recombinator.predict.predictor import Predictor, load
    from recombinator.training.run import train

__version__ = "0.1.0"
__all__ = [
    "Face", "InputError", "Predictor", "create_model", "evaluate", "from_pretrained", "load", "model_names",
    "push_to_hub", "train",
]  # fmt: skip

_HOMES = {
    "Face": "predict.face", "Predictor": "predict.predictor", "load": "predict.predictor",
    "create_model": "models", "model_names": "models", "evaluate": "evaluation", "train": "training.run",
    "from_pretrained": "hub", "push_to_hub": "hub",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"recombinator.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'recombinator' has no attribute {name!r}")

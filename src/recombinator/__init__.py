"""Recombinator Networks: precise keypoint localization, trained and run on an ordinary CPU.

    import recombinator

    predictor = recombinator.load("rcn-6-mtfl")
    for face in predictor.predict("photo.jpg"):
        print(face["left_eye"], face.confidence)

Names below are imported when first used, so that `import recombinator` takes milliseconds and prediction needs no
torch. Points are x, y in pixels of the image; the center of the first pixel is at (0.5, 0.5). "left" and "right" are
those of the image, not of the person. Messages go to loggers below "recombinator";
`logging.basicConfig(level="INFO")` shows them.
"""

from typing import TYPE_CHECKING, Any

from recombinator.utils.errors import import_optional
from recombinator.utils.version import __version__

if TYPE_CHECKING:
    from recombinator.data.readers.afw import prepare_afw
    from recombinator.data.readers.mtfl import prepare_mtfl
    from recombinator.data.readers.own import prepare_points
    from recombinator.data.readers.synthetic import prepare_synthetic
    from recombinator.data.readers.w300 import prepare_300w
    from recombinator.deploy.hub import from_pretrained, push_to_hub
    from recombinator.deploy.onnx import export
    from recombinator.evaluation.calibration import calibrate
    from recombinator.evaluation.tables import Evaluation, compare, evaluate
    from recombinator.fit.run import fit
    from recombinator.keypoints import KeypointSet
    from recombinator.models import create_model, model_names
    from recombinator.predict.predictor import Predictor, load
    from recombinator.predict.result import Face, Faces
    from recombinator.training.recipe import Recipe
    from recombinator.training.run import train
    from recombinator.transforms.augment import Augment
    from recombinator.utils.errors import InputError
    from recombinator.weights.files import Weights, load_weights, save_weights
    from recombinator.weights.shipped import shipped_models

_HOMES = {
    "load": "predict.predictor", "Predictor": "predict.predictor", "Face": "predict.result", "Faces": "predict.result",
    "shipped_models": "weights.shipped", "from_pretrained": "deploy.hub", "push_to_hub": "deploy.hub",
    "fit": "fit.run", "train": "training.run", "Recipe": "training.recipe", "Augment": "transforms.augment",
    "evaluate": "evaluation.tables", "Evaluation": "evaluation.tables", "compare": "evaluation.tables",
    "calibrate": "evaluation.calibration", "export": "deploy.onnx",
    "create_model": "models", "model_names": "models",
    "Weights": "weights.files", "load_weights": "weights.files", "save_weights": "weights.files",
    "prepare_mtfl": "data.readers.mtfl", "prepare_300w": "data.readers.w300", "prepare_afw": "data.readers.afw",
    "prepare_points": "data.readers.own", "prepare_synthetic": "data.readers.synthetic",
    "KeypointSet": "keypoints", "InputError": "utils.errors",
}  # fmt: skip

__all__ = [
    "Augment", "Evaluation", "Face", "Faces", "InputError", "KeypointSet", "Predictor", "Recipe", "Weights",
    "__version__", "calibrate", "compare", "create_model", "evaluate", "export", "fit", "from_pretrained", "load",
    "load_weights", "model_names", "prepare_300w", "prepare_afw", "prepare_mtfl", "prepare_points", "prepare_synthetic",
    "push_to_hub", "save_weights", "shipped_models", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_optional(f"recombinator.{_HOMES[name]}", f"recombinator.{name}"), name)
    raise AttributeError(f"module 'recombinator' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

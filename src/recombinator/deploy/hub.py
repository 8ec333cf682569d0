"""Share networks on the Hugging Face Hub: one repository per network, with its weights, its graph and a model card."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from recombinator.predict.predictor import Predictor, load
from recombinator.utils.errors import InputError, first_line, import_optional

GRAPH, WEIGHTS = "model.onnx", "model.safetensors"


def _hub() -> Any:
    return import_optional("huggingface_hub", "the Hub")


def from_pretrained(repository: str, *, revision: str | None = None, engine: str | None = None) -> Predictor:
    """Load a network that `push_to_hub` uploaded. The file stays in the Hub's own cache.

    Args:
        repository: "owner/name".
        revision: Branch, tag or commit.
        engine: As in `load`. "torch" downloads the weights, anything else the graph.

    Returns:
        A Predictor.

    Raises:
        InputError: The repository or its file does not exist or cannot be reached, or huggingface_hub is not installed.
    """
    hub = _hub()
    try:
        path = hub.hf_hub_download(repository, WEIGHTS if engine == "torch" else GRAPH, revision=revision)
    except Exception as error:  # the Hub's own errors, and those of the network below it
        raise InputError(f"{repository}: not available from the Hub ({first_line(error)})") from None
    return load(path, engine=engine)


def push_to_hub(
    weights: str | os.PathLike[str], repository: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload a network as safetensors and as an ONNX graph, with a card that says how it was trained.

    Args:
        weights: Shipped name, weights file or run folder.
        repository: "owner/name"; created if it does not exist.
        private: Whether a new repository is private.
        token: Access token of the Hub; by default that of `hf auth login`.

    Returns:
        The repository's address.

    Raises:
        InputError: The network has no graph, the Hub refused the upload, or huggingface_hub is not installed.
    """
    from recombinator.deploy.onnx import export
    from recombinator.weights.files import load_weights, save_weights

    hub, loaded = _hub(), load_weights(weights)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(folder / WEIGHTS, loaded)
        export(weights, folder / GRAPH)
        card = _card(repository, str(loaded.net.config["name"]), loaded.training)
        (folder / "README.md").write_text(card, encoding="utf-8")
        try:
            hub.create_repo(repository, private=private, token=token, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=str(folder), token=token)
        except Exception as error:
            raise InputError(f"{repository}: the Hub refused the upload ({first_line(error)})") from None
    return f"https://huggingface.co/{repository}"


def _card(repository: str, model: str, training: dict[str, Any]) -> str:
    lines = []
    for part in [training[k] for k in ("image", "denoiser")] if model == "joint" else [training]:
        about = [f"{k} {part[k]}" for k in ("dataset", "images", "epoch", "seed", "commit", "date") if k in part]
        lines.append(f"- {part.get('model', {}).get('name', model)}: {', '.join(about) or 'training unknown'}")
    call = f'faces = recombinator.from_pretrained("{repository}").predict("photo.jpg")'
    use = f"```python\nimport recombinator\n\n{call}\n```"
    head = "---\nlibrary_name: recombinator\ntags: [keypoint-detection, landmarks]\n---\n"
    text = "A keypoint localization network for Recombinator (`pip install recombinator-networks`)."
    return "\n".join([head, f"# {model}", "", text, "", use, "", *lines, ""])

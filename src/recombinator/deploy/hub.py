"""Networks on the Hugging Face Hub: one repository a network, with its weights, its graph and a card."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from recombinator.predict.predictor import Predictor, load
from recombinator.utils.errors import InputError, remedy

GRAPH, WEIGHTS = "model.onnx", "model.safetensors"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"the Hub needs huggingface_hub; {remedy('hub')}") from None
    return huggingface_hub


def from_pretrained(repository: str, *, revision: str | None = None, engine: str | None = None) -> Predictor:
    """The network that `push_to_hub` put into `repository` ("owner/name"), kept in the Hub's own cache.

    revision: a branch, tag or commit. engine: as in `load`; "torch" takes the weights, anything else the graph. Raises
    InputError where there is no such repository or file, or no way to it.
    """
    hub = _hub()
    try:
        path = hub.hf_hub_download(repository, WEIGHTS if engine == "torch" else GRAPH, revision=revision)
    except Exception as error:  # the hub's own errors, and those of the network below it
        raise InputError(f"{repository}: cannot be had from the Hub ({_words(error)})") from None
    return load(path, engine=engine)


def push_to_hub(
    weights: str | os.PathLike[str], repository: str, *, private: bool = False, token: str | None = None
) -> str:
    """Uploads weights (a shipped name, a file, a run's folder) as safetensors and as an ONNX graph, with a card that
    says how they were trained; returns the address. `token`: the Hub's, else that of `hf auth login`. Raises InputError
    where the weights have no graph or the Hub refuses them."""
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
            raise InputError(f"{repository}: the Hub refused it ({_words(error)})") from None
    return f"https://huggingface.co/{repository}"


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _card(repository: str, model: str, training: dict[str, Any]) -> str:
    lines = []
    for part in [training[k] for k in ("image", "denoiser")] if model == "joint" else [training]:
        about = [f"{k} {part[k]}" for k in ("dataset", "images", "epoch", "seed", "commit", "date") if k in part]
        lines.append(f"- {part.get('model', {}).get('name', model)}: {', '.join(about) or 'training unknown'}")
    call = f'faces = recombinator.from_pretrained("{repository}").predict("photo.jpg")'
    use = f"```python\nimport recombinator\n\n{call}\n```"
    head = "---\nlibrary_name: recombinator\ntags: [keypoint-detection, landmarks]\n---\n"
    return "\n".join([head, f"# {model}", "", "A keypoint localizer by Recombinator.", "", use, "", *lines, ""])

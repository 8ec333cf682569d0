"""Networks on the Hugging Face Hub: one repository a network, with its weights, its graph and a card."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from recombinator.errors import InputError
from recombinator.predict.predictor import Predictor, load

GRAPH, WEIGHTS = "model.onnx", "model.safetensors"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError("the Hub needs huggingface_hub: pip install 'recombinator[hub]'") from None
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
        raise InputError(f"{repository}: cannot be had from the Hub ({str(error).splitlines()[0]})") from None
    return load(path, engine=engine)


def push_to_hub(
    weights: str | os.PathLike[str], repository: str, *, private: bool = False, token: str | None = None
) -> str:
    """Uploads weights (a shipped name, a file, a run's folder) as safetensors and as an ONNX graph, with a card that
    says how they were trained; returns the address. `token`: the Hub's, else that of `hf auth login`. Raises InputError
    where the weights have no graph or the Hub refuses them."""
    from recombinator.export import export
    from recombinator.weights import load_weights, save_weights

    hub, loaded = _hub(), load_weights(weights)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(folder / WEIGHTS, loaded)
        export(folder / WEIGHTS, folder / GRAPH)
        (folder / "README.md").write_text(_card(loaded.net.config["name"], loaded.training), encoding="utf-8")
        try:
            hub.create_repo(repository, private=private, token=token, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=str(folder), token=token)
        except Exception as error:
            raise InputError(f"{repository}: the Hub refused it ({str(error).splitlines()[0]})") from None
    return f"https://huggingface.co/{repository}"


def _card(model: Any, training: dict[str, Any]) -> str:
    told = {k: training[k] for k in ("dataset", "images", "epoch", "seed", "commit", "date") if k in training}
    lines = [f"- {k}: {v}" for k, v in told.items()]
    use = (
        '```python\nimport recombinator\n\nfaces = recombinator.from_pretrained("OWNER/NAME").predict("photo.jpg")\n```'
    )
    head = "---\nlibrary_name: recombinator\ntags: [keypoint-detection, landmarks]\n---\n"
    return "\n".join([head, f"# {model}", "", "A keypoint localiser by Recombinator.", "", use, "", *lines, ""])

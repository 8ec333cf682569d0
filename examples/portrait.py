"""Draw the picture of the README: 5 and 68 keypoints on a portrait, colored by confidence.

python examples/portrait.py docs/images/grace_hopper.png [PHOTO]
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image

import recombinator

NETWORKS = ("rcn-6-mtfl", "joint-68-300w")
COLORS = LinearSegmentedColormap.from_list("confidence", ["#d55e00", "#f0e442", "#009e73"])  # safe for the color-blind


def portrait(out: Path, photo: Path) -> None:
    """Write a picture with one panel per network and a color bar."""
    image = np.asarray(Image.open(photo).convert("RGB"))
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.9), dpi=110, layout="constrained")
    for axes, name in zip(panels, NETWORKS, strict=True):
        face = recombinator.load(name).predict(image)[0]
        x, y, side = face.box
        axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))  # pixel centers at integer + 0.5
        for path in face.keypoints.lines:
            axes.plot(*face.points[list(path)].T, color="white", linewidth=0.8, alpha=0.6)
        size = 90 if len(face.points) <= 10 else 18
        dots = axes.scatter(
            *face.points.T, c=face.confidence, s=size, cmap=COLORS, vmin=0.5, vmax=1, edgecolors="white", linewidths=0.8
        )
        margin = 0.08 * side
        axes.set(xlim=(x - margin, x + side + margin), ylim=(y + side + margin, y - margin), xticks=[], yticks=[])
        axes.set_title(f"{name}: {len(face.points)} keypoints", fontsize=11)
    bar = figure.colorbar(dots, ax=panels, shrink=0.9, extend="min")
    bar.set_label("confidence (probability)")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    plt.close(figure)
    Image.open(out).convert("RGB").quantize(256).save(out, optimize=True)  # a third of the size


if __name__ == "__main__":
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    portrait(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else hopper)

"""`train --list-settings`: what `--set` can change."""

from __future__ import annotations

from collections.abc import Iterator

RECIPE_SETTINGS = {
    "name": "name of the recipe in result files",
    "epochs": "passes over the training images",
    "batch": "images per step",
    "optimizer": "adamw or adadelta",
    "learning_rate": "highest learning rate (AdamW)",
    "weight_decay": "of convolution weights (AdamW)",
    "warmup_steps": "steps over which the rate rises",
    "decay": "share of the epochs, at the end, over which the rate falls",
    "loss": "softmax (Eq. 2) or l2 (footnote 4)",
    "sigma": "spread of the target in cells; 0: one cell",
    "outside": "points that left the crop: ignore or clamp",
    "shuffle": "new order of the images in each epoch",
    "balance": "attribute of the table whose rare classes are drawn more often",
    "revive": "reinitialize dead channels before each epoch until the rate falls",
    "precision": "auto, bfloat16 or float32",
    "memory": "GB of decoded crops to keep in memory; larger tables stay on disk",
    "ema": "decay per step of the moving average of the weights that is kept; 0: none",
    "patience": "stop after N epochs without improvement; 0: never",
    "distil": "share of the loss learned from --teacher",
    "corrupt": "denoiser: corrupted points per face",
    "corruption": "denoiser: uniform, or mixed with the errors of --errors-of",
    "auxiliary": "tcdcn: weight of the loss of each attribute",
    "judged": "denoiser: points that count in the loss, corrupted or all",
    "shift": "translation, +- share of the crop's side",
    "zoom": "scaling, +- share",
    "degrees": "rotation, +- degrees; also --rotation",
    "turned": "share of the images rotated by any angle instead",
    "stretch": "change of the aspect ratio, up to a factor of 1 + this",
    "flip": "mirror half of the images; also --flip",
    "occlude": "smallest and largest side of a black rectangle, pixels of 80",
    "gamma": "brightness curve, +- log2 of the exponent",
    "blur": "largest Gaussian sigma in pixels, half of the images",
    "noise": "largest standard deviation in gray levels, half of the images",
}

# option of the network -> (default, meaning)
NETWORK_SETTINGS = {
    "size": ("80", "side of the input in pixels"),
    "channels": ("1", "1 for gray, 3 for RGB (tables prepared with --color)"),
    "mask": ("all", "branches to keep, coarsest first, such as 1,0,0,1"),
    "upsampling": ("tile", "tile, bilinear or learned (RCN)"),
    "norm": ("image", "contrast normalization: local by image or batch, or global"),
    "width": ("1.0", "factor on all widths; denoisers: the width (64, lite 96)"),
    "alpha": ("map", "SumNet: one weight per map or per pixel"),
    "fold": ("1", "RCN: N x N cells enter the finest level as channels (rcn-6-fast: 2)"),
    "form": ("code", "RCN: code or twice (rcn-4's default); 68 points: code or text"),
    "kernel": ("45", "denoiser: side of its convolutions, odd"),
    "layers": ("4", "denoiser-lite: layers"),
    "heads": ("4", "denoiser-lite: attention heads"),
    "parts": ("2", "denoiser-lite: components of the mixture"),
}

_TYPES = {"tuple[int, int]": "int,int", "tuple[int, ...]": "int,..."}


def _text(value: object) -> str:
    """Write a value as --set reads it; the empty text as -."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value) or "-"


def list_settings() -> Iterator[str]:
    """Yield one line per setting: name, type, default, meaning."""
    from recombinator.training.recipe import FAST, setting_types

    rows = [(name, _text(getattr(FAST, name, getattr(FAST.augment, name, ""))), RECIPE_SETTINGS[name])
            for name in RECIPE_SETTINGS]  # fmt: skip
    types = setting_types()
    for title, part in (
        ("Recipe and augmentation (defaults: those of the recipe fast)", rows),
        ("Network (defaults: those of the network)", [(n, *about) for n, about in NETWORK_SETTINGS.items()]),
    ):
        yield f"{title}:"
        for name, default, meaning in part:
            yield f"  {name:13} {_TYPES.get(types[name], types[name]):7} {default:9} {meaning}"

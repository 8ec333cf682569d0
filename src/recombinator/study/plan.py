"""The paper's experiments as data: networks, options and recipes, with the errors that the paper reports for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MASKS = ("1000", "0100", "1100", "0010", "0001", "0011", "0111", "1001", "1111")  # coarsest branch first
OCCLUDED: dict[str, Any] = {"occlude": (20, 50)}
PLAIN: dict[str, Any] = {"occlude": (0, 0)}
UPRIGHT: dict[str, Any] = {**PLAIN, "degrees": 10, "turned": 0.0, "shift": 0.03, "zoom": 0.03}
HALF_HOUR: dict[str, Any] = {  # the settings of rcn-6-mtfl, with smaller rectangles for the shorter time
    "occlude": (10, 30), "degrees": 20, "turned": 0.04, "balance": "pose", "revive": True, "ema": 0.999,
    "learning_rate": 2e-3, "decay": 0.7, "warmup_steps": 300, "epochs": 96,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Name of the run; results/STUDY/NAME.json holds its result.
        model: Name of the network.
        options: Options of `create_model`.
        changes: Changes to the recipe's fields.
        paper: Errors in percent that the paper reports: AFLW, AFW; None where it reports none.
        part: Train on one of this many parts of the images, for as many times the epochs: the same number of steps.
        same: "STUDY/RUN" with the same network and recipe, whose result is taken; "" for none.
    """

    name: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    paper: tuple[float, float] | None = None
    part: int = 1
    same: str = ""


@dataclass(frozen=True)
class Study:
    """Trainings that are compared on one test table, with equal epochs unless a run's changes say otherwise.

    Attributes:
        title: What the study compares.
        runs: Its trainings.
        epochs: Epochs of each training, chosen for two CPU cores.
        shared: Changes to the recipe of all runs.
        also: "STUDY/RUN" of other studies, with equal epochs, that the study's table also shows.
        watched: Measure the test error of the best weights so far after every epoch. The training's clock does not
            count it, and it decides nothing.
    """

    title: str
    runs: tuple[Run, ...]
    epochs: int
    # chosen on validation among 2e-3 and 1e-3, with and without new weights for dead channels (docs/log.md)
    shared: dict[str, Any] = field(default_factory=lambda: {"flip": False, "learning_rate": 2e-3})
    also: tuple[str, ...] = ()
    watched: bool = False


# Table 1: errors on AFLW and AFW by branch mask
_TABLE_1 = {
    "sumnet-4": {
        "1000": (10.54, 10.63), "0100": (11.28, 11.43), "1100": (9.47, 9.65), "0010": (16.14, 16.35),
        "0001": (45.39, 47.97), "0011": (13.90, 14.14), "0111": (7.91, 8.22), "1001": (6.91, 7.51),
        "1111": (6.44, 6.78),
    },
    "rcn-4": {
        "1000": (10.61, 10.89), "0100": (11.56, 11.87), "1100": (9.31, 9.44), "0010": (15.78, 15.91),
        "0001": (46.87, 48.61), "0011": (12.67, 13.53), "0111": (7.62, 7.95), "1001": (6.79, 7.27),
        "1111": (6.37, 6.43),
    },
}  # fmt: skip
# Table 2: errors on AFLW and AFW by model, and whether it was trained with occlusion
_TABLE_2 = {
    ("sumnet-4", False): (6.44, 6.78), ("sumnet-5", False): (6.42, 6.53), ("sumnet-6", False): (6.34, 6.48),
    ("rcn-4", False): (6.37, 6.43), ("rcn-5", False): (6.11, 6.05), ("rcn-6", False): (6.00, 5.98),
    ("rcn-7", False): (6.17, 6.12), ("sumnet-5", True): (6.29, 6.34), ("sumnet-6", True): (6.27, 6.33),
    ("rcn-5", True): (5.65, 5.44), ("rcn-6", True): (5.60, 5.36), ("rcn-7", True): (5.76, 5.55),
    ("rcn-6-skip", True): (5.63, 5.56),
}  # fmt: skip

STUDIES: dict[str, Study] = {
    "table1": Study(
        "Table 1: branch masks (coarsest first), four branches, no occlusion",
        tuple(
            Run(
                f"{model}-{mask}",
                model,
                {"mask": tuple(int(m) for m in mask)},
                PLAIN,
                _TABLE_1[model][mask],
                same=f"table2/{model}" if mask == "1111" else "",
            )
            for mask in MASKS
            for model in _TABLE_1
        ),
        epochs=30,
    ),
    "table2": Study(
        "Table 2: number of branches, occlusion, skip connections",
        tuple(
            Run(f"{model}{'-occlusion' * occluded}", model, {}, OCCLUDED if occluded else PLAIN, paper)
            for (model, occluded), paper in _TABLE_2.items()
        ),
        epochs=30,
    ),
    "table3": Study(
        "Table 3: TCDCN, with and without its attributes, and SumNet and RCN",
        (
            # a small regression network: validation chose its augmentation, attribute weight and learning rate
            Run("tcdcn", "tcdcn", {}, {**UPRIGHT, "epochs": 200, "auxiliary": 0.001}, (7.60, 7.87)),
            Run("tcdcn-alone", "tcdcn-alone", {}, {**UPRIGHT, "epochs": 200}),
        ),
        epochs=30,
        also=("table2/sumnet-6-occlusion", "table2/rcn-6-occlusion"),
    ),
    "alternatives": Study(
        "Variants that the paper mentions without figures (footnotes 3, 4, 8; Eq. 1)",
        (
            Run("rcn-5-bilinear", "rcn-5", {"upsampling": "bilinear"}, PLAIN),
            Run("rcn-5-l2", "rcn-5", {}, {**PLAIN, "loss": "l2"}),
            Run("rcn-5-rgb", "rcn-5", {"channels": 3}, PLAIN),
            Run("rcn-5-global", "rcn-5", {"norm": "global"}, PLAIN),
            Run("sumnet-5-pixel", "sumnet-5", {"alpha": "pixel"}, PLAIN),
        ),
        epochs=30,
        also=("table2/rcn-5", "table2/sumnet-5"),
    ),
}
STUDIES["convergence"] = Study(
    "RCN and SumNet: error by epochs and by seconds, constant learning rate, no occlusion",
    (Run("rcn-6", "rcn-6", {}, PLAIN), Run("sumnet-6", "sumnet-6", {}, PLAIN)),
    epochs=12,
    shared={"flip": False, "turned": 0.0, "learning_rate": 1e-3, "decay": 0.0},
    watched=True,
)
STUDIES["speedrun"] = Study(
    "Training time from random weights: to 7 % on AFLW, and to the paper's error within half an hour",
    (
        *(
            Run(f"rcn-{branches}-{epochs}-epochs", f"rcn-{branches}", {}, {**PLAIN, "epochs": epochs})
            for branches, epochs in ((5, 2), (5, 4), (6, 2), (6, 4))
        ),
        Run("rcn-6-half-hour", "rcn-6", {}, HALF_HOUR),
    ),
    epochs=4,
    shared={"flip": False, "turned": 0.0, "learning_rate": 4e-3, "decay": 1.0, "warmup_steps": 100},
)
# how the error depends on the number of training images, on 300-W's tables
STUDIES["images"] = Study(
    "68 keypoints, rcn-68 at half width: error by number of training images, with equal steps",
    # At full width, two cores cannot run enough steps for the number of images to matter.
    tuple(
        Run(f"rcn-68-{name}", "rcn-68", {"width": 0.5}, part=n) for name, n in (("quarter", 4), ("half", 2), ("all", 1))
    ),
    epochs=20,
    shared={"learning_rate": 2e-3, "batch": 16, "degrees": 30, "turned": 0.0, "flip": True},
)


def run_at(place: str) -> tuple[str, Run]:
    """Return the study's name and the run for "STUDY/RUN"."""
    study, _, name = place.partition("/")
    return study, next(r for r in STUDIES[study].runs if r.name == name)


# Table 3's other rows, which the paper quotes: errors on AFLW and AFW; not run here
QUOTED = {
    "TSPM": (15.9, 14.3), "CDM": (13.1, 11.1), "ESR": (12.4, 10.4), "RCPR": (11.6, 9.3), "SDM": (8.5, 8.8),
    "TCDCN": (8.0, 8.2),
}  # fmt: skip
# Table 4 on the Common subset: errors of 68 and of 49 keypoints; the paper's own models, and those it quotes
QUOTED_COMMON: dict[str, tuple[float | None, float | None]] = {
    "CDM": (10.10, None), "DRMF": (6.65, None), "RCPR": (6.18, None), "GN-DPM": (5.78, None), "SDM": (5.57, None),
    "CFAN": (5.50, None), "ESR": (5.28, None), "LBF": (4.95, None), "TCDCN": (4.80, None), "CFSS": (4.73, None),
    "PO-CR": (None, 4.00), "rcn-68": (4.70, 2.64), "joint": (4.67, 2.59),
}  # fmt: skip

# figure -> title, and the networks whose predictions it shows: names of weights, or STUDY/RUN of trainings
_FOUR = ("table2/sumnet-5", "table2/sumnet-5-occlusion", "table2/rcn-5", "table2/rcn-5-occlusion")
_OCCLUDED = ("table2/sumnet-6-occlusion", "table2/rcn-6-occlusion")
FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fig1": ("the architectures of SumNet and RCN", ()),
    "fig2": ("RCN, denoiser and their sum", ()),
    "fig3": ("easy to hard images, without and with occlusion in training", _FOUR),
    "fig4": ("expression, light, glasses", _OCCLUDED),
    "fig5": ("RCN without and with occlusion in training", ("table2/rcn-6", "table2/rcn-6-occlusion")),
    "fig6": ("TCDCN, SumNet and RCN on hard images", ("table3/tcdcn", *_OCCLUDED)),
    "fig7": ("RCN, denoiser and joint model", ("joint-68-300w",)),
    "figS1": ("score maps of SumNet's branches and of RCN", ("table2/sumnet-4", "table2/rcn-4")),
    "figS2": ("error by difficulty, four models", _FOUR),
}

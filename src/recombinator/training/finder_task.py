"""The task of a finder: scenes of whole images, the loss of its maps, and what it finds in validation scenes."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from recombinator.data.crops import RULES
from recombinator.data.table import FaceTable
from recombinator.models import Finder
from recombinator.models.base import KeypointNet
from recombinator.models.finder import REFERENCE, STRIDE
from recombinator.predict.finder import SMALLEST, Found, decode_maps, suppressed
from recombinator.training.base import Task
from recombinator.training.recipe import Recipe, bfloat16_is_fast
from recombinator.transforms.scenes import Album, draw_scenes
from recombinator.transforms.squares import oriented_squares
from recombinator.utils.errors import InputError

SPREAD = 0.07  # standard deviation of the target around a center, in sides of the object
LEAST_SPREAD = 0.5  # the same in cells
NEAR = 1.0  # cells around a center, to each side, that learn the square
SURE = 0.5  # score from which a detection may be an object that was not annotated
UNSURE_WEIGHT = 0.1  # weight of such a detection in the loss, with the recipe's `unlabeled`
SQUARE_WEIGHT = 1.0  # weight of the squares in the loss
VALIDATION_SCENES, SCENES_PER_IMAGE = 512, 16  # at most
THRESHOLDS = np.arange(0.1, 0.75, 0.05)
FOUND_WITHIN = 0.25  # distance of the centers, in sides
FOUND_SIZES = 1.5  # ratio of the sides


def upright_template(table: FaceTable, rule: str) -> np.ndarray:
    """Return the (K, 2) mean points of upright objects relative to their square, from 0 to 1."""
    known = table.mask.sum(axis=1) >= 2
    points, squares = (
        table.points[known].astype(float),
        oriented_squares(table.points[known].astype(float), table.mask[known], RULES[rule]),
    )
    turn = np.radians(squares[:, 3])
    back = np.stack([np.stack([np.cos(turn), np.sin(turn)], 1), np.stack([-np.sin(turn), np.cos(turn)], 1)], 1)
    relative = (points - squares[:, None, :2]) @ back.transpose(0, 2, 1) / squares[:, None, 2:3] + 0.5
    mean: np.ndarray = np.nanmean(np.where(table.mask[known][..., None], relative, np.nan), axis=0)
    return mean


def group(table: FaceTable, rule: str) -> tuple[Tensor, Tensor]:
    """Return every image of a table of whole images once, with the squares of its objects.

    Args:
        table: One row per object; rows of one image have the same file. A row without a known point is an image
            without objects.
        rule: Crop rule of the localizer.

    Returns:
        (N, C, S, S) uint8 images and (N, M, 4) squares; see `Album`.

    Raises:
        InputError: The table has crops and not whole images.
    """
    if not RULES[table.info.crop_rule].whole:
        raise InputError(
            f"{table.info.dataset}: a finder learns from whole images; its table holds crops; prepare --whole"
        )
    known = table.mask.sum(axis=1) >= 2
    squares = np.full((len(table), 4), np.nan)
    squares[known] = oriented_squares(table.points[known].astype(float), table.mask[known], RULES[rule])
    objects: dict[str, dict[bytes, int]] = {}
    for i, file in enumerate(table.files):  # an object that is listed twice, as in a repeated table, counts once
        objects.setdefault(file, {}).setdefault(table.points[i].tobytes(), i)
    rows = {file: list(members.values()) for file, members in objects.items()}
    grouped = np.full((len(rows), max(map(len, rows.values())), 4), np.nan, np.float32)
    for n, members in enumerate(rows.values()):
        grouped[n, : len(members)] = squares[members]
    first = [members[0] for members in rows.values()]
    return torch.from_numpy(table.images[np.array(first)]), torch.from_numpy(grouped)


class Finding(Task):
    """Presence and squares of objects in scenes: finders.

    The presence is learned with the focal loss of CornerNet (Law and Deng, ECCV 2018), the square by its absolute
    error in the cells around an object's center, as in CenterNet (Zhou et al., 2019).
    """

    def __init__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> None:  # fmt: skip
        self.net, self.valid, self.recipe, self.size, self.device = net, valid, recipe, net.size, device
        self.finder = cast(Finder, net)
        self.crop_rule, self.template = self.finder.rule, upright_template(table, self.finder.rule)
        images, squares = group(table, self.finder.rule)
        self.album = Album.of(images.to(device), squares.to(device))
        number = {file: n for n, file in enumerate(dict.fromkeys(table.files))}
        self.image_of = torch.tensor([number[file] for file in table.files])  # of a row of the table
        images, squares = group(valid, self.finder.rule)
        held_out = Album.of(images.to(device), squares.to(device))
        generator = Generator().manual_seed(0)
        count = min(VALIDATION_SCENES, SCENES_PER_IMAGE * len(held_out))
        index = torch.randint(len(held_out), (count,), generator=generator)
        scenes = draw_scenes(held_out, index, self.size, recipe.augment, generator)
        self.scenes = scenes.pixels.round().byte(), scenes.objects.cpu().numpy()
        whole = F.interpolate(images[:VALIDATION_SCENES].float(), size=(self.size,) * 2, mode="area")
        self.whole = (
            whole.byte().to(device),
            squares[:VALIDATION_SCENES].numpy()
            * (np.array([1, 1, 1, images.shape[-1] / self.size]) * self.size / images.shape[-1]),
        )
        self.bfloat16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and bfloat16_is_fast(device))
        if squares.isfinite().sum() == 0:
            raise InputError(f"{valid.info.dataset}: no validation image has an object")

    def inputs(self, index: Tensor, generator: Generator) -> Tensor:
        return draw_scenes(self.album, self.image_of[index], self.size, self.recipe.augment, generator).pixels

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        scenes = draw_scenes(self.album, self.image_of[index], self.size, self.recipe.augment, generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            maps = self.net(scenes.pixels)
        return finding_loss(maps.float(), scenes.objects, scenes.annotated if self.recipe.unlabeled else None)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the share of objects that are missed or found where there is none, in percent of the objects.

        "valid" counts scenes drawn as in training, always the same, at the best threshold, which the network keeps.
        "clean" counts the images as they are, at that threshold.
        """
        self.net.eval()
        rows = [self._mistakes(*self.scenes, float(t)) for t in THRESHOLDS]
        best = int(np.argmin([missed + false for missed, false in rows]))
        self.finder.threshold.fill_(float(THRESHOLDS[best]))
        missed, false = self._mistakes(*self.whole, float(THRESHOLDS[best]))
        return {
            "valid": sum(rows[best]), "valid_missed": rows[best][0], "clean": missed + false, "clean_missed": missed,
            "threshold": float(THRESHOLDS[best]),
        }  # fmt: skip

    def _mistakes(self, pixels: Tensor, objects: np.ndarray, threshold: float) -> tuple[float, float]:
        key = id(pixels), self._version()
        if getattr(self, "_key", None) != key:
            self._key, self._maps = key, torch.cat([self.net(part.float()) for part in pixels.split(64)]).cpu().numpy()
        total = missed = false = 0
        for maps, true in zip(self._maps, objects, strict=True):
            found = suppressed(decode_maps(maps, threshold))
            there = true[np.isfinite(true).all(axis=1) & (true[:, 2] >= SMALLEST)]
            hit = matched(found, there)
            total, missed = total + len(there), missed + int((~hit[0]).sum())
            # a detection of an object that is too small to count is no mistake
            tiny = true[np.isfinite(true).all(axis=1)]
            false += int((~matched(found, tiny)[1]).sum())
        return 100 * missed / max(total, 1), 100 * false / max(total, 1)

    def _version(self) -> int:
        return sum(p._version for p in self.net.parameters())


def matched(found: Found, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match found squares with true ones.

    Args:
        found: Detections.
        true: (M, 4) squares.

    Returns:
        (M,) whether each object was found, and (N,) whether each detection is an object.
    """
    if not len(found.scores) or not len(true):
        return np.zeros(len(true), bool), np.zeros(len(found.scores), bool)
    gap = np.linalg.norm(found.squares[:, None, :2] - true[None, :, :2], axis=2) / true[None, :, 2]
    ratio = np.abs(np.log(found.squares[:, None, 2] / true[None, :, 2]))
    fits = (gap <= FOUND_WITHIN) & (ratio <= np.log(FOUND_SIZES))
    return fits.any(axis=0), fits.any(axis=1)


def finding_loss(maps: Tensor, objects: Tensor, annotated: Tensor | None) -> Tensor:
    """Compute the loss of a finder's maps.

    Args:
        maps: (B, 6, h, w) output of the network.
        objects: (B, M, 4) squares in input pixels, NaN where there are fewer than M.
        annotated: (B, H, W) pixels where a confident detection may be an object that was not annotated; None: none.
    """
    b, _, h, w = maps.shape
    there = objects.isfinite().all(dim=2)
    safe = torch.where(there[..., None], objects, 1.0)
    cell = torch.arange(max(h, w), device=maps.device) + 0.5
    x, y = (
        safe[..., 0, None, None] / STRIDE - cell[:w],
        safe[..., 1, None, None] / STRIDE - cell[:h, None],
    )  # (B, M, h, w)
    distance = (x**2 + y**2).masked_fill(~there[..., None, None], torch.inf)
    spread = (SPREAD * safe[..., 2] / STRIDE).clamp_min(LEAST_SPREAD)[..., None, None]
    target = torch.exp(-distance / (2 * spread**2)).amax(dim=1)
    center = ((x.abs() <= 0.5) & (y.abs() <= 0.5) & there[..., None, None]).any(dim=1)
    logits = maps[:, 0]
    p = logits.sigmoid()
    positive = -((1 - p) ** 2) * F.logsigmoid(logits)
    negative = -((1 - target) ** 4) * p**2 * F.logsigmoid(-logits)
    if annotated is not None:
        unsure = F.max_pool2d(annotated[:, None].float(), STRIDE)[:, 0] > 0
        unsure &= (p.detach() > SURE) & (target < 0.01)
        negative = torch.where(unsure, UNSURE_WEIGHT * negative, negative)
    count = there.sum().clamp_min(1)
    presence = torch.where(center, positive, negative).sum() / count
    # every cell near a center learns the square of the nearest object
    nearest = distance.argmin(dim=1)
    near = ((x.abs() <= 0.5 + NEAR) & (y.abs() <= 0.5 + NEAR) & there[..., None, None]).any(dim=1)
    angle = torch.deg2rad(safe[..., 3])
    wanted = torch.stack([torch.log(safe[..., 2].clamp_min(1) / REFERENCE), angle.cos(), angle.sin()], dim=2)
    batch = torch.arange(b, device=maps.device)[:, None, None]
    rest = wanted[batch, nearest].permute(0, 3, 1, 2)
    offsets = torch.stack([v.expand_as(distance).gather(1, nearest[:, None])[:, 0] for v in (x, y)], dim=1)
    error = (maps[:, 1:] - torch.cat([offsets, rest], dim=1)).abs().sum(dim=1)
    square = (error * near).sum() / near.sum().clamp_min(1)
    return presence + SQUARE_WEIGHT * square

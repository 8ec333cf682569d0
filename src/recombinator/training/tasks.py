"""What is learnt from a batch, and how the result is judged: keypoints from pixels, or from other keypoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor

from recombinator.data.table import FaceTable
from recombinator.evaluation import evaluate_table
from recombinator.metrics import image_errors, point_errors
from recombinator.models import Denoiser, ScoreMapNet
from recombinator.models.decode import maximum
from recombinator.models.denoiser import BLANK
from recombinator.training.loss import LOSSES, softmax_loss, target_cells
from recombinator.training.recipe import Recipe, bfloat16_is_fast
from recombinator.transforms.augment import draw_points, draw_samples

Forward = Callable[[Tensor], Tensor]


class Task:
    """Training samples on the device, and the rules both tasks share."""

    def __init__(self, table: FaceTable, valid: FaceTable, recipe: Recipe, size: int, device: torch.device) -> None:
        self.valid, self.recipe, self.size, self.device = valid, recipe, size, device
        self.mirrored = table.info.keypoints.mirrored
        learnt = table.mask & ~table.at_border.any(axis=2)
        self.data = [torch.from_numpy(x).to(device) for x in (table.images, table.points, table.boxes, learnt)]

    def inside(self, points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Points that left the crop: clamped to its border, or left out of the loss, as the recipe says."""
        if self.recipe.outside == "clamp":
            outside = (points < 0) | (points >= self.size)
            return torch.where(outside, target_cells(points, self.size) + 0.5, points), mask
        return points, mask & ((points >= 0) & (points < self.size)).all(dim=2)


class FromPixels(Task):
    """Eq. 2 for SumNet and RCN."""

    def __init__(
        self, net: ScoreMapNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device
    ) -> None:
        super().__init__(table, valid, recipe, net.size, device)
        self.net = net
        self.forward: Forward = torch.compile(net) if device.type == "cuda" else net
        self.bfloat16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and bfloat16_is_fast(device))

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        images, points, boxes, mask = (x[index.to(self.device)] for x in self.data)
        recipe = self.recipe
        inputs, points = draw_samples(images, points, boxes, self.size, recipe.augment, self.mirrored, generator)
        points, mask = self.inside(points, mask)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            scores = self.forward(inputs)
        return LOSSES[recipe.loss](scores.float(), points, mask, recipe.sigma)

    def validate(self) -> dict[str, float]:
        """Errors in percent on the set that is jittered and occluded once, by the recipe's ranges (SPEC 7 row 7), and
        without jitter."""
        once = replace(self.recipe.augment, flip=False, gamma=0.0, blur=0.0, noise=0.0)
        rough, clean = evaluate_table(self.net, self.valid, once), evaluate_table(self.net, self.valid)
        return {
            key: 100 * float(np.nanmean(result.image_errors(protocol)))
            for key, result, protocol in (
                ("valid", rough, "paper"), ("valid_nme", rough, "continuous"),
                ("clean", clean, "paper"), ("clean_nme", clean, "continuous"),
            )
        }  # fmt: skip


def corrupted(cells: Tensor, count: int, size: int, blank: bool, generator: Generator) -> tuple[Tensor, Tensor]:
    """`count` random points of each set moved to uniform cells, or blanked: (B, K, 2) cells and the (B, K) mask of
    what was changed (section 4; SPEC 5)."""
    b, k, _ = cells.shape
    rank = torch.rand(b, k, generator=generator).argsort(dim=1).argsort(dim=1)
    changed = (rank < count).to(cells.device)
    anywhere = torch.randint(0, size, (b, k, 2), generator=generator).to(cells.device)
    return torch.where(changed[..., None], torch.full_like(cells, BLANK) if blank else anywhere, cells), changed


class FromPoints(Task):
    """Section 4: the corrupted points from the others; the loss and the error count only the corrupted ones."""

    bfloat16 = False

    def __init__(self, net: Denoiser, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device) -> None:
        super().__init__(table, valid, recipe, net.size, device)
        self.net = net

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        _, points, boxes, mask = (x[index.to(self.device)] for x in self.data)
        recipe = self.recipe
        points, _ = draw_points(points, boxes, self.size, recipe.augment, self.mirrored, generator)
        points, mask = self.inside(points, mask)
        cells = target_cells(points, self.size).long()
        given, changed = corrupted(cells, recipe.corrupt, self.size, recipe.corruption == "blank", generator)
        return softmax_loss(self.net(given), points, mask & changed, recipe.sigma)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean error of the corrupted points in percent, paper's grid: jittered once and not; same draw each time."""
        self.net.eval()
        once = replace(self.recipe.augment, flip=False)
        return {key: self._error(augment) for key, augment in (("valid", once), ("clean", None))}

    def _error(self, augment: object) -> float:
        generator, errors = Generator().manual_seed(0), []
        table = self.valid
        for i in range(0, len(table), 16):
            part = slice(i, i + 16)
            points, boxes = (torch.from_numpy(x[part]).to(self.device) for x in (table.points, table.boxes))
            points, _ = draw_points(points, boxes, self.size, augment, self.mirrored, generator)  # type: ignore[arg-type]
            cells = target_cells(points, self.size)
            given, changed = corrupted(cells.long(), self.recipe.corrupt, self.size, False, generator)
            found = maximum(self.net(given)) - 0.5
            scale = table.info.keypoints.scale(points.double().cpu().numpy())
            wrong = point_errors(found.cpu().numpy(), cells.cpu().numpy(), scale)
            errors.append(image_errors(wrong, changed.cpu().numpy() & table.mask[part]))
        return 100 * float(np.nanmean(np.concatenate(errors)))

"""What is learnt from a batch, and how the result is judged: keypoints from pixels, or from other keypoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from recombinator.data.table import FaceTable
from recombinator.evaluation.denoising import errors_of_corrupted
from recombinator.evaluation.tables import evaluate_table
from recombinator.models import TCDCN, Denoiser, Joint, ScoreMapNet
from recombinator.models.base import KeypointNet
from recombinator.models.decode import maximum
from recombinator.training.loss import LOSSES, distillation_loss, masked_sum, softmax_loss, target_cells
from recombinator.training.recipe import Recipe, bfloat16_is_fast
from recombinator.transforms.augment import draw_points, draw_samples
from recombinator.transforms.samples import BLANK, corrupted, fixed_samples
from recombinator.utils.errors import InputError

Forward = Callable[[Tensor], Tensor]


class TaskFactory(Protocol):
    """What makes a task: all have the same arguments."""

    def __call__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> Task: ...  # fmt: skip


class Task:
    """Training samples on the device, and the rules both tasks share."""

    def __init__(self, table: FaceTable, valid: FaceTable, recipe: Recipe, size: int, device: torch.device) -> None:
        self.valid, self.recipe, self.size, self.device = valid, recipe, size, device
        self.mirrored = table.info.keypoints.mirrored
        learnt = table.mask & ~table.at_border.any(axis=2)
        # what must not be learnt is NaN: it follows its point through a flip
        points = np.where(learnt[..., None], table.points, np.float32(np.nan))
        self.data = [torch.from_numpy(x).to(device) for x in (table.images, points, table.boxes)]

    bfloat16 = False

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        """Return the scalar loss of the training samples `index`."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Return validation errors in percent; "valid" decides which epoch is kept."""
        raise NotImplementedError

    def inside(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, 2) points and the (B, K) mask of those to learn. Points that left the crop are clamped to its border,
        or left out, as the recipe says."""
        known = points.isfinite().all(dim=2)
        outside = (points < 0) | (points >= self.size)
        points = torch.where(known[..., None], points, 0.0)
        if self.recipe.outside == "clamp":
            return torch.where(outside, target_cells(points, self.size) + 0.5, points), known
        return points, known & ~outside.any(dim=2)


class FromPixels(Task):
    """Eq. 2 for SumNet and RCN. `teacher`: a network whose maps count beside the truth, by the recipe's `distil`."""

    def __init__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> None:  # fmt: skip
        super().__init__(table, valid, recipe, net.size, device)
        self.net = net
        if teacher and (teacher.keypoints, teacher.size, teacher.channels) != (net.keypoints, net.size, net.channels):
            raise InputError(
                f"the teacher finds {teacher.keypoints} keypoints in {teacher.channels} channels of {teacher.size} "
                f"pixels, this network {net.keypoints} in {net.channels} of {net.size}"
            )
        self.teacher = teacher.eval().to(device, memory_format=torch.channels_last) if teacher else None  # type: ignore
        self.forward: Forward = torch.compile(net) if device.type == "cuda" else net
        self.bfloat16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and bfloat16_is_fast(device))

    def samples(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Network inputs, points, and the mask of those to learn."""
        images, points, boxes = (x[index.to(self.device)] for x in self.data)
        inputs, points = draw_samples(images, points, boxes, self.size, self.recipe.augment, self.mirrored, generator)
        return inputs, *self.inside(points)

    def _maps(self, net: Forward, inputs: Tensor) -> Tensor:
        """Scores in float32, as losses want them."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            scores = net(inputs)
        return scores.to(torch.float32, memory_format=torch.contiguous_format)

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        recipe = self.recipe
        inputs, points, mask = self.samples(index, generator)
        scores = self._maps(self.forward, inputs)
        loss = LOSSES[recipe.loss](scores, points, mask, recipe.sigma)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            told = self._maps(self.teacher, inputs)
        return (1 - recipe.distil) * loss + recipe.distil * distillation_loss(scores, told, mask)

    def validate(self) -> dict[str, float]:
        """Errors in percent on the set that is jittered and occluded once, by the recipe's ranges (SPEC 7 row 7), and
        without jitter."""
        once = replace(self.recipe.augment, flip=False, turned=0.0, gamma=0.0, blur=0.0, noise=0.0)
        rough, clean = evaluate_table(self.net, self.valid, once), evaluate_table(self.net, self.valid)
        return {
            key: 100 * float(np.nanmean(result.image_errors(protocol)))
            for key, result, protocol in (
                ("valid", rough, "paper"), ("valid_nme", rough, "continuous"),
                ("clean", clean, "paper"), ("clean_nme", clean, "continuous"),
            )
        }  # fmt: skip


class Regression(FromPixels):
    """TCDCN: half the squared distance of the coordinates, plus each attribute's cross-entropy by its weight until its
    validation loss has not fallen for `PATIENCE` epochs (the original's rule for stopping a task compares training and
    validation errors by two thresholds that it does not report)."""

    PATIENCE = 5

    def __init__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> None:  # fmt: skip
        super().__init__(net, table, valid, recipe, device)
        net = self.tcdcn = cast(TCDCN, net)
        if net.tasks and recipe.augment.flip:
            raise InputError("tcdcn learns the head's pose, which a flip changes: train it with --no-flip")
        for t, where in ((t, where) for t in (table, valid) for where in net.tasks if where not in t.attributes):
            raise InputError(
                f"{t.info.dataset}: its {t.info.split} table has no attribute {where!r}, which tcdcn learns beside the "
                "points; train tcdcn-alone"
            )
        self.labels, self.valid_labels = (
            {name: torch.from_numpy(t.attributes[name]).to(device) for name in net.tasks} for t in (table, valid)
        )

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        inputs, points, mask = self.samples(index, generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            found, heads = self.tcdcn.heads(inputs)
        wanted = points * (2 / self.size) - 1
        total = masked_sum(((found - wanted) ** 2).sum(dim=2) / 2, mask)
        goes_on = (self.tcdcn.since < self.PATIENCE).float() * self.recipe.auxiliary
        for i, (name, logits) in enumerate(heads.items()):
            total = total + goes_on[i] * F.cross_entropy(logits, self.labels[name][index.to(self.device)])
        return total

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        errors = super().validate()
        logits = [self.tcdcn.heads(x)[1] for x, _ in fixed_samples(self.valid, self.size, None, self.device)]
        for i, name in enumerate(self.tcdcn.tasks):
            found, labels = torch.cat([part[name] for part in logits]), self.valid_labels[name]
            value = F.cross_entropy(found, labels)
            if self.tcdcn.since[i] < self.PATIENCE:
                self.tcdcn.since[i] = 0 if value < self.tcdcn.best[i] else self.tcdcn.since[i] + 1
                self.tcdcn.best[i] = torch.minimum(self.tcdcn.best[i], value)
            errors[f"{name}_accuracy"] = float((found.argmax(1) == labels).float().mean())
        return errors


class FromPoints(Task):
    """Section 4: the corrupted points from the others; the error, and by the paper's recipe the loss, count only the
    corrupted ones. `teacher`: the network for images whose errors a recipe with corruption "errors" or "mixed" uses."""

    PASSES = 8  # jittered and occluded versions of each training image that the teacher answers

    def __init__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> None:  # fmt: skip
        super().__init__(table, valid, recipe, net.size, device)
        self.net = cast(Denoiser, net)
        if (recipe.corruption == "mixed") != (teacher is not None):
            raise InputError(
                f"corruption={recipe.corruption!r}: 'mixed' needs errors_of, the weights of a network for images; "
                "'uniform' takes none"
            )
        self.teacher = teacher
        if teacher is not None:
            self.answers, self.truths = self._answers(teacher, table)

    @torch.no_grad()
    def _answers(self, teacher: KeypointNet, table: FaceTable) -> tuple[Tensor, Tensor]:
        """(PASSES, N, K, 2) highest cells' centers and true points, in network pixels."""
        if (teacher.keypoints, teacher.size) != (self.net.keypoints, self.size):
            raise InputError(
                f"the network whose errors are learnt has {teacher.keypoints} keypoints at {teacher.size} pixels, "
                f"the denoiser {self.net.keypoints} at {self.size}"
            )
        teacher.eval().to(self.device)
        once, results = replace(self.recipe.augment, flip=True), []
        table = replace(table, points=self.data[1].cpu().numpy())
        for i in range(self.PASSES):
            for inputs, points in fixed_samples(table, self.size, once, self.device, seed=i):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16_is_fast(self.device)):
                    scores = teacher(inputs)
                results.append(torch.stack([maximum(scores.float()), points]))
        found = torch.cat(results, dim=1).unflatten(1, (self.PASSES, -1))
        return found[0], found[1]

    def given(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cells as the network sees them, the true points, which of those can be learnt, and which were corrupted."""
        recipe, augment = self.recipe, self.recipe.augment
        _, points, boxes = (x[index.to(self.device)] for x in self.data)
        points, _ = draw_points(points, boxes, self.size, augment, self.mirrored, generator)
        known = points.isfinite()
        cells = target_cells(points.nan_to_num(), self.size).long()
        cells, changed = corrupted(torch.where(known, cells, BLANK), recipe.corrupt, self.size, generator)
        if recipe.corruption == "mixed":
            # the teacher's answer and the truth moved together, once more
            turn = torch.randint(self.PASSES, (len(index),), generator=generator)
            pair = torch.cat([self.answers[turn, index], self.truths[turn, index]], dim=1)
            square = torch.tensor([[0.0, 0.0, self.size]], device=self.device).expand(len(index), 3)
            still = replace(augment, flip=False)
            pair, _ = draw_points(pair, square, self.size, still, self.mirrored, generator)
            answers, truths = pair.chunk(2, dim=1)
            answers = target_cells(answers, self.size).long()
            which = torch.rand(len(index), generator=generator).to(self.device) < 0.5
            cells = torch.where(which[:, None, None], answers, cells)
            points = torch.where(which[:, None, None], truths, points)
            changed = changed | which[:, None]
        points, mask = self.inside(points)
        return cells, points, mask, changed

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        cells, points, mask, changed = self.given(index, generator)
        counted = mask if self.recipe.judged == "all" else mask & changed
        likelihood = self.net.log_likelihood(cells, points)
        if likelihood is not None:
            return masked_sum(-likelihood, counted)
        return softmax_loss(self.net(cells), points, counted, self.recipe.sigma)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean error of the corrupted points in percent, paper's grid: jittered once and not; same draw each time.
        With a teacher also that of its answers as the denoiser mends them; the mean of both then decides."""
        once = replace(self.recipe.augment, flip=False)
        uniform = {
            key: 100 * float(np.nanmean(errors_of_corrupted(self.net, self.valid, self.recipe.corrupt, augment)[0]))
            for key, augment in (("valid", once), ("clean", None))
        }
        if self.teacher is None:
            return uniform
        with_teacher = Joint(cast(ScoreMapNet, self.teacher), self.net)
        mended = 100 * float(np.nanmean(evaluate_table(with_teacher, self.valid, once).image_errors("paper")))
        both = (mended + uniform["valid"]) / 2
        return {**uniform, "valid": both, "valid_mended": mended, "valid_uniform": uniform["valid"]}


TASKS: dict[str, TaskFactory] = {"score_maps": FromPixels, "regression": Regression, "denoising": FromPoints}

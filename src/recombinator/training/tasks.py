"""Tasks: the loss of a batch and the validation errors, by the kind of a network's input and output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from recombinator.data.table import FaceTable
from recombinator.evaluation.denoising import errors_of_corrupted
from recombinator.evaluation.tables import evaluate_table
from recombinator.models import TCDCN, Denoiser, Joint, ScoreMapNet
from recombinator.models.base import KeypointNet
from recombinator.models.decode import maximum, subpixel
from recombinator.training.base import Task
from recombinator.training.finder_task import Finding
from recombinator.training.loss import (
    LOSSES,
    distillation_loss,
    equivariance_loss,
    masked_sum,
    soft_argmax,
    softmax_loss,
    target_cells,
)
from recombinator.training.recipe import Recipe, bfloat16_is_fast
from recombinator.transforms.affine import compose, invert
from recombinator.transforms.augment import draw_pixels, draw_points, draw_samples
from recombinator.transforms.samples import BLANK, corrupted, fixed_samples
from recombinator.utils.errors import InputError


class FromPixels(Task):
    """Score maps from images with the loss of Eq. 2: SumNet, RCN and networks like them.

    `teacher` is a network for the same images. Its score maps are learned along with the true points, weighted by the
    recipe's `distil`.
    """

    def __init__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> None:  # fmt: skip
        super().__init__(net, table, valid, recipe, device, teacher)
        if teacher is not None:
            if (teacher.keypoints, teacher.size, teacher.channels) != (net.keypoints, net.size, net.channels):
                raise InputError(
                    f"the teacher has keypoints={teacher.keypoints}, channels={teacher.channels}, size={teacher.size}; "
                    f"expected keypoints={net.keypoints}, channels={net.channels}, size={net.size}"
                )
            teacher.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: Callable[[Tensor], Tensor] = torch.compile(net) if device.type == "cuda" else net
        self.unlabeled = torch.from_numpy(np.flatnonzero(~table.mask.any(axis=1)))  # rows without a known point
        self.bfloat16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and bfloat16_is_fast(device))

    def samples(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a batch of augmented training samples.

        Args:
            index: (B,) indices into the training table.
            generator: Source of the random changes.

        Returns:
            (B, C, S, S) network inputs, (B, K, 2) points in network pixels and the (B, K) mask of those to learn.
        """
        images, points, boxes = (x[index.to(self.device)] for x in self.data)
        inputs, points = draw_samples(images, points, boxes, self.size, self.recipe.augment, self.mirrored, generator)
        return inputs, *self.split_outside(points)

    def inputs(self, index: Tensor, generator: Generator) -> Tensor:
        return self.samples(index, generator)[0]

    def _score_maps(self, net: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Scores in float32, as the losses need them."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            scores = net(inputs)
        return scores.to(torch.float32, memory_format=torch.contiguous_format)

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        recipe = self.recipe
        if recipe.equivariance:
            return self._loss_with_equivariance(index, generator)
        inputs, points, mask = self.samples(index, generator)
        scores = self._score_maps(self.forward, inputs)
        loss = LOSSES[recipe.loss](scores, points, mask, recipe.sigma)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            target = self._score_maps(self.teacher, inputs)
        return (1 - recipe.distil) * loss + recipe.distil * distillation_loss(scores, target, mask)

    def _loss_with_equivariance(self, index: Tensor, generator: Generator) -> Tensor:
        """Compute the loss of labeled samples and as many unlabeled ones, each in two views.

        The second view has no black rectangle. Its points are the target of those of the first view: the mean around
        the highest cell, which other maxima do not pull away. No gradient goes through them.
        """
        recipe, size = self.recipe, self.size
        if len(self.unlabeled):
            drawn = torch.randint(len(self.unlabeled), (len(index),), generator=generator)
            index = torch.cat([index, self.unlabeled[drawn]])
        images, points, boxes = (x[index.to(self.device)] for x in self.data)
        views = []
        for augment in (recipe.augment, replace(recipe.augment, occlude=(0, 0))):
            seen, to_source = draw_points(points, boxes, size, augment, self.mirrored, generator)
            views.append((draw_pixels(images, to_source, size, augment, generator), seen, to_source))
        (inputs, seen, to_source), (other, _, to_other) = views
        scores = self._score_maps(self.forward, inputs)
        loss = LOSSES[recipe.loss](scores, *self.split_outside(seen), recipe.sigma)
        with torch.no_grad():
            target = subpixel(self._score_maps(self.forward, other)).points
        affine = compose(invert(to_source), to_other)
        weight = recipe.equivariance * (min(1.0, self.epoch / recipe.ramp) if recipe.ramp else 1.0)
        return loss + weight * equivariance_loss(soft_argmax(scores), target, affine, self.mirrored, size)

    def validate(self) -> dict[str, float]:
        """Return errors in percent with and without jitter.

        The jittered and occluded validation images are drawn from the recipe's ranges, the same at every call
        (docs/protocol.md, Selection).
        """
        jitter = replace(self.recipe.augment, flip=False, turned=0.0, gamma=0.0, blur=0.0, noise=0.0)
        jittered, clean = evaluate_table(self.net, self.valid, jitter), evaluate_table(self.net, self.valid)
        return {
            key: 100 * float(np.nanmean(result.image_errors(protocol)))
            for key, result, protocol in (
                ("valid", jittered, "paper"), ("valid_nme", jittered, "continuous"),
                ("clean", clean, "paper"), ("clean_nme", clean, "continuous"),
            )
        }  # fmt: skip


class Regression(FromPixels):
    """Coordinates and facial attributes from images: TCDCN.

    The loss is half the squared distance of the coordinates plus the weighted cross-entropy of each attribute. An
    attribute's loss is dropped once its validation loss has not fallen for `PATIENCE` epochs. (The original rule
    compares training and validation errors with two thresholds that its paper does not report.)
    """

    PATIENCE = 5

    def __init__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> None:  # fmt: skip
        super().__init__(net, table, valid, recipe, device)
        net = self.tcdcn = cast(TCDCN, net)
        if net.tasks and recipe.augment.flip:
            raise InputError("tcdcn learns the head's pose, which a flip changes: train it with --no-flip")
        for t, name in ((t, name) for t in (table, valid) for name in net.tasks if name not in t.attributes):
            raise InputError(
                f"{t.info.dataset}: the {t.info.split} table has no attribute {name!r}, which tcdcn learns; "
                "train tcdcn-alone instead"
            )
        self.labels, self.valid_labels = (
            {name: torch.from_numpy(t.attributes[name]).to(device) for name in net.tasks} for t in (table, valid)
        )

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        inputs, points, mask = self.samples(index, generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            predicted, logits = self.tcdcn.heads(inputs)
        target = points * (2 / self.size) - 1
        total = masked_sum(((predicted - target) ** 2).sum(dim=2) / 2, mask)
        weights = (self.tcdcn.since < self.PATIENCE).float() * self.recipe.auxiliary
        for i, (name, values) in enumerate(logits.items()):
            total = total + weights[i] * F.cross_entropy(values, self.labels[name][index.to(self.device)])
        return total

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        errors = super().validate()
        batches = [self.tcdcn.heads(x)[1] for x, _ in fixed_samples(self.valid, self.size, None, self.device)]
        for i, name in enumerate(self.tcdcn.tasks):
            logits, labels = torch.cat([batch[name] for batch in batches]), self.valid_labels[name]
            value = F.cross_entropy(logits, labels)
            if self.tcdcn.since[i] < self.PATIENCE:
                self.tcdcn.since[i] = 0 if value < self.tcdcn.best[i] else self.tcdcn.since[i] + 1
                self.tcdcn.best[i] = torch.minimum(self.tcdcn.best[i], value)
            errors[f"{name}_accuracy"] = float((logits.argmax(1) == labels).float().mean())
        return errors


class FromPoints(Task):
    """Corrupted keypoints from the other keypoints (section 4): denoisers.

    Errors count corrupted keypoints only; so does the loss, unless the recipe's `judged` is "all". `teacher` is a
    network for images. With the corruption "mixed", half of the faces have its predictions as input.
    """

    VERSIONS = 8  # jittered and occluded versions of each training image that the teacher predicts

    def __init__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> None:  # fmt: skip
        super().__init__(net, table, valid, recipe, device, teacher)
        self.denoiser = cast(Denoiser, net)
        if (recipe.corruption == "mixed") != (teacher is not None):
            raise InputError(
                f"corruption={recipe.corruption!r}: 'mixed' needs errors_of, the weights of a network for images; "
                "'uniform' takes none"
            )
        if teacher is not None:
            self.predictions, self.truths = self._predict(teacher, table)

    @torch.no_grad()
    def _predict(self, teacher: KeypointNet, table: FaceTable) -> tuple[Tensor, Tensor]:
        """(VERSIONS, N, K, 2) centers of the teacher's highest cells and true points, in network pixels."""
        if (teacher.keypoints, teacher.size) != (self.net.keypoints, self.size):
            raise InputError(
                f"the network of errors_of has {teacher.keypoints} keypoints at {teacher.size} pixels, "
                f"the denoiser {self.net.keypoints} at {self.size}"
            )
        teacher.eval().to(self.device)
        augment, batches = replace(self.recipe.augment, flip=True), []
        table = replace(table, points=self.data[1].cpu().numpy())
        for seed in range(self.VERSIONS):
            for inputs, points in fixed_samples(table, self.size, augment, self.device, seed=seed):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16_is_fast(self.device)):
                    scores = teacher(inputs)
                batches.append(torch.stack([maximum(scores.float()), points]))
        pairs = torch.cat(batches, dim=1).unflatten(1, (self.VERSIONS, -1))
        return pairs[0], pairs[1]

    def samples(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw a batch of corrupted training samples.

        Args:
            index: (B,) indices into the training table.
            generator: Source of the jitter and corruption.

        Returns:
            (B, K, 2) input cells, (B, K, 2) true points in network pixels, the (B, K) mask of those that can be
            learned and the (B, K) mask of those that are corrupted.
        """
        recipe, augment = self.recipe, self.recipe.augment
        points, boxes = (x[index.to(self.device)] for x in self.data[1:])
        points, _ = draw_points(points, boxes, self.size, augment, self.mirrored, generator)
        known = points.isfinite()
        cells = target_cells(points.nan_to_num(), self.size).long()
        cells, changed = corrupted(torch.where(known, cells, BLANK), recipe.corrupt, self.size, generator)
        if recipe.corruption == "mixed":
            # one of the teacher's predictions and its truth, jittered together once more
            version = torch.randint(self.VERSIONS, (len(index),), generator=generator)
            pair = torch.cat([self.predictions[version, index], self.truths[version, index]], dim=1)
            square = torch.tensor([[0.0, 0.0, self.size]], device=self.device).expand(len(index), 3)
            pair, _ = draw_points(pair, square, self.size, replace(augment, flip=False), self.mirrored, generator)
            predictions, truths = pair.chunk(2, dim=1)
            predictions = target_cells(predictions, self.size).long()
            from_teacher = torch.rand(len(index), generator=generator).to(self.device) < 0.5
            cells = torch.where(from_teacher[:, None, None], predictions, cells)
            points = torch.where(from_teacher[:, None, None], truths, points)
            changed = changed | from_teacher[:, None]
        points, mask = self.split_outside(points)
        return cells, points, mask, changed

    def inputs(self, index: Tensor, generator: Generator) -> Tensor:
        return self.samples(index, generator)[0]

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        cells, points, mask, changed = self.samples(index, generator)
        counted = mask if self.recipe.judged == "all" else mask & changed
        likelihood = self.denoiser.log_likelihood(cells, points)
        if likelihood is not None:
            return masked_sum(-likelihood, counted)
        return softmax_loss(self.net(cells), points, counted, self.recipe.sigma)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return mean errors of the corrupted points in percent, with and without jitter, by the paper's protocol.

        The draw is the same at every call. With a teacher, "valid" is the mean of that error and of the error of the
        joint model of teacher and denoiser.
        """
        jitter = replace(self.recipe.augment, flip=False)
        errors = {
            key: 100
            * float(np.nanmean(errors_of_corrupted(self.denoiser, self.valid, self.recipe.corrupt, augment)[0]))
            for key, augment in (("valid", jitter), ("clean", None))
        }
        if self.teacher is None:
            return errors
        uniform, joint = errors["valid"], Joint(cast(ScoreMapNet, self.teacher), self.denoiser)
        repaired = 100 * float(np.nanmean(evaluate_table(joint, self.valid, jitter).image_errors("paper")))
        return {**errors, "valid": (repaired + uniform) / 2, "valid_mended": repaired, "valid_uniform": uniform}


TASKS: dict[str, type[Task]] = {
    "score_maps": FromPixels, "regression": Regression, "denoising": FromPoints, "finding": Finding,
}  # fmt: skip

"""The multi-task training loss (YOLACT, Sec. 3.3 and 5; YOLACT++, Sec. 6.1), vectorised over the batch.

Its values are those of the original, but finite and of the usual size where the original's are not: tiny
boxes, boxes that do not contain their masks, no positives, very large logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from yolact.config import LossConfig
from yolact.data.batch import Target
from yolact.matching import BACKGROUND, Matches, match, training_boxes
from yolact.model import Yolact, YolactOutput
from yolact.model.boxes import crop_window, encode


class Totals(NamedTuple):
    """What the sums over a batch are divided by. Parts of a batch use the totals of the whole.

    Attributes:
        positives: Scalar int64, number of positive priors.
        images: Scalar int64, number of images.
    """

    positives: Tensor
    images: Tensor


class Losses(NamedTuple):
    """Weighted terms, each a scalar; `mask_iou` is 0 if the model does not re-score."""

    box: Tensor
    cls: Tensor
    mask: Tensor
    semantic: Tensor
    mask_iou: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return torch.stack(list(self)).sum()


class MultiBoxLoss(nn.Module):
    """Box, class, mask, semantic and mask IoU terms.

    Args:
        config: Weights and thresholds.
        sample_masks: Which positives train masks if an image has more than `max_masks`: "random", as
            in training, or "first", which is deterministic.
    """

    def __init__(self, config: LossConfig, sample_masks: str = "random") -> None:
        super().__init__()
        self.config = config
        self.sample_masks = sample_masks

    def forward(
        self,
        model: Yolact,
        output: YolactOutput,
        semantic: Tensor,
        targets: Sequence[Target],
        matches: Matches | None = None,
        totals: Totals | None = None,
    ) -> Losses:
        """The loss of a batch, or the share of a part of a batch.

        Args:
            model: Has the priors and the mask IoU net.
            output: Raw outputs of the network.
            semantic: (B, C, H3, W3) semantic segmentation logits.
            targets: One for each image, on the device of the outputs.
            matches: Result of `match`, if it is known already.
            totals: Totals of the whole batch, if this is a part of it; the losses of the parts add up.
        """
        output = YolactOutput(*(tensor.float() for tensor in output))
        matches = match(model.priors, targets, self.config) if matches is None else matches
        totals = count_totals([matches]) if totals is None else totals
        positive = matches.classes > 0  # (B, P)
        boxes = training_boxes(_pad([t.boxes for t in targets]))  # (B, G, 4)
        total_positive = totals.positives.clamp(min=1)
        image, prior = positive.nonzero(as_tuple=True)  # both (n,)
        instance = matches.instances[image, prior]  # (n,)
        matched = boxes[image, instance] if len(image) else output.loc.new_zeros(0, 4)  # (n, 4)

        expected = encode(matched, model.priors[prior])  # (n, 4)
        box = F.smooth_l1_loss(output.loc[image, prior], expected, reduction="sum")
        mask, mask_iou = self._mask_terms(model, output, targets, image, prior, instance, matched)
        return Losses(
            box=box * self.config.box_weight / total_positive,
            cls=self._class_term(output.logits, matches.classes) * self.config.class_weight / total_positive,
            mask=mask * self.config.mask_weight / total_positive,
            semantic=self._semantic_term(semantic.float(), targets)
            * self.config.semantic_weight
            / totals.images,
            mask_iou=mask_iou * self.config.mask_iou_weight / total_positive,
        )

    def _class_term(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Cross-entropy of the positives and the hardest negatives, `negatives_per_positive` for each."""
        positive = classes > 0
        with torch.no_grad():
            hardness = logits.logsumexp(dim=-1) - logits[..., 0]  # (B, P): -log p(background)
            hardness[classes != BACKGROUND] = 0
            rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            limit = self.config.negatives_per_positive * positive.sum(dim=1, keepdim=True)  # (B, 1)
            negative = (rank < limit.clamp(max=classes.shape[1] - 1)) & (classes == BACKGROUND)
        chosen = positive | negative
        return F.cross_entropy(logits[chosen], classes[chosen], reduction="sum")

    def _mask_terms(
        self,
        model: Yolact,
        output: YolactOutput,
        targets: Sequence[Target],
        image: Tensor,
        prior: Tensor,
        instance: Tensor,
        boxes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mask and mask IoU terms before weighting.

        Args:
            model: Has the mask IoU net.
            output: Raw outputs in float32.
            targets: One for each image.
            image, prior, instance: (n,) int64 indices of the positives, sorted by image.
            boxes: (n, 4) their ground-truth boxes.
        """
        height, width = output.prototypes.shape[1:3]
        # Keeps both in the graph of a batch without instances, and is NaN if they are not finite.
        zero = (output.prototypes.sum() + output.coefficients.sum()) * 0
        mask_term, rescored = [zero], []
        for index, target in enumerate(targets):
            rows = (image == index).nonzero()[:, 0]  # (n_i,)
            if len(rows) == 0:
                continue
            used = self._sample(rows)
            box = boxes[used]  # (m, 4)
            truth = target.masks[instance[used]]  # (m, Hp, Wp)
            logits = (
                output.coefficients[index, prior[used]] @ output.prototypes[index].flatten(0, 1).T
            )  # (m, Hp*Wp)
            masks = logits.sigmoid().unflatten(1, (height, width))  # (m, Hp, Wp)
            window = crop_window(box, (height, width))  # (m, Hp, Wp)
            masks = (masks * window).nan_to_num(0.0)
            # What lies outside a box that is too small for its mask cannot be learned.
            inside = (truth & window).float()
            error = F.binary_cross_entropy(masks, inside, reduction="none").sum(dim=(1, 2))  # (m,)
            # Divided by the area of the box, so that small instances count as much (YOLACT, Sec. 3.3).
            # At least a pixel of the prototypes: smaller ones would count almost without limit.
            sides = torch.maximum(box[:, 2:] - box[:, :2], box.new_tensor([1 / width, 1 / height]))
            mask_term.append((error / sides.prod(dim=1)).sum() * (len(rows) / len(used)) / (height * width))
            if model.config.model.mask_iou:
                rescored.append((masks, truth, target.labels[instance[used]]))
        return torch.stack(mask_term).sum(), self._mask_iou_term(model, rescored) if rescored else zero

    def _sample(self, rows: Tensor) -> Tensor:
        """At most `max_masks` of the rows (n,)."""
        if len(rows) <= self.config.max_masks:
            return rows
        if self.sample_masks == "random":
            # With the CPU's generator, so that the result does not depend on the device.
            rows = rows[torch.randperm(len(rows)).to(rows.device)]
        return rows[: self.config.max_masks]

    def _mask_iou_term(self, model: Yolact, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Smooth L1 loss of the predicted mask IoU; `parts`: masks, truth and labels (YOLACT++, Sec. 6.1)."""
        masks, truth, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        large = truth.sum(dim=(1, 2)) > self.config.min_mask_area
        masks, truth, labels = masks[large], truth[large], labels[large]
        if len(labels) == 0:
            return masks.sum() * 0
        found = masks > 0.5  # (n, Hp, Wp)
        shared = (found & truth).sum(dim=(1, 2))  # (n,)
        union = (found | truth).sum(dim=(1, 2))  # not 0: the truth has some area
        predicted = model.maskiou_net(masks[:, None]).gather(1, labels[:, None])[:, 0]  # (n,)
        return F.smooth_l1_loss(predicted, shared / union, reduction="sum")

    def _semantic_term(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        """Per-class binary cross-entropy on P3, mean over pixels, sum over images (YOLACT, Sec. 5)."""
        truth = torch.zeros_like(logits)
        for index, target in enumerate(targets):
            truth[index].index_add_(0, target.labels, target.semantic_masks.to(truth.dtype))  # (C, H3, W3)
        error = F.binary_cross_entropy_with_logits(logits, truth.clamp(max=1), reduction="sum")
        return error / (logits.shape[2] * logits.shape[3])


def count_totals(parts: Sequence[Matches]) -> Totals:
    """The totals of a batch, from the matches of its parts."""
    positives = torch.stack([(part.classes > 0).sum() for part in parts]).sum()
    images = positives.new_tensor(sum(len(part.classes) for part in parts))
    return Totals(positives, images)


def _pad(tensors: Sequence[Tensor]) -> Tensor:
    """B tensors (G_i, ...) as one (B, max G, ...), zero-padded."""
    return pad_sequence(list(tensors), batch_first=True)

"""The detection head: the objects in an image as a set of boxes (DETR, Carion et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from omni_lab.batch import Modality
from omni_lab.heads.context import FusedContext, HeadError
from omni_lab.layers.decoder import DecoderLayer

NO_OBJECT_WEIGHT = 0.1  # of the no-object class in the cross-entropy, as most queries match no object
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0  # of the parts of cost and loss (appendix A.4)


class DetectionOutput(NamedTuple):
    """Predictions of every query after every layer; the last class is no-object.

    boxes: left, top, right, bottom as fractions of the image's sides.
    """

    logits: Float[Tensor, "l b q c"]
    boxes: Float[Tensor, "l b q 4"]


class Detections(NamedTuple):
    """The objects of one image, by falling score. boxes: as in `DetectionOutput`."""

    labels: Int[Tensor, " n"]
    scores: Float[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]


class DetectionHead(nn.Module):
    """Set prediction: learned queries attend to each other and to the context; each predicts one object or no-object.

    dim: width of the queries and of the context.
    num_queries: the largest number of objects in an image.
    """

    needs_context: ClassVar = True

    def __init__(
        self,
        *,
        classes: Sequence[str],
        dim: int,
        num_queries: int = 8,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.classes = list(classes)
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, len(self.classes) + 1)
        self.locate = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4))

    def forward(self, context: FusedContext) -> DetectionOutput:
        """Raises HeadError for samples without an image."""
        context.require(Modality.IMAGE, "detection")
        x, logits, boxes = self.queries.repeat(len(context), 1, 1), [], []
        for layer in self.layers:
            x = layer.forward_parallel(x, context.tokens)  # type: ignore[operator]
            h = self.norm(x)
            logits.append(self.classify(h))
            boxes.append(box_convert(self.locate(h).sigmoid(), "cxcywh", "xyxy"))
        return DetectionOutput(torch.stack(logits), torch.stack(boxes))

    def loss(
        self, output: DetectionOutput, labels: Sequence[Int[Tensor, " _"]], boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, ""]:
        """The Hungarian loss (eq. 2), averaged over layers: cross-entropy, L1 and generalized IoU of matched boxes.

        labels, boxes: the objects of each image, possibly none. Raises HeadError for more objects than queries.
        """
        size, num_queries = output.logits.shape[1:3]
        counts = [len(n) for n in labels]
        if len(labels) != size or any(count > num_queries for count in counts):
            raise HeadError(f"detection: expected {size} images of at most {num_queries} objects: got {counts}")
        losses = []
        weight = torch.ones(len(self.classes) + 1, device=output.logits.device)
        weight[-1] = NO_OBJECT_WEIGHT
        for logits, predicted in zip(output.logits, output.boxes, strict=True):
            target = torch.full((size, num_queries), len(self.classes), device=logits.device)
            box_loss = logits.new_zeros(())
            for b, (image_labels, image_boxes) in enumerate(zip(labels, boxes, strict=True)):
                query, matched = self.hungarian_match(logits[b], predicted[b], image_labels, image_boxes)
                target[b, query] = image_labels[matched]
                pairs = predicted[b, query], image_boxes[matched]
                giou = generalized_box_iou(*pairs).diagonal()
                box_loss = box_loss + L1_WEIGHT * (pairs[0] - pairs[1]).abs().sum()
                box_loss = box_loss + GIOU_WEIGHT * (1 - giou).sum()
            class_loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=weight)
            losses.append(CLASS_WEIGHT * class_loss + box_loss / max(1, sum(counts)))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def hungarian_match(
        self,
        logits: Float[Tensor, "q c"],
        pred_boxes: Float[Tensor, "q 4"],
        labels: Int[Tensor, " n"],
        boxes: Float[Tensor, "n 4"],
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Bipartite matching (eq. 1): the queries and the objects of the assignment with the least cost."""
        cost = -CLASS_WEIGHT * logits.softmax(dim=1)[:, labels]
        cost = cost + L1_WEIGHT * torch.cdist(pred_boxes, boxes, p=1)
        cost = cost - GIOU_WEIGHT * generalized_box_iou(pred_boxes, boxes)
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        return torch.as_tensor(rows, device=logits.device), torch.as_tensor(columns, device=logits.device)

    def post_process(self, output: DetectionOutput, *, threshold: float = 0.0) -> list[Detections]:
        """The objects of each image after the last layer, one per query, without those that score below `threshold`."""
        probs = output.logits[-1].softmax(dim=2)[..., :-1]  # [B, Q, C]
        detections = []
        for score, label, box in zip(*probs.max(dim=2), output.boxes[-1], strict=True):
            order = score.argsort(descending=True)
            order = order[score[order] >= threshold]
            detections.append(Detections(label[order], score[order], box[order]))
        return detections

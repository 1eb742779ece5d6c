"""The boxes head: finds things in a picture as a set."""

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

NO_OBJECT_WEIGHT = 0.1  # of "nothing there" in the classification, as most queries find nothing
LOSS_WEIGHTS = {"class": 1.0, "distance": 5.0, "overlap": 2.0}  # Carion et al. 2020, appendix A.4


class DetectionOutput(NamedTuple):
    """What each query of each layer found. logits: [L, B, Q, C + 1], the last class is "nothing there". boxes: [L, B,
    Q, 4], left, top, right, bottom as shares of the picture's sides."""

    logits: Float[Tensor, "l b q c"]
    boxes: Float[Tensor, "l b q 4"]


class Detections(NamedTuple):
    """The things of one picture. labels: [n]. scores: [n], falling. boxes: [n, 4] as in `Found`."""

    labels: Int[Tensor, " n"]
    scores: Float[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]


class DetectionHead(nn.Module):
    """Set prediction with bipartite matching (DETR, Carion et al. 2020): learned queries attend to each other and to
    the memory, and each says what it found, and where, or that it found nothing.

    classes: names of what can be found. queries: how many things it can find at most. dim: of the memory, too.
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
        """Raises HeadError where a sample has no picture to find things in."""
        blind = (~context.present(Modality.IMAGE)).nonzero().flatten().tolist()
        if blind:
            raise HeadError(f"boxes: there is no picture to find things in: samples {blind} lack one")
        x, logits, boxes = self.queries.repeat(len(context), 1, 1), [], []
        for layer in self.layers:
            x = layer.forward_parallel(x, context.tokens)  # type: ignore[operator]
            said = self.norm(x)
            logits.append(self.classify(said))
            boxes.append(box_convert(self.locate(said).sigmoid(), "cxcywh", "xyxy"))
        return DetectionOutput(torch.stack(logits), torch.stack(boxes))

    def loss(
        self, found: DetectionOutput, labels: Sequence[Int[Tensor, " _"]], boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, ""]:
        """Hungarian loss (Carion et al. 2020, eq. 2), the mean over layers: classes by cross-entropy, boxes by distance
        and generalized overlap. labels, boxes: what is there in each picture; there may be nothing."""
        size, queries = found.logits.shape[1:3]
        if len(labels) != size or any(len(n) > queries for n in labels):
            raise HeadError(
                f"boxes: expected {size} pictures of at most {queries} things: got {[len(n) for n in labels]}"
            )
        losses = []
        weight = torch.ones(len(self.classes) + 1, device=found.logits.device)
        weight[-1] = NO_OBJECT_WEIGHT
        things = max(1, sum(len(n) for n in labels))
        for logits, placed in zip(found.logits, found.boxes, strict=True):
            target = torch.full((size, queries), len(self.classes), device=logits.device)
            missed = logits.new_zeros(())
            for b, (names, there) in enumerate(zip(labels, boxes, strict=True)):
                query, thing = self.hungarian_match(logits[b], placed[b], names, there)
                target[b, query] = names[thing]
                near, wanted = placed[b, query], there[thing]
                overlap = generalized_box_iou(near, wanted).diagonal()
                missed = missed + LOSS_WEIGHTS["distance"] * (near - wanted).abs().sum()
                missed = missed + LOSS_WEIGHTS["overlap"] * (1 - overlap).sum()
            named = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=weight)
            losses.append(LOSS_WEIGHTS["class"] * named + missed / things)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def hungarian_match(
        self,
        logits: Float[Tensor, "q c"],
        placed: Float[Tensor, "q 4"],
        names: Int[Tensor, " n"],
        there: Float[Tensor, "n 4"],
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Which query stands for which thing: the assignment of least cost (Carion et al. 2020, eq. 1)."""
        cost = -LOSS_WEIGHTS["class"] * logits.softmax(dim=1)[:, names]
        cost = cost + LOSS_WEIGHTS["distance"] * torch.cdist(placed, there, p=1)
        cost = cost - LOSS_WEIGHTS["overlap"] * generalized_box_iou(placed, there)
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        return torch.as_tensor(rows, device=logits.device), torch.as_tensor(columns, device=logits.device)

    def post_process(self, found: DetectionOutput, *, threshold: float = 0.0) -> list[Detections]:
        """What the last layer found in each picture, one thing a query, likeliest first; less likely ones than
        `threshold` are left out."""
        chances = found.logits[-1].softmax(dim=2)[..., :-1]  # [B, Q, C]
        scores, labels = chances.max(dim=2)
        picked = []
        for label, score, box in zip(labels, scores, found.boxes[-1], strict=True):
            order = score.argsort(descending=True)
            order = order[score[order] >= threshold]
            picked.append(Detections(label[order], score[order], box[order]))
        return picked

"""Fusion plans: in which stage each pair of modalities meets, chosen by how strongly the two are associated."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from omni_lab.batch import Modality
from omni_lab.config.models import FusionConfig

Pair = tuple[Modality, Modality]  # in the order of Modality
TIMED_MODALITIES = (Modality.AUDIO, Modality.VIDEO)


class FusionStage(enum.StrEnum):
    """Where two modalities meet."""

    EARLY = "early"  # below the upper layers of an encoder, time step by time step
    MID = "mid"  # by cross-modal attention in both directions
    LATE = "late"  # only in the head


@dataclass(frozen=True)
class FusionPlan:
    """A stage for each pair of modalities. Raises ValueError if a pair other than audio and video is to meet early."""

    stages: Mapping[Pair, FusionStage]

    def __post_init__(self) -> None:
        for pair, stage in self.stages.items():
            if stage is FusionStage.EARLY and pair != TIMED_MODALITIES:
                raise ValueError(f"only {TIMED_MODALITIES} can meet early, as both have times: got {pair}")

    @classmethod
    def from_association(
        cls,
        association: Mapping[Pair, float],
        *,
        question: Modality | None = None,
        early_threshold: float = 0.5,
        mid_threshold: float = 0.1,
    ) -> FusionPlan:
        """Pairs with a stronger association meet earlier.

        association: canonical correlation of each pair, see `evaluation.association`.
        question: the modality of the questions; its pairs never meet late, as all others must read the question.
        """
        stages = {}
        for pair, value in association.items():
            stage = FusionStage.MID if value >= mid_threshold or question in pair else FusionStage.LATE
            stages[pair] = FusionStage.EARLY if value >= early_threshold and pair == TIMED_MODALITIES else stage
        return cls(stages)

    def config(self, base: FusionConfig) -> FusionConfig:
        """`base` with the paths and early fusion of this plan."""
        mid = [pair for pair, stage in self.stages.items() if stage is FusionStage.MID]
        paths = tuple(path for first, second in mid for path in ((first, second), (second, first)))
        return replace(base, early=self.stages.get(TIMED_MODALITIES) is FusionStage.EARLY, paths=paths)

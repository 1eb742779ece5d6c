"""How strongly modalities are associated, and where they meet because of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.config.models import FusionConfig
from omni_lab.data.collate import Sample
from omni_lab.evaluation.association import canonical_correlation
from omni_lab.fusion.plan import FusionPlan, FusionStage
from omni_lab.worlds.talking_face import TalkingFace

TEXT, IMAGE, AUDIO, VIDEO = Modality


def written(pictures: bool = True) -> list[Sample]:
    """Word 1 goes with bright pictures, word 2 with dark ones; words 3 to 6 with nothing."""
    rng = torch.Generator().manual_seed(0)
    samples = []
    for i in range(80):
        bright = i % 2 if pictures else int(torch.randint(2, (), generator=rng))
        text = torch.tensor([1 + i % 2, int(torch.randint(3, 7, (), generator=rng))])
        picture = torch.randint(100 * bright, 100 * bright + 100, (3, 16, 16), generator=rng).to(torch.uint8)
        samples.append(Sample(str(i), "answer", "", {TEXT: text, IMAGE: picture}))
    return samples


@pytest.fixture(scope="module")
def faces() -> tuple[list[Sample], list[Sample]]:
    """Matched pairs of sound and lips, and the same with each clip given to another sound."""
    source = TalkingFace(clips={"train": 80, "validation": 1, "test": 1})
    media: dict[Modality, dict[int, torch.Tensor]] = {
        m: {x.key: torch.from_numpy(np.asarray(x.values)) for x in source.media(m, range(80))} for m in (AUDIO, VIDEO)
    }
    keys = [pair.key for pair in source.split_clips("train") if pair.kind == "matched"]

    def samples(clips: list[int]) -> list[Sample]:
        heard = [media[AUDIO][k].float() / 32768 for k in keys]
        return [Sample("", "answer", "", {AUDIO: h, VIDEO: media[VIDEO][k]}) for h, k in zip(heard, clips, strict=True)]

    return samples(keys), samples(keys[5:] + keys[:5])


def test_what_goes_together_is_associated() -> None:
    assert canonical_correlation(written(), (TEXT, IMAGE)) > 0.9
    assert abs(canonical_correlation(written(pictures=False), (TEXT, IMAGE))) < 0.3


def test_lips_and_speech_rank_above_strangers(faces: tuple[list[Sample], list[Sample]]) -> None:
    matched, strangers = (canonical_correlation(samples, (AUDIO, VIDEO)) for samples in faces)
    assert matched > 0.5 > strangers + 0.1


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least ten samples with text and audio: got 0"):
        canonical_correlation(written(), (TEXT, AUDIO))


def test_plans_follow_association() -> None:
    measured = {(TEXT, IMAGE): 0.05, (TEXT, AUDIO): 0.6, (IMAGE, AUDIO): 0.02, (AUDIO, VIDEO): 0.7, (IMAGE, VIDEO): 0.3}
    plan = FusionPlan.from_association(measured, question=TEXT)
    stages = [FusionStage.MID, FusionStage.MID, FusionStage.LATE, FusionStage.EARLY, FusionStage.MID]
    assert list(plan.stages.values()) == stages
    config = plan.config(FusionConfig(depth=3))
    assert config.early and config.depth == 3 and config.paths is not None
    assert set(config.paths) == {
        (TEXT, IMAGE), (IMAGE, TEXT), (TEXT, AUDIO), (AUDIO, TEXT), (IMAGE, VIDEO), (VIDEO, IMAGE)
    }  # fmt: skip
    late = FusionPlan(dict.fromkeys(measured, FusionStage.LATE)).config(FusionConfig())
    assert not late.early and late.paths == ()
    assert FusionPlan.from_association(measured, early_threshold=0.8).stages[AUDIO, VIDEO] is FusionStage.MID


def test_only_audio_and_video_meet_early() -> None:
    with pytest.raises(ValueError, match="can meet early, as both have times"):
        FusionPlan({(TEXT, IMAGE): FusionStage.EARLY})

"""What heads are trained on: batches that are drawn afresh, each of one task.

`see`: a picture, its caption in one of three languages, and what stands where in it. `restore`: a damaged picture, with
or without words that say what it shows. `translate`: a sentence, and a picture of what it speaks of; in most, a word
means two things, and only the picture says which.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from omni_lab.data.samples import Sample, collate
from omni_lab.data.tokenizer import Codec, encode_text
from omni_lab.data.worlds.ambiguous import Ambiguous, ambiguous_words
from omni_lab.data.worlds.captions import RELATIONS, listing, relation
from omni_lab.data.worlds.drawing import SceneDraw, place
from omni_lab.data.worlds.emoji_world import EmojiWorld
from omni_lab.data.worlds.scenes import Placed, caption, render
from omni_lab.data.worlds.things import LANGUAGES, Thing, background, vocabulary
from omni_lab.modalities import Modality, OmniBatch

STREAMS = {"train": 21, "validation": 22, "test": 23}
TASKS = ("see", "restore", "translate")
DIRECTIONS = (("en", "de"), ("en", "zh"), ("de", "en"), ("zh", "en"))
DAMAGES = ("hole", "noise", "coarse")
MOST = 4  # things in a picture


@dataclass(frozen=True)
class HeadBatch:
    """One batch of one task. inputs: what the model hears and sees; their targets: "prompt", "target" (token ids),
    "labels" [B, 4] (-1 where there is nothing), "boxes" [B, 4, 4] as shares of the sides, "picture" (whole), "damaged",
    "kept", as the task has them. references: of each text, all that would be right. kinds: of each sample, for tables.
    """

    task: str
    inputs: OmniBatch
    references: Sequence[Sequence[str]] = ()
    kinds: Sequence[str] = field(default_factory=list)


class HeadTasks(Dataset[HeadBatch]):
    """Batch i depends on (world.seed, seed, split, i) and the options alone; its task is drawn by `mix`, how often each
    comes. batches: so many. Test and validation batches come in turn through the tasks."""

    def __init__(
        self,
        world: EmojiWorld,
        codec: Codec,
        split: str,
        *,
        size: int,
        batches: int,
        mix: Mapping[str, float],
        seed: int = 0,
    ) -> None:
        unknown = [task for task in mix if task not in TASKS]
        if unknown or split not in STREAMS:
            raise ValueError(f"tasks must be of {TASKS} and split of {[*STREAMS]}: got {[*mix]} and {split!r}")
        self.world = world
        self.codec = codec
        self.split = split
        self.size = size
        self.batches = batches
        self.mix = mix
        self.seed = seed
        self.things = vocabulary(world.things)
        self.index = {thing.names["en"]: i for i, thing in enumerate(self.things)}
        self.words = {pair: [w for w in ambiguous_words() if w.language == pair[0]] for pair in DIRECTIONS}

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, i: int) -> HeadBatch:
        rng = np.random.default_rng([self.world.seed, self.seed, STREAMS[self.split], i])
        tasks = list(self.mix)
        weights = np.array([self.mix[task] for task in tasks])
        task = tasks[i % len(tasks)] if self.split != "train" else str(rng.choice(tasks, p=weights / weights.sum()))
        return {"see": self.see, "restore": self.restore, "translate": self.translate}[task](rng)

    def scene(self, rng: np.random.Generator) -> tuple[Placed, ...]:
        """What stands in a picture, as the world's scenes are drawn."""
        key = int(rng.integers(2**40))
        side = self.world.picture_size, self.world.frame_size
        draw = SceneDraw(
            key,
            self.split,
            seed=self.world.seed + STREAMS[self.split],
            things=self.world.things,
            picture_size=side[0],
            frame_size=side[1],
            spoken_share=None,
        )
        return draw.scene().picture

    def see(self, rng: np.random.Generator) -> HeadBatch:
        scenes = [self.scene(rng) for _ in range(self.size)]
        pictures = [self._drawn(scene, rng) for scene in scenes]
        languages = [str(rng.choice(LANGUAGES)) for _ in scenes]
        references = [captions(scene, language) for scene, language in zip(scenes, languages, strict=True)]
        chosen = [several[int(rng.integers(len(several)))] for several in references]
        labels, boxes = zip(*(self.objects(scene) for scene in scenes), strict=True)
        targets = self._written(languages, chosen) | {"labels": torch.stack(labels), "boxes": torch.stack(boxes)}
        return self._batch("see", [{Modality.IMAGE: p} for p in pictures], targets, references, languages)

    def restore(self, rng: np.random.Generator) -> HeadBatch:
        """All of a batch are damaged alike; every other picture comes with words that name what it shows."""
        scenes = [self.scene(rng) for _ in range(self.size)]
        pictures = torch.stack([self._drawn(scene, rng) for scene in scenes])
        damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
        damaged, kept = damage_pictures(pictures, scenes, damage, rng)
        inputs: list[dict[Modality, Tensor]] = [{Modality.IMAGE: picture} for picture in damaged]
        kinds = []
        for k, (given, scene) in enumerate(zip(inputs, scenes, strict=True)):
            if k % 2:
                words = captions(scene, str(rng.choice(LANGUAGES)))[0]
                given[Modality.TEXT] = torch.tensor(encode_text(self.codec.tokenizer, words, name=words))
            kinds.append(f"{damage}, {'told' if k % 2 else 'untold'}")
        targets = {"picture": pictures, "damaged": damaged} | ({} if kept is None else {"kept": kept})
        return self._batch("restore", inputs, targets, (), kinds)

    def translate(self, rng: np.random.Generator) -> HeadBatch:
        """One in four sentences is plain: no word of it means two things."""
        inputs, sources, targets, languages, kinds = [], [], [], [], []
        for _ in range(self.size):
            direction = DIRECTIONS[int(rng.integers(len(DIRECTIONS)))]
            word: Ambiguous | None = None
            other, meant = (self.things[int(k)] for k in rng.permutation(len(self.things))[:2])
            if rng.random() < 0.75:
                word = self.words[direction][int(rng.integers(len(self.words[direction])))]
                meant = word.senses[int(rng.integers(2))]
            source, target, placed = self.sentence(meant, other, direction, rng)
            inputs.append(
                {
                    Modality.TEXT: torch.tensor(encode_text(self.codec.tokenizer, source, name=source)),
                    Modality.IMAGE: self._drawn(placed, rng),
                }
            )
            sources.append(source)
            targets.append(target)
            languages.append(direction[1])
            kinds.append(f"{'-'.join(direction)}, {'ambiguous' if word else 'plain'}")
        return self._batch("translate", inputs, self._written(languages, targets), [[t] for t in targets], kinds)

    def sentence(
        self, meant: Thing, other: Thing, direction: tuple[str, str], rng: np.random.Generator
    ) -> tuple[str, str, tuple[Placed, ...]]:
        """About two things, in both languages, and where they stand in the picture that goes with it."""
        pair = [meant, other] if rng.random() < 0.5 else [other, meant]
        placed = place(pair, self.world.picture_size, rng)
        source, target = direction
        if rng.random() < 0.5:
            counts = dict.fromkeys(pair, 1)
            return listing(counts, source), listing(counts, target), placed
        where = str(rng.choice([*RELATIONS]))  # what the words say need not be what is seen: it can be read
        return relation(pair[0], where, pair[1], source), relation(pair[0], where, pair[1], target), placed

    def objects(self, scene: Sequence[Placed]) -> tuple[Tensor, Tensor]:
        """Labels [4] and boxes [4, 4] of a picture, -1 and 0 where there is nothing."""
        labels, boxes = torch.full((MOST,), -1), torch.zeros(MOST, 4)
        for k, placed in enumerate(scene):
            labels[k] = self.index[placed.thing.names["en"]]
            boxes[k] = torch.tensor(placed.box) / self.world.picture_size
        return labels, boxes

    def _drawn(self, scene: Sequence[Placed], rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(render(background(self.world.picture_size, rng), scene))

    def _written(self, languages: Sequence[str], texts: Sequence[str]) -> dict[str, Tensor]:
        return {"prompt": self.codec.prompts(languages), "target": self.codec.targets(texts)}

    def _batch(
        self,
        task: str,
        inputs: Sequence[Mapping[Modality, Tensor]],
        targets: Mapping[str, Tensor],
        references: Sequence[Sequence[str]],
        kinds: Sequence[str],
    ) -> HeadBatch:
        samples = [Sample(str(k), task, kind, given) for k, (given, kind) in enumerate(zip(inputs, kinds, strict=True))]
        batch = collate(samples)
        return HeadBatch(task, replace(batch, targets=dict(targets)), references, kinds)


def captions(scene: Sequence[Placed], language: str) -> list[str]:
    """All that the grammar can say of a picture: whatever stands there may be named in any order."""
    return list(dict.fromkeys(caption(order, language) for order in itertools.permutations(scene)))


def damage_pictures(
    pictures: Tensor, scenes: Sequence[Sequence[Placed]], damage: str, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """Damaged pictures [B, 3, H, W] uint8, and which pixels [B, H, W] are as they were, where any are. "hole": one of
    the things is gone, black. "noise": normal, 60 of 255. "coarse": every 4 x 4 pixels are one colour."""
    size = pictures.shape[-1]
    if damage == "hole":
        kept = torch.ones(len(pictures), size, size, dtype=torch.bool)
        for k, scene in enumerate(scenes):
            chosen = scene[int(rng.integers(len(scene)))]
            left, top, right, bottom = (round(min(max(edge, 0), size)) for edge in chosen.box)
            kept[k, top:bottom, left:right] = False
        return pictures * kept[:, None], kept
    if damage == "noise":
        noise = torch.from_numpy(rng.normal(0, 60, tuple(pictures.shape)).astype(np.float32))
        return (pictures + noise).clamp(0, 255).to(torch.uint8), None
    few = torch.nn.functional.avg_pool2d(pictures.float(), 4)
    return few.repeat_interleave(4, 2).repeat_interleave(4, 3).round().to(torch.uint8), None

"""What the facts say of a picture, a clip or a sound is what can be seen and heard in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from omni_lab.batch import SAMPLE_RATE
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.scene import PlacedThing, Scene


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld(things=8, scenes={"train": 14, "validation": 1, "test": 1})


def drawn_over(world: EmojiWorld, scene: Scene) -> np.ndarray:
    """[H, W], where the picture is not the background."""
    return (world.render_image(scene) != world.render_image(replace(scene, placed_things=()))).any(axis=0)


def test_boxes_are_where_the_things_are(world: EmojiWorld) -> None:
    for scene in world.split_scenes("train"):
        changed = drawn_over(world, scene)
        outside = changed.copy()
        for thing in scene.placed_things:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            inside = np.s_[max(0, int(top) - 1) : int(bottom) + 2, max(0, int(left) - 1) : int(right) + 2]
            outside[inside] = False
            assert changed[inside].mean() > 0.15, scene
            own = drawn_over(world, replace(scene, placed_things=(thing,)))
            rows, columns = np.nonzero(own)
            assert abs(columns.mean() - thing.x) < 4 and abs(rows.mean() - thing.y) < 4, thing
        assert not outside.any()


def test_no_two_things_of_a_picture_overlap(world: EmojiWorld) -> None:
    def quarter(p: PlacedThing) -> tuple[bool, bool]:
        return p.x > 32, p.y > 32

    for scene in world.split_scenes("train"):
        quarters = {quarter(p) for p in scene.placed_things}
        assert len(quarters) == len(scene.placed_things) <= 4


def test_things_appear_disappear_blink_and_move(world: EmojiWorld) -> None:
    scene = world.scene("train", 0)
    one, other = (
        replace(actor, x=16.0, y=y, axis="x", sign=1) for actor, y in zip(scene.moving_things, (8.0, 24.0), strict=True)
    )

    def clip(act: str) -> np.ndarray:
        acting = (replace(one, act=act), replace(other, act="appear"))
        return world.render_video(replace(scene, moving_things=acting))[:, :, :16].astype(
            int
        )  # its lane, the upper half

    shown, hidden = clip("steady"), clip("appear")[0]
    assert [(frame != hidden).any() for frame in shown] == [True] * 8
    assert all((frame == shown[0]).all() for frame in shown)
    seen = {act: [bool((f != hidden).any()) for f in clip(act)] for act in ("appear", "disappear", "blink")}
    assert seen["appear"] == [False] * 4 + [True] * 4
    assert seen["disappear"] == [True] * 4 + [False] * 4
    assert seen["blink"] == [True, True, False, False] * 2
    for sign in (1, -1):
        one = replace(one, sign=sign)
        columns = [np.nonzero((frame != hidden).any(axis=(0, 1)))[0].mean() for frame in clip("move")]
        assert (np.diff(columns) * sign > 0).all(), "right, then left"


def test_words_are_heard_when_the_facts_say(world: EmojiWorld) -> None:
    for scene in world.split_scenes("train"):
        assert scene.speech is not None
        clean = replace(scene, speech=replace(scene.speech, snr=60.0))
        assert clean.speech is not None
        samples, facts = world.render_audio(clean, clean.speech)
        power = (samples / 32768.0) ** 2
        assert facts["words"] and [w[0] for w in facts["words"]] == [t.names["en"] for t in scene.named_things]
        for _, start, end in facts["words"]:
            assert 0 <= start < end <= len(samples) / SAMPLE_RATE + 1e-3
            inside = power[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)].mean()
            before = power[: round(facts["words"][0][1] * SAMPLE_RATE)]
            assert inside > 100 * (before.mean() if len(before) else 0.0)
        said = [start for _, start in clean.speech.utterances]
        for (_, start, end), begins, middle in zip(facts["words"], said, scene.midpoints, strict=True):
            assert start == pytest.approx(begins, abs=0.02)
            assert middle == pytest.approx((start + end) / 2, abs=0.02)


def test_noise_is_as_loud_as_the_facts_say(world: EmojiWorld) -> None:
    scene = world.scene("train", 1)
    assert scene.speech is not None
    loud, soft = (replace(scene.speech, snr=snr) for snr in (0.0, 30.0))
    silent = round(scene.speech.utterances[0][1] * SAMPLE_RATE)  # samples before the first word
    shares = []
    for sound in (loud, soft):
        samples, facts = world.render_audio(replace(scene, speech=sound), sound)
        assert facts["snr_db"] == sound.snr and sound.noisy == (sound.snr < 15)
        power = samples.astype(float) ** 2
        shares.append(power[:silent].mean() / power.mean())
    assert shares[0] > 100 * shares[1]

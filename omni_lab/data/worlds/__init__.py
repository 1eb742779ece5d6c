"""Worlds: sets that are generated, so that all is known of them."""

from omni_lab.data.worlds.emoji_world import EmojiWorld
from omni_lab.data.worlds.talking_face import TalkingFace
from omni_lab.data.worlds.views import ThingViews

__all__ = ["EmojiWorld", "TalkingFace", "ThingViews"]

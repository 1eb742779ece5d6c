"""TODO"""

from omni_lab.worlds.captions import caption_grammar
from omni_lab.worlds.contrastive_views import SPEAKER_GROUPS, ContrastiveViews
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import HELD_OUT_VOICES, Voice, synthesize
from omni_lab.worlds.question_families import evidence_box, evidence_span
from omni_lab.worlds.talking_face import TalkingFace, mouth
from omni_lab.worlds.tasks import DAMAGES, strip_punctuation
from omni_lab.worlds.things import LANGUAGES, thing_vocabulary, unseen_things
from omni_lab.worlds.wrappers import SpokenQuestions

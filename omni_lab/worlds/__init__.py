"""Generated worlds: scenes with known answers in all modalities, and the data that models are trained on.

tables/               words and question texts as data
things.py             the things that scenes show, ambiguous words, artwork and backgrounds
espeak.py             speech synthesis with the times of words and phonemes
captions.py           phrases and captions in three languages, and the grammar of the English ones
question_families.py  question families, their texts, and where their evidence lies
scene.py              scenes, their captions, and how they are rendered
scene_sampler.py      samples a scene and its questions
emoji_world.py        `EmojiWorld`: a source of questions that need exactly some of the modalities
talking_face.py       `TalkingFace`: do the lips follow the speech?
digits.py             `Digits`: handwritten and spoken digits, spoilt without notice
adverse.py            `AdverseWorld`: the same answer in several media, each spoilt or not
wrappers.py           a source with distractors, or with spoken questions
contrastive_views.py  things as image, text, speech and video, for contrastive training
utterances.py         cached speech for the tasks
sentence_sampler.py   captions, translation pairs, and lines to transcribe or to speak
task_examples.py      the examples of each task, and the damages of images
tasks.py              batches of one task each
datamodules.py        LightningDataModules of views and tasks
"""

from omni_lab.worlds.captions import caption_grammar
from omni_lab.worlds.contrastive_views import SPEAKER_GROUPS, ContrastiveViews
from omni_lab.worlds.emoji_world import EmojiWorld
from omni_lab.worlds.espeak import HELD_OUT_VOICES, Voice, synthesize
from omni_lab.worlds.question_families import evidence_box, evidence_span
from omni_lab.worlds.talking_face import TalkingFace, mouth
from omni_lab.worlds.task_examples import DAMAGES, strip_punctuation
from omni_lab.worlds.things import LANGUAGES, thing_vocabulary, unseen_things
from omni_lab.worlds.wrappers import SpokenQuestions

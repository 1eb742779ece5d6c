"""Data sets that are read from files: adapters to one interface, `VQASource`.

base.py            VQASource, Question, QuestionFamily, MediaItem, SPLITS
easy_vqa.py        EasyVQA: one coloured shape per image
own_set.py         OwnSet: media in folders, and a CSV file of questions
new_set.py         makes one
vqa_v2.py          VQAv2: photographs, and the official answer normalisation
speech_corpora.py  recorded speech with transcripts: Speech Commands, LibriSpeech, vendored recordings
hsk.py             Chinese sentences with English translations
"""

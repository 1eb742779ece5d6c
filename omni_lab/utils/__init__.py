"""Helpers that know nothing of models and data.

env.py       the folder of the project, environment variables
exercises.py whether the answer to an exercise is right
lookup.py    look up a name; the error for an unknown one names the nearest
penalties.py the penalty on cost that meets a budget
parallel.py  map a function over many items, on all cores
progress.py  progress bars for notebooks, terminals and the runner
"""

"""Models behind a server: batches, protocols, speech.

batching.py    requests that run the same are answered together
telemetry.py   metrics and logs
media.py       what strangers send, bounded
models.py      exported models by name and version
engine.py      decides, then answers, in batches of what the routes run
"""

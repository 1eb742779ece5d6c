"""Models behind a server: batches, protocols, speech.

batching.py    requests that run the same are answered together
telemetry.py   metrics and logs
media.py       what strangers send, bounded
models.py      exported models by name and version
engine.py      decides, then answers, in batches of what the routes run
speech.py      text to a waveform in pieces, and back
settings.py    how a server is set up
errors.py      refusals in OpenAI's format
guard.py       sizes, keys, rates and logs of all requests
chat.py        a conversation as one question, an answer as a completion
asking.py      from a request to the engine and back
openai_api.py  models, chat completions, transcription and speech
kserve.py      KServe's protocol
app.py         the application: all of it
server.py      runs it
"""

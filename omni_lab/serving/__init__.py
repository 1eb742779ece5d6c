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
turn_detection.py     when somebody starts and stops speaking
realtime_session.py   settings, items and incoming sound of a realtime session
realtime_response.py  the events of one of its responses
realtime_answers.py    answers, one at a time, that can be interrupted
realtime.py           OpenAI's realtime interface
page.py        the page to talk to, whose files are in page/
app.py         the application: all of it
server.py      runs it
"""

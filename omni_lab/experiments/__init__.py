"""Experiments: notebooks run headless, what they record, and the claims that it is compared with.

cli.py         the command `omni-lab`: run, train, list, report, scorecard, slides, publish
serve_commands.py  export and serve
own_sets.py    commands for a set of one's own: new, ask, save
jobs.py        what to run: notebooks, their parameters, grids
runner.py      runs notebooks by papermill, each in a process of its own
provenance.py  the commit, command and processor that a result comes from
results.py     `start_run` and `record`: metrics.json, written and read
claims.py      the ledger `claims.yaml`, scored by recorded metrics
report.py      tables, the scorecard, the index page, what is published
pages.py       an executed notebook as one web page; the glossary; fills in `templates/`
slides.py      slides from such a page
"""

. /tmp/env.sh; $B/python /tmp/nb/build.py; $B/ruff check notebooks --fix -q >/dev/null 2>&1; $B/ruff format -q notebooks; $B/ruff check notebooks --output-format concise | tail -40

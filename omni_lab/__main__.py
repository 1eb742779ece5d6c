"""`python -m omni_lab` is the command `omni-lab`."""

from omni_lab.experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

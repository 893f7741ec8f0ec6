"""``ray job submit --working-dir . -- python ray_jobs/match.py ...``: takes what ``cropreg match`` takes, and does the same."""

import sys

from cropreg.cli import run

if __name__ == "__main__":
    sys.exit(run(["match", *sys.argv[1:]]))

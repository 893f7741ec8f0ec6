"""``ray job submit --working-dir . -- python ray_jobs/evaluate.py ...``: takes what ``cropreg evaluate`` takes, and does the same."""

import sys

from cropreg.cli import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))

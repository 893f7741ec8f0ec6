"""``ray job submit --working-dir . -- python ray_jobs/train.py ...``: takes what ``cropreg train`` takes, and does the same."""

import sys

from cropreg.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))

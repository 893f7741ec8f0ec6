"""``ray job submit --working-dir . -- python ray_jobs/predict.py ...``: takes what ``cropreg predict`` takes, and does the same."""

import sys

from cropreg.cli import run

if __name__ == "__main__":
    sys.exit(run(["predict", *sys.argv[1:]]))

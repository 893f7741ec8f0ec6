"""``ray job submit --working-dir . -- python ray_jobs/export.py ...``: takes what ``cropreg export`` takes, and does the same."""

import sys

from cropreg.cli import run

if __name__ == "__main__":
    sys.exit(run(["export", *sys.argv[1:]]))

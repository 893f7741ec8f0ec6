"""``python -m cropreg.cli``, where the console script is not on the path: in the jobs of a cluster."""

from cropreg.cli import main

main()

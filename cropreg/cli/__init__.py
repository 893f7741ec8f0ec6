"""The command line: parses, calls the one function of a verb, prints what was made, and ends with the verb's exit code.

Nothing heavy is imported before a verb runs, so that ``cropreg --help`` answers at once.
"""

from cropreg.cli.verbs import main, run

__all__ = ["main", "run"]

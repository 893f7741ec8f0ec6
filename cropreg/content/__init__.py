"""Which original a crop was cut from when its name does not tell: described, shortlisted from an index, decided by the matcher."""

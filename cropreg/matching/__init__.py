"""Finds where a crop lies in its original: search, register, verify, refine; `find.find` is the door."""

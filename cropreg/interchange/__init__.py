"""Crops in the languages of other programs: predictions written for them, and crops they hold read as labels.

One file a format, each from plain values to bytes and back; boxes are in pixels of the upright original, half-open, throughout.
"""

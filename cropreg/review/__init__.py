"""A local page to judge labels and predictions by keyboard: what to look at first, its pictures, and the decisions."""

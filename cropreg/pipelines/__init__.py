"""Library code that wires the pure functions to Ray: one file a verb, and ``cluster``, which they all stand on."""

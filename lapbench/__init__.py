"""Measure how well importance maps of CNNs point at what is really there."""

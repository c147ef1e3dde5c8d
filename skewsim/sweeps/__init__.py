"""Sweeps: many scenarios and seeds on a grid of settings, and the map of where training collapses."""

"""The terminal UI: toggle a fix, watch the reward curve respond."""

"""Real engines: start them, measure their skew, name its cause, feed it into the simulator."""

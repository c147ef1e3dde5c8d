"""skewsim: see, measure and fix train-inference skew in online RL for language models."""

__version__ = "0.1.0"

"""The ``skewsim`` command."""

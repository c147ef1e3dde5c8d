"""Learning from rollouts: objectives, advantages, corrections, and the trainer's loop."""

"""The policy: a small Llama with a leading ensemble axis, its layers, and its weights in other precisions."""

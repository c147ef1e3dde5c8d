"""What skewsim adds to a vLLM process. The folder above goes onto PYTHONPATH; nothing is installed.

Standard library, torch and vLLM only. `head` is a vLLM plugin and works in any vLLM program, a server too; `forced`,
`routes` and `weights` are called by the worker.
"""

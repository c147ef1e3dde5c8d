"""How often Diagnose in the terminal UI is right about one step of the simulator, using the app's own process.

    python benchmarks/tui_diagnose.py            # four seeds, five steps each, about two minutes

One fix is off at a time and the others are on. A diagnosis is right if the fault is among the causes, and exact if it
is the verdict. With all four fixes on, the remaining cause is the lag of one version.
"""

from __future__ import annotations

from collections import Counter

from skewsim.settings import Scenario
from tui.controls import FIXES
from tui.lab import YOURS, opening, reference_for
from tui.process import TrainingProcess

LOOKS, SEEDS = (3, 8, 14, 20, 30), (0, 1, 2, 3)


def looks(process: TrainingProcess, scenario: Scenario) -> list[tuple[str, list[str]]]:
    """(verdict, causes) of each diagnosis."""
    found = []
    for seed in SEEDS:
        training = process.train(scenario.with_values({"seed": seed}), (seed,))
        for step in range(LOOKS[-1] + 1):
            process.watch.wanted = step in LOOKS
            next(training)
            if step in LOOKS:
                _, diagnosis = process.watch.diagnose()
                found.append((diagnosis.verdict, [cause.name for cause in diagnosis.causes]))
        training.close()
    return found


def main() -> None:
    mended = reference_for(opening()).with_values({"name": YOURS})
    cases = {"all on": (mended, "stale_weights"), "lag 8": (mended.with_values({"engine.lag": 8}), "stale_weights")}
    for fix, cause in zip(FIXES, ("raw_logprobs", "stale_kv", "stale_weights", "head_dtype"), strict=True):
        cases[f"{fix.label} off"] = (fix.moved(mended, 1), cause)
    cases["all off"] = (opening(), "raw_logprobs")
    process = TrainingProcess()
    print("| state | looks | named | verdict | verdicts |\n|---|---|---|---|---|")
    try:
        for name, (scenario, cause) in cases.items():
            found = looks(process, scenario)
            named, exact = sum(cause in causes for _, causes in found), sum(v == cause for v, _ in found)
            verdicts = ", ".join(f"{v} {n}" for v, n in Counter(v for v, _ in found).most_common())
            print(f"| {name} | {len(found)} | {cause} {named} | {exact} | {verdicts} |", flush=True)
    finally:
        process.stop()


if __name__ == "__main__":
    main()

"""What docs/studies.md shows of a study: its results as JSON, and the figures that the page links.

    skewsim sweep run skewsim/data/studies/NAME.toml --out runs/NAME
    python benchmarks/studies.py runs/NAME ...

Writes docs/studies/NAME.json and docs/studies/NAME-FIGURE.png, and prints each cell's reward at the end with two
standard errors. Titles and sentences over the figures are those of the shipped file.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from skewsim.runs.recording import write_json
from skewsim.sweeps.figures import map_figures
from skewsim.sweeps.folder import open_sweep, read_curves, read_status
from skewsim.sweeps.map import SweepMap, make_map
from skewsim.sweeps.plan import load_sweep

ROOT = Path(__file__).parent.parent
PAGE, RESULTS, FILES = ROOT / "docs/studies.md", ROOT / "docs/studies", ROOT / "skewsim/data/studies"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        found = read(folder)
        name = found.sweep.settings.name
        write_json(RESULTS / f"{name}.json", found.to_json())
        for path in save_linked(found, name):
            print(path)
        print_rewards(found)


def read(folder: Path) -> SweepMap:
    """The map of a folder's curves by the shipped file of the same name."""
    sweep = load_sweep(FILES / f"{open_sweep(folder).settings.name}.toml")
    return make_map(sweep, read_curves(folder), status=str(read_status(folder).get("status", "new")))


def save_linked(found: SweepMap, name: str) -> list[Path]:
    """The figures that the page links."""
    linked = set(re.findall(rf"\]\(studies/{name}-([a-z_0-9]+)\.png\)", PAGE.read_text()))
    figures = {figure.rpartition("/")[2]: picture for figure, picture in map_figures(found).items()}
    return [figures[each].save(RESULTS / f"{name}-{each}.png") for each in sorted(linked)]


def print_rewards(found: SweepMap) -> None:
    for cell in found.cells:
        if cell.final_reward is not None:
            error = f" ± {2 * cell.final_reward_error:.2f}" if cell.final_reward_error is not None else ""
            means = ", ".join(f"{key} {value:.3g}" for key, value in cell.means.items() if value is not None)
            print(
                f"{', '.join(cell.labels)}: {cell.collapsed} of {cell.members} collapsed, reward "
                f"{cell.final_reward:.2f}{error}; {means}"
            )


if __name__ == "__main__":
    main()

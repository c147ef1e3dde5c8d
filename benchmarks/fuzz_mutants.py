"""How many of 30 small faults in the readers the fuzz finds.

    python benchmarks/fuzz_mutants.py [--inputs 400] [--only 3,17] [--write docs/robustness.md]

Each fault is one edit of a reader's source (a check removed, a bound dropped, an exception no longer caught), made in a
temporary copy of the tree; then the kinds of input that the reader takes are tried on it, until one ends in anything
but an exit code and a line, or is accepted though a second reading says that it is not sound. Prints a row for each
fault, and how many were found; with --write, into that file between the two marks, where rows of faults that are not
tried now stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cyclopts  # noqa: F401 (what takes seconds to import is imported once; each fork has it)
import pyarrow.parquet  # noqa: F401
import pydantic  # noqa: F401
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import torch  # noqa: F401

BEGIN, END = "<!-- faults table: begin -->", "<!-- faults table: end -->"
MISSED = "missed"
ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    file: str
    old: str
    new: str
    kinds: str


BORDER, ARRAYS, FOLDER, LOGS = (
    "skewsim/border.py",
    "skewsim/arrays.py",
    "skewsim/model/folder.py",
    "harness/log_files.py",
)
FAULTS = [
    Fault(BORDER, "if stat.S_ISREG(os.fstat(number).st_mode):", "if True:", "options"),
    Fault(BORDER, "except (ValueError, RecursionError) as error:", "except RecursionError as error:", "scenario_files"),
    Fault(BORDER, " or max(map(len, text.splitlines()), default=0) > LONGEST_TOML_LINE:", ":", "scenario_files"),
    Fault(BORDER, "read_small(path, limit=4 * LONGEST_TOML).decode()\n    except UnicodeDecodeError:", "read_small(path, limit=4 * LONGEST_TOML).decode()\n    except KeyError:", "scenario_files"),
    Fault(BORDER, "except (ValueError, RecursionError):", "except ValueError:", "shares"),
    Fault(BORDER, 'return line.decode("utf-8-sig")\n    except UnicodeDecodeError:', 'return line.decode("utf-8-sig")\n    except KeyError:', "sequences,logs"),
    Fault(BORDER, "except RecursionError:", "except KeyError:", "logs,sequences"),
    Fault(BORDER, "return json.loads(text)\n    except ValueError:", "return json.loads(text)\n    except KeyError:", "sequences"),
    Fault(ARRAYS, "if len(shape) != 1 or dtype.kind not in NUMBERS:", "if len(shape) != 1:", "npz"),
    Fault(ARRAYS, "if len(shape) != 1 or dtype.kind not in NUMBERS:", "if dtype.kind not in NUMBERS:", "npz"),
    Fault(ARRAYS, "if begin + shape[0] * dtype.itemsize != entry.file_size:", "if False:", "npz"),
    Fault(ARRAYS, "if unpacked > (allowed :=", "if unpacked > 10**30 + (allowed :=", "parquet,npz,dumps"),
    Fault(ARRAYS, 'if not entry.filename.endswith(".npy"):', "if False:", "npz"),
    Fault(ARRAYS, "except (*_WRONG, *theirs) as error:", "except theirs as error:", "parquet"),
    Fault(ARRAYS, "(zipfile.BadZipFile, zlib.error,", "(zlib.error,", "tables,npz"),
    Fault(FOLDER, "if not 2 <= length <= min(LONGEST_HEADER, size - 8):", "if False:", "models"),
    Fault(FOLDER, "except (KeyError, TypeError, ValueError):", "except (KeyError, ValueError):", "models"),
    Fault(FOLDER, "if not isinstance(header, dict):", "if False:", "models"),
    Fault(FOLDER, "except (KeyError, TypeError, ValueError):", "except (TypeError, ValueError):", "models"),
    Fault(FOLDER, "if name in _SIZES and not (whole and 0 < value < 2**31):", "if name in _SIZES and not whole:", "models"),
    Fault(FOLDER, "if not isinstance(config.get(name) or {}, Mapping):", "if False:", "models"),
    Fault(FOLDER, 'if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):', "if False:", "models"),
    Fault(LOGS, "if not isinstance(data, Mapping):", "if False:", "dumps"),
    Fault(LOGS, "if not isinstance(row, Mapping):", "if False:", "dumps"),
    Fault(LOGS, "        _check_repeats(data, file, size)\n    except", "    except", "dumps"),
    Fault(LOGS, "(pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError,", "(zipfile.BadZipFile,", "dumps"),
    Fault(LOGS, 'if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":', "if False:", "dumps"),
    Fault("skewsim/runs/checkpoint.py", "if not isinstance(note, dict):", "if False:", "resumed"),
    Fault("skewsim/runs/recording.py", "except (ValueError, TypeError, AttributeError, KeyError, RecursionError):", "except ValueError:", "resumed"),
    Fault("harness/server_answers.py", "if not isinstance(found, dict):", "if False:", "servers"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=400)
    parser.add_argument("--only", default=",".join(map(str, range(1, len(FAULTS) + 1))))
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    rows = written(asked.write) if asked.write else {}
    for number in map(int, asked.only.split(",")):
        fault = FAULTS[number - 1]
        said = tried(fault, asked.inputs)
        code = " | ".join(f"`{_cell(text)}`" for text in (fault.old, fault.new))
        rows[number] = f"| {number} | {Path(fault.file).name} | {code} | {said or MISSED} |"
        print(rows[number], flush=True)
        if asked.write:
            put(table(rows, asked.inputs), asked.write)
    print(table(rows, asked.inputs)[-1])


def table(rows: dict[int, str], inputs: int) -> list[str]:
    found = sum(not row.endswith(f"{MISSED} |") for row in rows.values())
    head = ["| | reader | instead of | stands | found by |", "|---|---|---|---|---|"]
    end = f"{found} of {len(rows)} were found, with at most {inputs} inputs of each kind."
    return [*head, *(rows[number] for number in sorted(rows)), "", end]


def written(path: Path) -> dict[int, str]:
    """The rows that an earlier run wrote between the two marks, by their faults' numbers."""
    lines = path.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()
    return {int(line.split("|")[1]): line for line in lines if re.match(r"\| \d+ \|", line)}


def put(text: list[str], path: Path) -> None:
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text("\n".join([before + BEGIN, *text, END + rest.partition(END)[2]]))


def _cell(code: str) -> str:
    """Source as one cell of a table."""
    return " ".join(code.split()).replace("|", "\\|")


def tried(fault: Fault, inputs: int) -> str | None:
    """The first input that finds the fault, or None."""
    with tempfile.TemporaryDirectory() as place:
        for part in ("skewsim", "harness", "tests"):
            shutil.copytree(ROOT / part, Path(place) / part)
        path = Path(place) / fault.file
        source = path.read_text()
        assert source.count(fault.old) == 1, f"{fault.file}: {fault.old!r} is there {source.count(fault.old)} times"
        path.write_text(source.replace(fault.old, fault.new))
        return next((said for kind in fault.kinds.split(",") if (said := wrong(place, kind, inputs))), None)


def wrong(place: str, kind: str, inputs: int) -> str | None:
    """What the first input of a kind that ends badly ends in; None if none does."""
    read, write = os.pipe()
    number = os.fork()
    if not number:
        os.dup2(write, 1)
        judge(place, kind, inputs)
    os.close(write)
    with open(read) as said:
        for line in said:
            row = json.loads(line) if line.startswith('{"') else {"wrong": []}
            if row["wrong"]:
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
                return f"{kind} {row['number']}: {', '.join(row['wrong'])}"
    status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    if status > 0 and status != HUNG:
        raise SystemExit(f"{kind}: the fuzz itself ended with {status}")
    return f"{kind}: the process ended with {status}" if status else None


HUNG = 75
"""Exit code of a fork that ended itself because an input took too long and could not be interrupted."""


def judge(place: str, kind: str, inputs: int) -> None:
    """Try the inputs on the tree at `place`, in a process that has imported nothing of this project yet."""
    try:
        os.chdir(place)
        sys.path.insert(0, place)
        __import__("skewsim.learn.trainer")
        __import__("tests.fuzz.judge", fromlist=["judge"]).judge(kind, 0, inputs, 0)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()

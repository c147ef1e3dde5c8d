"""Whatever somebody has - a log of tokens, metrics by step, a profile - and one verdict on it, on a page.

`evidence` is what was read; `check` judges it; `page` shows the verdict as text and as Markdown. A log is read once
and may be of any length: sizes, odd values and the trend are counted over all of it (`moments`), causes are looked for
in a sample of bounded size (`sample`).
"""

from skewsim.check.evidence import Evidence, Read, Tokens, of_records, of_table
from skewsim.check.verdict import Checkup, check

__all__ = ["Checkup", "Evidence", "Read", "Tokens", "check", "of_records", "of_table"]

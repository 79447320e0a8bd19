"""``python -m tests.golden.refresh``: compute the golden set anew. Read the difference before
committing it.
"""

import json
import os

import pandas as pd

from tests.golden.collect import (
    ANSWERS,
    MADE_WITH,
    NUMBERS,
    describe_machine,
    list_cases,
    number_all,
)

if __name__ == "__main__":
    cases = list_cases()
    rows = number_all(cases, os.cpu_count() or 1)
    for file, is_plan in ((NUMBERS, False), (ANSWERS, True)):
        own = [
            frame
            for case, frame in zip(cases, rows, strict=True)
            if (case.fidelity == "plan") == is_plan
        ]
        pd.concat(own).sort_index().to_csv(file, float_format="%.17g")
    MADE_WITH.write_text(json.dumps(describe_machine(), indent=1) + "\n")

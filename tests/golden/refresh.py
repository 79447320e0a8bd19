"""``python -m tests.golden.refresh``: compute the golden set anew. Read the difference before
committing it.
"""

import json
import os

from tests.golden.collect import (
    MADE_WITH,
    describe_machine,
    list_cases,
    number_kinds,
)

if __name__ == "__main__":
    for file, _, rows in number_kinds(list_cases(), os.cpu_count() or 1):
        rows.sort_index().to_csv(file, float_format="%.17g")
    MADE_WITH.write_text(json.dumps(describe_machine(), indent=1) + "\n")

"""``davi compare``: evaluations of several runs, ranked, with paired differences."""

from __future__ import annotations

import json
from pathlib import Path

from davi import comparison, records
from davi.cli.options import Request
from davi.errors import UserError
from davi.files import replace_text, writing
from davi.run_folder import run_folder


def run(request: Request) -> int:
    """Print the table or write it to a file; the exit status."""
    options = request.options
    result = comparison.compare([comparison.read(run_folder(Path(given)), given) for given in options.runs])
    if options.json:
        text = json.dumps(records.to_json(result), indent=2, allow_nan=False)
    elif options.markdown:
        text = comparison.to_markdown(result).rstrip()
    else:
        text = comparison.to_terminal(result)
    if options.out is None:
        print(text)
    else:
        path = Path(options.out)
        with writing(str(path)):
            replace_text(path, text + "\n")
        print(f"written to {path}")
    rows = [row for group in result.groups for row in group.rows]
    if unranked := [row.run for row in rows if row.rank is None]:
        raise UserError(
            f"{', '.join(unranked)}: not ranked; got an evaluation on images that the run was trained on, expected "
            "images that training has not seen, such as --split test"
        )
    if options.strict and len(result.groups) > 1:
        fields = ", ".join(result.differences)
        raise UserError(f"--strict: got {len(result.groups)} protocols, expected one; they differ in {fields}")
    return 0

"""The demo's result for the terminal."""

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nnunet_ext.compare.metrics import PRIMARY
from nnunet_ext.nnunet.json_files import read_json


def summary_text(file: Path) -> str:
    """Mean Dice of each trainer and label, and what the report concludes.

    Args:
        file: The report's summary.json.
    """
    content = read_json(file)
    labels = list(content["labels"])
    means = {
        (m["entrant"], m["label"], m["mean_of_labels"]): m["mean"] for m in content["means"] if m["metric"] == PRIMARY
    }
    table = Table("trainer", box=None, pad_edge=False)
    for name in (*labels, "mean"):
        table.add_column(name, justify="right")
    for entrant in content["entrants"]:
        values = [means[entrant, label, False] for label in labels] + [means[entrant, "mean", True]]
        table.add_row(entrant, *(f"{value:.3f}" for value in values))
    output = io.StringIO()
    console = Console(file=output, width=120)
    console.print(f"Dice of the {content['cases']} validation cases:")
    console.print(table)
    return f"{output.getvalue().rstrip()}\n\n{content['headline']}"

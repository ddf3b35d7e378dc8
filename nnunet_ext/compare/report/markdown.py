"""report.md: the answer, the tables and their LaTeX for a paper."""

from nnunet_ext.compare.report.procedure import procedure
from nnunet_ext.compare.report.table import Table
from nnunet_ext.compare.report.tables import all_tables, result_table
from nnunet_ext.compare.report.text import cost_sentence, headline, lesion_sentence, notes, sentence
from nnunet_ext.compare.result import Outcome

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%_#${}"}
    | {character: f"${character}$" for character in "<>"}
    | {"\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--", "\N{MULTIPLICATION SIGN}": r"$\times$", "±": r"$\pm$"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\N{NO-BREAK SPACE}": "~"}
)


def markdown_report(outcome: Outcome) -> str:
    """The text of report.md."""
    study = outcome.study
    lines = [f"# {study.title}", "", f"**{headline(outcome)}**", ""]
    for name in study.challengers:
        parts = (sentence(outcome, name), lesion_sentence(outcome, name), cost_sentence(outcome, name))
        lines += [f"* **{name}**: {' '.join(part for part in parts if part)}"]
    remarks = notes(outcome)
    if remarks:
        lines += ["", "## Caveats", "", *(f"* {note}" for note in remarks)]
    for table in all_tables(outcome):
        lines += ["", f"## {table.title}", "", *markdown_table(table)]
    lines += ["", "## How it was computed", "", *(f"* {text}" for text in procedure(outcome))]
    lines += ["", "## For a paper", "", "```latex", *latex_table(result_table(outcome)), "```", ""]
    return "\n".join(lines)


def markdown_table(table: Table) -> list[str]:
    """The lines of a table in Markdown."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in [table.heads, *table.rows]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    rule = "".join("---|" if column in table.text_columns else "--:|" for column in range(len(table.heads)))
    return [lines[0], f"|{rule}", *lines[1:]]


def latex_table(table: Table) -> list[str]:
    """A table for LaTeX's booktabs."""
    heads, *rows = ([cell.translate(_LATEX) for cell in row] for row in [table.heads, *table.rows])
    return [
        rf"\begin{{tabular}}{{{''.join('l' if i in table.text_columns else 'r' for i in range(len(heads)))}}}",
        r"\toprule",
        rf"{' & '.join(heads)} \\",
        r"\midrule",
        *(rf"{' & '.join(row)} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]

"""Tables on a terminal, in a file, and as Markdown."""

import io

from rich.console import Console

from cal_cli.runtime import console
from cal_cli.runtime.console import make_console, make_table, render_markdown


def test_a_table_is_rendered_as_markdown():
    table = make_table("noise", "scene accuracy", title="means")
    table.columns[1].justify = "right"
    table.add_row("0.5", "0.684 [0.650, 0.720]")
    table.add_section()
    table.add_row("0", "a b  c")
    assert render_markdown(table).splitlines() == [
        "## means",
        "",
        "| noise | scene accuracy |",
        "|---|---|",
        "| 0.5 | 0.684 [0.650, 0.720] |",
        "| 0 | a b  c |",
    ]
    assert table.title == "means" and table.box is not None


def test_a_narrow_terminal_cuts_nothing_off():
    table = make_table("condition", "objective", "p", whole=["objective"])
    table.add_row("model.path=default/checkpoints/checkpoint-1000", "posterior", "0.25")
    page = io.StringIO()
    Console(file=page, width=40).print(table)
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert "…" not in page.getvalue() and "posterior" in page.getvalue()
    first = [line.split()[0] for line in lines if line.strip() and "─" not in line and "condition" not in line]
    assert "".join(first) == "model.path=default/checkpoints/checkpoint-1000"


def test_tables_in_a_file_are_as_wide_as_they_need(capsys):
    table = make_table("name", "value")
    table.add_row("a" * 100, "b" * 100)
    make_console().print(table)
    assert f"{'a' * 100}   {'b' * 100}" in capsys.readouterr().out


def test_progress_in_a_file_is_at_most_a_line_in_thirty_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: clock[0])
    page = io.StringIO()
    with console.show_progress("audit", 100, Console(file=page, width=80)) as advance:
        for _ in range(100):
            clock[0] += 1.0
            advance(1)
    assert [line.split()[1] for line in page.getvalue().splitlines()] == ["30/100", "60/100", "90/100"]

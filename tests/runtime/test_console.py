"""Tables as Markdown."""

from cal_cli.runtime.console import make_table, render_markdown


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

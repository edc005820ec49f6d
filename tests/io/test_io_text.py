"""Names of users do nothing where they are shown."""

import pytest

from pcl_clora.io.text import line_of, markdown, spreadsheet, visible


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("night_stand 2", "night_stand 2"),
        ("St\u00fchle \u6905\u5b50", "St\u00fchle \u6905\u5b50"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x9b2J", "\\x9b2J"),
        ("exe\u202egnp", "exe\\u202egnp"),
        ("a\u2066b\u200bc\ufeff", "a\\u2066b\\u200bc\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("\udcff.ply", "\\udcff.ply"),
    ],
)
def test_what_is_hidden_or_moves_the_cursor_is_shown_as_an_escape(given, shown):
    assert visible(given) == shown


def test_lines_stay_where_they_are_wanted():
    assert visible("a\nb\x07", keep="\n") == "a\nb\\x07"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("night_stand", "night_stand"),
        ("<b>ball</b>", "&lt;b&gt;ball&lt;/b&gt;"),
        ("a\n# heading", "a\\\\n# heading"),
        ("a|b", "a\\|b"),
        ("[x](javascript:1)", "\\[x\\](javascript:1)"),
        ("![](http://host/x.png)", "!\\[\\](http://host/x.png)"),
        ("`code` *bold* __bold__", "\\`code\\` \\*bold\\* \\_\\_bold\\_\\_"),
        ("&lt;", "&amp;lt;"),
        ("32 -> 64", "32 -> 64"),
        ("a\\|b", "a\\\\\\|b"),
    ],
)
def test_a_name_is_no_markup(given, shown):
    assert markdown(given) == shown


@pytest.mark.parametrize("given", ["=cmd|'/C calc'!A0", "+1+2", "-2+3", "@SUM(A1)", "  =1", "-", "=1\n=2"])
def test_a_name_is_no_formula(given):
    assert spreadsheet(given).startswith("'")
    assert "\n" not in spreadsheet(given)


@pytest.mark.parametrize("given", ["-1.5", "+3", "1e-3", "clora", "a=b", ""])
def test_numbers_and_plain_words_stay(given):
    assert spreadsheet(given) == given


def test_names_stand_on_one_line_whatever_they_hold():
    assert line_of(["a\nb", "c\u2028d", "\x1b[2J", 7]) == r"a\nb, c\u2028d, \x1b[2J, 7"
    assert line_of(map(str, range(5)), 3) == "0, 1, 2 and 2 more"
    assert line_of([]) == ""

import pytest

from pcl_clora.report import units


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (units.count, 329_743, "0.330 M"),
        (units.count, 61_440, "61.4 k"),
        (units.count, 768, "768"),
        (units.giga, 4_760_588_032, "4.761"),
        (units.giga, 4_190_208, "0.004190"),
        (units.percent, 0.93814, "93.81"),
        (units.file_size, 1536, "1.5 KiB"),
        (units.file_size, 2 * 2**20, "2.00 MiB"),
        (units.duration, 12.34, "12.3 s"),
        (units.duration, 754, "12.6 min"),
        (units.duration, 12_345, "3.43 h"),
    ],
)
def test_numbers_are_written_for_people(write, value, text):
    assert write(value) == text


def test_a_bar_in_a_cell_does_not_break_a_markdown_table():
    assert units.markdown_table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


def test_csv_quotes_commas_and_leaves_none_empty():
    assert units.csv_table(["a", "b"], [["x, y", None]]) == 'a,b\n"x, y",\n'

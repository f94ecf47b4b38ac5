"""How numbers are formatted for people."""

import pytest

from gpucnn.core import text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.percent(0.9916), "99.16 %"),
        (text.percent(0.999999), "> 99.99 %"),
        (text.percent(1.0), "100.00 %"),
        (text.percent(1e-7, 1), "< 0.1 %"),
        (text.percent(0.0, 1), "0.0 %"),
        (text.percent(float("nan")), "nan %"),
        (text.significant(0.02491), "0.0249"),
        (text.significant(1234.5), "1,230"),
        (text.significant(326.27, 2), "330"),
        (text.significant(0.0996, 2), "0.10"),
        (text.significant(99.96), "100"),
        (text.significant(-5.4e11), "−5.40e+11"),
        (text.significant(3e-9), "3.00e−09"),
        (text.significant(0), "0"),
        (text.format_loss(1.05461), "1.0546"),
        (text.format_loss(1.06e21), "1.06e+21"),
        (text.format_loss(float("nan")), "nan"),
        (text.plural(0, "check"), "no checks"),
        (text.plural(1, "check"), "1 check"),
        (text.plural(1200, "check"), "1,200 checks"),
        (text.format_shape((28, 28, 1)), "28 × 28 × 1"),
        (text.format_epoch(2, 10), "3/10"),
        (text.format_epoch(9, 9.9), "9.9/9.9"),
        (text.duration(0.0021), "2.1 ms"),
        (text.duration(7560), "2 h 6 min"),
        (text.short_count(650), "650"),
        (text.short_count(131_072), "131k"),
        (text.short_count(6_600_000), "6.6M"),
    ],
)
def test_numbers_as_text(shown, expected):
    assert shown == expected


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (7, "0:07"), (59.6, "1:00"), (750, "12:30"), (7600, "2:06:40")]
)
def test_clock_of_seconds(seconds, shown):
    assert text.clock(seconds) == shown

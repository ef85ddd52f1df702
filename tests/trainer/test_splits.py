"""The law of the splits: shares hold, subjects stay, keys decide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmcat_core.errors import ConfigError
from deepmcat_trainer.splits import LABELLED, UNLABELLED, Shares, Split, split_of

KEYS = st.binary(min_size=16, max_size=64)


@st.composite
def shares(draw: st.DrawFn) -> Shares:
    fit = draw(st.integers(1, 100))
    calibration = draw(st.integers(0, 100 - fit))
    return Shares(fit=fit, calibration=calibration, test=100 - fit - calibration)


@given(key=KEYS, shares=shares())
def test_shares_hold(key: bytes, shares: Shares) -> None:
    """Each split gets its share of many subjects, within what chance allows."""
    n = 1500
    splits = [split_of(key, str(subject), shares) for subject in range(n)]
    for split in Split:
        share = shares.of(split) / 100

        assert abs(splits.count(split) - share * n) <= 6 * (n * share * (1 - share)) ** 0.5


@given(key=KEYS, shares=shares(), subject=st.text())
def test_a_share_of_nothing_gets_nothing(key: bytes, shares: Shares, subject: str) -> None:
    """A split without a share is empty."""
    assert shares.of(split_of(key, subject, shares)) > 0


@given(key=KEYS, subject=st.text(), fits=st.tuples(st.integers(1, 100), st.integers(1, 100)).map(sorted))
def test_fit_only_grows(key: bytes, subject: str, fits: list[int]) -> None:
    """A subject of the fit split stays there when the fit share grows."""
    smaller, larger = (split_of(key, subject, Shares(fit=fit, calibration=100 - fit, test=0)) for fit in fits)

    assert smaller != Split.FIT or larger == Split.FIT


@given(shares=shares())
def test_parse_reads_what_it_writes(shares: Shares) -> None:
    """Shares survive their own text."""
    assert Shares.parse(str(shares)) == shares


@pytest.mark.parametrize("text", ["", "60/40", "60/10/30/0", "a/b/c", "60/10/31", "-10/10/100", "0/50/50", "60.5/9/30"])
def test_wrong_shares_are_refused(text: str) -> None:
    """Anything but three percentages that add up is a ConfigError that shows the form."""
    with pytest.raises(ConfigError, match="60/10/30"):
        Shares.parse(text)


def test_usual_shares() -> None:
    """Without labels there is nothing to test on."""
    assert (str(UNLABELLED), str(LABELLED)) == ("90/10/0", "60/10/30")

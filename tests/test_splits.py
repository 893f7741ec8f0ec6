"""Which rows train and which judge depends on the group and the shares, and on nothing else."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropreg.errors import UsageError
from cropreg.schema import SPLITS
from cropreg.splits import DEFAULT_SHARES, parse_shares, split_of

DEFAULT = parse_shares(DEFAULT_SHARES)
groups = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def many_shares(draw: st.DrawFn) -> tuple[float, ...]:
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=3, max_size=3)))
    return tuple((b - a) / 100 for a, b in zip([0, *cuts], [*cuts, 100], strict=True))


@pytest.mark.parametrize("text", ["70/10/10/10", "50/20/20/10", "97/1/1/1", "0/0/0/100"])
def test_shares_are_honoured_when_there_are_many_groups(text):
    n, shares = 20_000, parse_shares(text)
    counts = Counter(split_of(f"group {i}", shares) for i in range(n))
    for name, share in zip(SPLITS, shares, strict=True):
        assert abs(counts[name] / n - share) <= 4 * (share * (1 - share) / n) ** 0.5  # four standard errors


@given(st.lists(groups, unique=True), st.lists(groups, unique=True))
def test_groups_stay_where_they_are_when_others_join(before, newcomers):
    def table(names):
        return {name: split_of(name, DEFAULT) for name in names}

    together = table([*newcomers, *before][::-1])
    assert all(together[name] == split for name, split in table(before).items())


@given(groups, many_shares())
def test_group_is_never_in_a_split_without_a_share(group, shares):
    assert dict(zip(SPLITS, shares, strict=True))[split_of(group, shares)] > 0


@given(groups)
def test_training_groups_go_on_training_when_the_share_of_training_grows(group):
    if split_of(group, (0.5, 0.2, 0.2, 0.1)) == "train":
        assert split_of(group, DEFAULT) == "train"


@pytest.mark.parametrize("name", SPLITS)
def test_everything_goes_to_the_split_that_has_it_all(name):
    shares = tuple(float(split == name) for split in SPLITS)
    assert {split_of(str(i), shares) for i in range(100)} == {name}


def test_default_of_the_settings_is_the_default_of_the_splits():
    from cropreg.settings import MatchSettings

    assert MatchSettings().split == DEFAULT_SHARES


@pytest.mark.parametrize(
    "text", ["70/10/10", "70/10/10/10/0", "80/10/10/10", "110/-10/0/0", "a/b/c/d", "", "nan/10/10/10", "inf/0/0/0"]
)
def test_wrong_shares_are_refused_and_named(text):
    with pytest.raises(UsageError) as caught:
        parse_shares(text)
    assert str(caught.value) == (
        f"--split {text!r}: give four shares train/val/calib/test that add up to 100, for example 70/10/10/10."
    )


def test_shares_may_have_fractions():
    assert sum(parse_shares("33.3/33.3/33.3/0.1")) == pytest.approx(1)

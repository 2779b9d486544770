"""Dates and spans of time as x in `fit` and `fit_batch`: numbers that are said."""

import datetime

import numpy as np
import pytest

import jaxfit

pd = pytest.importorskip("pandas")

DAYS = np.arange(40)
DATES = np.datetime64("2024-01-05") + DAYS
SPANS = DATES - DATES[0]
Y = 3 * np.exp(-DAYS / 10) + 0.01 * np.random.default_rng(0).normal(size=DAYS.size)
UTC = datetime.UTC
PLAIN = DATES.astype(object).tolist()
NOON = [datetime.datetime(d.year, d.month, d.day, 12) for d in PLAIN]
SINCE, SPAN = "x: days since 2024-01-05.", "x: days."


@pytest.fixture(scope="module")
def expected():
    return jaxfit.fit("exponential", DAYS, Y)


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (DATES, SINCE),
        (DATES.astype("M8[ns]"), SINCE),
        (PLAIN, SINCE),
        (np.array(PLAIN, object), SINCE),
        (tuple(DATES), SINCE),
        (pd.DatetimeIndex(DATES), SINCE),
        (pd.Series(DATES), SINCE),
        ([pd.Timestamp(d) for d in DATES], SINCE),
        (NOON, "x: days since 2024-01-05T12:00."),
        ([d.replace(tzinfo=UTC) for d in NOON], "x: days since 2024-01-05T12:00."),
        (
            pd.DatetimeIndex(NOON).tz_localize("Europe/Paris"),
            "x: days since 2024-01-05T11:00.",
        ),
        (SPANS, SPAN),
        (pd.to_timedelta(SPANS), SPAN),
        ([d - NOON[0] for d in NOON], SPAN),
    ],
)
def test_all_kinds_of_dates_are_days(x, note, expected):
    fit = jaxfit.fit("exponential", x, Y)
    assert fit.values == expected.values
    assert fit.observed.notes == [note]
    assert note in str(fit)
    np.testing.assert_array_equal(fit.predict(x[:4]), expected.predict(DAYS[:4]))
    np.testing.assert_array_equal(fit.predict(DAYS[:4]), expected.predict(DAYS[:4]))


@pytest.mark.parametrize(
    ("step", "unit", "note"),
    [
        (1500, "ns", "x: seconds since 2024-01-05T00:00:00.000000003."),
        (3600, "s", "x: seconds since 2024-01-05T00:00:03."),
        (4000, "s", "x: seconds since 2024-01-05T00:00:03."),
        (6000, "s", "x: days since 2024-01-05T00:00:03."),
    ],
)
def test_the_span_chooses_the_unit_and_counts_are_exact(step, unit, note):
    begin = np.datetime64("2024-01-05", unit) + np.timedelta64(3, unit)
    x = begin + DAYS * np.timedelta64(step, unit)
    fit = jaxfit.fit("linear", x, Y)
    assert fit.observed.notes[0].startswith(note[:20])
    assert fit.observed.notes == [note]
    counted = DAYS * step * {"ns": 1e-9, "s": 1.0}[unit]
    if "days" in note:
        counted = counted / 86400
    np.testing.assert_allclose(fit.observed.data.x, counted, rtol=1e-15)


def test_dates_are_kept_in_bands_pictures_and_files(expected, tmp_path):
    fit = jaxfit.fit("exponential", DATES.astype("M8[s]"), Y)
    fit.save(tmp_path / "fit.npz")
    again = jaxfit.Fit.load(tmp_path / "fit.npz")
    for one in (fit, again):
        band = one.confidence_band(np.datetime64("2024-01-07T12:00"))
        np.testing.assert_array_equal(band, expected.confidence_band(2.5))
        assert one.predict(datetime.date(2024, 1, 8)) == expected.predict(3.0)
        assert one.plot().axes[-1].get_xlabel() == "days since 2024-01-05"
        assert one.plot(xlabel="t").axes[-1].get_xlabel() == "t"
        assert one.plot_residuals().axes[0].get_xlabel() == "days since 2024-01-05"
    assert again.report() == fit.report()


def test_points_without_a_date_are_left_out_and_do_not_begin():
    late = np.where(DAYS == 5, np.datetime64("NaT", "D"), DATES)
    with pytest.raises(ValueError, match="1 of 40 points have NaN in x"):
        jaxfit.fit("exponential", late, Y)
    with_none = [None if k == 5 else d for k, d in enumerate(PLAIN)]
    for x in (late, with_none):
        fit = jaxfit.fit("exponential", x, Y, nan_policy="omit")
        assert fit.ndata == DAYS.size - 1
        assert fit.observed.notes == [SINCE]
    masked = np.ma.MaskedArray(DATES, DAYS == 0)
    fit = jaxfit.fit("exponential", masked, Y)
    assert fit.observed.notes == ["x: days since 2024-01-06."]


def test_many_data_sets_share_their_dates(expected):
    batch = jaxfit.fit_batch("exponential", DATES, np.stack([Y, 2 * Y]))
    assert SINCE in str(batch)
    np.testing.assert_allclose(batch["rate"], expected.values["rate"])
    np.testing.assert_array_equal(batch.predict(DATES[:3]), batch.predict(DAYS[:3]))
    assert batch.fit(1).observed.notes == [SINCE]


@pytest.mark.parametrize(
    ("x", "kind", "words"),
    [
        ((DATES, DAYS), TypeError, "give numbers in a unit of your choice"),
        (DAYS.astype("m8[M]"), TypeError, "months and years differ in length"),
        ([PLAIN[0], 3.0, PLAIN[1]], TypeError, "x mixes dates with"),
        ([PLAIN[0], SPANS[1]], TypeError, "x mixes dates with"),
    ],
)
def test_what_is_no_date_is_refused(x, kind, words):
    with pytest.raises(kind, match=words):
        jaxfit.fit("linear", x, Y[: len(x)])


def test_points_elsewhere_are_of_the_same_kind(expected):
    fit = jaxfit.fit("exponential", DATES, Y)
    with pytest.raises(TypeError, match=r"has spans of time, and the fit was to dates"):
        fit.predict(SPANS)
    with pytest.raises(TypeError, match="give numbers in a unit"):
        expected.predict(DATES)

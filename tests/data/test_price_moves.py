"""Prices become strings and labels without a look ahead."""

import runpy
import sys

import numpy as np
import pandas as pd
import pytest
from scripts import TRAINING

from chinchilla_hf.data.price_moves import price_moves, read_prices


@pytest.fixture
def prices() -> np.ndarray:
    return 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, 600)))


def test_a_string_is_followed_by_its_labels(prices):
    tables = price_moves(prices, window=20, horizon=3, num_symbols=5)
    returns = 100 * np.diff(np.log(prices))
    train = returns[: round(len(returns) * 0.7)]
    edges = np.quantile(train, [0.2, 0.4, 0.6, 0.8])
    for row, day in ((0, 20), (57, 77)):
        moves, volatility, direction = tables["train"].loc[row]
        assert moves == "".join("abcde"[(move >= edges).sum()] for move in returns[day - 20 : day])
        ahead = returns[day : day + 3]
        assert volatility == pytest.approx(np.log(np.sqrt(np.mean(ahead**2))))
        assert direction == ("up" if prices[day + 3] > prices[day] else "down")
    letters = "".join(tables["train"]["moves"].str[-1])
    assert all(abs(letters.count(letter) / len(letters) - 0.2) < 0.02 for letter in "abcde")


def test_parts_follow_each_other_and_do_not_see_the_next(prices):
    tables = price_moves(prices, window=20, horizon=3)
    other = prices.copy()
    other[420:] = 50 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.05, 180)))  # after the training part
    again = price_moves(other, window=20, horizon=3)
    pd.testing.assert_frame_equal(tables["train"], again["train"])
    assert not tables["test"].equals(again["test"])
    # 599 moves, of which the first 20 have no string, and the last 3 of every part label its last string alone
    assert [len(table) for table in tables.values()] == [419 - 20 - 2, 90 - 2, 90 - 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window is 0 and horizon 5, but both must be 1 or more"),
        ({"num_symbols": 27}, "num_symbols is 27, but must be from 2 to 26"),
        ({"test_share": 0.9}, "validation_share is 0.15 and test_share 0.9, but both must be above 0, and below 1"),
        ({"window": 500}, "600 prices leave 419 moves for train, too few for strings of 500 moves"),
        ({"horizon": 100}, "600 prices leave 90 moves for validation, too few"),
    ],
)
def test_refused(prices, arguments, message):
    with pytest.raises(ValueError, match=message):
        price_moves(prices, **arguments)


def test_prices_that_hardly_move_are_refused(prices):
    prices[:500] = 7.0
    with pytest.raises(ValueError, match="the moves do not fill 9 bins"):
        price_moves(prices)


DAYS = ["2020-01-02", "2020-01-03", "2020-01-06"]


def test_columns_are_found_and_days_without_a_price_left_out(tmp_path):
    file = tmp_path / "prices.csv.gz"
    table = pd.DataFrame({"Date": DAYS, "Close": [1.0, 2.0, 3.0], "Adj Close": [1.5, ".", 2.5]})
    table.to_csv(file, index=False)
    assert read_prices(file).tolist() == [1.5, 2.5]
    assert read_prices(file, "Close").tolist() == [1.0, 2.0, 3.0]
    table[["Date", "Close"]].rename(columns={"Close": "DCOILWTICO"}).to_csv(file, index=False)
    assert read_prices(file).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        ({"Date": DAYS, "x": [1, 2, 3], "y": [1, 2, 3]}, None, "has the columns x, y: name one by --price_column"),
        ({"Date": DAYS, "x": [1, 2, 3]}, "z", "has no column 'z', but Date, x"),
        ({"Date": DAYS[::-1], "x": [1, 2, 3]}, None, "2020-01-03 comes after 2020-01-06: sort it, oldest first"),
        ({"Date": DAYS, "x": [1, -37.63, 3]}, None, "has the price -37.63 in 'x', but its moves need prices above 0"),
        ({"Date": DAYS, "x": ["1", "two", "3"]}, None, "has the price two in 'x'"),
    ],
)
def test_wrong_tables(tmp_path, table, column, message):
    pd.DataFrame(table).to_csv(tmp_path / "prices.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_prices(tmp_path / "prices.csv", column)


def run(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["price_moves.py", *map(str, words)])
    runpy.run_path(str(TRAINING / "price_moves.py"), run_name="__main__")


def test_the_script_writes_a_folder_for_classify(prices, tmp_path, monkeypatch, capsys):
    pd.DataFrame({"close": prices}).to_csv(tmp_path / "prices.csv", index=False)
    out = tmp_path / "out"
    run(monkeypatch, "--prices", tmp_path / "prices.csv", "--output_dir", out, "--window", 20)
    assert sorted(path.name for path in out.iterdir()) == ["test.csv", "train.csv", "validation.csv"]
    printed = capsys.readouterr().out
    assert f"test: {len(pd.read_csv(out / 'test.csv'))} strings" in printed and f"--dataset {out}" in printed
    with pytest.raises(SystemExit, match=r"error: there is no file .*other\.csv"):
        run(monkeypatch, "--prices", tmp_path / "other.csv", "--output_dir", out)
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, "--prices", tmp_path / "prices.csv")
    assert exit_.value.code == 2 and "--output_dir" in capsys.readouterr().err

"""The quality paper's numbers: as its text has them, in the columns the other papers' have, and its network's shapes."""
import importlib

import numpy as np
import pandas as pd
import pytest
import torch

from avbook.quality.metrics import expected_krocc, krocc, srocc
from avbook.quality.model import SlowFastVQA
from avbook.quality.paper import claims, inconsistencies, krocc_bounds, parts, printed, published, recipe, widest_spread

TABLES = [f"Table {number}" for number in ("I", "II", "III", "IV", "V")]


@pytest.fixture(scope="module")
def text(samples):
    "The paper's text, where it lies beside the samples."
    path = samples.parent/"papers"/"dual_path_vqa.txt"
    if not path.exists(): pytest.skip("the paper's text does not lie beside the samples")
    return path.read_text()


def rows_of(text, first):
    "The tab-separated rows after the header that begins with `first`."
    lines = text[text.index(f"\n{first}\t") + 1:].splitlines()[1:]
    n_rows = next((number for number, line in enumerate(lines) if "\t" not in line), len(lines))
    return [line.split("\t") for line in lines[:n_rows]]


def test_small_tables_are_as_in_the_text(text):
    videos = rows_of(text, "Video ID")
    assert [row[0] for row in videos] == printed("Table I").index.tolist()
    assert [float(row[1]) for row in videos] == printed("Table I").mos.tolist()
    assert [row[2] for row in videos] == printed("Table I").description.tolist()


def test_pairs_are_as_in_the_text(text):
    halves = text[text.index("TABLE II\n"):text.index("TABLE III\n")], text[text.index("TABLE III\n"):]
    for half, name in zip(halves, ("Table II", "Table III"), strict=True):
        rows, table = rows_of(half, "Pair ID"), printed(name)
        assert len(rows) == len(table) == 10
        for row, (pair, values) in zip(rows, table.iterrows(), strict=True):
            assert row == [pair, *(value if isinstance(value, str) else f"{value:g}" for value in values)]


def test_results_are_as_in_the_text(text):
    for name, header in (("Table IV", "TABLE IV\n"), ("Table V", "TABLE V\n")):
        row, = rows_of(text[text.index(header):], "Metric")
        assert [float(value) for value in row[1:]] == printed(name).iloc[0].tolist()


def test_columns_are_those_of_the_other_papers():
    "One reader of tables serves all three."
    for chapter in ("saliency", "classification"):
        other = importlib.import_module(f"avbook.{chapter}.paper").published()
        assert set(other.columns) <= set(published().columns)
        assert [name for name in published().columns if name in set(other.columns)] == other.columns.tolist()


def test_each_number_is_there_once():
    table = published()
    n_numbers = sum(printed(name).select_dtypes("number").size for name in TABLES)
    assert len(table) == n_numbers and table.value.notna().all()
    wide = table.query("item != ''").pivot(index="item", columns="metric", values="value")
    assert np.allclose((wide.mos_a - wide.mos_b).dropna(), wide.mos_diff.dropna())


def test_what_the_numbers_say():
    assert len(inconsistencies()) == 4 and sum(claim["holds"] for claim in claims()) == 2
    assert all(widest_spread(name) < .16 for name in ("Table IV", "Table V"))
    assert recipe().resolution.tolist() == [224, 512]


@pytest.mark.parametrize("value", np.linspace(-1, 1, 21))
def test_the_usual_krocc_is_possible_and_odd(value):
    least, most = krocc_bounds(value)
    assert least - 1e-7 <= expected_krocc(value) <= most + 1e-7
    assert krocc_bounds(-value) == pytest.approx((-most, -least))


def test_no_order_leaves_the_bounds():
    "Random ways of spoiling an order, from mild to gross."
    generator, order = np.random.default_rng(0), np.arange(600)
    for _ in range(40):
        start, stop = np.sort(generator.integers(600, size=2))
        spoilt = order.astype(float)
        how = generator.integers(3)
        if how == 0: spoilt[start:stop] = spoilt[start:stop][::-1]
        if how == 1: spoilt = np.roll(spoilt, start)
        if how == 2: spoilt += generator.normal(size=600)*(stop - start)
        least, most = krocc_bounds(srocc(spoilt, order))
        assert least - .01 <= krocc(spoilt, order) <= most + .01


def test_kvq_spreads_as_the_printed_rmse_wants(samples):
    opinion = pd.read_csv(samples/"quality"/"kvq_train_data.csv").score
    assert len(opinion) == 2926
    spread = opinion.std(ddof=0)/4
    assert spread == pytest.approx(.139, abs=5e-4)
    assert all(spread < widest_spread(name) for name in ("Table IV", "Table V"))


@pytest.mark.parametrize("resolution", [224, 512])
def test_the_network_has_the_drawn_shapes(resolution):
    drawn = parts(resolution).set_index("name")["shape"]
    with torch.device("meta"): model, frames = SlowFastVQA(), torch.empty(1, 3, 32, resolution, resolution)
    seen = {}
    for name, path in model.paths.items():
        tokens = path.enter(frames)
        for stage in range(4):
            seen[f"{name}{stage + 1}"] = tokens.shape[1:]
            tokens = path.leave(stage, tokens)
    assert {name: drawn[name] for name in seen} == {name: "×".join(map(str, shape)) for name, shape in seen.items()}

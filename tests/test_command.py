"""The command line: what it prints, writes and returns."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import jaxfit
from jaxfit import losses, models
from jaxfit._command import main

TIME = np.linspace(0, 10, 80)
TRUTH = {"height": 50.0, "center": 4.0, "width": 0.8, "slope": 0.5, "intercept": 10.0}


def table(delimiter=","):
    """A peak on a line, with a comment, an empty cell and a column of texts."""
    model = models.Gaussian() + models.Linear()
    noise = np.random.default_rng(5).normal(size=TIME.size)
    counts = np.asarray(model(TIME, TRUTH)) + noise
    lines = ["# from the detector", delimiter.join(["time", "counts", "err", "note"])]
    for t, y in zip(TIME, counts, strict=True):
        lines.append(delimiter.join([f"{t:.12g}", f"{y:.17g}", "1.0", "ok"]))
    return "\n".join(lines) + "\n", counts


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "data.csv"
    path.write_text(table()[0])
    return path


ARGUMENTS = ["--model", "gaussian + linear", "--x", "time", "--y", "counts"]


def test_a_table_is_fitted_as_fit_would(file, tmp_path, capsys):
    out = tmp_path / "out.json"
    sigma = ["--sigma", "err", "--absolute-sigma", "--json", str(out)]
    assert main(["fit", str(file), *ARGUMENTS, *sigma]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "center" in printed.out
    found = json.loads(out.read_text())
    model = models.Gaussian() + models.Linear()
    same = jaxfit.fit(model, TIME, table()[1], sigma=np.ones(80), absolute_sigma=True)
    for name, value in same.values.items():
        np.testing.assert_allclose(found["parameters"][name]["value"], value, rtol=1e-9)
        np.testing.assert_allclose(
            found["parameters"][name]["stderr"], same.errors[name], rtol=1e-9
        )


def ran(file, home, *options):
    """The command in a process of its own, with a cache folder of its own."""
    found = subprocess.run(
        [sys.executable, "-m", "jaxfit", "fit", str(file), *ARGUMENTS, *options],
        env={**os.environ, "XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert "fwhm" in found.stdout
    return found.stderr


def test_the_module_runs_and_draws(file, tmp_path):
    picture = tmp_path / "out.png"
    assert ran(file, tmp_path, "--no-cache", "--plot", str(picture)) == ""
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "jaxfit").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="another cache folder")
def test_compiled_programs_are_kept_for_the_next_run(file, tmp_path):
    told = ran(file, tmp_path)
    assert str(tmp_path / "jaxfit") in told
    assert "--no-cache" in told
    kept = sorted(path.name for path in (tmp_path / "jaxfit").iterdir())
    assert any("fits" in name for name in kept)
    assert ran(file, tmp_path) == ""
    again = sorted(path.name for path in (tmp_path / "jaxfit").iterdir())
    assert again == kept


@pytest.mark.parametrize("delimiter", [";", "\t", " "])
def test_other_delimiters_are_read(delimiter, tmp_path, capsys):
    path = tmp_path / "data.txt"
    path.write_text(table(delimiter)[0])
    assert main(["fit", str(path), *ARGUMENTS, "--sigma", "err"]) == 0
    assert "intercept" in capsys.readouterr().out


def numbers(k):
    """A straight line with a bend, as texts: no two columns alike."""
    return f"{0.25 * k:.2f}", f"{3 + 0.5 * k + 0.1 * (-1) ** k:.2f}", f"{1.5:.1f}"


ROWS = [numbers(k) for k in range(20)]
LINE = [" ".join(row) for row in ROWS]
TABLES = {  # as people have them, and the names of x and y
    "no names": ("\n".join(LINE), "1", "2"),
    "commas, no names": ("\n".join(map(",".join, ROWS)), "1", "2"),
    "names above, in a comment": ("# t, y s\n# t y s\n" + "\n".join(LINE), "t", "y"),
    "a comment that names nothing": ("# of May\n" + "\n".join(LINE), "1", "2"),
    "names, by number": ("t y s\n" + "\n".join(LINE), "1", "2"),
    "numbers as names": ("400 500 600\n" + "\n".join(LINE), "400", "500"),
    "decimal commas": (
        "\n".join(["t;y;s", *map(";".join, ROWS)]).replace(".", ","),
        *("t", "y"),
    ),
    "of a spreadsheet": (
        "\n".join(["sep=;", "t;y, raw;s", *map(";".join, ROWS)]).replace(".", ","),
        *("t", "2"),
    ),
    "decimal commas, no names": ("\n".join(LINE).replace(".", ","), "1", "2"),
    "decimal commas, tabs": (
        "\n".join(map("\t".join, ROWS)).replace(".", ","),
        *("1", "2"),
    ),
    "quoted": ("\n".join(f'"{a}","{b}","{c}"' for a, b, c in ROWS), "1", "2"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_as_they_come(name, tmp_path, capsys):
    text, x, y = TABLES[name]
    path, out = tmp_path / "data.txt", tmp_path / "out.json"
    path.write_text(text)
    line = ["fit", str(path), "--model", "linear", "--json", str(out)]
    assert main([*line, "--x", x, "--y", y, "--sigma", "3"]) == 0, capsys.readouterr()
    found = json.loads(out.read_text())["parameters"]
    t, values, _ = np.array(ROWS, float).T
    slope, intercept = np.polyfit(t, values, 1)
    np.testing.assert_allclose(found["slope"]["value"], slope, rtol=1e-9)
    np.testing.assert_allclose(found["intercept"]["value"], intercept, rtol=1e-9)


def test_dates_are_read(tmp_path, capsys):
    path, picture = tmp_path / "data.csv", tmp_path / "out.png"
    lines = [f"2024-01-{k + 5:02d},{row[1]}" for k, row in enumerate(ROWS)]
    path.write_text("\n".join(["day,y", *lines, ",7"]))
    line = ["fit", str(path), "--model", "linear", "--x", "day", "--y", "y"]
    assert main([*line, "--omit-nan", "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "x: days since 2024-01-05." in printed
    assert "20 points" in printed
    assert picture.exists()


def test_starts_bounds_and_fixed_values(file, capsys):
    arguments = ["--p0", "center=5", "--bounds", "width=0.1:", "--fix", "slope=0.5"]
    robust = ["--loss", "huber:2", "--report"]
    assert main(["fit", str(file), *ARGUMENTS, *arguments, *robust]) == 0
    printed = capsys.readouterr().out
    assert "fixed" in printed
    assert "sandwich" in printed.lower()


def test_the_models_are_listed(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    for name in ("gaussian", "voigt", "fourparameterlogistic", "ellipticgaussian2d"):
        assert any(line.startswith(name) for line in printed.splitlines())
    assert not any(
        line.startswith(("sum ", "product ")) for line in printed.splitlines()
    )


def test_rows_with_empty_cells_are_left_out_when_asked(tmp_path, capsys):
    path = tmp_path / "gaps.csv"
    lines = table()[0].splitlines()
    lines[10:10] = ["0.9,,1.0,lost", "0.95,1e9,,lost", ",3,1.0,lost"]
    lines[30:30] = [f"2.0,{word},1.0,lost" for word in ("NA", "n/a", "NULL", "nan")]
    path.write_text("\n".join(lines))
    assert main(["fit", str(path), *ARGUMENTS, "--sigma", "err", "--omit-nan"]) == 0
    assert "80 points" in capsys.readouterr().out


def test_a_fit_without_a_solution_returns_one(file, tmp_path, capsys):
    out = tmp_path / "out.json"
    bad = ["--p0", "width=3", "--p0", "center=9", "--max-steps", "2"]
    status = main(["fit", str(file), *ARGUMENTS, *bad, "--json", str(out)])
    printed = capsys.readouterr()
    assert status == 1
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("jaxfit: ")
    assert json.loads(out.read_text())["success"] is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--x": "hour"}, "no column 'hour'; it has time, counts, err, note"),
        ({"--y": "note"}, "column 'note' has 'ok' in row 2, which is no number"),
        ({"--model": "gausian"}, "there is no model 'gausian'; did you mean gaussian"),
        ({"--model": "gaussian + "}, "a model is expected, not the end"),
        ({"--model": "__import__('os')"}, "means nothing"),
        ({"--p0": "center"}, "write NAME=VALUE"),
        ({"--p0": "centre=1"}, "centre"),
        ({"--bounds": "center=1"}, "write NAME=LOWER:UPPER"),
        ({"--fix": "slope=steep"}, "write NAME=VALUE"),
        ({"--loss": "hubber:1"}, "write one of"),
        ({"--loss": "huber:-1"}, "--loss"),
        ({"--max-steps": "0"}, "max_steps"),
        ({"file": "nowhere.csv"}, "nowhere.csv cannot be read: No such file"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_is_wrong_is_told_in_one_line(file, change, words, capsys):
    given = {"--model": "gaussian + linear", "--x": "time", "--y": "counts", **change}
    path = given.pop("file", str(file))
    status = main(["fit", path, *(word for pair in given.items() for word in pair)])
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("jaxfit: ")
    assert words in printed.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no rows"),
        (b"# nothing\n\n", "has no rows"),
        (b"time,counts\n", "no rows below a line of names"),
        (b"1,2\n3\n", "row 2 has 1 cells, the first 2"),
        (b"1 2\n3 4\n", "no column 'time'; it has 1, 2"),
        (b"time;counts\n1.5;2\n2,5;3\n", "'2,5' and '1.5': is a comma or a point"),
        (b"time;counts\n1.000,5;2\n", "column 'time' has '1.000,5' in row 2"),
        (b'time,counts\n"1,234",2\n', "has '1,234' in row 2, which is no number"),
        (b"time,counts\n2024-01-05,2\nlate,3\n", "'late' in row 3, which is no date"),
        (b"time,counts\n1,2024-01-05\n2,2024-01-06\n", "y has the dtype datetime64"),
        (b"time,counts\n1,2\n3\n", "row 3 has 1 cells, the line of names 2"),
        (b"\x89PNG\xff\xfe", "it is no text"),
        (
            b"time,counts\n1,2\n2,\n3,NA\n",
            "empty or NaN in 2 of 3 rows; --omit-nan leaves",
        ),
    ],
)
def test_broken_tables_are_told(content, words, tmp_path, capsys):
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    assert main(["fit", str(path), *ARGUMENTS]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert words in printed


LIKELIHOODS = {
    "poisson": losses.Poisson(),
    "PoissonGaussian:2": losses.PoissonGaussian(2.0),
    "gamma:4": losses.Gamma(4.0),
    "rician:1.5": losses.Rician(1.5),
    "studentt:1:4": losses.StudentT(1.0, 4.0),
}


@pytest.mark.parametrize("text", LIKELIHOODS)
def test_likelihoods(file, tmp_path, capsys, text):
    out = tmp_path / "out.json"
    assert main(["fit", str(file), *ARGUMENTS, "--loss", text, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"Likelihood of y: {type(LIKELIHOODS[text]).__name__}." in printed
    found = json.loads(out.read_text())
    model = models.Gaussian() + models.Linear()
    same = jaxfit.fit(model, TIME, table()[1], loss=LIKELIHOODS[text])
    for name, value in same.values.items():
        np.testing.assert_allclose(found["parameters"][name]["value"], value, rtol=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("poisson:3", "write poisson"),
        ("rician", "write rician:SIGMA"),
        ("studentt:1", "write studentt:SCALE:DF"),
        ("rician:-1", "above zero"),
        ("binomial:ten", "could not convert"),
        ("normal", "poissongaussian:VARIANCE, binomial:TRIALS"),
    ],
)
def test_wrong_likelihoods_are_told(file, capsys, text, words):
    assert main(["fit", str(file), *ARGUMENTS, "--loss", text]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1

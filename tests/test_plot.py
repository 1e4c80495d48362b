"""The plot is drawn from what the benchmarks print, and nothing else is taken for that."""

import json
import re

import pytest
from conftest import ROOT
from PIL import Image

from bench import plot


def report(name: str, **values) -> dict:
    sides = {
        "ours": 10.0,
        "reference": 1.0,
        "unit": "examples/s",
        "ratio": 10.0,
        "peak_mb": 0,
        "reference_peak_mb": 1234,
    }
    return {"name": name, "dtype": "fp32", "model": "m", "device": "d"} | sides | {"reference_peak_mb": 1234} | values


def test_a_plot_of_all_benchmarks(tmp_path):
    reports = [report(name) for name in plot.LABELS] + [report("reply", dtype="int8"), {"name": "data-cache"}]
    reports += [report(f"cost-candidates-{n}", num_candidates=n) for n in (20, 2, 4)]
    reports += [report(f"cost-history-{n}", max_history=n) for n in (1, 8)]
    file, image = tmp_path / "reports.jsonl", tmp_path / "new" / "speed.png"
    file.write_text("\n".join(map(json.dumps, reports)))
    plot.main([str(file), "--output", str(image)])
    with Image.open(image) as drawn:
        assert drawn.size[0] > 1000
        assert len(drawn.convert("RGB").getcolors(maxcolors=10**6)) > 50


def test_the_table_has_a_row_for_each_benchmark_and_precision():
    reports = [report("reply", dtype="int8", ratio=21.26), report("cost-history-2"), report("train"), report("reply")]
    assert plot.table(reports).splitlines()[2:] == [
        "| training, 4 candidates | fp32 | 10 examples/s | 1 | 10.0 |  | 1,234 |",
        "| a reply of 20 tokens | fp32 | 10 examples/s | 1 | 10.0 |  | 1,234 |",
        "| a reply of 20 tokens | int8 | 10 examples/s | 1 | 21.3 |  | 1,234 |",
    ]


def test_the_page_on_performance_shows_the_stored_results():
    results = sorted((ROOT / "bench" / "results").glob("*.jsonl"))
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert plot.table(plot.read_reports(results)) in page
    with_bf16 = sorted((ROOT / "bench" / "results" / "avx512_bf16").glob("*.jsonl"))
    assert plot.table(plot.read_reports(with_bf16)) in page


def test_the_readme_names_ratios_of_the_stored_results():
    results = ROOT / "bench" / "results"
    wanted = []
    for folder, dtype in ((results, "fp32"), (results / "avx512_bf16", "bf16")):
        reports = plot.in_order(plot.read_reports(sorted(folder.glob("*.jsonl"))))
        ratios = {report["name"]: f"{report['ratio']:.1f}" for report in reports if report["dtype"] == dtype}
        wanted += [ratios[name] for name in ("train", "hits", "reply")]
    sentence = re.search(r"Against plain implementations.*?\n\n", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[0]
    assert re.findall(r"\d+\.\d", sentence) == wanted


def test_a_plot_of_one_benchmark_alone(tmp_path):
    (tmp_path / "x").write_text(json.dumps(report("hits")))
    plot.main([str(tmp_path / "x"), "--output", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").stat().st_size > 0


@pytest.mark.parametrize("content", ["", "ours 10.0", "[]]", '{"a": 1}', "[1]"])
def test_other_files_are_refused_in_one_line(tmp_path, content, capsys):
    (tmp_path / "x").write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        plot.main([str(tmp_path / "x")])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")

"""Write docs/explanation/evidence.md: every claim of experiments/ with the figure obtained.

Figures are read from the results of the experiments, and whether a claim holds is computed from
them. `make reference` calls this script; `tests/test_reference.py` compares the page.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PAGE = Path(__file__).parent / "explanation" / "evidence.md"
SOURCES = {
    "QuadraNet": "https://arxiv.org/abs/2311.17956",
    "QuadraNet V2": "https://arxiv.org/abs/2405.03192",
    "QuadraLib": "https://arxiv.org/abs/2204.01701",
    "nn-Meter": "https://github.com/microsoft/nn-Meter",
}
TEXT = """\
<!-- Written by `make reference` from experiments/; edit docs/evidence.py instead. -->

# What was reproduced, and what was not

Every claim that an experiment of the repository tests, with the figure it obtained. The figures
come from the files beside each experiment, which also name command, hardware, versions, date and
commit. Claims of a paper or of another project name it in parentheses; the others are those of
quadranas.

{table}

## What no experiment covers

- **Accuracies on ImageNet.** The tables of the QuadraNet and ProxylessNAS papers are for
  ImageNet, on which no network was trained here. The reference models have the paper's numbers
  of parameters and MACs; only QuadraNet36-S differs, by 3 % from the paper's own count.
- **Latencies on the papers' devices.** No Cortex-A76, Myriad X or A100 was measured. The shipped
  tables are analytic, see [Latency](latency.md).
- **Adaptation at scale.** QuadraNet V2 reports its savings for ImageNet and COCO; here they were
  tested on 2,500 images.
"""


@dataclass(frozen=True)
class Claim:
    """A row of the table.

    Args:
        folder: name of the experiment.
        text: the claim, with its bound.
        obtained: the figures, from the content of `results`.
        holds: whether the claim holds, from the same; None if it was not tested yet.
        source: paper or project that made the claim; empty for quadranas.
        results: name of the file.
    """

    folder: str
    text: str
    obtained: Callable[[Any], str]
    holds: Callable[[Any], bool] | None
    source: str = ""
    results: str = "results.json"

    @property
    def file(self) -> Path:
        """The file with the figures."""
        return EXPERIMENTS / self.folder / self.results


def percent(share: float, digits: int = 1) -> str:
    """A share as text: `97.5 %`."""
    return f"{round(100 * share + 1e-9, digits):.{digits}f} %"


def _worst(results: Any, key: str, choose: Callable[..., float]) -> float:
    return choose(table[key] for table in results["tables"])


def _worst_model(results: Any, key: str, choose: Callable[..., float]) -> float:
    return choose(device[key] for device in results["devices"].values())


def _time_to_target(results: Any, training: str = "adapted, projections") -> float:
    return float(results["results"][training]["share_of_cpu_s_to_target"]["mean"])


def _gain(results: Any) -> tuple[float, float]:
    """Best adapted network over fine-tuning, and the larger of their standard deviations."""
    rows = results["results"]
    plain = rows["fine-tuned, first order"]["accuracy"]
    adapted = [row["accuracy"] for name, row in rows.items() if name.startswith("adapted")]
    best = max(adapted, key=lambda accuracy: accuracy["mean"])
    return best["mean"] - plain["mean"], max(best["std"], plain["std"])


def _saved(results: Any, width: str, block: str) -> float:
    blocks = results["channels"][width]
    return float(blocks[block]["saved_bytes"] / blocks["depthwise"]["saved_bytes"])


def _reduction(results: Any) -> str:
    networks = results["summary"]
    accuracy = {name: percent(row["mean_accuracy"]) for name, row in networks.items()}
    convs = {name: row["num_convs"][0] for name, row in networks.items()}
    return (
        f"{accuracy['reduced']} with {convs['reduced']} convolutions; parent "
        f"{accuracy['parent']} with "
        f"{convs['parent']}; first-order network with the same layers removed "
        f"{accuracy['reduced first-order']}"
    )


def _diverged(results: Any, arm: str) -> float:
    return float(results["arms"][arm]["share_diverged"])


def _slow_passes(results: Any) -> list[str]:
    """Passes that a runtime was given although they cost it more than 2 %."""
    return [
        f"{name} in {runtime['version']}, {runtime['ratios'][name]:.2f} times"
        for runtime in results["runtimes"].values()
        for name in runtime["used"]
        if runtime["ratios"].get(name, 1) > 1.025
    ]


WAYS = {
    "litert": "LiteRT",
    "ssh": "ssh",
    "benchmark_app": "`benchmark_app`",
    "hand": "by hand",
}


def _any_device(name: str, part: Any) -> str:
    found, network = part["validation"], part["derive"]
    return (
        f"{WAYS[name]} {percent(found['mape'])}, {found['kendall_tau']:.2f}, "
        f"{network['measured_ms']:.2f} of {network['budget_ms']:.2f} ms"
    )


def _holds_any_device(part: Any) -> bool:
    if part is None:
        return False
    found, is_within = part["validation"], bool(part["derive"]["within"])
    return is_within and bool(found["mape"] <= 0.03 and found["kendall_tau"] >= 0.95)


STABLE = "AdamW, groups, warm-up, bound"
NOTHING = "nothing yet"
CLAIMS = (
    Claim(
        "default_search",
        "The default search ends in 5 minutes on 2 cores, uses 90 to 100 % of its budget, and "
        "its ONNX file "
        "computes what PyTorch computes",
        lambda r: (
            f"{r['minutes']:.0f} minutes; {percent(r['predicted_ms'] / r['budget_ms'], 0)} of "
            f"the budget; largest "
            f"error {r['onnx_max_abs_error']:.0e}"
        ),
        lambda r: r["minutes"] <= 5 and 0.9 <= r["predicted_ms"] / r["budget_ms"] <= 1,
    ),
    Claim(
        "cifar10",
        "A search on CIFAR-10 on two cores ends with an expected latency within 5 % of its "
        "budget, and a better network than version 0.1.0 in the same time (63.1 %)",
        lambda r: (
            f"{r['expected_ms']:.1f} of {r['budget_ms']:.0f} ms; accuracy "
            f"{percent(r['accuracy'], 1)} in {r['minutes']:.0f} minutes"
        ),
        lambda r: abs(r["expected_ms"] / r["budget_ms"] - 1) <= 0.05 and r["accuracy"] > 0.6312,
    ),
    Claim(
        "measured_tables",
        "A measured table predicts new networks with a mean error of at most 3 %, all within 10 "
        "%, Kendall tau at "
        "least 0.95",
        lambda r: (
            f"mean error at most {percent(_worst(r, 'mape', max), 1)}; "
            f"{percent(_worst(r, 'within_10', min), 0)} within 10 %; "
            f"tau at least {_worst(r, 'kendall_tau', min):.2f} (4 tables)"
        ),
        lambda r: (
            _worst(r, "mape", max) <= 0.03
            and _worst(r, "within_10", min) == 1
            and _worst(r, "kendall_tau", min) >= 0.95
        ),
    ),
    Claim(
        "calibrated_tables",
        "Ten networks carry a table over to another device with less than 8 % MAPE",
        lambda r: (
            f"{percent(min(x['by_kind'] for x in r['rows']))} to "
            f"{percent(max(x['by_kind'] for x in r['rows']))} in {len(r['rows'])} pairs"
        ),
        lambda r: all(x["by_kind"] < 0.08 for x in r["rows"]),
    ),
    Claim(
        "budget_contract",
        "With 95 % confidence, at least 95 % of networks are measured within their budget and "
        "use at least 93 % of "
        "it",
        lambda r: (
            f"{percent(r['share_within_budget'], 1)} within it; {percent(r['mean_use'], 1)} used"
        ),
        lambda r: r["share_within_budget"] >= 0.95 and r["mean_use"] >= 0.93,
    ),
    Claim(
        "published_latencies",
        "`predict` is within 10 % of published predictions for the Cortex-A76 and within 20 % "
        "for the Myriad X, on "
        "average",
        lambda r: f"{r['mape']['cpu tensorflow']} % and {r['mape']['vpu tensorflow']} %",
        lambda r: r["mape"]["cpu tensorflow"] <= 10 and r["mape"]["vpu tensorflow"] <= 20,
        "nn-Meter",
    ),
    Claim(
        "published_latencies",
        "Device models fitted to published latencies rank networks of families that were left out "
        "with Kendall tau at least 0.5",
        lambda r: (
            f"{_worst_model(r, 'family_tau', min)} to {_worst_model(r, 'family_tau', max)} for "
            f"{len(r['devices'])} devices; mean errors {_worst_model(r, 'family_mape', min)} % to "
            f"{_worst_model(r, 'family_mape', max)} %"
        ),
        lambda r: _worst_model(r, "family_tau", min) >= 0.5,
        results="models.json",
    ),
    Claim(
        "any_device",
        "A table by LiteRT, over ssh, by another program or by hand predicts within 3 %, Kendall "
        "tau at least 0.95, and a network derived with it keeps its budget",
        lambda r: "; ".join(_any_device(name, r["parts"][name]) for name in WAYS),
        lambda r: all(_holds_any_device(r["parts"].get(name)) for name in WAYS),
    ),
    Claim(
        "pretrained_search",
        "A search from weights of other classes reaches the accuracy of one from scratch in a "
        "tenth of its time",
        lambda r: (
            f"{percent(r['variants']['pretrained-tenth']['accuracy'])} in a tenth of the epochs, "
            f"from scratch {percent(r['variants']['scratch']['accuracy'])} in all of them"
        ),
        lambda r: (
            r["variants"]["pretrained-tenth"]["accuracy"] >= r["variants"]["scratch"]["accuracy"]
        ),
        "QuadraNet V2",
    ),
    Claim(
        "pretrained_search",
        "A search from a first-order network reaches the accuracy of one from scratch in a tenth "
        "of its time",
        lambda r: (
            f"{percent(r['variants']['first-order-tenth']['accuracy'])} in a tenth of the epochs, "
            f"from scratch {percent(r['variants']['mbconv-scratch']['accuracy'])} in all of them"
        ),
        lambda r: (
            r["variants"]["first-order-tenth"]["accuracy"]
            >= r["variants"]["mbconv-scratch"]["accuracy"]
        ),
        "QuadraNet V2",
    ),
    Claim(
        "pretrained_search",
        "With 20,000 images, fine-tuning with quadratic terms ends above the same without: with "
        "every seed, and on average by at least 0.5 points",
        lambda r: (
            f"{percent(r['quadratic terms']['mean'])} with, "
            f"{percent(r['first order']['mean'])} without; differences in points: "
            + ", ".join(f"{100 * d:+.1f}" for d in r["differences"])
        ),
        lambda r: (
            min(r["differences"]) > 0
            and r["quadratic terms"]["mean"] - r["first order"]["mean"] >= 0.005
        ),
        results="quadratic_term.json",
    ),
    Claim(
        "table3",
        "QuadraNets and ProxylessNAS's networks are exported, verified and timed by the same "
        "commands, as for Table "
        "III; accuracies are not compared",
        lambda r: (
            f"{len(r['networks'])} networks; derived QuadraNet_VPU predicted at "
            f"{r['networks']['QuadraNet_VPU']['provenance']['predicted_ms']:.1f} of 30 ms "
            f"(paper: 29.9 ms)"
        ),
        lambda r: all(
            len(runtime["ms"]) == len(r["networks"]) for runtime in r["measured"].values()
        ),
        "QuadraNet",
    ),
    Claim(
        "search_evidence",
        "At equal latency, the chosen network is better than random networks",
        lambda r: "ground truth in progress; first supernets, two seeds",
        None,
    ),
    Claim(
        "block_memory",
        "With memory-efficient back-propagation a quadratic block keeps no more memory than a "
        "depthwise one (paper: "
        "1.06 times) and a step takes at most 1.10 times as long as with autograd",
        lambda r: (
            f"{_saved(r, '64', 'quadra'):.2f} times the memory "
            f"({_saved(r, '64', 'quadra_direct'):.2f} with "
            f"autograd); {max(r['time_ratio'].values()):.2f} times the time"
        ),
        lambda r: (
            max(_saved(r, w, "quadra") for w in r["channels"]) <= 1.001
            and max(r["time_ratio"].values()) <= 1.1
        ),
        "QuadraLib",
    ),
    Claim(
        "autobuilder",
        "Converted to quadratic layers and reduced, a network is at least as accurate as its "
        "parent with fewer "
        "layers and parameters",
        _reduction,
        lambda r: (
            r["summary"]["reduced"]["mean_accuracy"] >= r["summary"]["parent"]["mean_accuracy"]
            and r["summary"]["reduced"]["mean_params"] < r["summary"]["parent"]["mean_params"]
        ),
        "QuadraLib",
    ),
    Claim(
        "adaptation",
        "Adaptation reaches the accuracy of training from scratch in at most 10 % of its time",
        lambda r: (
            f"{percent(_time_to_target(r), 1)} (projections; plain fine-tuning: "
            f"{percent(_time_to_target(r, 'fine-tuned, first order'))})"
        ),
        lambda r: _time_to_target(r) <= 0.1,
        "QuadraNet V2",
    ),
    Claim(
        "adaptation",
        "Adaptation ends above plain fine-tuning after as many steps",
        lambda r: (
            f"{100 * _gain(r)[0]:+.2f} points with a standard deviation of {100 * _gain(r)[1]:.2f}"
        ),
        lambda r: _gain(r)[0] > _gain(r)[1],
    ),
    Claim(
        "quadratic_optimizer",
        "Thirty quadratic layers without norms diverge under AdamW in every run, and train with "
        "groups, warm-up and "
        "bound in every run",
        lambda r: (
            f"{percent(_diverged(r, 'AdamW'), 0)} and {percent(_diverged(r, STABLE), 0)} "
            f"diverged; a tenth of the rate for all "
            f"parameters is better still"
        ),
        lambda r: _diverged(r, "AdamW") == 1 and _diverged(r, STABLE) == 0,
    ),
    Claim(
        "int8",
        "In 8 bits a network loses at most 1 point, and its file is at least 3.5 times smaller",
        lambda r: ", ".join(
            f"{r['runtimes'][name]}: {row['drop']:.2f} points, {row['ratio']:.2f} times"
            for name, row in r["rows"].items()
        ),
        lambda r: all(row["drop"] <= 1 and row["ratio"] >= 3.5 for row in r["rows"].values()),
    ),
    Claim(
        "lowering",
        "Every runtime receives the form of a network that it runs fastest, within 2 %",
        lambda r: f"all but {', '.join(_slow_passes(r))}, which was removed afterwards",
        lambda r: not _slow_passes(r),
    ),
    Claim(
        "small_data",
        "On a thousand photos, small batches are better than batches of 64 by more than two "
        "standard errors",
        lambda r: (
            f"{percent(r['mean_accuracy']['defaults'], 1)} and "
            f"{percent(r['mean_accuracy']['batch 64'], 1)}, standard error of "
            f"the difference {percent(r['standard_error_of_difference'], 1)}"
        ),
        lambda r: (
            r["mean_accuracy"]["defaults"] - r["mean_accuracy"]["batch 64"]
            > 2 * r["standard_error_of_difference"]
        ),
    ),
    Claim(
        "benchmark",
        "A weight step of the supernet takes at most 1.05 times a plain step, a two-path "
        "architecture step at most "
        "0.75, a full one at most 1.7",
        lambda r: (
            f"{r['weight']['time']:.2f}, {r['two_path']['time']:.2f}, {r['full']['time']:.2f}"
        ),
        lambda r: (
            r["weight"]["time"] <= 1.05
            and r["two_path"]["time"] <= 0.75
            and r["full"]["time"] <= 1.7
        ),
    ),
    Claim(
        "benchmark",
        "The loader reaches 0.9 times a bare loop with one worker, 1.7 times with two",
        lambda r: "; ".join(
            kind + " {one_worker:.2f} and {two_workers:.2f}".format(**r["loader"][kind])
            for kind in ("whole", "crops")
        ),
        lambda r: all(
            r["loader"][kind]["one_worker"] >= 0.9 and r["loader"][kind]["two_workers"] >= 1.7
            for kind in ("whole", "crops")
        ),
        results="data.json",
    ),
    Claim(
        "benchmark",
        "Two processes are 1.7 times as fast as one",
        lambda r: f"{r['speed']:.2f} times, with {r['memory']:.2f} of the memory",
        lambda r: r["speed"] >= 1.7,
        results="processes.json",
    ),
    Claim(
        "benchmark",
        "1,000 trials of TPE add less than 20 s; 32 networks are judged on 4,000 images within a "
        "minute",
        lambda r: f"{r['tpe_overhead_s']:.0f} s and {r['judging_s']:.0f} s",
        lambda r: r["tpe_overhead_s"] < 20 and r["judging_s"] <= 60,
        results="strategies.json",
    ),
    Claim(
        "gpu",
        "Speed of kernels, networks and searches on a GPU",
        lambda r: NOTHING,
        None,
        "QuadraNet",
    ),
)


def row(claim: Claim) -> str:
    """A claim as a row of the table."""
    results = json.loads(claim.file.read_text("utf-8")) if claim.holds else None
    verdict = "open"
    if claim.holds:
        verdict = "yes" if claim.holds(results) else "**no**"
    source = f" ([{claim.source}]({SOURCES[claim.source]}))" if claim.source else ""
    experiment = f"[{claim.folder}](../../experiments/{claim.folder}/README.md)"
    return f"| {claim.text}{source} | {claim.obtained(results)} | {verdict}, {experiment} |"


def page() -> str:
    """The whole page."""
    head = ["| claim (source) | obtained | holds, experiment |", "| --- | --- | --- |"]
    return TEXT.format(table="\n".join([*head, *map(row, CLAIMS)]))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""How far settling is from its aim, on questions that chose nothing.

    python benchmarks/held_out.py FOLDER examples/*.parquet

FOLDER holds pools of recorded answers, named DATASET_MODEL. Settings of settling are chosen on all
pools but those of one data set, and told of these; the same with models. Chosen are the fewest
tokens among the settings that lose at most 0.3 points to majority voting on the pools that choose.
Further pools, with token confidences, are told of the presets and of what all of FOLDER chooses.

Prints Markdown tables, with 95% intervals of a bootstrap over questions and draws; they do not hold
the chance in the choice itself.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from many_pools import (
    NAMES,
    Result,
    Results,
    Row,
    data_set,
    each_trials,
    mean_results,
    pools,
    results,
    row_of,
    signed,
)
from settle_confidence import Against, reference

from conviction.lab.candidates import parse
from conviction.lab.sources import PoolTraces
from conviction.lab.statistics import mean_of

GRID = "settle:bar=0.93/0.95/0.97/0.99,slope=0.004/0.006/0.008/0.012/0.016/0.02,first=3/4/6"
GRIDS = {"three times as many as needed": GRID, "by need": f"{GRID},ahead=1"}
"""Settings to choose from, by the traces in flight: for time, and for tokens alone."""
PRESETS = ["settle-exact", "settle", "settle-lean"]
BY_NEED = [spec for spec, name in NAMES.items() if "need" in name]
SHOWN = [*PRESETS, *(name for name in NAMES.values() if "need" in name)]
MOST_LOST = 0.3
BUDGET, SLOTS = 64, 64
RECORDED_BUDGET, RECORDED_SLOTS = 16, 8
RECORDED_RUNS = 8000
"""Of a policy on a recording; its few policies leave time for more than the grids."""
BETA: Row = "Beta .95", BUDGET
MINE: Row = "", 0
HEAD = (
    "against majority, points (aim: -0.3) | tokens | of Beta .95's (aim: 0.45) "
    "| time, of majority's (aim: 0.9)"
)


def max_path(result: Result) -> float:
    """The path with as many slots as there are."""
    return result.path[max(result.path)]


def model(pool: str) -> str:
    """Whose answers a pool holds, by its name."""
    return pool.split("_", 1)[1]


def choose(found: Results, among: Sequence[Row]) -> Row:
    """The fewest tokens of those that lose little; where all lose much, the most right."""
    fitting = [row for row in among if found[row].difference >= -MOST_LOST]
    if not fitting:
        return max(among, key=lambda row: found[row].difference)
    return min(fitting, key=lambda row: found[row].tokens)


def tell(found: dict[str, Results], chosen: dict[str, Row]) -> str:
    """What was chosen for each pool, as the mean over the pools: cells of a table."""
    mine = mean_results({MINE: found[pool][row]} for pool, row in chosen.items())[MINE]
    beta = mean_results({MINE: found[pool][BETA]} for pool in chosen)[MINE]
    cells = [signed(mine.points), f"{mine.tokens:.3f}", f"{mine.tokens / beta.tokens:.2f}"]
    return " | ".join([*cells, f"{max_path(mine):.2f}"])


def leave_out(
    found: dict[str, Results], part: Callable[[str], str], among: Sequence[Row]
) -> dict[str, Row]:
    """For each pool, what all pools of other parts choose."""
    return {
        pool: choose(
            mean_results(own for other, own in found.items() if part(other) != part(pool)), among
        )
        for pool in found
    }


def report(
    found: dict[str, Results], part: Callable[[str], str], what: str, grids: Mapping[str, list[Row]]
) -> None:
    """Print what leaving one data set or model out comes to."""
    print(f"\n## One {what} left out\n")
    print(f"| in flight | left out | pools | chosen by the others | {HEAD} |\n|{' --- |' * 8}")
    for flight, among in grids.items():
        chosen = leave_out(found, part, among)
        for one in dict.fromkeys(map(part, found)):
            own = {pool: row for pool, row in chosen.items() if part(pool) == one}
            (name, _), *_ = own.values()
            print(f"| {flight} | {one} | {len(own)} | `{name}` | {tell(found, own)} |")
        print(f"| {flight} | each in turn | {len(found)} | | {tell(found, chosen)} |")


def report_as_they_are(found: dict[str, Results], grids: Mapping[str, list[Row]]) -> list[str]:
    """Print what the policies come to where they were chosen; what all pools choose there."""
    means = mean_results(found.values())
    best = [choose(means, among) for among in grids.values()]
    print(f"\n## Where they were chosen\n\n| policy | {HEAD} |\n|{' --- |' * 5}")
    shown = {row[0]: row for row in means if row[0] in SHOWN}
    shown |= {f"chosen: `{row[0]}`": row for row in best}
    for name, row in shown.items():
        print(f"| {name} | {tell(found, dict.fromkeys(found, row))} |")
    return [name for name, _ in best]


def report_recording(path: Path, chosen: Sequence[str], *, processes: int) -> None:
    """Print how far settling is from its aims on a recording with token confidences."""
    source = PoolTraces.open(path, only_graded=True)
    specs = ["majority", "adaptive-consistency", "deepconf-low", "deepconf-high"]
    specs += [*PRESETS, *chosen]
    candidates = parse(specs, budgets=[RECORDED_BUDGET], concurrencies=[RECORDED_SLOTS])
    ((_, trials, _),) = each_trials(
        [(path.stem, source)], candidates, runs=RECORDED_RUNS, processes=processes
    )
    told = [reference(trials, number) for number in range(len(candidates))]
    majority, beta, low, *_ = told
    better = max((majority, low), key=lambda one: mean_of(one.right))
    print(f"\n## {path.stem}\n")
    print(
        "| policy | right, % | against majority, points | tokens of Beta .95 (aim: 0.45) ", end=""
    )
    print("| time of majority (aim: 0.9) | tokens of deepconf-low (aim: 0.5) ", end="")
    print(f"| against {better.name}, the more right of both (aim: none lost) |")
    print(f"|{' --- |' * 7}")
    for one in told:
        cells = [
            NAMES.get(one.name, f"`{one.name}`"),
            f"{100 * mean_of(one.right):.1f}",
            Against(majority).points(one),
            Against(beta).tokens(one),
            Against(majority).path(one),
            Against(low).tokens(one),
            Against(better).points(one),
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("recordings", type=Path, nargs="*")
    parser.add_argument("--runs", type=int, default=1000, help="of a policy on a pool, about")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    specs = ["majority", "adaptive-consistency", *BY_NEED, *PRESETS, *GRIDS.values()]
    candidates = parse(specs, budgets=[BUDGET], concurrencies=[SLOTS])
    with tempfile.TemporaryDirectory() as made:
        told = each_trials(
            pools(given.folder, Path(made)),
            candidates,
            runs=given.runs,
            processes=given.processes,
        )
        found = {name: results(trials, seed) for name, trials, seed in told}
    grids = {
        name: [row_of(one) for one in parse([spec], budgets=[BUDGET])]
        for name, spec in GRIDS.items()
    }
    best = report_as_they_are(found, grids)
    report(found, data_set, "data set", grids)
    report(found, model, "model", grids)
    for path in given.recordings:
        report_recording(path, best, processes=given.processes)


if __name__ == "__main__":
    main()

"""The command line: ``g2m demo | data | train | bench | sweep | condense | … | predict | export | latency``."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from g2m.errors import G2MError

_GOES_ON = ("demo", "train", "bench", "sweep", "bench-condense", "ogb")  # after a stop; other commands begin anew


class _Commands(TyperGroup):
    def invoke(self, context: typer.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:  # here: typer would make an exit of it without a word
            goes_on = context.invoked_subcommand in _GOES_ON
            err.print("stopped; the same command goes on from here" if goes_on else "stopped")
            raise typer.Exit(130) from None


cli = typer.Typer(
    cls=_Commands,
    help="The knowledge of a graph neural network in a model that needs no graph.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_cli = typer.Typer(help="Data sets: list the cards, fetch one.", invoke_without_command=True)
cli.add_typer(data_cli, name="data")

_WIDE = None if sys.stdout.isatty() else 200  # a pipe or a file has no width to wrap at
_LINE_EVERY = 60  # seconds
out, err = Console(width=_WIDE), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Root = Annotated[Path | None, typer.Option(help="Data folder; default $G2M_DATA_ROOT, else ~/.cache/g2m/data.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of trained teachers; default $G2M_CACHE, else ~/.cache/g2m.")]
Tuned = Annotated[bool, typer.Option("--tuned", help="Options that a sweep of ours found, not the published ones.")]
Options = Annotated[
    list[str] | None,
    typer.Option("-o", help="key=value: an option of students; teacher.key=, data.key=, METHOD.key=: of those."),
]
DataOptions = Annotated[list[str] | None, typer.Option("-o", help="data.key=value: an option of the data set.")]


def app() -> None:
    """Run the command line; a user's mistake prints one line and exits 2."""
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    # Torch on Linux then takes large tensors in huge pages: wide layers otherwise wait for the kernel to hand out small
    # ones, at every step. Read when torch first allocates; worker processes inherit it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with mistakes():
        cli()


@contextmanager
def mistakes() -> Iterator[None]:
    """Inside, a user's mistake prints one line and exits 2."""
    try:
        yield
    except (G2MError, OSError) as error:  # of a folder that cannot be written, a full disk, the message names the path
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


# -- showing ---------------------------------------------------------------------------------------------------


def show(header: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    table = Table(*(Column(Text(name)) for name in header), title=title and Text(title), title_justify="left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    out.print(table)


def say(line: str) -> None:
    """Print a line as it is: a path may have brackets, and be long."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def show_json(value: Any) -> None:
    show_text(json.dumps(value, indent=2))


def show_text(text: str) -> None:
    if not out.quiet:
        typer.echo(text)


class _Bar(Progress):
    """A progress bar with time left; where there is no terminal, a line a minute, if it has moved."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Time left by the speed of the last hour, not of the last half minute: a training may take longer than that.
        super().__init__(*columns, console=err, transient=True, disable=not err.is_terminal, speed_estimate_period=3600)
        self._said, self._line = time.monotonic(), ""

    def update(self, task_id: TaskID, **options: Any) -> None:
        super().update(task_id, **options)
        task = next(task for task in self.tasks if task.id == task_id)
        line = f"{task.description}: {task.completed:g} of {'?' if task.total is None else format(task.total, 'g')}"
        if self.disable and line != self._line and time.monotonic() - self._said >= _LINE_EVERY:
            err.print(line, markup=False, highlight=False, soft_wrap=True)
            self._said, self._line = time.monotonic(), line

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        self.update(task_id, advance=advance)


def bar() -> Progress:
    """A progress bar on standard error, see :class:`_Bar`."""
    return _Bar()


class _Once(logging.Handler):
    """Prints what is logged on standard error; of lines that differ in the memory free alone, the first."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if (about := text.partition(";")[0]) not in self.said:
            self.said.add(about)
            err.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def estimates() -> Iterator[None]:
    """Print what memory a teacher takes before it is trained."""
    handler, log = _Once(), logging.getLogger("g2m.memory")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextmanager
def _joined() -> Iterator[None]:
    """Train with all processes that ``torchrun`` started, if it did; the first one speaks."""
    from g2m import distributed

    with distributed.joined():
        out.quiet = err.quiet = distributed.rank() > 0
        yield


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _check_folder(path: Path | None, option: str = "--out") -> None:
    """Refuse a file where an option is a folder, before anything is trained."""
    if path is not None and path.is_file():
        raise G2MError(f"{option}: expected a folder (got the file {str(path)!r}). Name another.")


def _check_plot(path: Path | None) -> None:
    """Refuse a plot of an unknown kind, before anything is measured for it."""
    from g2m.report import check_plot
    from g2m.storage import check_writable

    if path is not None:
        check_plot("--plot", path)
        check_writable("--plot", path)


@cli.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print versions and the optional parts found.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: print JSON.")] = False,
) -> None:
    if not version:
        if as_json:
            raise G2MError("--json: expected after a command, or beside --version (got neither). Put it at the end.")
        return
    from importlib.metadata import version as installed

    import torch

    packages = ("g2m", "torch", "torch_geometric", "optuna", "ogb")
    found = {"python": platform.python_version()} | {name: installed(name) for name in packages}
    found["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found |= {name: importlib.util.find_spec(name) is not None for name in _PARTS}
    if as_json:
        show_json(found)
        raise typer.Exit
    for name, value in found.items():
        if name in _PARTS:
            value = "found" if value else f"not found (pip install 'g2m[{_PARTS[name]}]')"
        say(f"{name}: {value or 'none'}")
    raise typer.Exit


_PARTS = {
    "torch_scatter": "scatter",
    "onnxruntime": "export",
    "pyarrow": "export",
    "optuna_dashboard": "dashboard",
    "psycopg": "distributed",
    "grpc": "distributed",
}


# -- data ------------------------------------------------------------------------------------------------------


@data_cli.callback()
def data_list(context: typer.Context, root: Root = None, as_json: Json = False) -> None:
    """List the data sets: had or not, size, licence."""
    if context.invoked_subcommand is not None:
        return
    from g2m.data import cards, data_root

    rows = []
    for name, card in cards().items():
        rows.append(
            {"name": name, "status": card.status(root), **card.counts, "size_mb": card.size_mb, "metric": card.metric}
            | {"split": card.default_split, "licence": card.licence}
        )
    if as_json:
        show_json(rows)
    else:
        show(
            list(rows[0]),
            [["–" if v is None else v for v in row.values()] for row in rows],
            f"data in {data_root(root)}",
        )


@data_cli.command("get")
def data_get(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Card name, see g2m data.")],
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Fetch a data set and check it against its card."""
    from g2m.data import download, find_card

    before = context.parent.params  # of g2m data --root … get …
    root, as_json = root or before["root"], as_json or before["as_json"]
    download(name, root)
    status = find_card(name).status(root)
    if as_json:
        show_json({"name": name, "status": status})
    else:
        say(f"{name}: {status}")


# -- training --------------------------------------------------------------------------------------------------


@cli.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where artifacts and plot go.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5,
    as_json: Json = False,
) -> None:
    """Distil a GNN into an MLP on handwritten digits, and show quality against speed."""
    from g2m.demo import DATA, METHODS, run_demo
    from g2m.graph import SETTINGS
    from g2m.latency import SIZES

    with bar() as progress:
        task = progress.add_task(f"{DATA}: teacher and students", total=len(SETTINGS) * len(METHODS) * seeds)
        rows = run_demo(folder, seeds=seeds, on_cell=lambda _: progress.advance(task))
    if as_json:
        show_json(rows)
        return
    header = ["model", "transductive %", "unseen nodes %", "parameters", "ms, 1 node", "ms, 1000", "speed-up"]
    cells = [
        [
            row["model"],
            *(f"{row[key]:.2f} ± {row[f'{key}_std']:.2f}" for key in SETTINGS),
            f"{row['parameters']:,}",
            *(f"{row[f'ms_{size}']:.3f}" for size in SIZES),
            " / ".join(f"{row[f'speedup_{size}']:.1f}×" for size in SIZES),
        ]
        for row in rows
    ]
    show(header, cells, f"Handwritten digits, 20 labels a class, {seeds} seeds")
    say(f"plot: {folder / 'demo.png'}   artifacts: {folder}/*.safetensors\n\nUse the student:")
    typer.echo(_USE.format(path=folder / "student.safetensors"))


_USE = """
import g2m, sklearn.datasets
student = g2m.Student.load("{path}")
print(student.predict(sklearn.datasets.load_digits().data[:10]))
"""


@cli.command()
def train(
    data: Annotated[
        str, typer.Argument(help="Card name, see g2m data; or an experiment: a sweep's best.toml, glnn/cora-cpf-sage.")
    ],
    method: Annotated[str | None, typer.Option(help="Distillation method; default glnn, or the experiment's.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Teacher's backbone; default sage, or the experiment's.")] = None,
    setting: Annotated[
        str | None, typer.Option(help="transductive (default) or inductive; of a sweep's best.toml, the sweep's.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 1,
    tuned: Tuned = False,
    options: Options = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder to keep; default runs/<what is run>.")] = None,
    root: Root = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Train teacher and student on one data set; killed, the same command goes on where it was."""
    from g2m.bench import Cell, cells, run
    from g2m.data import SETTINGS
    from g2m.errors import check_whole, choose
    from g2m.experiments import Experiment, open_experiment
    from g2m.report import score_rows, summary

    _check_folder(folder)
    if data.endswith(".toml") or "/" in data:
        said = {"--method": method, "--teacher": teacher, "--tuned": tuned or None}
        if given := [option for option, value in said.items() if value is not None]:
            raise G2MError(f"{given[0]}: {data!r} says it. Leave {given[0]} out.")
        if not isinstance(experiment := open_experiment(data), Experiment):
            raise G2MError(f"DATA: expected an experiment of a student (got {data!r}, of condensation).")
        setting = choose("--setting", setting or experiment.tuned.get("setting", "transductive"), SETTINGS)
        experiment = experiment.override(options or ())
        grid = [Cell(experiment, setting, seed) for seed in range(check_whole("seeds", seeds))]
        grid[0].check()
    else:
        setting = setting or "transductive"
        names = {"methods": [method or "glnn"], "teachers": [teacher or "sage"], "settings": [setting]}
        grid = cells([data], **names, seeds=seeds, tuned=tuned, overrides=options or ())
        if teacher is not None and grid[0].experiment.teacher is None:
            raise G2MError(f"--teacher: method {method!r} has none. Leave it out.")
    folder = folder or Path("runs") / grid[0].experiment.study_name(setting)
    folders = {cell.key: folder / f"seed{cell.seed}-{cell.key}" for cell in grid}
    with _joined(), estimates():
        records = list(run(grid, out=folder / "results.jsonl", folders=folders, progress=True, root=root, cache=cache))
    if as_json:
        show_json(records)
        return
    show(*score_rows(summary(records), setting, seconds=True), title=f"{grid[0].experiment.data}, {setting}")
    say(f"kept in {folder}/seed*/: {', '.join(grid[0].files)}")


@cli.command()
def bench(
    data: Annotated[
        list[str] | None, typer.Argument(help="Card names, see g2m data; with --all by default ten graphs.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every method, with one teacher and student.")] = False,
    methods: Annotated[
        str | None, typer.Option(help="Method names, by comma; default mlp,glnn, with --tuned those tuned.")
    ] = None,
    teachers: Annotated[str | None, typer.Option(help="Backbones, by comma; default sage.")] = None,
    settings: Annotated[str, typer.Option(help="Settings, by comma.")] = "transductive,inductive",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 10,
    results: Annotated[Path, typer.Option("--out", help="Results file; a killed run goes on from it.")] = Path(
        "results.jsonl"
    ),
    workers: Annotated[int, typer.Option(help="Processes; threads are divided among them.")] = 1,
    stack: Annotated[int, typer.Option(help="Seeds whose students are trained at once, as one model.")] = 1,
    tuned: Tuned = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --out, as it does anyway.")] = False,
    options: Options = None,
    root: Root = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Run methods × teachers × data sets × settings × seeds and print the table beside the published one.

    Killed or stopped, the same command goes on from --out. What fails by a mistake is listed at the end: exit code 1.
    """
    from g2m.bench import ALL_DATA, ALL_TEACHERS, Cell, cells
    from g2m.experiments import tuned_methods
    from g2m.methods import REGISTRY
    from g2m.report import PARTS, score_rows, summary

    if everything and methods is not None:
        raise G2MError("--all, --methods: expected one of them (got both). --all runs every method: leave one out.")
    if everything and tuned:
        raise G2MError("--all, --tuned: expected one of them (got both). --all gives every method the same student.")
    if not data and not everything:
        raise G2MError("DATA: expected at least one card name (got none). Name some, see g2m data, or give --all.")
    backbones = _names((",".join(ALL_TEACHERS) if everything else "sage") if teachers is None else teachers)
    if methods is not None:
        chosen = _names(methods)
    elif everything:
        chosen = list(REGISTRY)
    else:
        chosen = tuned_methods(data or (), backbones) if tuned else ["mlp", "glnn"]
    grid = cells(
        data or ALL_DATA,
        methods=chosen,
        teachers=backbones,
        settings=_names(settings),
        seeds=seeds,
        common=everything,
        tuned=tuned,
        overrides=options or (),
    )

    def words(cell: Cell) -> tuple[str | None, ...]:
        return cell.experiment.data, cell.experiment.method, cell.experiment.teacher, cell.setting

    with _joined(), estimates():
        records, failures = _trainings(grid, words, results, workers=workers, stack=stack, root=root, cache=cache)
    if as_json:
        show_json(records)
    else:
        rows = summary(records)
        for setting in PARTS:
            header, table = score_rows(rows, setting, seconds=True)
            if table:
                show(header, table, setting)
        if records:
            say(f"results: {results}")
    _end(failures)


def _trainings(
    grid: Sequence[Any], words: Callable[[Any], Iterable[str | None]], results: Path, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Run cells under a bar; return their records and, by what went wrong, the names of the cells that failed."""
    from g2m.bench import read_results, run

    if results.is_dir():
        raise G2MError(f"--out: expected a results file (got the folder {str(results)!r}). Name a .jsonl in it.")
    name_of = {cell.key: f"{' '.join(filter(None, words(cell)))}, seed {cell.seed}" for cell in grid}
    left = name_of.keys() - ({record.get("key") for record in read_results(results)} if results.exists() else set())
    records: list[dict[str, Any]] = []
    failures: dict[str, list[str]] = {}
    with bar() as progress:
        task = progress.add_task("trainings", total=len(grid), completed=len(grid) - len(left))

        def ended(key: str) -> None:  # what was finished before takes no time: counted, it would spoil the time left
            progress.update(task, advance=key in left, description=name_of[key])

        def failed(cell: Any, error: G2MError) -> None:
            failures.setdefault(str(error), []).append(name_of[cell.key])
            ended(cell.key)

        with closing(run(grid, out=results, on_error=failed, **options)) as started:
            for record in started:
                records.append(record)
                ended(record["key"])
    return records, failures


def _end(failures: dict[str, list[str]]) -> None:
    """List what failed, and leave with exit code 1 if anything did."""
    for message, names in failures.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        line = f"failed: {'; '.join(names[:3])}{more}: {message}"
        err.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


@cli.command()
def sweep(
    file: Annotated[str, typer.Argument(help="Experiment: a TOML file, or a shipped one, like glnn/cora-cpf-sage.")],
    trials: Annotated[int, typer.Option(help="Of the study as a whole.")] = 100,
    seeds: Annotated[int, typer.Option(help="Seeds a trial is scored on, their mean on validation.")] = 1,
    setting: Annotated[str, typer.Option(help="transductive or inductive.")] = "transductive",
    also: Annotated[
        str | None, typer.Option(help="A second objective, to be small: parameters, bytes or latency.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes, one for each GPU in turn; threads are divided.")] = 1,
    stack: Annotated[int, typer.Option(help="Trials trained at once as one batched model.")] = 1,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which no trial is begun.")] = None,
    replicate: Annotated[int, typer.Option(help="Fresh seeds the best is then trained on; test is read there.")] = 0,
    storage: Annotated[
        str | None, typer.Option(help="URL shared by machines: sqlite:///…, postgresql://…, grpc://host:port.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the study; default: data, teacher, method, setting.")] = None,
    prune: Annotated[bool, typer.Option(help="Stop trials below the median of the earlier ones.")] = True,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    options: Options = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder to keep; default sweep/<study>.")] = None,
    root: Root = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Search the options of an experiment that do best on validation; killed, the same command goes on.

    Started more than once on one folder or --storage, on one machine or several, they share the work.
    """
    import optuna

    from g2m.errors import check_range, check_whole
    from g2m.experiments import open_experiment
    from g2m.storage import write_text
    from g2m.sweep import JOURNAL, Sweep
    from g2m.sweep_report import best_rows, draw

    counts = {"--trials": (trials, 1), "--workers": (workers, 1), "--stack": (stack, 1), "--replicate": (replicate, 0)}
    for option, (value, low) in counts.items():
        check_whole(option, value, low)
    if timeout is not None:
        check_range("--timeout", timeout, 0)
    _check_folder(folder)
    os.environ.setdefault("MPLBACKEND", "Agg")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    experiment = open_experiment(file).searched(sizes=also is not None).override(options or ())
    if not experiment.space:
        raise G2MError("-o: expected at least one option left to search (got all of them set).")
    search = Sweep(experiment, setting=setting, seeds=seeds, also=also, prune=prune, seed=seed)
    folder = folder or Path("sweep") / (name or search.name)
    folder.mkdir(parents=True, exist_ok=True)
    place = storage or folder / JOURNAL
    with bar() as progress:
        task = progress.add_task("trials", total=trials)

        def changed(study: optuna.Study) -> None:
            known = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and t.values]
            best = max((t.values[0] for t in known if t.state.name == "COMPLETE"), default=float("nan"))
            progress.update(task, completed=len(known), description=f"trials, best on validation {best:.4f}")

        study = search.run(
            place,
            trials=trials,
            workers=workers,
            stack=stack,
            timeout=timeout,
            name=name,
            root=root,
            cache=cache,
            on_change=changed,
        )
    best, records, best_file = search.best(study), [], folder / "best.toml"
    with suppress(G2MError):  # none there, or another's: the scores on fresh seeds of this one stay
        before = open_experiment(best_file)
        same = all(before.tuned.get(name) == best.tuned[name] for name in ("setting", "seeds"))  # not fresh to others
        if same and before.config() == best.config():
            best = replace(best, tuned={**before.tuned, **best.tuned})
    best.write(best_file)
    write_text(folder / "trials.csv", study.trials_dataframe().to_csv(index=False))
    drawn = draw(study, folder)
    if replicate:
        best, records = search.replicate(
            best, replicate, out=folder / "results.jsonl", workers=workers, root=root, cache=cache
        )
        best.write(best_file)
    if as_json:
        show_json(
            {"best": best.config(), "tuned": best.tuned, "study": study.study_name, "file": str(best_file)}
            | {"plots": [str(path) for path in drawn], "records": records}
        )
        return
    show(*best_rows(study), title=f"{study.study_name}: best of {best.tuned['trials']} trials, on validation")
    if records:
        scores = [[part, f"{mean:.4f} ± {std:.4f}"] for part, (mean, std) in best.tuned["scores"].items()]
        show(["part", records[0]["metric"]], scores, title=f"the best, on {replicate} fresh seeds")
    typer.echo(f"written: {best_file}\nplots: {', '.join(path.name for path in drawn)}")
    if storage is None:
        typer.echo(f"look: optuna-dashboard {place}   (pip install 'g2m[dashboard]')")


@cli.command("condense")
def condense_command(
    data: Annotated[str, typer.Argument(help="Card name of a set of graphs, see g2m data.")],
    method: Annotated[
        str, typer.Option(help="mirage, scored, lossless, random, herding, kcenter or doscond.")
    ] = "scored",
    hops: Annotated[int, typer.Option(help="Layers of the networks to be trained on it; one more for GCN.")] = 2,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Bytes: 3000, 10kB, or a share of the training graphs', default 1%; none with lossless or min_support."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn.")] = 0,
    options: Annotated[list[str] | None, typer.Option("-o", help="key=value: an option of the method.")] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="File to write; default DATA-METHOD.safetensors.")
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="Folder for plots: skew of the trees, the commonest ones, the record that weighs most."),
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Condense the training graphs of a data set to a few bytes that any GNN can be trained on."""
    from g2m.condense import CondensedSet, TreeTable, condense, everything
    from g2m.condense import inspect as inspect_trees
    from g2m.condense.methods import check_budget, function_of
    from g2m.data import load
    from g2m.experiments import key_values
    from g2m.storage import check_writable

    graphs, given = load(data, seed=seed, root=root), key_values(options or (), "min_size=2")
    function_of(method, graphs, given)  # mistakes are refused before anything is counted
    if budget is not None:
        check_budget(budget)
        if method == "lossless":
            raise G2MError(
                f"budget: expected none, the lossless set is as large as it is (got {budget!r}). Leave it out."
            )
        if "min_support" in given:
            raise G2MError(f"budget: expected none with min_support (got {budget!r}). Leave out either.")
    target = target or Path(f"{data}-{method}.safetensors")
    check_writable("--out", target)
    _check_folder(plots, "--plots")
    train = graphs.subset(graphs.part("train"))
    table = TreeTable(train, hops, given.get("degrees", False))
    inspection = inspect_trees(table.classes, train.batch)
    if not as_json:
        typer.echo(str(inspection))  # now: it says why, if nothing can be condensed
    made: CondensedSet = condense(graphs, method, num_hops=hops, budget=budget, seed=seed, **given)
    size, whole = made.nbytes(), everything(train).nbytes()
    path = made.save(target)
    drawn = []
    if plots is not None:
        from g2m.condense.plots import draw_trees, plot_skew
        from g2m.report import save_figure

        heaviest = int(made.weight.reshape(len(made), -1).sum(1).argmax())
        record = made.draw(heaviest, max_nodes=train.num_nodes)
        drawn = [
            plot_skew(table.classes, plots / f"{data}-skew.png"),
            draw_trees(table, plots / f"{data}-trees.png"),
            save_figure(record, plots / f"{data}-{method}.png"),
        ]
    if as_json:
        show_json(
            {"file": str(path), "records": len(made), "bytes": size.raw, "compressed": size.compressed}
            | {"bytes_full": whole.raw, "compressed_full": whole.compressed, **made.meta}
            | {"inspection": inspection.verdict, "plots": [str(p) for p in drawn]}
        )
        return
    what = "graphs" if made.num_hops is None else "bags of trees"
    rows = [
        ["training graphs", f"{len(train):,} graphs", f"{whole.raw:,}", f"{whole.compressed:,}", "100"],
        [method, f"{len(made):,} {what}", f"{size.raw:,}", f"{size.compressed:,}", f"{100 * size.raw / whole.raw:.2f}"],
    ]
    show(["", "records", "bytes", "zlib", "% of bytes"], rows, f"{data}, {made.meta['seconds']} s")
    say("\n".join([f"written: {path}", *(f"plot: {p}" for p in drawn)]))


@cli.command("bench-condense")
def bench_condense(
    data: Annotated[list[str], typer.Argument(help="Card names of sets of graphs, see g2m data.")],
    rows: Annotated[str | None, typer.Option(help="Methods and controls, by comma; default all.")] = None,
    backbones: Annotated[str, typer.Option(help="Networks, by comma: gcn, gat, gin, sage.")] = "gcn,gat,gin",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5,
    budget: Annotated[
        str,
        typer.Option(
            help="Bytes: 3000, 10kB, or a share of the training graphs', 1%. Of the row 'mirage, faithful', shipped "
            "thresholds decide."
        ),
    ] = "1%",
    hops: Annotated[int | None, typer.Option(help="Default: what sweeps/condense.toml says, else 2.")] = None,
    results: Annotated[Path, typer.Option("--out", help="Results file; a killed run goes on from it.")] = Path(
        "condense.jsonl"
    ),
    plot: Annotated[Path | None, typer.Option(help="Of the metric against bytes: .png, .svg or .pdf.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; threads are divided among them.")] = 1,
    options: Annotated[
        list[str] | None, typer.Option("-o", help="key=value: of the network; METHOD.key=value: of a method.")
    ] = None,
    root: Root = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Train networks on condensed sets, on all graphs and on controls, and print one table a data set."""
    from g2m.condense.bench import ROWS, CondenseCell, cells, tables
    from g2m.condense.plots import DRAWN, plot_against_bytes

    _check_plot(plot)
    grid = cells(
        data,
        rows=_rows(rows, ROWS) if rows else None,
        backbones=_names(backbones),
        seeds=seeds,
        budget=budget,
        hops=hops,
        overrides=options or (),
    )

    if plot is not None and not {cell.row for cell in grid}.intersection(DRAWN):
        raise G2MError(f"--plot: expected rows that are drawn among --rows, {'; '.join(DRAWN)} (got none).")

    def words(cell: CondenseCell) -> tuple[str | None, ...]:
        return cell.data, cell.row, cell.backbone

    records, failures = _trainings(grid, words, results, workers=workers, root=root, cache=cache)
    if plot is not None and any(record["row"] in DRAWN for record in records):
        plot_against_bytes(records, plot)
    if as_json:
        show_json(records)
    else:
        for title, header, lines in tables(records):
            show(header, lines, title)
        if records:
            say(f"results: {results}")
    _end(failures)


def _rows(given: str, known: Sequence[str]) -> list[str]:
    """Return the rows named, by comma; some names have a comma in them."""
    found, rest = [], given
    while rest := rest.strip(" ,"):
        name = max((row for row in known if rest == row or rest.startswith(f"{row},")), key=len, default=None)
        if name is None:
            raise G2MError(f"--rows: expected names of {'; '.join(known)} (got {rest!r}).")
        found.append(name)
        rest = rest.removeprefix(name)
    return found


@cli.command("ogb")
def ogb_command(
    data: Annotated[str, typer.Argument(help="A data set of OGB: ogbn-arxiv, ogbg-molhiv …, see g2m data.")],
    method: Annotated[
        str | None,
        typer.Option(help="Distillation, default glnn; of graphs full (default), lossless, scored, mirage …"),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher's backbone, default sage; of graphs the network itself, default gin.")
    ] = None,
    runs: Annotated[int, typer.Option(help="Seeds; OGB asks for ten.")] = 10,
    setting: Annotated[str, typer.Option(help="transductive or, of nodes, inductive.")] = "transductive",
    budget: Annotated[str | None, typer.Option(help="Bytes of a condensed set: 3000, 10kB, or 1%; default 1%.")] = None,
    hops: Annotated[int | None, typer.Option(help="Of condensation, and layers of the network.")] = None,
    options: Options = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder to keep; default submissions/<what is run>.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; threads are divided among them.")] = 1,
    root: Root = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Run by the rules of the Open Graph Benchmark; killed, the same command goes on.

    Scores are those of OGB's Evaluator. What the leaderboard asks for is printed and written to submission.md.
    """
    from g2m.ogb_runs import run_ogb

    _check_folder(folder)
    with _joined(), estimates():
        found = run_ogb(
            data,
            method=method,
            teacher=teacher,
            runs=runs,
            setting=setting,
            budget=budget,
            hops=hops,
            overrides=options or (),
            folder=folder,
            workers=workers,
            root=root,
            cache=cache,
            progress=True,
        )
    if as_json:
        show_json(
            {"figures": found.figures, "parameters": found.parameters, "folder": str(found.folder)}
            | {"text": found.text, "records": found.records}
        )
        return
    show_text(found.text)
    say(f"kept in {found.folder}: submission.md, results.jsonl, and by seed what was trained")


@cli.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Results files.")],
    target: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the whole report, or a page that ends in .md; default: print scores."),
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Page whose tables to renew, between the command and <!-- end -->.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="With --out: the method to compare others with; default glnn.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn results files into tables, the published numbers beside the measured ones.

    With --out also: differences with their significance, ranks, quality against latency, cost; as Markdown, CSV and one
    HTML page.
    """
    from g2m.bench import read_results
    from g2m.report import insert, markdown, of_trainings, summary
    from g2m.report_page import report_files, report_text, write_files
    from g2m.storage import write_text

    if into is not None and target is not None:
        raise G2MError("--out, --into: expected one of them (got both).")
    if against is not None and target is None:
        raise G2MError("--against: models are compared in what --out writes (got no --out). Name a folder by --out.")
    records = [record for path in results for record in read_results(path)]
    if not records:
        raise G2MError(f"results: expected at least one record (got none in {', '.join(map(str, results))}).")
    command = shlex.join(["g2m", "report", *map(str, results), *(["--against", against] if against else [])])
    if into is not None:
        if not into.is_file():
            raise G2MError(f"--into: no page {str(into)!r}.")
        text = insert(
            into.read_text(encoding="utf-8"), f"{command} --into {shlex.quote(str(into))}", markdown(records, level=3)
        )
        written = write_text(into, text)
    elif target is None:
        written = None
    elif target.suffix == ".md":
        written = write_text(target, report_text(records, command=command, against=against))
    else:
        written = write_files(target, report_files(records, command=command, against=against)) / "index.html"
    if as_json:
        show_json(summary(of_trainings(records)) + [r for r in records if "table" in r or "row" in r])
    elif written is None:
        typer.echo(f"# Results\n\nMade by `{command}`.\n\n{markdown(records)}")
    else:
        say(f"written: {written}")


# -- using -----------------------------------------------------------------------------------------------------


@cli.command()
def predict(
    student: Annotated[Path, typer.Argument(help="Student, saved (.safetensors) or exported (.onnx, .pt2).")],
    features: Annotated[
        Path,
        typer.Argument(
            help="Features [N, F]: .npy, .csv or .parquet, of any length. A first line of numbers is data, except "
            "0,1,2 …, a number a column: pandas' header."
        ),
    ],
    result: Annotated[Path | None, typer.Option("--out", help=".csv, .npy or .parquet; default: print CSV.")] = None,
    edges: Annotated[
        Path | None,
        typer.Option(
            help="For students that read of neighbours: ids of known nodes and rows of the table they are linked to; "
            "two columns of .csv or .parquet, or .npy [2, E]. A first line of numbers is an arc."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU; default: as many as torch takes.")] = None,
    as_json: Json = False,
) -> None:
    """Predict classes from features: no graph. Tables are read and written a chunk of rows at a time."""
    import torch

    from g2m.errors import check_whole
    from g2m.estimators import Student, checked_features
    from g2m.export import SUFFIXES, Exported
    from g2m.positions import arcs_to
    from g2m.storage import check_writable
    from g2m.tables import Part, check_rows, read_edges, read_features, write_predictions

    if threads is not None:
        threads = min(check_whole("--threads", threads), os.cpu_count() or 1)
        torch.set_num_threads(threads)
    if result is not None:
        check_writable("--out", result)
        if result.resolve() in {path.resolve() for path in (student, features, edges) if path is not None}:
            raise G2MError(f"--out: expected another file than those read (got {str(result)!r}). Name another.")
    if student.suffix in SUFFIXES:
        model = Exported.load(student, threads=threads)
        meta = model.meta
    else:
        model = Student.load(student)
        meta = model.meta_
    width, class_names = meta["in_channels"], meta.get("class_names")
    table, kept = read_features(features, width, names=meta.get("feature_names")), []
    arcs = None if edges is None else read_edges(edges, table.num_rows)

    def arcs_of(start: int, stop: int) -> torch.Tensor | None:
        return None if arcs is None else arcs_to(torch.from_numpy(arcs), start, stop)

    def parts(progress: Progress) -> Iterator[Part]:
        task, done = progress.add_task("rows", total=table.num_rows), 0
        for x in table:
            checked_features(x, width, first=done)  # an error names the row of the table
            probabilities = model.predict_proba(x, arcs_of(done, done + len(x)))
            part = probabilities.argmax(1), probabilities
            if as_json:
                kept.append(part)
            done += len(x)
            progress.update(task, completed=done)
            yield part
        if arcs is not None:
            check_rows(arcs, done)

    with bar() as progress:
        if as_json and result is None:
            count = len([*parts(progress)])
        else:
            count = write_predictions(sys.stdout if result is None else result, parts(progress), class_names)
    if as_json:
        classes, probabilities = (
            [row for part in column for row in part.tolist()] for column in zip(*kept, strict=True)
        )
        classes = classes if class_names is None else [class_names[c] for c in classes]
        show_json({"class": classes, "probability": [[round(p, 6) for p in row] for row in probabilities]})
    elif result is not None:
        say(f"written: {result} ({count} rows)")


@cli.command()
def export(
    student: Annotated[Path, typer.Argument(help="Saved student (.safetensors).")],
    target: Annotated[Path, typer.Option("--out", help="student.onnx or student.pt2; a model card goes beside it.")],
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or, of .onnx, int8.")] = "float32",
    neighbours: Annotated[
        bool, typer.Option(help="Of a student that reads of neighbours: with their rows, or for features alone.")
    ] = True,
    data: Annotated[
        str | None, typer.Option(help="Card name of what it was trained on: scores by student and file are kept in it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --data: that it was trained with; default 0.")] = None,
    setting: Annotated[
        str | None, typer.Option(help="With --data: transductive or inductive; default the former.")
    ] = None,
    options: DataOptions = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Write a student as one file that runs without g2m; it is written once its answers are those of the student."""
    from g2m.estimators import Student
    from g2m.export import Exported, card_path
    from g2m.storage import check_writable

    of_data = {"--seed": seed, "--setting": setting, "-o": options or None, "--root": root}
    if data is None and (given := [option for option, value in of_data.items() if value is not None]):
        raise G2MError(f"{given[0]}: is of --data (got none). Name the card, or leave {given[0]} out.")
    graph = None if data is None else _graph(data, seed or 0, setting or "transductive", options, root)
    check_writable("--out", target)
    path = Student.load(student).export(target, precision=precision, neighbours=neighbours, graph=graph)
    meta, size = Exported.load(path).meta, path.stat().st_size
    if as_json:
        show_json({"file": str(path), "card": str(card_path(path)), "bytes": size, **meta})
        return
    of_file = meta.get("exported_scores", {})
    scores = [[part, f"{value:.4f}", _score(of_file.get(part))] for part, value in meta["scores"].items()]
    show([meta["metric"], "student", f"file, {precision}"], scores)
    for kind, found in meta["compared"].items():
        same = f"{100 * found['same_class']:.2f} % of {found['rows']:,}"
        typer.echo(f"{kind} features: same class for {same}, answers within {found['difference']:.1e}")
    typer.echo(f"written: {path} ({size:,} bytes), {card_path(path)}")


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _graph(name: str, seed: int, setting: str, options: Iterable[str] | None, root: Path | None) -> Any:
    from g2m.data import load
    from g2m.experiments import key_values

    given = {key.removeprefix("data."): value for key, value in key_values(options or (), "data.num_nodes=300").items()}
    for key in ("name", "seed", "setting", "root"):
        if key in given:
            raise G2MError(f"-o: {key!r} cannot be set here, the command sets it by an argument of its own.")
    return load(name, seed=seed, setting=setting, root=root, **given)


@cli.command()
def latency(
    teacher: Annotated[Path, typer.Argument(help="Saved teacher (.safetensors).")],
    student: Annotated[Path, typer.Argument(help="Saved student (.safetensors).")],
    data: Annotated[str, typer.Option(help="Card name of the graph that answers are about.")],
    seed: Annotated[int, typer.Option(help="Of the graph's split.")] = 0,
    setting: Annotated[str, typer.Option(help="transductive or inductive.")] = "transductive",
    sizes: Annotated[str, typer.Option(help="Numbers of nodes asked about at once, by comma.")] = "1,10,1000",
    fan_out: Annotated[
        str, typer.Option("--fanout", help="Also sample so many neighbours, by layer of the teacher: 5,10,15.")
    ] = "",
    seconds: Annotated[float, typer.Option(help="Spent at most on each measurement.")] = 1.0,
    plot: Annotated[
        Path | None, typer.Option(help="Of milliseconds against number of nodes: .png, .svg or .pdf.")
    ] = None,
    options: DataOptions = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Measure how long answers take: the teacher fetches neighbourhoods first, the student does not."""
    import torch

    from g2m.errors import check_range
    from g2m.estimators import Student, Teacher
    from g2m.latency import compare
    from g2m.report import time_against_size

    numbers = {"sizes": _whole("--sizes", sizes), "fan_out": _whole("--fanout", fan_out)}
    check_range("--seconds", seconds, 0)
    _check_plot(plot)
    fitted = Teacher.load(teacher), Student.load(student)
    graph = _graph(data, seed, setting, options, root)
    rows = compare(*fitted, graph, **numbers, seconds=seconds)
    title = f"{data}: {graph.num_nodes:,} nodes, {graph.num_edges:,} arcs; threads: {torch.get_num_threads()}"
    if plot is not None:
        time_against_size(rows, plot, title=title)
    if as_json:
        show_json(rows)
        return
    header = ["model", "device", "nodes", "p50 ms", "p99 ms", "nodes/s", "speed-up", "nodes read"]
    cells = [
        [
            *(row[key] for key in ("model", "device", "nodes")),
            *(f"{row[key]:.3f}" for key in ("p50", "p99")),
            *(f"{row['nodes_per_second']:,.0f}", f"{row['speedup']:.1f}×", f"{row['read']:,.0f}"),
        ]
        for row in rows
    ]
    show(header, cells, title)
    if plot is not None:
        typer.echo(f"plot: {plot}")


def _whole(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in _names(text)]
    except ValueError:
        raise G2MError(f"{option}: expected whole numbers by comma, such as 1,10,1000 (got {text!r}).") from None

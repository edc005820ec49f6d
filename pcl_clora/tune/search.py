"""Search: trials of an optuna study, each a training judged on held-out clouds of train.

The folder of a search holds:

journal.log     optuna's journal of the trials, which bears several processes
search.json     what the search is, and on what it runs; a folder is of one search
trials/0007/    the run folder of a trial, while it is at work
trials.json     every trial with its settings, and the best one
best.yaml       the best settings, as `train` takes them
tune.html       the page
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcl_clora.config import ConfigError, dump_yaml
from pcl_clora.engine import NonFiniteLossError, RunConfig, Trainer, choose_device, environment
from pcl_clora.engine.config import differences, run_identity
from pcl_clora.engine.precision import Precision, choose_precision
from pcl_clora.engine.product_route import choose_product
from pcl_clora.engine.run.lock import may_run, this_process
from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.io import explained, read_json, write_json, write_text
from pcl_clora.io.safe import open_log
from pcl_clora.models.layers.product import Route
from pcl_clora.tune.budget import sizes_of
from pcl_clora.tune.journal import open_journal
from pcl_clora.tune.settings import Search

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.log"  # the trials, as optuna writes them
PATIENCE = 25  # refused trials for every wanted one, after which no setting is left that fits the budget
WHERE_DATA_LIE = ("data.root", "data.source.root")
_NO_OWNER_SECONDS = 60.0  # a trial that says for so long not whose it is has lost its owner
Tell = Callable[[str], None]


@dataclass(frozen=True)
class TuneResult:
    """What a search has found so far.

    Attributes:
        folder: of the search.
        trials: a mapping for every trial: number, state ("complete", "pruned", "over budget", "refused",
            "same", "lost", "running"), params, value, epochs, and what else was noted.
        best: the best of the complete ones; None before there is one.
        config: its settings, for `train`; None likewise.
    """

    folder: Path
    trials: list[dict[str, Any]]
    best: dict[str, Any] | None
    config: RunConfig | None


def tune(search: Search, folder: str | Path, *, tell: Tell = print) -> TuneResult:
    """Search until so many trials are trained as the settings want, and write the result.

    Several processes may work in one folder, also at different times. A trial that was killed is begun again
    with its values and goes on from its checkpoint. The trials of a process that nothing interrupts depend on
    the seed alone.

    Args:
        search: what to search.
        folder: for the trials and the result; what a search left there goes on.
        tell: called with a line about every trial.

    Raises:
        ConfigError: if the folder is of another search, or no setting fits the budget.
        MissingPackageError: if optuna is not installed.
    """
    _require_optuna()
    from optuna.trial import TrialState

    folder = Path(folder)
    work = _Work(search, folder, tell)
    with explained(folder / JOURNAL, "written"):  # which optuna does, in every step
        while True:
            work.recover()
            done, at_work = work.count(), work.count_running()
            if done + at_work >= search.cfg.trials:
                break
            work.refuse_endless()
            work.run(work.ask())
    lost = [trial for trial in work.study.trials if trial.state == TrialState.RUNNING]
    if lost:
        tell(f"{len(lost)} more are at work in other processes.")
    return work.write()


class _Work:
    """A process at work on a search."""

    def __init__(self, search: Search, folder: Path, tell: Tell) -> None:
        self.search, self.folder, self.tell = search, folder, tell
        base = search.trial({})
        self.precision, self.product = self._begin(base)
        self.study = open_study(search, folder)

    def _begin(self, base: RunConfig) -> tuple[Precision, Route]:
        """Say in the folder what the search is; all trials have the precision and product of the first."""
        path = self.folder / "search.json"
        device = choose_device(base.train.device)
        told = {
            "search": self.search.cfg.model_dump(mode="json"),
            "base": {k: v for k, v in run_identity(base).items() if k not in WHERE_DATA_LIE},
        }
        if path.is_file():
            known = read_json(path)
            changed = differences(_flat(known), _flat(told))
            if changed:
                shown = "\n  ".join(changed[:10])
                raise ConfigError(
                    f"{self.folder} holds another search. There -> now:\n  {shown}\nGive it another folder "
                    "(--out), or go back to those settings."
                )
            return known["precision"], known["product"]
        precision, product = choose_precision(base.train.amp, device), choose_product(base)
        env = {
            k: environment(device)[k]
            for k in ("git", "platform", "versions", "device", "processor", "threads")
        }
        write_json(path, {**told, "precision": precision, "product": product, "environment": env})
        return precision, product

    # Which trials there are

    def count(self) -> int:
        """How many trials were trained, to their end or until they were halved away."""
        return sum(state_of(trial) in ("complete", "pruned") for trial in self.study.trials)

    def count_running(self) -> int:
        """How many are at work in other processes."""
        return sum(state_of(trial) == "running" for trial in self.study.trials)

    def refuse_endless(self) -> None:
        """Stop where nothing new fits.

        Raises:
            ConfigError: if too many trials were refused.
        """
        states = [state_of(trial) for trial in self.study.trials]
        refused = sum(state in ("over budget", "refused", "same") for state in states)
        if refused >= PATIENCE * self.search.cfg.trials:
            raise ConfigError(
                f"{refused} settings were tried and refused, {states.count('over budget')} of them over the "
                f"budget ({self._limits()}), {states.count('same')} tried before, and {self.count()} of "
                f"{self.search.cfg.trials} trials are trained; raise the budget, widen the space, or lower "
                "trials in the config."
            )

    def _limits(self) -> str:
        return ", ".join(f"{name}={limit}" for name, limit in self.search.cfg.budget if limit) or "none"

    def recover(self) -> None:
        """Begin again what other processes began and did not end, because they were killed."""
        import datetime

        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("owner")
            begun = trial.datetime_start or datetime.datetime.now()
            waited = (datetime.datetime.now() - begun).total_seconds()
            if may_run(owner) if owner else waited < _NO_OWNER_SECONDS:
                continue
            try:
                self.study.tell(trial.number, state=TrialState.FAIL)
            except ValueError:
                continue  # another process was quicker
            self.study.enqueue_trial(trial.params, user_attrs={"goes_on": self._folder_of(trial)})
            self.tell(f"trial {trial.number} lost its process and is begun again.")

    def ask(self) -> Trial:
        """Take the next trial; the sampler draws from (seed, number of trials so far)."""
        self.study.sampler = make_sampler(self.search, len(self.study.trials))
        trial = self.study.ask()
        trial.set_user_attr("owner", this_process())
        return trial

    def _folder_of(self, trial: Trial | FrozenTrial) -> str:
        return str(trial.user_attrs.get("goes_on", f"{trial.number:04d}"))

    # One trial

    def run(self, trial: Trial) -> None:
        """Train a trial, or refuse it."""
        from optuna.exceptions import TrialPruned
        from optuna.trial import TrialState

        params = {key: dim.suggest(trial, key) for key, dim in self.search.cfg.space.items()}
        trial.set_user_attr("settings", params)
        shown = ", ".join(f"{key}={value}" for key, value in params.items())
        try:
            cfg = self.search.trial(params)
            sizes = sizes_of(cfg, self.search.cfg.budget)
        except UserValueError as error:
            self._refuse(trial, "refused", str(error), shown)
            return
        trial.set_user_attr("sizes", sizes._asdict())
        excess = sizes.excess(self.search.cfg.budget)
        for name, value in excess.items():
            trial.set_constraint(name, value)
        if max(excess.values(), default=0) > 0:
            self._refuse(trial, "over budget", f"{sizes.adapter_parameters} parameters", shown)
            return
        if (before := self._same(trial, params)) is not None:
            trial.set_user_attr("why", f"same as trial {before.number}")
            trial.set_user_attr("refused_as", "same")
            if state_of(before) == "complete":
                self.study.tell(trial, before.value)
            else:
                self.study.tell(trial, state=TrialState.PRUNED)
            return
        run_dir = self.folder / "trials" / self._folder_of(trial)
        watch = _Watch(trial, cfg.optim.epochs)
        try:
            Trainer(
                cfg, run_dir=run_dir, on_event=watch, precision=self.precision, product=self.product
            ).fit_to_choose()
        except TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            self.tell(
                f"trial {trial.number}: {watch.value:.4f} after {watch.epochs} epochs, stopped ({shown})"
            )
        except NonFiniteLossError as error:
            self._refuse(trial, "refused", str(error), shown)
        else:
            self.study.tell(trial, watch.value)
            self.tell(f"trial {trial.number}: {watch.value:.4f} ({shown})")
        shutil.rmtree(run_dir, ignore_errors=True)

    def _refuse(self, trial: Trial, state: str, why: str, shown: str) -> None:
        """End a trial without training; the sampler learns from the ones over the budget."""
        from optuna.trial import TrialState

        trial.set_user_attr("why", why)
        trial.set_user_attr("refused_as", state)
        over = state == "over budget"
        self.study.tell(trial, state=TrialState.PRUNED if over else TrialState.FAIL)
        self.tell(f"trial {trial.number}: {state}, {why} ({shown})")

    def _same(self, trial: Trial, params: Mapping[str, Any]) -> FrozenTrial | None:
        """Find a trial that was trained with these settings."""
        for other in self.study.trials:
            same = other.number != trial.number and other.user_attrs.get("settings") == params
            if same and state_of(other) in ("complete", "pruned"):
                return other
        return None

    # Result

    def write(self) -> TuneResult:
        """Write trials.json, best.yaml and the page."""
        from pcl_clora.tune.page import write_page

        rows = [describe_trial(trial) for trial in self.study.trials]
        complete = [row for row in rows if row["state"] == "complete"]
        best = max(complete, key=lambda row: row["value"], default=None)
        config = None if best is None else self.search.chosen(best["params"])
        known = read_json(self.folder / "search.json")
        write_json(
            self.folder / "trials.json", {**known, "name": self.search.name, "trials": rows, "best": best}
        )
        if config is not None and best is not None:
            head = (
                f"# Best of {len(complete)} complete trials of the search {self.search.name}: "
                f"{best['value']:.4f} on validation clouds.\n"
            )
            write_text(self.folder / "best.yaml", head + dump_yaml(config))
        write_page(self.folder / "tune.html", self.search, self.study, rows, best, known)
        return TuneResult(self.folder, rows, best, config)


class _Watch:
    """Tells a trial how it does on validation, epoch by epoch.

    Attributes:
        value: the last score.
        epochs: after how many epochs it was.
    """

    def __init__(self, trial: Trial, last: int) -> None:
        self.trial, self.last, self.value, self.epochs = trial, last, float("nan"), 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take an event of the training.

        Raises:
            TrialPruned: if others did better after as many epochs.
        """
        from optuna.exceptions import TrialPruned

        if event.get("kind") != "eval" or event.get("purpose") != "select":
            return
        self.epochs = int(event["epoch"]) + 1
        self.value = float(event["oa"] if "oa" in event else event["instance_miou"])
        self.trial.report(self.value, self.epochs)
        self.trial.set_user_attr("epochs", self.epochs)
        if self.epochs < self.last and self.trial.should_prune():
            raise TrialPruned


def make_sampler(search: Search, number: int) -> Any:
    """Make the sampler of one trial: a tree-structured Parzen estimator that knows the constraints."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=search.cfg.seed * 1_000_003 + number, n_startup_trials=search.cfg.startup)


def open_study(search: Search, folder: Path) -> Study:
    """Open the study in the journal of a folder, or begin it there."""
    import optuna
    from optuna.storages import JournalStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = folder / JOURNAL
    with explained(journal, "written"):
        folder.mkdir(parents=True, exist_ok=True)
    open_log(journal).close()  # refused in our words, and never through a link, which optuna would follow
    halving = search.cfg.halving
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if halving is not None:
        pruner = optuna.pruners.SuccessiveHalvingPruner(
            min_resource=halving.min_epochs, reduction_factor=halving.factor
        )
    return optuna.create_study(
        storage=JournalStorage(open_journal(journal)),
        study_name=search.name,
        sampler=make_sampler(search, 0),
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )


def state_of(trial: FrozenTrial) -> str:
    """Say what became of a trial; see `TuneResult`."""
    from optuna.trial import TrialState

    refused = trial.user_attrs.get("refused_as")
    if trial.state in (TrialState.RUNNING, TrialState.WAITING):
        return "running" if trial.state == TrialState.RUNNING else "waiting"
    if refused:
        return str(refused)
    return {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "lost")


def describe_trial(trial: FrozenTrial) -> dict[str, Any]:
    """Put a trial into json types."""
    attrs = trial.user_attrs
    values = trial.intermediate_values
    value = trial.value if trial.value is not None else (values[max(values)] if values else None)
    row = {
        "number": trial.number,
        "state": state_of(trial),
        "params": attrs.get("settings", trial.params),
        "value": value,
        "epochs": attrs.get("epochs", 0),
        "curve": [values[step] for step in sorted(values)],
        **attrs.get("sizes", {}),
    }
    return {**row, "why": attrs["why"]} if "why" in attrs else row


def _flat(told: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}: {key}": value for part in ("search", "base") for key, value in _leaves(told[part])}


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), value)]


def _require_optuna() -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise MissingPackageError(
            "The search needs optuna, which is not installed: pip install 'pcl-clora[tune]', or "
            "pip install 'optuna>=5'."
        )

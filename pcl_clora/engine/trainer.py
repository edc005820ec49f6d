"""The training loop: from settings to result; killed at any step, it goes on with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from pcl_clora.config import ConfigError
from pcl_clora.data import Batch
from pcl_clora.data.input_rule import draw_points, keep_pool, thin
from pcl_clora.engine.config import RunConfig, run_identity
from pcl_clora.engine.evaluate import evaluate
from pcl_clora.engine.events import RunLog
from pcl_clora.engine.interrupt import PoliteStop, TrainingInterrupted
from pcl_clora.engine.modes import autocast
from pcl_clora.engine.novelty.calibration import calibrate_model, write_beside
from pcl_clora.engine.optim import gradient_norm, rate_at, step_if_finite
from pcl_clora.engine.patch_memory import KnownPatches
from pcl_clora.engine.precision import Precision, choose_precision, kept_precision, say_precision
from pcl_clora.engine.product_route import KEY, choose_product, kept_product
from pcl_clora.engine.progress import Event
from pcl_clora.engine.randomness import deterministic_mode, make_generator, seed_everything
from pcl_clora.engine.run.base import random_source
from pcl_clora.engine.run.checkpoint import read_checkpoint, refuse_another_run
from pcl_clora.engine.run.data_identity import refuse_run_in_data
from pcl_clora.engine.run.folder import RunFolder, environment
from pcl_clora.engine.run.lock import RunLock
from pcl_clora.engine.run.result import RunResult, describe_input, describe_parts, describe_result
from pcl_clora.engine.run.state import RunState
from pcl_clora.engine.setup import (
    RunParts,
    adapt,
    choose_device,
    describe_plan,
    kept_rule,
    make_parts,
    settled,
)
from pcl_clora.engine.tasks import Metrics, Output
from pcl_clora.errors import UserValueError
from pcl_clora.io import finite, sha256_file, write_json
from pcl_clora.models.layers.product import Route, use_route
from pcl_clora.models.layers.shared_patches import shared_patches

FinishedT = TypeVar("FinishedT")
ONLY_RESULT = ("confusion", "reliability")  # tables for the report, which an adapter file does not carry


class Trainer:
    """Trains and evaluates one run.

    Args:
        cfg: all settings.
        run_dir: folder of the run, by default <output>/<name>.
        resume: "auto" goes on from the folder's checkpoint if there is one; "never" starts over and replaces
            what an earlier run left in the folder.
        on_event: called with every event, a mapping with "kind": "message", "train", "epoch", "eval" or
            "result". Train, epoch and eval events also stand in metrics.jsonl.
        model: a ready backbone made from cfg.model, used and changed in place instead of building one.
        precision: what train.amp=auto is to mean in a run that begins, where that is known from another one.
        product: what train.product=auto is to mean there, likewise.
        watch_test: called with what the chosen model says of every batch of test, and the batch.

    Example:
        >>> result = Trainer(load_run_config("cfgs/demo/clora.yaml")).fit()
        >>> result.metrics.oa
    """

    cfg: RunConfig
    folder: RunFolder
    device: torch.device
    parts: RunParts  # from the beginning of `fit` on, as all that follow
    state: RunState  # that of the parts
    precision: Precision
    product: Route
    _log: RunLog
    _stop: PoliteStop
    _env: dict[str, Any]

    def __init__(
        self,
        cfg: RunConfig,
        *,
        run_dir: str | Path | None = None,
        resume: Literal["auto", "never"] = "auto",
        on_event: Callable[[Event], None] | None = None,
        model: nn.Module | None = None,
        precision: Precision | None = None,
        product: Route | None = None,
        watch_test: Callable[[Output, Batch], None] | None = None,
    ) -> None:
        if resume not in ("auto", "never"):
            raise UserValueError(f"resume={resume!r}; use 'auto' or 'never'.")
        self.cfg = cfg
        self.folder = RunFolder(Path(run_dir) if run_dir is not None else Path(cfg.output) / cfg.name)
        self.device = choose_device(cfg.train.device)
        self._resume, self._on_event, self._given = resume, on_event, model
        self._watch_test = watch_test
        self._asked = precision if cfg.train.amp == "auto" else None
        self._asked_product = product if cfg.train.product == "auto" else None

    def fit(self) -> RunResult:
        """Run, or go on, to the end.

        Returns:
            Metrics on the test split of the epoch that the protocol chooses, and the model of that epoch.

        Raises:
            ConfigError: if settings and data do not fit together.
            RunLockedError: if another process trains in the folder.
            CheckpointError: if the folder holds a damaged checkpoint or one of another run.
            NonFiniteLossError: if loss or gradient is not finite; batch and state are saved.
            TrainingInterrupted: after Ctrl-C; the run is saved and goes on with the same command.
        """
        return self._train(self._finish)

    def fit_to_choose(self) -> dict[str, Any]:
        """Run, or go on, as `fit` does, and say how the best epoch did on the validation clouds.

        Nothing is evaluated on test and no result is written: settings are chosen by what this returns.

        Returns:
            "epoch" (0-based) and the metrics of the best evaluation on validation.

        Raises:
            ConfigError: if protocol.select is not validation; otherwise as `fit`.
        """
        if self.cfg.protocol.select != "validation":
            raise ConfigError(
                f"protocol.select={self.cfg.protocol.select!r} has no validation clouds to choose by; "
                "set it to validation."
            )
        return self._train(lambda: dict(self.state.best or {}))

    def _train(self, finish: Callable[[], FinishedT]) -> FinishedT:
        """Train to the end of the last epoch, and do what is to be done then."""
        refuse_run_in_data(self.folder.path, self.cfg.data)
        self._log = RunLog(self.folder.metrics, self.cfg.train.progress, self._on_event)
        deterministic = deterministic_mode(self.cfg.deterministic)
        with RunLock(self.folder.path), PoliteStop() as self._stop, deterministic:
            try:
                self._prepare()
                self._log.start(self.cfg.optim.epochs, self.parts.data.train.num_batches, self.state.step)
                with use_route(self.product):
                    while self.state.epoch < self.cfg.optim.epochs:
                        self._run_epoch()
                    return finish()
            finally:
                self._log.close()

    def _prepare(self) -> None:
        """Build everything and take over the checkpoint; what is refused leaves the folder as it is."""
        cfg, device, checkpoint = self.cfg, self.device, self.folder.checkpoint
        self.precision = self._asked or choose_precision(cfg.train.amp, device)
        self.product = self._asked_product or choose_product(cfg)
        saved = None
        if self._resume == "auto" and self.folder.holds_a_run():
            saved, owner = read_checkpoint(checkpoint)
            cfg = self.cfg = cfg.model_copy(update={"model": kept_rule(cfg.model, owner)})
            self.precision = kept_precision(cfg, owner, device)
            self.product = kept_product(cfg, owner)
            refuse_another_run(checkpoint, {KEY: "torch", **owner}, self._identity())
        self._env = {**environment(device), "product": self.product}
        if told := say_precision(self.precision, device, cfg.train.amp):
            self._log.tell({"kind": "message", "text": told})
        seed_everything(cfg.seed)
        model, report = adapt(cfg, self._given)
        cfg = self.cfg = settled(cfg, model.base)
        if report is not None:
            self._log.tell({"kind": "message", "text": str(report)})
        plan = describe_plan(model, report)
        self.parts = make_parts(cfg, model, device, self._identity())
        self.state = self.parts.state
        if saved is not None:
            self.parts.snapshot.restore(saved)
        self.folder.begin(cfg, self._env, plan, fresh=saved is None)
        board = self.folder.tensorboard if cfg.train.tensorboard else None
        self._log.open(saved, board, self.state.step)
        model.train()
        self.state.start_clock()

    def _identity(self) -> dict[str, Any]:
        return run_identity(self.cfg, bfloat16=self.precision == "bfloat16", product=self.product)

    def _run_epoch(self) -> None:
        """Train what is left of the epoch, evaluate where due, save."""
        state, every = self.state, self.cfg.train.checkpoint_every_steps
        num_batches = self.parts.data.train.num_batches
        if state.batch < num_batches:
            for batch in self.parts.data.train.batches(state.epoch, start=state.batch):
                self._log.emit(self._step(batch))
                if self._stop.requested:
                    self._interrupt()
                if every and state.step % every == 0 and state.batch < num_batches:
                    self._save()
        state.take_time(training=True)
        self._log.emit(self._epoch_event())
        self._evaluate_epoch()
        self._look()
        state.take_time(training=False)
        state.next_epoch()
        self._save()
        if self._stop.requested and state.epoch < self.cfg.optim.epochs:
            self._interrupt()

    def _step(self, batch: Batch) -> dict[str, Any]:
        """Do one optimiser step and describe it."""
        cfg, state, task = self.cfg, self.state, self.parts.data.task
        self.parts.snapshot.begin_step()
        batch, patches = self._training_points(batch)
        lr = rate_at(state.epoch, state.batch, self.parts.data.train.num_batches, cfg.optim)
        for group in self.parts.optimizer.param_groups:
            group["lr"] = lr
        known = nullcontext() if patches is None else shared_patches(patches)
        with autocast(self.device, self.precision == "bfloat16"), known:
            logits = task.run(self.parts.model, batch)
        terms = task.loss(logits, batch, self.parts.model.extra_losses(), cfg.optim.label_smoothing)
        self.parts.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        if cfg.optim.double_step:
            step_if_finite(self.parts.optimizer, terms.total, gradient_norm(self.parts.trained))
        total_norm = nn.utils.clip_grad_norm_(
            self.parts.trained, cfg.optim.clip_norm or math.inf, foreach=True
        )
        step_if_finite(self.parts.optimizer, terms.total, total_norm)
        numbers = terms.log(grad_norm=total_norm)  # the only place where a step waits for its device
        norm = numbers.pop("grad_norm")
        if not (math.isfinite(numbers["loss"]) and math.isfinite(norm)):
            self.parts.snapshot.refuse_step(self.folder.nonfinite(state.step + 1), batch, numbers)
        self.parts.average.update()
        with torch.no_grad():
            task.count(state.meter, logits, batch)
        state.loss_sum += numbers["loss"]
        state.step, state.batch = state.step + 1, state.batch + 1
        place = {"kind": "train", "step": state.step, "epoch": state.epoch}
        return {**place, **numbers, "grad_norm": norm, "lr": lr}

    def _training_points(self, batch: Batch) -> tuple[Batch, KnownPatches | None]:
        """Thin and augment clouds; (seed, epoch, batch) decide how, so resuming needs no state.

        A task of several views gets that many batches one behind another, each drawn anew. With
        train.draw=fixed only the augmentation is, and the patches of a single view may be known.
        """
        generator = make_generator(self.cfg.seed, "augment", self.state.epoch, self.state.batch)
        views, num_points = [], self.cfg.data.num_points
        batch = batch.to(self.device)
        if not batch.holds_images:
            self.state.norms.update(batch.points)
        fixed, memory = self.cfg.train.draw == "fixed", self.parts.patches
        pool = thin(batch, num_points) if fixed else keep_pool(batch, num_points)
        for _ in range(self.parts.data.task.views):
            view = pool if fixed else draw_points(pool, num_points, generator)
            views.append(replace(view, points=self.parts.augment(view.points, generator)))
        if len(views) > 1:
            return Batch.join(views), None
        known = None if memory is None else memory.of(batch.index, pool.points, views[0].points)
        return views[0], known

    def _epoch_event(self) -> dict[str, Any]:
        state, num_batches = self.state, self.parts.data.train.num_batches
        with torch.no_grad():
            values = {
                f"value_{name}": float(value) for name, value in self.parts.model.extra_loss_values().items()
            }
        return {
            "kind": "epoch",
            "split": "train",
            "step": state.step,
            "epoch": state.epoch,
            "loss": state.loss_sum / num_batches,
            self.parts.data.task.key: state.meter.metrics().score,
            **values,
            "lr": self.parts.optimizer.param_groups[0]["lr"],
            "seconds": round(state.epoch_seconds, 3),
            "clouds_per_second": round(
                num_batches * self.cfg.optim.batch_size / max(state.epoch_seconds, 1e-9), 1
            ),
        }

    def _evaluate_epoch(self) -> None:
        """Evaluate on the split that chooses, keep the best epoch, and draw the test curve if asked for."""
        cfg, state, chooser = self.cfg, self.state, self.cfg.protocol.select
        is_last = state.epoch + 1 == cfg.optim.epochs
        if not is_last and (state.epoch + 1) % cfg.train.eval_every_epochs:
            return
        with self.parts.average.applied():
            if chooser != "last":
                metrics = self._evaluate(chooser, "select")
                if state.best is None or metrics.score > state.best[self.parts.data.task.key]:
                    state.best = {"epoch": state.epoch, "selected_on": chooser, **metrics.summary()}
                    self._save_best({"best": state.best})
            if cfg.train.test_curve and chooser != "test":
                self._evaluate("test", "curve")

    def _look(self) -> None:
        """Let the task measure what it looks at besides its evaluations."""
        state, parts = self.state, self.parts
        with parts.average.applied():
            found = parts.data.task.after_epoch(parts.model, parts.probe, state.epoch, self.cfg.optim.epochs)
            if found is not None:
                place = {"step": state.step, "epoch": state.epoch, "split": "probe"}
                self._log.emit({"kind": "probe", **place, **found})
                self._picture("test", "probe")

    def _picture(self, split: str, label: str) -> None:
        """Draw clouds of a split, if anybody would see them."""
        if self._log.takes_pictures:
            model, data, cfg = self.parts.model, self.parts.data, self.cfg
            drawn = data.task.pictures(model, data.split(split), cfg.data.num_points, cfg.seed)
            if drawn is not None:
                self._log.picture(f"{label}: {drawn[0]}", drawn[1], self.state.step)

    def _evaluate(self, split: str, purpose: str) -> Metrics:
        """Evaluate the weights as they are now, and tell."""
        cfg = self.cfg
        metrics: Metrics = evaluate(
            self.parts.model,
            self.parts.data.split(split),
            task=self.parts.data.task,
            num_points=cfg.data.num_points,
            votes=cfg.protocol.votes,
            vote_augment=cfg.protocol.vote_augment,
            seed=cfg.seed,
            amp=self.precision == "bfloat16",
            reliability=purpose == "result",
            watch=self._watch_test if purpose == "result" else None,
            tokens=self.parts.evaluated.get(split),
        )
        epoch = min(self.state.epoch, cfg.optim.epochs - 1)
        place = {"step": self.state.step, "epoch": epoch, "split": split, "purpose": purpose}
        self._log.emit({"kind": "eval", **place, **metrics.summary()})
        self._picture(split, split)
        return metrics

    def _finish(self) -> RunResult:
        """Evaluate the epoch that counts on test, once, and write the adapter file and the result."""
        if self.state.best is not None:
            self.parts.model.load_adapter_state(load_file(self.folder.chosen))
        else:
            self.parts.average.put()
        start = time.monotonic()
        metrics = self._evaluate("test", "result")
        seconds = time.monotonic() - start
        parts = (self.cfg, self.parts.data, self.parts.model, metrics, self.state, self._env)
        how = {"precision": self.precision, "product": self.product}
        result = describe_result(*parts, how, test_seconds=seconds)
        told = ("config_hash", "protocol", "seed", "augment", "git", "metrics", "best")
        header = {key: result[key] for key in told}
        header["metrics"] = {key: value for key, value in result["metrics"].items() if key not in ONLY_RESULT}
        self._save_best(header)
        result["adapter_bytes"] = self.folder.chosen.stat().st_size
        result["adapter_sha256"] = sha256_file(self.folder.chosen)
        result["metrics_sha256"] = self._log.known()["metrics_sha256"]
        self._calibrate_novelty()
        write_json(self.folder.result, result)
        self._log.tell({"kind": "result", "step": self.state.step, "epoch": self.state.epoch, **result})
        self.parts.model.eval()
        return RunResult(self.folder.path, metrics, result, self.parts.model)

    def _calibrate_novelty(self) -> None:
        """Write how unlike the training clouds a cloud is, where the run classifies clouds."""
        if not self.cfg.train.novelty:
            return
        found = calibrate_model(
            self.parts.model,
            self.cfg,
            self.parts.data,
            most=self.cfg.train.novelty,
            precision=self.precision,
            product=self.product,
        )
        if found is not None:
            write_beside(self.folder.chosen, found)

    def _save_best(self, metadata: Mapping[str, Any]) -> None:
        known = {
            "classes": list(self.parts.data.task.logit_names),
            "parts": describe_parts(self.parts.data.task),
            "input_rule": describe_input(self.cfg, self.state),
            "computed": {"precision": self.precision, "product": self.product},
        }
        if self._given is None and not self.cfg.weights.path:
            known["base_weights"] = {"source": random_source(self.cfg.seed)}
        content = finite({**known, **metadata})
        self.parts.model.save_adapter(self.folder.chosen, metadata=content)

    def _save(self) -> None:
        self.state.take_time(training=self.state.batch > 0)
        self.parts.snapshot.save(self.folder.checkpoint, self._log.known())

    def _interrupt(self) -> NoReturn:
        self._save()
        raise TrainingInterrupted(
            f"Stopped after step {self.state.step} and saved to {self.folder.checkpoint}; "
            "run the same command again to go on."
        )

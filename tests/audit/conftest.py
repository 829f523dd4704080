"""A small world without a network: every sample's input is its position, every model a table of logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import AuditContext, Calibration, CraftedRequest, Predictor, ShadowPool, shadow_pool
from qunlearn.audit.eve_calibration import ARMS, Reading
from qunlearn.audit.eve_config import EveConfig
from qunlearn.audit.trainer import Coarse
from qunlearn.data.dataset import Dataset, Preprocess, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.fingerprint import digest_bytes

CLASSES, GROUPS = 5, 4
_POOLS: dict[str, ShadowPool] = {}
_EVE: dict[str, dict[str, Any]] = {}
GOOD, REST = (1.0, 7.0, 1.0), (0.95, 5.0, 1.5)


class TableModel(Predictor):
    """Looks logits up by position; the codes are the table, rounded."""

    def __init__(self, table: Any, *, kind: str = "torch-fq", extra: bytes = b"") -> None:
        super().__init__()
        self.table = np.asarray(table, dtype=np.float32)
        self.kind = kind
        self.extra = extra
        self.calls = 0

    @property
    def digest(self) -> str:
        return digest_bytes(self.table.tobytes() + self.extra)

    @property
    def meta(self) -> Mapping[str, Any]:
        return {"runtime": "table", "optimisation_level": "none", "cpu_flags": ["none"], "threads": 1}

    def logits(self, x: Any) -> Any:
        self.calls += 1
        return self.table[x[:, 0, 0, 0].astype(np.int64)]

    def codes(self) -> Mapping[str, Any]:
        finite = np.nan_to_num(self.table, nan=0.0, posinf=0.0, neginf=0.0)
        return {"table.weight": np.clip(np.rint(finite * 10), -127, 127).astype(np.int8)}

    def as_kind(self, kind: str) -> TableModel:
        return TableModel(self.table, kind=kind, extra=self.extra)


class FakeTrainer:
    """Training raises the true class by 0.05 a step on every sample; coarse tables are rounded to b bits, shuffled
    ones random."""

    def serves(self, predictor: Any) -> bool:
        return isinstance(predictor, TableModel)

    def curve(self, predictor: Any, samples: Any, judged: Any, budget: Any) -> Any:
        z, y = predictor.table[judged.index], judged.targets()
        gains = [0.05 * s * np.eye(CLASSES)[y] for s in budget.scored]
        return np.stack([(z + g).argmax(1) == y for g in gains])

    def coarse(self, predictor: Any, bits: int) -> Coarse:
        step = np.abs(predictor.table).max() / (2 ** (bits - 1) - 1)
        codes = np.rint(predictor.table / step)
        return Coarse(predictor=TableModel(codes * step), codes={"table": codes.astype(np.int8)})

    def shuffled(self, predictor: Any, seed: int) -> TableModel:
        """Logits that say nothing."""
        return TableModel(np.random.default_rng(seed).normal(size=predictor.table.shape))


@dataclass(frozen=True)
class FakeTask:
    """What audits read of a task."""

    name: str = "classification"


@dataclass(frozen=True)
class FakeReport:
    """A parity report with a fixed verdict on one file."""

    file_digest: str
    verdict: str = "pass"

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "rows": [{"layer": "conv1", "max": 0}]}


def make_dataset(*, per_train: int = 40, per_rest: int = 16, order: Any = None) -> Dataset:
    """``per_train`` training samples a class and group, ``per_rest`` held-out and test ones; sorted by group."""
    rows = [
        (f"s{g}", c, part)
        for g in range(GROUPS)
        for c in range(CLASSES)
        for part, n in (("train", per_train), ("heldout", per_rest), ("test", per_rest))
        for _ in range(n)
    ]
    index = np.arange(len(rows)) if order is None else np.asarray(order)
    return Dataset(
        name="table",
        x=index.astype(np.float32)[:, None, None, None],
        y=np.array([rows[i][1] for i in index]),
        ids=np.array([f"id{i:05d}" for i in index]),
        part=np.array([rows[i][2] for i in index]),
        group=np.array([rows[i][0] for i in index]),
        class_names=tuple("abcde"),
        preprocess=Preprocess(divisor=1.0),
    )


@dataclass(frozen=True)
class World:
    """Splits for ``group=s0`` and models whose behaviour on every set is known."""

    dataset: Dataset
    splits: Splits

    def table(self, seed: int, **behaviour: tuple[float, float, float]) -> np.ndarray:
        """Logits [N, C]. Per set (right, mean, sd): share of right answers, mean and sd of the top logit."""
        rng = np.random.default_rng(seed)
        z = rng.normal(0, 0.3, (len(self.dataset), CLASSES))
        s = self.splits
        sets = {"forget": [s.forget], "retain": [s.retain], "rest": [s.heldout, s.test]}
        for extra in (s.forget_heldout, s.forget_test):
            if extra is not None:
                sets.setdefault("gone", []).append(extra)
        for name, group in sets.items():
            right, mean, sd = behaviour.get(name, behaviour["rest"])
            for samples in group:
                n = len(samples)
                hit = np.zeros(n, bool)
                hit[: round(right * n)] = True
                rng.shuffle(hit)
                y = samples.targets()
                at = np.where(hit, y, (y + rng.integers(1, CLASSES, n)) % CLASSES)
                z[samples.index, at] += np.maximum(2.0, rng.normal(mean, sd, n))
        return z

    def model(self, seed: int, kind: str = "torch-fq", **behaviour: tuple[float, float, float]) -> TableModel:
        return TableModel(self.table(seed, **behaviour), kind=kind)

    def near(self, model: TableModel, seed: int, flips: float = 0.02) -> TableModel:
        """Another model that answers alike: a little noise everywhere, ``flips`` of the samples answered anew."""
        rng = np.random.default_rng(seed)
        z = model.table + rng.normal(0, 0.05, model.table.shape)
        rows = rng.choice(len(z), round(flips * len(z)), replace=False)
        z[rows] = z[rows][:, rng.permutation(CLASSES)]
        return TableModel(z, kind=model.kind)

    @property
    def original(self) -> TableModel:
        return self.model(1, forget=(1.0, 7, 1), retain=(1.0, 7, 1), rest=(0.95, 5, 1.5), gone=(0.95, 4, 1.5))

    @property
    def retrained(self) -> TableModel:
        return self.model(2, forget=(0.7, 4, 1.5), retain=(1.0, 7, 1), rest=(0.95, 5, 1.5), gone=(0.6, 4, 1.5))

    def shadows(self, models: int, kinds: tuple[str, ...] = ("torch-fq", "onnx-all"), seed: int = 0) -> ShadowPool:
        """Shadow models: on what they saw like a network on its training data, elsewhere like one on the rest."""
        table, rest = (
            self.model(90, forget=GOOD, retain=GOOD, rest=GOOD),
            self.model(91, forget=REST, retain=REST, rest=REST),
        )

        def make(samples: Samples, forget: Samples | None, seed: int) -> dict[str, TableModel]:
            z = rest.table.copy()
            z[samples.index] = table.table[samples.index]
            z += np.random.default_rng(seed).normal(0, 0.3, z.shape).astype(np.float32)
            return {k: TableModel(z, kind=k) for k in kinds}

        return shadow_pool(make, self.splits, models=models, seed=seed, recipe={"table": 1}, kinds=kinds)

    def pools(self, seed: int = 0) -> dict[str, ShadowPool]:
        """Shadow models for every attack, made once a world and seed."""
        key = f"{self.splits.digest()} {seed}"
        if key not in _POOLS:
            _POOLS[key] = self.shadows(4, seed=seed)
        return dict.fromkeys(("shadows", "unlearned_shadows"), _POOLS[key])

    def eve(self) -> dict[str, Any]:
        """A crafted request for the original, and a calibration in which 60 of 60 requests flipped and no control;
        nothing in a world without test samples of the forgotten kind, from which the target is taken."""
        if self.splits.forget_test is None:
            return {}
        key = self.splits.digest()
        if key not in _EVE:
            _EVE[key] = {"eve_request": eve_request(self), "eve_calibration": eve_calibration(self)}
        return _EVE[key]

    def context(self, before: Predictor, after: Predictor, reference: Predictor | None, **kw: Any) -> AuditContext:
        return AuditContext(
            **{
                "before": before,
                "after": after,
                "reference": reference,
                "reference_kind": "none" if reference is None else "retrained",
                "splits": self.splits,
                "task": FakeTask(),
                "seed": 0,
                "inputs": {"trainer": FakeTrainer(), **self.pools(max(0, kw.get("seed", 0))), **self.eve()},
                **kw,
            }
        )


def eve_request(world: World, **facts: Any) -> CraftedRequest:
    """One target that the original answers rightly and a retrained model wrongly; bystanders that both get right."""
    s, y, original, retrained = world.splits, world.dataset.y, world.original, world.retrained

    def lead(model: TableModel) -> np.ndarray:
        others = model.table.copy()
        others[np.arange(len(y)), y] = -np.inf
        return np.asarray(model.table[np.arange(len(y)), y] - others.max(axis=1))

    likes = [lead(m) for m in (retrained, world.near(retrained, 3), world.near(retrained, 8))]
    stays = [lead(m) for m in (original, world.near(original, 5))]
    assert s.forget_test is not None
    flips = [i for i in s.forget_test.index if all(v[i] > 0.5 for v in stays) and all(v[i] < -0.5 for v in likes)]
    calm = [i for i in s.test.index if all(v[i] > 0.5 for v in (*stays, *likes))]
    parts = {
        "target": flips[:1],
        "bystander": calm[:20],
        "erase": s.forget.index[:20],
        "retain": s.retain.index[:40],
        "heldout": s.heldout.index[:40],
    }
    rows = np.concatenate([np.asarray(p, np.int64) for p in parts.values()])
    n = len(parts["erase"])
    return CraftedRequest(
        codes=np.zeros((n, *world.dataset.in_shape), np.int8),
        y=y[parts["erase"]],
        ids=world.dataset.ids[parts["erase"]],
        probe_x=world.dataset.x[rows],
        probe_y=y[rows],
        probe_role=np.concatenate([np.full(len(p), name) for name, p in parts.items()]),
        y_adv=retrained.table[parts["target"]].argmax(axis=1),
        known=np.zeros((0, 0), np.int16),
        facts={
            "format": 1, "scale": 1.0, "zero_point": 0, "num_classes": CLASSES, "eps": 1.0, "cos_before": 0.9,
            "cos_after": 0.9, "model": original.codes_digest(), "unlearner": "u" * 64, "method": "graddiff",
            "config": EveConfig().digest(), "settings": {}, "surrogate": False, "seed": 0, "warnings": [],
            "output_scale": 1.0, "output_zero": 0, **facts,
        },
    )  # fmt: skip


def eve_calibration(world: World, flips: Mapping[str, int] | None = None, n: int = 60, **kw: Any) -> Calibration:
    """``flips``: how many of ``n`` trials flipped by arm; ``eve`` all and the others none where it is silent."""
    counts = {"eve": n, **(flips or {})}

    def reading(arm: str, i: int) -> Reading:
        hit = float(i < counts.get(arm, 0))
        return Reading(
            flip=hit, strict=hit, resolved=True, retain_drop=0.01, heldout_drop=0.01, bystanders=0.05, erased=0.8,
            cos=0.8 if arm == "eve" else None, step=9, margin=3.0,
            seconds={"craft": 0.1, "unlearn": 0.2, "verify": 0.3},
        )  # fmt: skip

    return Calibration(
        **{
            "model": world.original.codes_digest(),
            "unlearner": "u" * 64,
            "config": EveConfig().digest(),
            "kind": "torch-fq",
            "alpha": 0.05,
            "utility_drop": 0.03,
            "trials": tuple({arm: reading(arm, i) for arm in ARMS} for i in range(n)),
            "settings": {},
            **kw,
        }
    )


@pytest.fixture(scope="session")
def world() -> World:
    dataset = make_dataset()
    return World(dataset, make_splits(dataset, Request.parse("group=s0"), seed=0))


@pytest.fixture(scope="session")
def roomy() -> World:
    """The same with six times the held-out samples, for audits that compare distributions."""
    dataset = make_dataset(per_rest=96)
    return World(dataset, make_splits(dataset, Request.parse("group=s0"), seed=0))


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The fakes by name, for tests that build their own world."""
    return SimpleNamespace(
        TableModel=TableModel,
        FakeTask=FakeTask,
        FakeTrainer=FakeTrainer,
        FakeReport=FakeReport,
        make_dataset=make_dataset,
        World=World,
        eve_request=eve_request,
        eve_calibration=eve_calibration,
    )

"""Shadow models for the attacks that need some: trained by the caller's recipe, read once, cached by its digest.

Nothing here trains or unlearns: the caller passes a function that does, so that audits never import a method. What is
kept of a shadow model is its logits on the data set and which samples it saw: all that an attack reads.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.predictor import Predictor
from qunlearn.audit.smi_sets import audit_sets
from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.errors import ArtefactError, ConfigError
from qunlearn.fingerprint import config_digest
from qunlearn_export.files import write_atomic

Make = Callable[[Samples, Samples | None, int], Mapping[str, Predictor]]
"""(training samples, those of them to unlearn afterwards or None, seed) -> the predictors of one model by kind."""
FEWEST, MOST = 2, 256


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """Logits float32 [N, C] on the whole data set by artefact kind, and what was trained on (bool [N])."""

    logits: Mapping[str, NDArray[np.float32]]
    seen: NDArray[np.bool_]
    unlearned: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ShadowPool:
    """Shadow models of one recipe. Every sample of the pool was seen by half of ``shadows`` (up to one model).

    ``trainings`` and ``unlearnings`` count the models made (those read from the cache too), ``seconds`` what making
    them took when they were made. ``recipe`` is the digest of what they were made by, ``data`` that of the splits and
    ``seed`` that of the audit: both decide which samples were seen.
    """

    shadows: tuple[Shadow, ...]
    recipe: str
    data: str
    seed: int
    trainings: int
    unlearnings: int
    seconds: float

    @property
    def kinds(self) -> tuple[str, ...]:
        """Artefact kinds that all of the shadow models were read as."""
        return tuple(k for k in self.shadows[0].logits if all(k in s.logits for s in self.shadows))


def halves(n: int, models: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """[models, n]: which model sees which sample; each sample is seen by half of the models (one more if odd)."""
    order = np.argsort(rng.random((models, n)), axis=0)
    out: NDArray[np.bool_] = order < (models + 1) // 2
    return out


def pool_samples(splits: Splits, *, seed: int) -> tuple[Samples, Samples]:
    """(what shadow models may see: forget, retain and the non-members; what of it ``u_lira`` unlearns).

    The spare half of held-out, the stop half and the test set are seen by none.
    """
    n = audit_sets(splits, max_n=1 << 30, seed=seed).n
    dataset = splits.dataset
    gone = np.sort(np.concatenate([splits.forget.index, n.index]))
    return Samples(dataset, np.sort(np.concatenate([gone, splits.retain.index]))), Samples(dataset, gone)


def shadow_pool(
    make: Make,
    splits: Splits,
    *,
    models: int,
    seed: int,
    recipe: Mapping[str, object],
    kinds: Sequence[str],
    unlearn: bool = False,
    cache: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> ShadowPool:
    """Train ``models`` shadow models with ``make`` on random halves; with ``unlearn`` each then unlearns its part.

    ``recipe`` is all that ``make`` depends on: with ``cache`` (a folder) a model of equal recipe, data, seed and
    number is read in place of trained. A cached file that cannot be read is an ArtefactError.
    """
    if not FEWEST <= models <= MOST:
        raise ConfigError(f"{models} shadow models.", remedy=f"Ask for {FEWEST} to {MOST}.")
    pool, gone = pool_samples(splits, seed=seed)
    facts = {
        "recipe": dict(recipe), "models": models, "seed": seed, "data": splits.digest(), "kinds": sorted(kinds),
        "unlearn": unlearn, "order": config_digest({"ids": [str(i) for i in splits.dataset.ids]}),
    }  # fmt: skip
    digest = config_digest(facts)
    saw = halves(len(pool), models, np.random.default_rng([seed, 41]))
    shadows, seconds = [], 0.0
    for i in range(models):
        file = None if cache is None else cache / f"shadow-{digest[:24]}-{i}.npz"
        if file is not None and file.exists():
            shadow, spent = _read(file, digest)
        else:
            if say is not None:
                say(f"shadow model {i + 1} of {models}")
            started = time.perf_counter()
            shadow = _made(make, pool.take(np.flatnonzero(saw[i])), gone if unlearn else None, seed + 1000 + i, kinds)
            spent = time.perf_counter() - started
            if file is not None:
                _write(file, shadow, spent, digest)
        shadows.append(shadow)
        seconds += spent
    return ShadowPool(
        shadows=tuple(shadows),
        recipe=digest,
        data=splits.digest(),
        seed=seed,
        trainings=models,
        unlearnings=models if unlearn else 0,
        seconds=seconds,
    )


def _made(make: Make, training: Samples, gone: Samples | None, seed: int, kinds: Sequence[str]) -> Shadow:
    dataset = training.dataset
    seen = np.zeros(len(dataset), bool)
    seen[training.index] = True
    unlearned = np.zeros(len(dataset), bool)
    if gone is not None:
        unlearned[gone.index] = seen[gone.index]
    forget = Samples(dataset, np.flatnonzero(unlearned)) if gone is not None else None
    found = make(training, forget, seed)
    missing = sorted(set(kinds) - set(found))
    if missing:
        raise ConfigError(
            f"shadow models were not made as {', '.join(missing)}.",
            remedy="An attack on one artefact kind with shadows of another is a different attack: make them alike.",
        )
    everything = Samples(dataset, np.arange(len(dataset)))
    return Shadow(logits={k: found[k].on(everything) for k in kinds}, seen=seen, unlearned=unlearned)


def _write(file: Path, shadow: Shadow, seconds: float, digest: str) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"logits.{k}": v for k, v in shadow.logits.items()}
    arrays |= {"seen": shadow.seen, "unlearned": shadow.unlearned}
    np.savez(buffer, seconds=np.float64(seconds), digest=np.array(digest), **arrays)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, buffer.getvalue())


def _read(file: Path, digest: str) -> tuple[Shadow, float]:
    try:
        with np.load(file, allow_pickle=False) as f:
            if str(f["digest"]) != digest:
                raise ArtefactError(f"{file} is of another recipe.", remedy="Delete it.")
            logits = {k.removeprefix("logits."): f[k] for k in f.files if k.startswith("logits.")}
            shadow = Shadow(logits=logits, seen=f["seen"], unlearned=f["unlearned"])
            return shadow, float(f["seconds"])
    except (OSError, ValueError, KeyError, EOFError) as err:
        raise ArtefactError(f"{file} cannot be read.", remedy="Delete it; it is trained again.") from err

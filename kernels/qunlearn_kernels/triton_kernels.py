"""Triton kernels of the projection. Imports triton; everything else imports this module when the backend is used.

Tiles, sums and units as in :mod:`qunlearn_kernels.tiles`: ``table`` int32 [4, tiles]; ``sums`` float64 [3 or 5, tiles]
with rows <f, r>, <r, r>, <f, f> and, with a metric P, <r, P f>, <r, P r>. Lanes add in float32, tiles and units in
float64 in a fixed order; no atomics. Rows start at multiples of 1 KiB, so loads are 16 bytes wide.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unit_sum(values, begin, end, WIDTH: tl.constexpr):
    """Sum of values[begin:end] in float64; its order depends on the range only."""
    total = tl.full([WIDTH], 0.0, tl.float64)
    lane = tl.arange(0, WIDTH)
    for k in range(begin, end, WIDTH):
        total += tl.load(values + k + lane, mask=k + lane < end, other=0.0)
    return tl.sum(total)


@triton.jit
def negatives(values, end, WIDTH: tl.constexpr):
    """Number of entries below zero in values[:end]."""
    count = tl.full([WIDTH], 0, tl.int32)
    lane = tl.arange(0, WIDTH)
    for k in range(0, end, WIDTH):
        count += (tl.load(values + k + lane, mask=k + lane < end, other=0.0) < 0.0).to(tl.int32)
    return tl.sum(count)


@triton.jit
def store_sums(sums, t, tiles, fr, rr, ff, rpf, rpr, METRIC: tl.constexpr):
    """Lanes of one tile to its column of ``sums``."""
    tl.store(sums + t, tl.sum(fr.to(tl.float64)))
    tl.store(sums + tiles + t, tl.sum(rr.to(tl.float64)))
    tl.store(sums + 2 * tiles + t, tl.sum(ff.to(tl.float64)))
    if METRIC:
        tl.store(sums + 3 * tiles + t, tl.sum(rpf.to(tl.float64)))
        tl.store(sums + 4 * tiles + t, tl.sum(rpr.to(tl.float64)))


@triton.jit
def dot_partials(f, r, metric, table, sums, tiles, METRIC: tl.constexpr, CHUNK: tl.constexpr, ALIGN: tl.constexpr):
    """First launch: the sums of every tile."""
    lane = tl.arange(0, CHUNK)
    for t in range(tl.program_id(0), tiles, tl.num_programs(0)):
        base = tl.load(table + t).to(tl.int64) * ALIGN
        size = tl.load(table + tiles + t) * ALIGN
        fr = tl.full([CHUNK], 0.0, tl.float32)
        rr = tl.full([CHUNK], 0.0, tl.float32)
        ff = tl.full([CHUNK], 0.0, tl.float32)
        rpf = tl.full([CHUNK], 0.0, tl.float32)
        rpr = tl.full([CHUNK], 0.0, tl.float32)
        for k in range(0, size, CHUNK):
            at = k + lane
            x = tl.load(f + base + at, mask=at < size, other=0.0)
            y = tl.load(r + base + at, mask=at < size, other=0.0)
            fr += x * y
            rr += y * y
            ff += x * x
            if METRIC:
                z = y * tl.load(metric + base + at, mask=at < size, other=0.0)
                rpf += x * z
                rpr += y * z
        store_sums(sums, t, tiles, fr, rr, ff, rpf, rpr, METRIC)


@triton.jit
def move_parameters(address, k, lane, count, change, ALIGNED: tl.constexpr, CHUNK: tl.constexpr):
    """Subtract ``change`` from the parameter's entries k + lane below ``count``."""
    p = address.to(tl.pointer_type(tl.float32)) + k
    if ALIGNED:
        p = tl.multiple_of(p, 16)
    if k + CHUNK <= count:
        tl.store(p + lane, tl.load(p + lane) - change)
    else:
        mask = k + lane < count
        tl.store(p + lane, tl.load(p + lane, mask=mask, other=0.0) - change, mask=mask)


@triton.jit
def project_update(
    f,
    r,
    metric,
    table,
    first,
    sums,
    after,
    given,
    where,
    tiles,
    units,
    eps,
    lr,
    lam,
    share_r,
    share_old,
    METRIC: tl.constexpr,
    CONFLICT: tl.constexpr,
    GIVEN: tl.constexpr,
    STEP: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Second launch: finish the sums of each unit, update, measure what is left into ``after``.

    f <- keep f - factor r; ``given`` float64 [2, units] holds keep and factor, else they come from ``sums``, and
    nothing moves where a sum is not finite or a metric sum is negative. With STEP also
    p <- p - lr (share_r r + lam (f_new - share_old f_old)); ``where`` int64 [2, tiles] has address and entries.
    """
    lane = tl.arange(0, CHUNK)
    good = True
    if not GIVEN:
        total = unit_sum(sums, 0, (5 if METRIC else 3) * tiles, WIDTH)
        good = total - total == 0.0
        if METRIC:
            good = good & (negatives(sums + 4 * tiles, tiles, WIDTH) == 0)
    if good:
        many = (tiles + tl.num_programs(0) - 1) // tl.num_programs(0)
        begin = tl.program_id(0) * many
        last = tl.full([], -1, tl.int32)
        keep = tl.full([], 1.0, tl.float32)
        factor = tl.full([], 0.0, tl.float32)
        for t in range(begin, tl.minimum(begin + many, tiles)):
            unit = tl.load(table + 2 * tiles + t)
            if unit != last:
                last = unit
                if GIVEN:
                    keep = tl.load(given + unit).to(tl.float32)
                    factor = tl.load(given + units + unit).to(tl.float32)
                else:
                    lo = tl.load(first + unit)
                    hi = tl.load(first + unit + 1)
                    along = unit_sum(sums + (3 if METRIC else 0) * tiles, lo, hi, WIDTH)
                    norm = unit_sum(sums + (4 if METRIC else 1) * tiles, lo, hi, WIDTH)
                    moves = norm > 0.0
                    if CONFLICT:
                        moves = moves & (unit_sum(sums, lo, hi, WIDTH) < 0.0)
                    factor = tl.where(moves, along / (norm + eps), 0.0).to(tl.float32)
            base = tl.load(table + t).to(tl.int64) * ALIGN
            size = tl.load(table + tiles + t) * ALIGN
            fr = tl.full([CHUNK], 0.0, tl.float32)
            rr = tl.full([CHUNK], 0.0, tl.float32)
            ff = tl.full([CHUNK], 0.0, tl.float32)
            rpf = tl.full([CHUNK], 0.0, tl.float32)
            rpr = tl.full([CHUNK], 0.0, tl.float32)
            for k in range(0, size, CHUNK):
                at = k + lane
                x = tl.load(f + base + at, mask=at < size, other=0.0)
                y = tl.load(r + base + at, mask=at < size, other=0.0)
                new = keep * x - factor * y
                tl.store(f + base + at, new, mask=at < size)
                fr += new * y
                rr += y * y
                ff += new * new
                if METRIC:
                    z = y * tl.load(metric + base + at, mask=at < size, other=0.0)
                    rpf += new * z
                    rpr += y * z
                if STEP:
                    change = lr * (share_r * y + lam * (new - share_old * x))
                    count = tl.load(where + tiles + t)
                    move_parameters(tl.load(where + t), k, lane, count, change, ALIGNED, CHUNK)
            store_sums(after, t, tiles, fr, rr, ff, rpf, rpr, METRIC)


@triton.jit
def basis_partials(
    f, q, stride, table, sums, tiles, rows, ROWS: tl.constexpr, CHUNK: tl.constexpr, ALIGN: tl.constexpr
):
    """First launch of the rank-k form: <q_j, f> of every tile; ``q`` [rows, N_pad], ``sums`` float64 [tiles, ROWS]."""
    lane = tl.arange(0, CHUNK)
    row = tl.arange(0, ROWS)
    for t in range(tl.program_id(0), tiles, tl.num_programs(0)):
        base = tl.load(table + t).to(tl.int64) * ALIGN
        size = tl.load(table + tiles + t) * ALIGN
        dots = tl.full([ROWS, CHUNK], 0.0, tl.float32)
        for k in range(0, size, CHUNK):
            at = k + lane
            x = tl.load(f + base + at, mask=at < size, other=0.0)
            place = row.to(tl.int64)[:, None] * stride + base + at[None, :]
            dots += x[None, :] * tl.load(q + place, mask=(row < rows)[:, None] & (at < size)[None, :], other=0.0)
        tl.store(sums + t * ROWS + row, tl.sum(dots.to(tl.float64), axis=1))


@triton.jit
def basis_update(
    f,
    q,
    stride,
    table,
    first,
    sums,
    after,
    tiles,
    rows,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Second launch of the rank-k form: f <- f - Q'(Q f) unit by unit; what is left of Q f goes to ``after``."""
    lane = tl.arange(0, CHUNK)
    row = tl.arange(0, ROWS)
    many = (tiles + tl.num_programs(0) - 1) // tl.num_programs(0)
    begin = tl.program_id(0) * many
    last = tl.full([], -1, tl.int32)
    factor = tl.full([ROWS], 0.0, tl.float32)
    for t in range(begin, tl.minimum(begin + many, tiles)):
        unit = tl.load(table + 2 * tiles + t)
        if unit != last:
            last = unit
            lo = tl.load(first + unit)
            hi = tl.load(first + unit + 1)
            total = tl.full([WIDTH, ROWS], 0.0, tl.float64)
            for k in range(lo, hi, WIDTH):
                tile = k + tl.arange(0, WIDTH)
                here = tile[:, None] * ROWS + row[None, :]
                total += tl.load(sums + here, mask=(tile < hi)[:, None], other=0.0)
            factor = tl.sum(total, axis=0).to(tl.float32)
        base = tl.load(table + t).to(tl.int64) * ALIGN
        size = tl.load(table + tiles + t) * ALIGN
        dots = tl.full([ROWS, CHUNK], 0.0, tl.float32)
        for k in range(0, size, CHUNK):
            at = k + lane
            x = tl.load(f + base + at, mask=at < size, other=0.0)
            place = row.to(tl.int64)[:, None] * stride + base + at[None, :]
            part = tl.load(q + place, mask=(row < rows)[:, None] & (at < size)[None, :], other=0.0)
            new = x - tl.sum(factor[:, None] * part, axis=0)
            tl.store(f + base + at, new, mask=at < size)
            dots += new[None, :] * part
        tl.store(after + t * ROWS + row, tl.sum(dots.to(tl.float64), axis=1))

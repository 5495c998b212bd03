"""What a model costs, as people read it."""

from guidance.cost import SELF_CONDITIONED, Cost

LEFT_OUT = "FLOPs are of convolutions and matrix products; elementwise work, norms, softmax, transforms and the optimizer are left out"


def short(number: float, unit: str = "") -> str:
    """With three digits: 35.7 M, 12.2 GFLOP; FLOPs and bytes in powers of ten."""
    for factor, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            return f"{digits(number / factor)} {letter}{unit}"
    return f"{digits(number)} {unit}".strip()


def digits(number: float) -> str:
    """Three of them, and no more before the point than there are."""
    return f"{number:.0f}" if number >= 99.95 or number == 0 else f"{number:.1f}" if number >= 9.995 else f"{number:.3g}"


def table(cost: Cost) -> str:
    """As people read it."""
    p, f, m, s, t = cost.parameters, cost.flops, cost.memory, cost.sampling, cost.training
    device = t["device"] if isinstance(t["device"], str) else "device"
    parts = ", ".join(f"{name} {short(p[name])}" for name in p if name not in ("total", "trained") and p[name])
    rows = [
        ("x0", " x ".join(map(str, cost.shape))),
        ("parameters", f"{p['total']:,} ({parts}; trained {short(p['trained'])})"),
        ("one evaluation", f"{short(f['evaluation'], 'FLOP')}, and {short(f['embed'], 'FLOP')} for a condition, once a sampling run"),
        (
            "training a sample",
            f"{short(f['training'], 'FLOP')}: forward {short(f['forward'], 'FLOP')}, backward {short(f['backward'], 'FLOP')}",
        ),
        ("a step", f"{short(t['step_flops'], 'FLOP')}, {t['batch_size']} samples"),
        ("memory", f"{short(m['total'], 'B')}, {cost.micro_batch} samples at a time, precision {cost.precision}"),
        *((f"  {name}", short(m[name], "B")) for name in m if name != "total"),
        ("drawing a sample", f"{short(s['flops'], 'FLOP')}: {s['sampler']}, {s['steps']} steps, {digits(s['evaluations'])} evaluations"),
        ("training", f"{short(t['flops'], 'FLOP')}: {t['steps']:,} steps"),
        *((f"  and the {name}", side(tflop)) for name, tflop in cost.beside.items()),
        *([("judges", ", ".join(f"{name} {side(tflop)}" for name, tflop in cost.judges.items()))] if cost.judges else []),
        (f"{device}-days", f"{digits(t['days'])} at {digits(100 * t['utilisation'])} % of {short(t['peak'], 'FLOP/s')}"),
    ]
    if f["again"]:
        rows[3] = (rows[3][0], f"{rows[3][1]}, first guesses {short(f['again'], 'FLOP')} ({SELF_CONDITIONED:g} of the steps)")
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {what}\n" for name, what in rows) + LEFT_OUT + "\n"


def side(tflop: float | None) -> str:
    """Of what is trained beside the model."""
    return "not known" if tflop is None else short(tflop * 1e12, "FLOP")


COLUMNS = (
    *("recipe", "parameters", "an evaluation", "training a sample", "a step", "weights, gradients, moments, average"),
    *("activations", "passing", "a sample drawn", "training", "days"),
)


def row(cost: Cost) -> str:
    """As a line of a Markdown table of COLUMNS."""
    f, m, s, t = cost.flops, cost.memory, cost.sampling, cost.training
    cells = [
        f"`{cost.name}`",
        short(cost.parameters["total"]),
        short(f["evaluation"], "FLOP"),
        short(f["training"], "FLOP"),
        f"{short(t['step_flops'], 'FLOP')} ({t['batch_size']})",
        short(m["total"] - m["activations"] - m["passing"], "B"),
        f"{short(m['activations'], 'B')} ({cost.micro_batch})",
        short(m["passing"], "B"),
        f"{short(s['flops'], 'FLOP')} ({s['steps']})",
        f"{short(t['flops'], 'FLOP')} ({t['steps']:,})",
        digits(t["days"]),
    ]
    return f"| {' | '.join(cells)} |"

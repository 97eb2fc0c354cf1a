"""Lines of a results file as trainings leave them, with chosen scores."""

from g2m.experiments import alike, find

VERSIONS = {"g2m": "1.2.3", "torch": "4.5.6"}


def record(
    data="cora-cpf",
    method="glnn",
    teacher="sage",
    setting="transductive",
    seed=0,
    score=0.8,
    options=(),
    seconds=1.0,
    teacher_score=None,
    ms=None,
    teacher_ms=None,
    cold=None,
    epochs=9,
    common=False,
):
    """A training, of published options or ``common`` ones; by default its teacher is 0.1 above it, and without ``ms``
    and ``cold`` as older versions left it."""
    teacher = None if method == "mlp" else teacher
    experiment = (alike if common else find)(data, method, teacher).override(options)
    parts = ["val", "test"] + (["seen", "unseen"] if setting == "inductive" else [])
    run = {"layers": 2, "width": 128, "parameters": 184_000, "best_epoch": 3, "epochs": epochs, "seconds": seconds}
    who = {"data": data, "setting": setting, "teacher": teacher, "method": method, "seed": seed}
    scores = {part: score + i / 1000 for i, part in enumerate(parts)}
    more = {} if cold is None else {"cold": cold}
    line = {"key": f"{who}{options}{common}", **who, "metric": "accuracy", "scores": scores | more}
    line["run"] = run | ({} if ms is None else {"ms": ms})
    if teacher is not None:
        shift = 0.1 if teacher_score is None else teacher_score - score
        line["teacher_scores"] = {part: value + shift for part, value in scores.items()} | more
        line["teacher_run"] = run | {"seconds": 10 * seconds} | ({} if teacher_ms is None else {"ms": teacher_ms})
    return {**line, "config": {**experiment.config(), "versions": VERSIONS}}

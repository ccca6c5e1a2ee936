"""The parts of the page that are text and tables: facts, numbers, recipe, data, bad files, machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avssl.data.clip import Row
from avssl.data.kinds import natural
from avssl.report.markup import Markup, duration, number, percent, table, tag
from avssl.words import counted

if TYPE_CHECKING:
    from avssl.report.build import Subject
    from avssl.report.runs import RunFiles

BAD_SHOWN = 200
CLASSES_SHOWN = 40
ORDER = ("backbone", "loss", "frontend", "data", "optim", "schedule", "train", "monitor", "run")


def lead(run: RunFiles) -> str:
    """One sentence that says what the run is."""
    report = run.report
    backbone, loss = run.tables["backbone"]["name"], run.tables["loss"]["name"]
    if report.get("kind") == "import":
        return f"An imported {backbone} model. Source: {report.get('source') or 'not stated'}."
    what = f"A {backbone} backbone trained with the {loss} objective"
    if not run.records:
        return what + ("." if run.finished else "; no update is logged yet.")
    updates, items = run.records[-1]["update"], report.get("items") or sum(r.split == run.train_split for r in run.rows)
    text = f"{what} for {counted(updates, 'update')} on {counted(items, 'clip')}"
    if report.get("seconds"):
        text += f", in {duration(report['seconds'])}"
    return text + ("." if run.finished else "; not finished yet.")


def tiles(subject: Subject) -> Markup:
    """The handful of numbers that one looks for first."""
    run, report = subject.run, subject.run.report
    found: list[tuple[str, str, str]] = []
    best = headline(subject)
    if best:
        found.append(best)
    if subject.classes:
        accuracy = subject.classes["metrics"].get("accuracy")
        if accuracy is not None:
            found.append(("Accuracy", percent(accuracy), subject.classes["title"]))
        elif (value := subject.classes["metrics"].get("map")) is not None:
            found.append(("Mean average precision", percent(value), subject.classes["title"]))
    train = [r for r in run.records if r.get("kind") == "train"]
    if train:
        first, last = train[0].get("loss"), train[-1].get("loss")
        found.append(("Loss", number(last), f"{number(first)} at the start"))
        rates = [r["timing"]["clips_per_s"] for r in train if r.get("timing")]
        waits = [r["timing"]["data_wait"] for r in train if r.get("timing")]
        if rates:
            found.append(
                (
                    "Throughput",
                    f"{number(sum(rates) / len(rates), 3)} clips/s",
                    f"{percent(sum(waits) / len(waits))} of the time waiting for data",
                )
            )
    if report.get("parameters"):
        found.append(("Parameters", short(report["parameters"]), "of the backbone"))
    if run.bad:
        bad = sum(b.what != "missing" for b in run.bad)
        found.append(("Files left out", number(len(run.bad)), f"{bad} bad, {len(run.bad) - bad} without a needed part"))
    return tag(
        "div",
        [
            tag(
                "div",
                tag("span", label, class_="label"),
                tag("strong", value),
                tag("span", note, class_="note"),
                class_="tile",
            )
            for label, value, note in found[:6]
        ],
        class_="tiles",
    )


def headline(subject: Subject) -> tuple[str, str, str] | None:
    """Retrieval between modalities in one number: mean R@1 over directions, of classes where there are any."""
    crossing = [d for d in subject.directions if d.crossing]
    level = "class" if crossing and all("class.r@1" in d.metrics for d in crossing) else "instance"
    values = [
        (d.metrics[f"{level}.r@1"], d.metrics[f"{level}.chance@1"]) for d in crossing if f"{level}.r@1" in d.metrics
    ]
    if not values:
        return None
    value, chance = (sum(v) / len(values) for v in zip(*values, strict=True))
    return (
        "Right at rank 1" if level == "instance" else "Right class at rank 1",
        percent(value),
        f"{value / chance:.1f} × chance, {' and '.join(arrow(d.name) for d in crossing[:2])}",
    )


def arrow(name: str) -> str:
    return name.replace("->", " → ")


def short(count: int) -> str:
    """1.1 M, 164 M, 4.0 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def retrieval_table(subjects: Sequence[Subject]) -> Markup:
    """Recalls with what a random order gives, for each direction, level and run."""
    several = len(subjects) > 1
    rows = []
    names = list(dict.fromkeys(d.name for s in subjects for d in s.directions))
    for name in names:
        for level in ("instance", "class"):
            for subject in subjects:
                found = next((d for d in subject.directions if d.name == name), None)
                if found is None or f"{level}.r@1" not in found.metrics:
                    continue
                m = found.metrics
                cells = [
                    tag(
                        "span",
                        percent(m[f"{level}.r@{k}"]),
                        tag("small", f"chance {percent(m[f'{level}.chance@{k}'])}"),
                    )
                    for k in (1, 5, 10)
                ]
                what = "the very clip" if level == "instance" else "a clip of its class"
                head = [
                    arrow(name),
                    tag("small", what),
                    tag("small", subject.run.name, class_="run") if several else None,
                ]
                rows.append(
                    [
                        tag("span", head, class_="stack"),
                        *cells,
                        number(m[f"{level}.median_rank"]),
                        number(int(m[f"{level}.queries"])),
                    ]
                )
    return table(["Looking for", "R@1", "R@5", "R@10", "Median rank", "Queries"], rows, numbers=True)


def metrics_table(subjects: Sequence[Subject]) -> Markup | None:
    """The last numbers of the training journals, side by side."""
    columns = []
    for subject in subjects:
        train = [r for r in subject.run.records if r.get("kind") == "train"]
        held = [r for r in subject.run.records if r.get("kind") == "validation"]
        values: dict[str, Any] = {}
        if train:
            last = train[-1]
            values["loss"] = last.get("loss")
            values |= {f"train · {k}": v for k, v in {**last.get("terms", {}), **last.get("metrics", {})}.items()}
        if held:
            values |= {f"validation · {k}": v for k, v in held[-1].get("validation", {}).items()}
        columns.append(values)
    names = list(dict.fromkeys(k for c in columns for k in c))
    if not names:
        return None
    rows = [[name.replace("_", " "), *(number(c.get(name)) for c in columns)] for name in names]
    numbers = table(["Last value of", *(s.run.name for s in subjects)], rows, numbers=True)
    return tag("details", tag("summary", "Last values"), numbers, open=len(subjects) > 1)


def evaluation_tables(subject: Subject) -> Markup:
    """What `avssl evaluate` measured: each task's numbers with intervals, what chance gives, and the protocol."""
    parts = []
    for found in subject.run.evaluations:
        intervals, chance = found.get("intervals", {}), found.get("chance", {})
        rows = []
        for name, value in found.get("metrics", {}).items():
            low, high = intervals.get(name) or (None, None)
            between = f"{number(low)} – {number(high)}" if low is not None else "–"
            rows.append([arrow(name), number(value), between, number(chance.get(name))])
        counts = ", ".join(f"{k} {v:,}" for k, v in found.get("n", {}).items() if "." not in k)
        options = table(["", ""], [[k, _value(v)] for k, v in flat(found.get("protocol", {})).items()], class_="keys")
        parts.append(tag("h3", str(found.get("task", "")), tag("small", f" {counts}")))
        parts.append(table(["Metric", "Value", "Interval", "Chance"], rows, numbers=True))
        parts.append(tag("details", tag("summary", "Protocol"), options, class_="under-table"))
        parts += _per_class(found)
    return Markup("".join(parts))


def _per_class(found: Mapping[str, Any]) -> list[Markup]:
    """The per-class numbers of an evaluation, one fold for each prefix, the worst class first."""
    parts = []
    for prefix, classes in found.get("per_class", {}).items():
        names = list(dict.fromkeys(k for values in classes.values() for k in values if k != "n"))
        if not names:
            continue
        order = sorted(classes, key=lambda c: v if (v := classes[c].get(names[0])) is not None else 2.0)
        rows = [[c, number(classes[c].get("n")), *(_bar(classes[c].get(k)) for k in names)] for c in order]
        numbers = table(["Class", "Clips", *(CLASS_WORDS.get(k, k) for k in names)], rows, numbers=True)
        parts.append(tag("details", tag("summary", f"Classes of {prefix}"), numbers, class_="under-table"))
    return parts


def recipe_table(subjects: Sequence[Subject]) -> Markup:
    """Every key of the resolved recipes; where runs differ, the row is marked and comes first."""
    flats = [flat(s.run.tables) for s in subjects]
    keys = list(dict.fromkeys(k for f in flats for k in f))
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.split(".")[0] if "." in key else "run", []).append(key)
    groups = {g: groups[g] for g in sorted(groups, key=lambda g: ORDER.index(g) if g in ORDER else len(ORDER))}
    different = [k for k in keys if len({str(f.get(k)) for f in flats}) > 1]
    parts: list[Markup] = []
    if len(subjects) > 1:
        head = ["Key", *(s.run.name for s in subjects)]
        differing = (
            table(head, [[k, *(_value(f.get(k)) for f in flats)] for k in different], class_="keys")
            if different
            else tag("p", "The recipes are the same.", class_="quiet")
        )
        parts.append(
            tag("details", tag("summary", "What differs", tag("small", f"{len(different)} keys")), differing, open=True)
        )
    for group, members in groups.items():
        rows = [[k.removeprefix(group + "."), *(_value(f.get(k)) for f in flats)] for k in members]
        parts.append(
            tag(
                "details",
                tag("summary", group, tag("small", _names(group, subjects))),
                table(["Key", *(s.run.name if len(subjects) > 1 else "Value" for s in subjects)], rows, class_="keys"),
            )
        )
    return tag("div", parts, class_="folds" if len(subjects) > 1 else "folds two")


def _names(group: str, subjects: Sequence[Subject]) -> str:
    found = [s.run.tables.get(group) for s in subjects]
    return ", ".join(dict.fromkeys(str(f["name"]) for f in found if isinstance(f, Mapping) and "name" in f))


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested tables."""
    out: dict[str, Any] = {}
    for key, value in tables.items():
        name = f"{prefix}{key}"
        out |= flat(value, name + ".") if isinstance(value, Mapping) else {name: value}
    return out


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, float):
        return repr(value)
    return "–" if value is None or value == "" else str(value)


def data_card(rows: Sequence[Row]) -> Markup:
    """Counts by split, what the items have, how classes are shared out."""
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    modalities = list(dict.fromkeys(m for r in rows for m in r.parts))
    lines = []
    for name, members in splits.items():
        known = [r.duration for r in members if r.duration is not None]
        hours = duration(sum(known)) + ("" if len(known) == len(members) else f" in {len(known)}") if known else "–"
        lines.append(
            [
                name or "no split",
                number(len(members)),
                *(number(sum(m in r.parts for r in members)) for m in modalities),
                number(len({label for r in members for label in r.labels})),
                number(sum(not r.labels for r in members)),
                hours,
            ]
        )
    parts = [
        table(
            ["Split", "Items", *(f"with {m}" for m in modalities), "Classes", "Unlabelled", "Duration"],
            lines,
            numbers=True,
        )
    ]
    counts = Counter(label for r in rows for label in r.labels)
    if counts:
        ordered = (
            sorted(counts, key=natural)
            if len(counts) <= CLASSES_SHOWN
            else [c for c, _ in counts.most_common(CLASSES_SHOWN)]
        )
        top = max(counts.values())
        bars = [
            tag(
                "li",
                tag("span", c, class_="name"),
                tag("span", style=f"--share:{counts[c] / top:.4f}", class_="bar"),
                tag("span", number(counts[c]), class_="value"),
            )
            for c in ordered
        ]
        more = f" The {CLASSES_SHOWN} most frequent of {len(counts)}." if len(counts) > CLASSES_SHOWN else ""
        parts.append(tag("h3", "Clips of each class"))
        parts.append(tag("ul", bars, class_="bars"))
        if more:
            parts.append(tag("p", more, class_="quiet"))
    return Markup("".join(parts))


def bad_files(items: Sequence[Any], title: str) -> Markup:
    """What could not be used, and why."""
    rows = [[tag("span", b.id, class_="stack", title=b.path), b.what, b.reason] for b in items[:BAD_SHOWN]]
    parts = [tag("h3", f"{title} ({len(items)})"), table(["Item", "What", "Why"], rows)]
    if len(items) > BAD_SHOWN:
        parts.append(tag("p", f"… and {len(items) - BAD_SHOWN} more in bad_files.csv.", class_="quiet"))
    return Markup("".join(parts))


def machine_table(subjects: Sequence[Subject]) -> Markup:
    """Hardware and versions."""
    flats = [flat(s.run.environment or s.run.report.get("environment", {})) for s in subjects]
    keys = list(dict.fromkeys(k for f in flats for k in f))
    rows = [
        [k.removeprefix("packages.").replace("memory_gib", "memory, GiB"), *(_value(f.get(k)) for f in flats)]
        for k in keys
    ]
    if any(s.run.report.get("seconds") for s in subjects):
        rows.insert(0, ["training time", *(duration(s.run.report.get("seconds", 0)) for s in subjects)])
        rows.insert(1, ["peak memory, GiB", *(_value(s.run.report.get("memory_gib")) for s in subjects)])
    return table(["", *(s.run.name if len(subjects) > 1 else "" for s in subjects)], rows, class_="keys")


def class_table(subject: Subject) -> Markup:
    """Per-class numbers, the worst first."""
    found = subject.classes
    assert found is not None
    columns = [(k, found[k]) for k in ("recall", "precision") if k in found]
    columns += [(k, v) for k, v in found["per"].items() if not (k == "accuracy" and "recall" in found)]
    order = (
        sorted(range(len(found["names"])), key=lambda i: (v if (v := columns[0][1][i]) is not None else 2, i))
        if columns
        else []
    )
    rows = [[found["names"][i], *(_bar(values[i]) for _, values in columns)] for i in order[:200]]
    return table(["Class", *(CLASS_WORDS.get(k, k) for k, _ in columns)], rows, numbers=True, class_="meters")


CLASS_WORDS = {
    "recall": "Found (recall)",
    "precision": "Right (precision)",
    "ap": "Average precision",
    "auc": "AUC",
    "f1": "F1",
}


def _bar(value: float | None) -> Markup | str:
    if value is None or not 0 <= value <= 1:
        return number(value)
    return tag(
        "span",
        tag("span", style=f"--share:{value:.4f}", class_="bar"),
        tag("span", f"{value:.2f}", class_="value"),
        class_="meter",
    )

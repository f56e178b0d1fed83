"""The top of the page: what was done and what came out, in plain words."""

from collections import Counter
from typing import Any

from fastnas.report import units
from fastnas.report.facts import Facts, total_seconds
from fastnas.report.front import has_final, is_scored, score
from fastnas.report.html import Html, tag
from fastnas.search.record import FAILED, FINISHED, REJECTED, RUNNING, WAITING, Record

STATES = (FINISHED, FAILED, REJECTED, RUNNING, WAITING)


def lead(facts: Facts) -> Html:
    """The paragraph under the title."""
    return tag("p", " ".join([_what(facts), _how_many(facts), *_outcome(facts)]), class_="lead")


def tiles(facts: Facts) -> Html:
    """The few numbers to see first."""
    counts = count_states(facts.records)
    search, full = total_seconds(facts.records)
    shown: list[tuple[str, str]] = [(f"{counts[FINISHED]}", f"of {units.count(len(facts.records), 'candidate')} finished")]
    if members := facts.front.members:
        best = members[-1]
        found = score(best, facts.front.full)
        trained = "full training" if facts.front.full else "search"
        shown.append((units.ap(found.ap), f"best AP (candidate {best.id}, {trained})"))
        shown.append((f"{units.ms(found.ms)} ms", f"its latency, {'measured' if facts.front.measured else 'predicted'}"))
        shown.append((f"{len(members)}", "on the front"))
    shown.append((units.duration(search + full), "of training and evaluation"))
    return tag("div", [tag("div", tag("b", value), tag("span", what), class_="tile") for value, what in shown], class_="tiles")


def count_states(records: list[Record]) -> Counter:
    """How many candidates are in each state."""
    return Counter(record.state for record in records)


def _what(facts: Facts) -> str:
    data = _data(facts.config)
    where = _engine(facts.environment)
    return "".join(
        [
            f"A search of the space {facts.space}",
            f" on {data}" if data else "",
            f", with latencies for {where}" if where else "",
            ".",
        ]
    )


def _how_many(facts: Facts) -> str:
    counts = count_states(facts.records)
    if not facts.records:
        return "No candidate has been recorded yet."
    parts = [f"{counts[FINISHED]} finished"]
    parts += [f"{counts[FAILED]} failed"] * bool(counts[FAILED])
    parts += [f"{counts[REJECTED]} rejected before training because of a limit"] * bool(counts[REJECTED])
    parts += [f"{counts[state]} {state}" for state in (RUNNING, WAITING) if counts[state]]
    search, full = total_seconds(facts.records)
    time = f"the short trainings of the search took {units.duration(search)}"
    if full:
        time += f", {units.count(len(facts.finals), 'full training')} took {units.duration(full)}"
    return f"Of {units.count(len(facts.records), 'candidate')}, {_listed(parts)}; {time}."


def _outcome(facts: Facts) -> list[str]:
    front, ancestor = facts.front, facts.ancestor
    if not front.members:
        return ["There is no front yet."]
    best = front.members[-1]
    found = score(best, front.full)
    training = "after full training" if front.full else "by the short training"
    kind = f"{training}, {'measured on the whole network' if front.measured else 'at the predicted latency'}"
    sentences = [f"The best AP is {units.ap(found.ap)} at {units.ms(found.ms)} ms (candidate {best.id}, {kind})."]
    if not ancestor or not is_scored(ancestor):
        return [*sentences, "The ancestor has no AP, so nothing is said about what the search gained."]
    if best.id == ancestor.id:
        return [*sentences, "That is the ancestor itself: no child reached a higher AP."]
    full = front.full and has_final(ancestor)
    return [*sentences, _comparison(best, ancestor, full), *_faster(facts, ancestor, full), _caveat(best, ancestor, full)]


def _comparison(child: Record, ancestor: Record, full: bool) -> str:
    a, b = score(child, full), score(ancestor, full)
    basis = "after full training" if full else "in the search, where both have a score,"
    return (
        f"Against the ancestor (candidate {ancestor.id}), {basis} candidate {child.id} reached AP {units.ap(a.ap)} "
        f"against {units.ap(b.ap)}, at {units.ms(a.ms)} ms against {units.ms(b.ms)} ms."
    )


def _faster(facts: Facts, ancestor: Record, full: bool) -> list[str]:
    """The fastest member that is at once no less precise and faster than the ancestor."""
    own = score(ancestor, full)
    for record in facts.front.members:
        found = score(record, full)
        if units.known(found.ap) and found.ap >= own.ap and found.ms < own.ms and record.id != ancestor.id:
            return [f"Candidate {record.id} beats the ancestor in both: AP {units.ap(found.ap)} at {units.ms(found.ms)} ms."]
    return ["No member of the front is both at least as precise as the ancestor and faster than it."]


def _caveat(child: Record, ancestor: Record, full: bool) -> str:
    """Weights are inherited, and a full training goes on from those of the search: a child's have been trained for longer."""
    a, b = _epochs_seen(child, full), _epochs_seen(ancestor, full)
    if a == b:
        return ""
    return (
        f"This is not like for like: with what was inherited, the weights of candidate {child.id} have seen "
        f"{units.epochs(a)} epochs, the ancestor's {units.epochs(b)}."
    )


def _epochs_seen(record: Record, full: bool) -> float:
    return (record.total_epochs or record.epochs) + (record.final.epochs if full and record.final else 0)


def _engine(environment: dict[str, Any]) -> str:
    """`onnxruntime 1.22 (fp32, 1 thread) on AMD EPYC`, from whatever of it is known."""
    engine = " ".join(str(environment[key]) for key in ("engine", "version") if environment.get(key))
    inside = [str(environment["precision"])] if environment.get("precision") else []
    if threads := environment.get("threads"):
        inside.append(f"{threads} thread{'s' * (threads != 1)}")
    device = environment.get("device") or environment.get("cpu")
    return "".join([engine, f" ({', '.join(inside)})" if inside else "", f" on {device}" if device else ""])


def _data(config: dict[str, Any]) -> str:
    data = config.get("data") or {}
    if data.get("root"):
        return f"the data set {data['root']}"
    if sizes := data.get("generated"):
        return f"the built-in data set of shapes ({sizes['train']} images to train, {sizes['val']} to evaluate)"
    return ""


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

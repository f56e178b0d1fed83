import dataclasses

from fastnas.blueprint import Lineage, parse
from fastnas.report import summary
from fastnas.report.facts import gather
from tests.report.studies import ANCESTOR, candidate, finish, finish_final


def add(study, code, ap, ms, epochs=4.0, total=None, parent=0):
    lineage = Lineage() if parent is None else Lineage(parent, ("expand stage 1 after block 1",))
    record = candidate(parse(ANCESTOR.replace("11-21-21-21", code)), lineage)
    record = study.add(dataclasses.replace(record, predicted_ms=ms, low_ms=ms, high_ms=ms))
    finish(study, record.id, ap, epochs, total)
    return record


def test_gain_in_the_search_is_told_with_its_epochs(study):
    add(study, "11-21-21-21", 0.30, 10.0, 6.0, parent=None)
    add(study, "11-211-21-21", 0.35, 12.0, 4.0, 10.0)
    text = summary.lead(gather(study))
    assert "candidate 1 reached AP 0.350 against 0.300, at 12.0 ms against 10.0 ms." in text
    seen = "with what was inherited, the weights of candidate 1 have seen 10 epochs, the ancestor&#x27;s 6."
    assert f"This is not like for like: {seen}" in text
    assert "No member of the front is both at least as precise as the ancestor and faster than it." in text


def test_finals_are_compared_with_the_ancestors_final(study):
    ancestor = add(study, "11-21-21-21", 0.30, 10.0, 6.0, parent=None)
    child = add(study, "11-211-21-21", 0.35, 12.0, 4.0, 10.0)
    faster = add(study, "1-21-21-21", 0.29, 8.0, 4.0, 10.0)
    for record, ap, ms, epochs in ((ancestor, 0.50, 10.5, 16), (child, 0.56, 12.5, 12), (faster, 0.51, 8.2, 12)):
        finish_final(study, record, ap, ms, epochs)  # topped up to 22 epochs in all
    text = summary.lead(gather(study))
    assert "after full training candidate 1 reached AP 0.560 against 0.500, at 12.5 ms against 10.5 ms." in text
    assert "Candidate 2 beats the ancestor in both: AP 0.510 at 8.20 ms." in text
    assert "not like for like" not in text


def test_a_final_without_the_ancestors_is_compared_by_the_search(study):
    add(study, "11-21-21-21", 0.30, 10.0, 6.0, parent=None)
    finish_final(study, add(study, "11-211-21-21", 0.35, 12.0), 0.56, 12.5)
    text = summary.lead(gather(study))
    assert "The best AP is 0.560" in text
    assert "in the search, where both have a score, candidate 1 reached AP 0.350 against 0.300" in text


def test_states_and_times(grown):
    text = summary.lead(gather(grown))
    records = grown.records()
    rejected = sum(record.state == "rejected" for record in records)
    assert f"1 failed and {rejected} rejected before training because of a limit" in text
    assert "with latencies for onnxruntime 1.22.0 (fp32, 1 thread) on A CPU of 2 cores" in text

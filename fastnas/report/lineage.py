"""The lineage as an SVG tree: one column a generation, one row a leaf, a parent in the row of its first child."""

from collections import defaultdict
from dataclasses import dataclass

from fastnas.report import colors, units
from fastnas.report.facts import Facts
from fastnas.report.front import is_scored
from fastnas.report.html import Html, join, tag
from fastnas.search.record import FAILED, FINISHED, REJECTED, Record

MANY = 200  # beyond this the rows are compact and carry no operations
WIDEST = 1500  # a tree up to this width is shrunk into the page, a wider one is scrolled
FOLDED = 3  # a parent with more untrained children than this shows them as one node


@dataclass
class Node:
    """One box: a candidate, or several rejected or failed ones of the same parent."""

    records: list[Record]
    column: int = 0
    row: int = 0

    @property
    def record(self) -> Record:
        return self.records[0]


@dataclass(frozen=True)
class Sizes:
    column: int
    row: int
    width: int
    height: int
    font: float
    labels: bool


def lineage_svg(facts: Facts) -> Html:
    """The whole tree. Node fill: AP of the search; ring: member of the front; grey: rejected, failed or not finished."""
    nodes, edges = _layout(facts.records)
    few = len(facts.records) <= MANY
    sizes = Sizes(222, 32, 92, 22, 12, True) if few else Sizes(124, 15, 78, 13, 9, False)
    low, high = colors.scale([record.ap for record in facts.records if is_scored(record)])
    width = max((node.column for node in nodes), default=0) * sizes.column + sizes.width + 16
    height = (max((node.row for node in nodes), default=0) + 1) * sizes.row + 8
    drawn = [*(_edge(*edge, sizes) for edge in edges), *(_node(node, facts, low, high, sizes) for node in nodes)]
    view = f"0 0 {width} {height:.0f}"
    fits = " fits" if width < WIDEST else ""
    return tag("svg", drawn, class_=f"tree{fits}", width=width, height=height, viewBox=view, role="img", aria_label="Lineage")


def short_operation(operations: tuple[str, ...], limit: int = 17) -> str:
    """`expand stage 2 after block 1` becomes `expand stage 2`; further operations are counted: `swap stage 1 +2`."""
    if not operations:
        return ""
    more = f" +{len(operations) - 1}" if len(operations) > 1 else ""
    room = limit - len(more)
    words = " ".join(operations[0].split())
    if len(words) > room:
        kept = ""
        for word in words.split():
            if len(kept) + len(word) + bool(kept) > room:
                break
            kept = f"{kept} {word}".strip()
        stopwords = {"after", "block", "at", "in", "of", "the", "to", "with", "and", "from", "before", "stage"}
        while kept and kept.split()[-1] in stopwords:
            kept = kept.rpartition(" ")[0]
        words = kept or words[: room - 1] + "…"
    return words + more


def _layout(records: list[Record]) -> tuple[list[Node], list[tuple[Node, Node]]]:
    """Nodes with their places, and the edges. Iterative: a lineage may be deeper than Python's stack."""
    children = _children(records)
    nodes: list[Node] = []
    edges: list[tuple[Node, Node]] = []
    row = 0
    stack = list(reversed(children[None]))
    while stack:
        node = stack.pop()
        nodes.append(node)
        below = children[node.record.id] if len(node.records) == 1 else []
        for child in below:
            child.column = node.column + 1
            edges.append((node, child))
        stack.extend(reversed(below))
        node.row = row
        row += not below
    return nodes, edges


def _children(records: list[Record]) -> dict[int | None, list[Node]]:
    """Nodes by the id of their parent, the roots under None. A parent that is missing or younger than its child is no parent."""
    known = {record.id for record in records}
    groups: dict[int | None, list[Record]] = defaultdict(list)
    sizes = dict.fromkeys(known, 1)
    for record in reversed(records):
        parent = record.lineage.parent
        parent = parent if parent in known and parent < record.id else None
        groups[parent].append(record)
        if parent is not None:
            sizes[parent] += sizes[record.id]
    for group in groups.values():
        group.sort(key=lambda record: (sizes[record.id], record.id))  # small families first: short ways from parent to child
    result: dict[int | None, list[Node]] = defaultdict(list)
    for parent, group in groups.items():
        leaves = [record for record in group if record.state in (REJECTED, FAILED) and record.id not in groups]
        folded = leaves if len(leaves) > FOLDED else []
        result[parent] = [Node([record]) for record in group if record not in folded] + ([Node(folded)] if folded else [])
    return result


def _node(node: Node, facts: Facts, low: float, high: float, sizes: Sizes) -> Html:
    x, y = _place(node, sizes)
    record = node.record
    color = colors.of_ap(record.ap, low, high) if len(node.records) == 1 and record.state == FINISHED else None
    classes = ["node", *(["front"] if record in facts.front.members else []), *([] if color else ["none"])]
    box = tag(
        "rect", x=x, y=y, width=sizes.width, height=sizes.height, rx=sizes.height / 2, style=f"fill:{color[0]}" if color else None
    )
    text = tag(
        "text",
        _node_text(node),
        x=x + sizes.width / 2,
        y=y + sizes.height / 2 + sizes.font * 0.36,
        font_size=sizes.font,
        style=f"fill:{color[1]}" if color else None,
    )
    return tag("g", tag("title", _node_title(node)), box, text, class_=" ".join(classes))


def _edge(parent: Node, child: Node, sizes: Sizes) -> Html:
    (px, py), (x, y) = _place(parent, sizes), _place(child, sizes)
    px, py, y = px + sizes.width, py + sizes.height / 2, y + sizes.height / 2
    middle = px + 12
    turn = min(6.0, abs(y - py) / 2)
    bend = turn if y > py else -turn
    down = f"H{middle - turn:.1f}q{turn:.1f} 0 {turn:.1f} {bend:.1f}V{y - bend:.1f}q0 {bend:.1f} {turn:.1f} {bend:.1f}"
    line = f"M{px} {py:.1f}{down if turn > 0.5 else ''}H{x}"
    label = None
    if sizes.labels and len(child.records) == 1:
        operations = child.record.lineage.operations
        whole = tag("title", "; ".join(operations))
        label = tag("text", whole, short_operation(operations), x=middle + 8, y=y - 4, class_="operation")
    return join(tag("path", d=line, class_="edge"), label)


def _place(node: Node, sizes: Sizes) -> tuple[float, float]:
    return 8 + node.column * sizes.column, 4 + node.row * sizes.row + (sizes.row - sizes.height) / 2


def _node_text(node: Node) -> str:
    if len(node.records) > 1:
        return f"{len(node.records)} not trained"
    record = node.record
    return f"{record.id} · {units.ap(record.ap) if record.state == FINISHED else record.state}"


def _node_title(node: Node) -> str:
    if len(node.records) > 1:
        return "\n".join(f"{record.id} {record.state}: {record.reason}" for record in node.records)
    record = node.record
    lines = [
        f"candidate {record.id}, {record.state}",
        f"AP {units.ap(record.ap)}, AP50 {units.ap(record.ap50)}, {units.ms(record.predicted_ms)} ms predicted",
        f"AP {units.ap(record.final.ap)}, {units.ms(record.final.latency_ms)} ms after full training" if record.final else "",
        f"{units.params(record.params)} parameters, {units.macs(record.macs)}MACs",
        units.code(record.blueprint),
        "; ".join(record.lineage.operations),
        record.reason,
    ]
    return "\n".join(filter(None, lines))

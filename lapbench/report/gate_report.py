"""A gate's verdicts for those who read them: people, GitHub, GitLab and every reader of JUnit files."""

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as Xml

from lapbench.report.gate import FEWEST, Gate, Verdict
from lapbench.report.markdown import escape, printable, table

COLUMNS = ("verdict", "model", "explainer", "selection", "before", "now", "difference", "p", "reason")
NUMBERS = ("before", "now", "difference", "p")
ANNOTATIONS = 10
"""GitHub shows no more errors of one step."""


def headline(gate: Gate) -> str:
    """Say in one line whether the gate opens, and why not."""
    counts = ", ".join(f"{number} {state}" for state, number in gate.counts.items()) or "no rows"
    name = f"{gate.benchmark}, version {gate.benchmark_version}"
    return f"The gate {'passes' if gate.passes else 'FAILS'}: {counts} ({name})"


def rule(gate: Gate) -> str:
    """Say what decided the verdicts."""
    return (
        f"A row fails where its mean IoU moved by {gate.min_effect:g} or more, either way, with p < "
        f"{gate.alpha:g} (paired by image, corrected for the number of rows that moved at all), or over "
        f"fewer than {FEWEST} images, too few to tell; where the same maps are claimed and images moved; "
        "where it is missing; and where it cannot be compared. To accept what is meant: lapbench baseline "
        "accept --why …"
    )


def cells(verdict: Verdict) -> list[str]:
    """Return the cells of a verdict, in the order of `COLUMNS`."""
    return [
        verdict.state,
        verdict.model,
        verdict.explainer + ", random net" * verdict.randomised,
        verdict.selection,
        _number(verdict.before, ".4f"),
        _number(verdict.now, ".4f"),
        _difference(verdict),
        _number(verdict.p_value, ".2g"),
        verdict.reason,
    ]


def sentences(gate: Gate) -> list[str]:
    """Say what happened to every row that fails."""
    return [_sentence(verdict) for verdict in gate.verdicts if not verdict.passes]


def render_markdown(gate: Gate) -> str:
    """Return the verdicts as GitHub-flavoured Markdown: what fails in full, the rest folded away."""
    loud = [verdict for verdict in gate.verdicts if not verdict.passes]
    quiet = [verdict for verdict in gate.verdicts if verdict.passes]
    lines = [f"### {escape(headline(gate))}", ""]
    if loud:
        lines += [*_table(loud), ""]
    if quiet:
        lines += [
            f"<details><summary>Rows that pass: {len(quiet)}</summary>",
            "",
            *_table(quiet),
            "",
            "</details>",
            "",
        ]
    return "\n".join([*lines, escape(rule(gate)), ""])


def render_junit(gate: Gate) -> bytes:
    """Return the verdicts as JUnit XML, a test case a row: GitLab, Jenkins and others show it."""
    failures = [verdict for verdict in gate.verdicts if not verdict.passes]
    suite = Xml.Element(
        "testsuite",
        name=f"lapbench gate: {gate.benchmark}",
        tests=str(len(gate.verdicts)),
        failures=str(len(failures)),
        errors="0",
        skipped=str(gate.counts.get("new", 0)),
    )
    for verdict in gate.verdicts:
        case = Xml.SubElement(suite, "testcase", classname=gate.benchmark, name=printable(verdict.row))
        if not verdict.passes:
            Xml.SubElement(case, "failure", type=verdict.state, message=printable(_sentence(verdict)))
        elif verdict.state == "new":
            Xml.SubElement(case, "skipped", message=printable(verdict.reason))
    suites = Xml.Element("testsuites")
    suites.append(suite)
    Xml.indent(suites)
    content: bytes = Xml.tostring(suites, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def annotations(gate: Gate) -> Iterator[str]:
    """Yield the workflow commands that mark a run on GitHub: an error for each of the first failing rows."""
    loud = [verdict for verdict in gate.verdicts if not verdict.passes]
    shown = loud if len(loud) <= ANNOTATIONS else loud[: ANNOTATIONS - 1]
    for verdict in shown:
        yield f"::error title={_property(f'{verdict.state}: {verdict.row}')}::{_data(_sentence(verdict))}"
    if len(loud) > len(shown):
        yield f"::error title={_property(headline(gate))}::and {len(loud) - len(shown)} more rows"


def _sentence(verdict: Verdict) -> str:
    """Say what happened to a row."""
    if verdict.difference is None:
        return f"{verdict.row}: {verdict.state}: {verdict.reason}"
    found = f"IoU {verdict.before:.4f} → {verdict.now:.4f}, {_difference(verdict)}"
    images = f"{verdict.n} image{'' if verdict.n == 1 else 's'}"
    tail = f"; {verdict.reason}" if verdict.reason else ""
    return f"{verdict.row}: {verdict.state}: {found}, p {verdict.p_value:.2g}, {images}{tail}"


def _difference(verdict: Verdict) -> str:
    """Return by how much a row moved, with its interval, where there is one."""
    text = _number(verdict.difference, "+.4f")
    if verdict.low is not None and verdict.high is not None and verdict.low < verdict.high:
        text += f" [{verdict.low:+.4f}, {verdict.high:+.4f}]"
    return text


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    return table(COLUMNS, [cells(verdict) for verdict in verdicts], NUMBERS)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _data(text: str) -> str:
    """Escape the message of a workflow command."""
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    """Escape a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")

"""All probes that are asked for, and the page that holds them."""

from collections.abc import Mapping, Sequence

from controlllm.common.errors import ModelError
from controlllm.common.text.progress import progress
from controlllm.evaluate.judging.html import Child, page, tag
from controlllm.probe.contract import PROBES, Finding
from controlllm.probe.study import Study, own_dial
from controlllm.probe.style import STYLE

__all__ = ["MADE_BY", "find", "probe_page"]

MADE_BY = "controlllm probe"
"""As `evaluate.judging.html.is_page` asks for it."""


def find(study: Study, names: Sequence[str] = ()) -> dict[str, Finding | str]:
    """What the named probes find, all where none is named; why, of those that cannot look.

    The model is left as it was, its dial and modes included.

    Raises:
        ConfigError: a name is not known.
    """
    probes = {name: PROBES.get(name) for name in dict.fromkeys(names or PROBES.names_in_order())}
    found: dict[str, Finding | str] = {}
    with progress("probing", "probes", len(probes)) as line:
        for number, (name, probe) in enumerate(probes.items(), 1):
            try:
                with own_dial(study.model):
                    found[name] = probe(study)
            except ModelError as error:
                found[name] = str(error)
            line.show(number)
    return found


def probe_page(
    title: str, about: Mapping[str, object], findings: Mapping[str, Finding | str]
) -> str:
    """One page with all findings, as HTML that stands alone.

    Args:
        title: of the page.
        about: what was looked at, as names and values.
        findings: by the names of their probes.
    """
    facts = [(tag("dt", name), tag("dd", value)) for name, value in about.items()]
    sections = [
        (_place(name), name if isinstance(one, str) else one.title, _section(one))
        for name, one in findings.items()
    ]
    return page(title, STYLE, tag("dl", facts), sections, MADE_BY)


def _place(name: str) -> str:
    """A place of the page; names of users' own probes may be anything."""
    return "probe-" + "".join(
        letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower()
    )


def _section(one: Finding | str) -> Child:
    if isinstance(one, str):
        return tag("p", f"Nothing is shown here: {one}", class_="result open")
    asked = tag("div", tag("p", one.shows), tag("p", one.look_for, class_="soft"), class_="ask")
    return [asked, tag("p", one.result, class_="result"), one.parts]

"""What the pages name is there: files, headings, commands, flags, fields, metrics, chains, threads, log lines."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from kproxy.cli import kubectl_kproxy, main
from kproxy.config.field_docs import leaves
from kproxy.config.fields import KubeProxyConfiguration
from tests.docs.pages import PAGES, ROOT, Page

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

FILE = re.compile(r"[\w.-]+(/[\w.*-]+)+/?")
MODULE = re.compile(r"kproxy(\.[a-z_]+)+")
METRIC = re.compile(r"\b(?:kube|k)proxy_[a-z_]+\b")
THEIRS = {
    "--cap-add": "podman",
    "--skip-phases": "kubeadm",
    "--noflush": "iptables-restore",
    "--vaddr": "iptables",
    "--flag": "any flag",
    "--switch": "any flag",
}
"""Flags of other programs that the pages name by themselves."""
OUR_SCRIPTS = ("scripts/build-image", "tests/guest/bridge.py", "benchmarks/suite/options.py")


def test_there_are_pages() -> None:
    assert {"README.md", "docs/migrating.md", "manifests/README.md", "examples/README.md"} <= {p.name for p in PAGES}


# ---------------------------------------------------------------- files and headings


@every_page
def test_every_link_leads_somewhere(page: Page) -> None:
    lost = [
        link
        for link in page.links()
        if not link.page.exists() or (link.anchor and link.anchor not in Page(link.page).anchors())
    ]
    assert lost == []


@every_page
def test_every_file_that_is_named_is_there(page: Page) -> None:
    assert [name for name in files_named(page) if not found(page, name)] == []


def files_named(page: Page) -> Iterator[str]:
    """Words that begin like a path of the project; words all in capitals stand for any name."""
    top = {path.name for path in ROOT.iterdir()} | {path.name for path in page.path.parent.iterdir()}
    top -= {".cache"}  # what is in it comes and goes
    for word in page.words():
        if FILE.fullmatch(word) and word.split("/")[0] in top:
            yield word
    for line in page.lines_of_code():
        yield from re.findall(r"(?<![\w/.:-])(?:scripts|manifests|examples|tests|docs)/[\w./-]+", line)


def found(page: Page, name: str) -> bool:
    pattern = re.sub(r"\b[A-Z]{3,}\b(?!\.md)", "*", name.rstrip("/."))
    return any(any(folder.glob(pattern)) for folder in (ROOT, page.path.parent))


@every_page
def test_every_module_that_is_named_is_there(page: Page) -> None:
    named = {word for word in page.words() if MODULE.fullmatch(word)}
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = {link.page for link in Page(ROOT / "README.md").links()}
    assert [path.name for path in (ROOT / "docs").glob("*.md") if path not in linked] == []


def test_every_library_has_its_decision() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["bench"]]
    page = (ROOT / "docs" / "decisions.md").read_text().lower()
    assert [name for name in (re.split("[>=[;]", line)[0] for line in lines) if name not in page] == []


# ---------------------------------------------------------------- commands


def commands(line: str) -> Iterator[list[str]]:
    """Command lines of kproxy's within `line`, as words that begin with the command's name."""
    for match in re.finditer(r"(?:^|[\s;(/])(kproxy|kube-proxy) ([^;|>)\n]*)", line):
        program, rest = match.groups()
        try:
            words = shlex.split(rest)
        except ValueError:  # a sentence rather than a command
            continue
        if program == "kproxy" and words and re.fullmatch(r"[a-z]+", words[0]):
            yield words
        elif program == "kube-proxy" and rest.startswith("--"):
            yield ["run", *words]


@cache
def options(name: str) -> frozenset[str]:
    context = click.Context(main.group)
    command = main.group.get_command(context, name)
    assert command is not None, name
    return frozenset(option for parameter in command.get_params(context) for option in parameter.opts)


@cache
def plugin_options() -> frozenset[str]:
    return frozenset(option for parameter in kubectl_kproxy.command.params for option in parameter.opts)


@every_page
def test_every_command_and_its_flags_exist(page: Page) -> None:
    wrong = []
    for line in page.lines_of_code():
        by_plugin = plugin_options() if "kubectl kproxy " in line else frozenset[str]()
        for name, *words in commands(line):
            if name in main.COMMANDS:
                flags = [word.split("=")[0] for word in words if word.startswith("-") and word != "-"]
                wrong += [f"{name} {flag}" for flag in flags if flag not in options(name) | by_plugin]
            elif re.match(rf"\W*kproxy {name}\b", line):
                wrong.append(name)
    assert wrong == []


@every_page
def test_every_flag_that_stands_by_itself_is_somebodys(page: Page) -> None:
    ours = frozenset(("--version", "--help", *THEIRS)).union(*map(options, main.COMMANDS), plugin_options())
    scripts = "".join((ROOT / script).read_text() for script in OUR_SCRIPTS)
    flags = [re.split("[ =]", word)[0] for word in page.words() if re.match("--[a-z]", word)]
    assert [flag for flag in flags if flag not in ours and not re.search(rf"{flag}\b", scripts)] == []


@every_page
def test_every_flag_of_the_image_script_exists(page: Page) -> None:
    script = (ROOT / "scripts" / "build-image").read_text()
    lines = [line for line in page.lines_of_code() if line.startswith("scripts/build-image")]
    assert [flag for line in lines for flag in re.findall(r"--[a-z]+", line) if flag not in script] == []


@every_page
def test_every_goal_of_make_exists(page: Page) -> None:
    heads = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.M)
    goals = {goal for head in heads for goal in head.split()}
    named = {m for line in page.lines_of_code() for m in re.findall(r"^(?:sudo )?make ([a-z-]+)\b", line)}
    assert named <= goals


def renders() -> list[list[str]]:
    """The render commands that the pages show for the examples."""
    lines = [line for page in PAGES for line in page.lines_of_code()]
    return [words for line in lines for words in commands(line) if words[0] == "render" and "examples" in words]


@pytest.mark.parametrize("words", renders(), ids=" ".join)
def test_a_render_that_a_page_shows_works(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main.main(words) == 0
    out, err = capsys.readouterr()
    assert "10.96.0.80" in out
    assert err == ""


# ---------------------------------------------------------------- fields, metrics, what a node shows


@every_page
def test_every_field_of_the_configuration_exists(page: Page) -> None:
    known = {name for name, *_ in leaves(KubeProxyConfiguration)}
    sections = {name.split(".")[0] for name in known if "." in name}
    named = [word.split(":")[0] for word in page.words()]
    dotted = [word for word in named if re.fullmatch(r"[a-z]\w*(\.\w+)+", word) and word.split(".")[0] in sections]
    assert [word for word in dotted if word not in known and not is_a_file(word)] == []


def is_a_file(word: str) -> bool:
    return word.endswith((".conf", ".md", ".py", ".yaml"))


@every_page
def test_every_metric_exists(page: Page) -> None:
    known = (ROOT / "docs" / "metrics.md").read_text()
    named = {name for name in METRIC.findall(page.text) if not name.endswith("_")}
    assert {name for name in named if f"`{re.sub('_(bucket|sum|count)$', '', name)}`" not in known} == set()


def test_the_chains_in_examples_are_those_of_the_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main.main(["render", "--mode=iptables", "--node=node1", "-f", "examples"]) == 0
    rules = capsys.readouterr().out
    named = {chain for page in PAGES for chain in re.findall(r"KUBE-(?:SVC|SVL|EXT|FW|SEP)-[A-Z2-7]{16}", page.text)}
    assert named, "else this test says nothing"
    assert [chain for chain in named if chain not in rules] == []


def sources(*folders: str) -> str:
    files = [file for folder in folders for file in Path(ROOT, folder).rglob("*") if file.suffix in {".py", ".html"}]
    # Lines that Python puts together, and templates that HTML does, are one text here.
    return re.sub(r'\s+|"\s+f?"', " ", "\n".join(file.read_text() for file in sorted(files)))


def test_what_troubleshooting_quotes_is_what_kproxy_says() -> None:
    page = Page(ROOT / "docs" / "troubleshooting.md")
    quoted = {" ".join(text.split()).rstrip(".: …") for text in re.findall(r'"([^"]+)"', page.prose)}
    code = sources("kproxy", "modes")
    assert quoted, "else this test says nothing"
    assert [text for text in quoted if text not in code and f"**{text}" not in page.prose] == []


def test_the_table_of_threads_has_every_thread() -> None:
    page = Page(ROOT / "docs" / "architecture.md").text.partition("## Threads")[2]
    code = sources("kproxy/sources", "kproxy/sync", "kproxy/status", "kproxy/healthz", "kproxy/events")
    names = re.findall(r'(?:\bThread\([^"]*name=f?|SourceThread\(f?|LoopThread\(|thread_name_prefix=)"([a-z-]+)', code)
    assert len(names) >= 7
    assert [name for name in names if f"| `{name}" not in page] == []

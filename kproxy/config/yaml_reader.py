"""Reads untrusted YAML safely, whatever is in it. Pure.

PyYAML's own loader crashes the process on deep nesting, and raises whatever Python raises on numbers and tags that make
no sense. Here all of that is a YamlError with a place and a reason.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import yaml

from kproxy.errors import one_line

_SHALLOW, _DEEP = 5000, 200
_MOST_REPEATED = 1_000_000
"""Values that a text may have more than it has places for, by aliases. Some lines can stand for any number."""
TOO_DEEP = "is nested too deeply"
# In our own words by the type of the error, as PyYAML words its refusals anew with every version.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (yaml.scanner.ScannerError, "is no YAML: a character or an indentation that is not allowed here"),
    (yaml.parser.ParserError, "is no YAML: something before this place is missing or does not end"),
    (yaml.composer.ComposerError, "is no YAML: an alias without an anchor, or an anchor that exists already"),
    (yaml.constructor.ConstructorError, "is no YAML: a tag that is unknown, or a key that cannot be one"),
)


class YamlError(Exception):
    """Why a text is not usable YAML. line, column: the place, counted from 1; 0 when it is unknown."""

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        self.reason, self.line, self.column = one_line(reason), line, column
        super().__init__(f"line {line}, column {column}: {self.reason}" if line else self.reason)


class Loader(yaml.CSafeLoader):
    """Safe YAML whose integers fit into 64 bits: a larger one is a float, as for Kubernetes, and so of a wrong type.

    Its aliases may repeat a million values in all.
    """

    def __init__(self, text: str | bytes) -> None:
        super().__init__(text)
        aliased = ("&" in text and "*" in text) if isinstance(text, str) else (b"&" in text and b"*" in text)
        self._repeated: int | None = 0 if aliased else None

    def construct_document(self, node: yaml.Node) -> Any:
        if self._repeated is not None:
            sizes: dict[int, int] = {}
            self._repeated += _size(node, sizes) - len(sizes)
            if self._repeated > _MOST_REPEATED:
                at = node.start_mark
                raise YamlError(
                    f"has aliases that repeat more than {_MOST_REPEATED} values", at.line + 1, at.column + 1
                )
        return super().construct_document(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int | float:  # type: ignore[override]
        try:
            number = super().construct_yaml_int(node)
        except ValueError:  # int() takes no more than 4,300 digits
            return math.inf
        return number if abs(number) < 2**64 else math.inf


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)

L = TypeVar("L", bound=Loader)


def load_all(text: str | bytes, kind: type[L]) -> tuple[list[Any], L]:
    """The documents in TEXT, and the loader of KIND that read them. Raises YamlError."""
    documents: list[Any] = []
    with _refusals(text):
        loader = kind(text)
        while loader.check_data():  # type: ignore[no-untyped-call]
            documents.append(loader.get_data())
    return documents, loader


def load_first(text: str | bytes, kind: type[L]) -> tuple[Any, int, L]:
    """The first document in TEXT, None for none; the line where something follows it, 0 if nothing does; and the loader
    of KIND that read it. Raises YamlError for the first document only."""
    with _refusals(text):
        loader = kind(text)
        document = loader.get_data() if loader.check_data() else None  # type: ignore[no-untyped-call]
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None and node.tag != "tag:yaml.org,2002:null":
                return document, node.start_mark.line + 1, loader
    except yaml.MarkedYAMLError as error:
        return document, error.problem_mark.line + 1 if error.problem_mark else 1, loader
    return document, 0, loader


@contextlib.contextmanager
def _refusals(text: str | bytes) -> Iterator[None]:
    """Raise YamlError for everything that TEXT makes PyYAML raise, and for nesting that would crash it."""
    try:
        _refuse_depth(text)
        yield
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        raise _at(text, error) from error
    except yaml.reader.ReaderError as error:
        raise YamlError(f"has a character that YAML does not allow, at position {error.position}") from error
    except RecursionError as error:
        raise YamlError(TOO_DEEP) from error
    except Exception as error:  # KeyError of `!!bool x`; of other wrong tags whatever PyYAML's code runs into
        raise YamlError("has a value that does not fit its tag") from error


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values that NODE stands for, aliases followed; SIZES has those of the nodes seen, by id."""
    if (known := sizes.get(id(node))) is not None:
        return known
    sizes[id(node)] = _MOST_REPEATED + 2  # for an alias within its own anchor, which stands for itself without an end
    inner: list[yaml.Node] = []
    match node:
        case yaml.MappingNode():
            inner = [each for pair in node.value for each in pair]
        case yaml.SequenceNode():
            inner = node.value
    sizes[id(node)] = 1 + sum(_size(each, sizes) for each in inner)
    return sizes[id(node)]


def _at(text: str | bytes, error: yaml.MarkedYAMLError) -> YamlError:
    reason = next((words for kind, words in _REASONS if isinstance(error, kind)), "cannot be parsed")
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return YamlError(reason)
    before = (text if isinstance(text, str) else text.decode(errors="replace"))[: mark.index]
    # Newer versions of PyYAML refuse depth by themselves, in words of their own.
    depth = sum(before.count(opening) for opening in "[{") - sum(before.count(closing) for closing in "]}")
    return YamlError(TOO_DEEP if depth > _DEEP else reason, mark.line + 1, mark.column + 1)


def _refuse_depth(text: str | bytes) -> None:
    """Raise YamlError for nesting so deep that PyYAML's C parser would overrun its stack and crash.

    Each level takes a bracket or a column, so for nearly every text it is enough to count these.
    """
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if brackets < _SHALLOW and max(map(len, text.splitlines()), default=0) < _SHALLOW:
        return
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEP:
            raise YamlError(TOO_DEEP)

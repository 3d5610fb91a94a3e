"""A YAML text as a tree with places, and `${…}` filled in.

Strict on purpose: no anchors, aliases, merge keys or tags, no key twice, one document. Scalars stay texts: their
meaning is the field's business. Knows nothing of settings. Mistakes are collected, not raised, so that one reading
finds all of them; what cannot be used becomes a `Broken` node, which the loader passes over in silence.

Whatever stands between `${` and `}` is hidden from the YAML parser, so that flow mappings and quotes do not see it:
`{api_key: ${KEY}}` is a mapping with an expression in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgegw.settings.interpolation import contents, interpolate
from edgegw.settings.mistakes import Mistake
from edgegw.settings.tree import Broken, Entry, MappingNode, Node, Place, Scalar, SequenceNode, join

_FILE_BYTES_MAX = 1 << 20  # of settings: some ten thousand routes
_DEPTH_MAX = 16  # the settings need five; the recursion stays far from the interpreter's bound

# The characters of an expression travel through the parser in disguise, one for one, so that columns stay true.
_EXPRESSION = re.compile(r"\$\{[^}\n]*\}")
_DISGUISE_BASE = 0xE000  # Unicode's private use area: legal in YAML, without meaning to it
_DISGUISE = {code: _DISGUISE_BASE + code for code in (9, *range(32, 127))}
_UNDISGUISE = {hidden: code for code, hidden in _DISGUISE.items()}
_PRIVATE_USE = re.compile(f"[{chr(_DISGUISE_BASE)}-{chr(_DISGUISE_BASE + 127)}]")


class _UnreadableError(Exception):
    """Nothing more can be made of the text: the one mistake that ends the reading."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place


def read(file: str, environ: Mapping[str, str]) -> tuple[Node, list[Mistake]]:
    """The tree of a settings file, and what is wrong with its form. The tree is `Broken` when it is not YAML."""
    try:
        text = contents(file, _FILE_BYTES_MAX)
    except ValueError as reason:
        nowhere = Place(file)
        return Broken(nowhere), [nowhere.mistake("", f"cannot be read: {reason}")]
    return parse(text, file, environ)


def parse(text: str, file: str, environ: Mapping[str, str]) -> tuple[Node, list[Mistake]]:
    """Like `read`, of a text. `file` names it in mistakes, and its folder is where relative `${file:…}` begin."""
    composer = _Composer(file, environ)
    try:
        root = composer.document(_events(text, file))
    except _UnreadableError as error:
        return Broken(error.place), [*composer.mistakes, error.place.mistake("", str(error))]
    return root, composer.mistakes


def _events(text: str, file: str) -> Iterator[Any]:
    """The parser's events, expressions in disguise. (PyYAML gives them no types, hence Any.)"""
    # Deferred, here and only here: the YAML parser costs 10 ms and 1.5 MiB, and a gateway without a file needs none.
    import yaml

    private = _PRIVATE_USE.search(text)
    if private:
        raise _UnreadableError(_at(file, text, private.start()), "characters for private use are not allowed")
    disguised = _EXPRESSION.sub(lambda found: "$" + found[0][1:].translate(_DISGUISE), text)
    try:
        yield from yaml.parse(disguised, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, 1, 1)
        context = f"{error.context}, " if error.context else ""
        raise _UnreadableError(place, f"not YAML: {context}{error.problem}".translate(_UNDISGUISE)) from None
    except yaml.reader.ReaderError as error:
        raise _UnreadableError(_at(file, text, int(error.position)), f"not YAML: {error.reason}") from None


def _at(file: str, text: str, index: int) -> Place:
    return Place(file, text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index))


class _Composer:
    """Builds the tree from events, and writes down what the settings' kind of YAML does not allow."""

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self.mistakes: list[Mistake] = []
        self._file = file
        self._folder = os.path.dirname(file)
        self._environ = environ

    def document(self, events: Iterator[Any]) -> Node:
        """The one document of the stream; an empty stream is a null."""
        root: Node | None = None
        for event in events:
            if _name(event) != "DocumentStart":
                continue
            if root is not None:
                raise _UnreadableError(self._place(event), "a second document begins; settings are one document")
            root = self._node(next(events), events, "", 0)
        return root or Scalar(Place(self._file, 1, 1), "")

    def _node(self, event: Any, events: Iterator[Any], path: str, depth: int) -> Node:
        place = self._place(event)
        if depth > _DEPTH_MAX:
            raise _UnreadableError(place, f"more than {_DEPTH_MAX} levels deep")
        if event.anchor:
            self._complain(place, path, "anchors and aliases are not supported", "write the value out, or use ${NAME}")
        if getattr(event, "tag", None):
            self._complain(place, path, "tags are not supported", "leave it out")
        match _name(event):
            case "MappingStart":
                return MappingNode(place, tuple(self._entries(events, path, depth + 1)))
            case "SequenceStart":
                children = enumerate(_until("SequenceEnd", events))
                return SequenceNode(
                    place, tuple(self._node(child, events, join(path, at), depth + 1) for at, child in children)
                )
            case "Scalar":
                return self._scalar(event, place, path)
            case _:
                return Broken(place)

    def _entries(self, events: Iterator[Any], path: str, depth: int) -> Iterable[Entry]:
        lines: dict[str, int] = {}
        for event in _until("MappingEnd", events):
            place = self._place(event)
            key = self._key(event, events, path, depth)
            child = join(path, key) if key is not None else path
            value = self._node(next(events), events, child, depth)
            if key is None:
                continue
            if key in lines:
                self._complain(place, child, f"this key stands here for the second time, first on line {lines[key]}")
                continue
            lines[key] = place.line
            yield Entry(place, key, value)

    def _key(self, event: Any, events: Iterator[Any], path: str, depth: int) -> str | None:
        """The text of a key; None when it cannot be one, which is then written down."""
        node = self._node(event, events, path, depth) if _name(event) != "Scalar" else None
        if node is not None:
            if not isinstance(node, Broken):
                self._complain(node.place, path, "a key is a single word, not a list or a mapping")
            return None
        place = self._place(event)
        key = str(event.value).translate(_UNDISGUISE)
        if event.anchor or event.tag:
            self._complain(place, join(path, key), "anchors and tags are not supported", "leave it out")
        if key == "<<" and not event.style:
            self._complain(place, path, "merge keys are not supported", "write the values out")
            return None
        if "${" in key:
            self._complain(place, path, f"{key!r}: a key is not filled in", "${…} works in values only")
            return None
        return key

    def _scalar(self, event: Any, place: Place, path: str) -> Node:
        written = str(event.value).translate(_UNDISGUISE)
        if "${" not in written:
            return Scalar(place, written, written, plain=not event.style)
        before = len(self.mistakes)
        text = interpolate(
            written, self._environ, self._folder, lambda message, hint: self._complain(place, path, message, hint)
        )
        if len(self.mistakes) > before:
            return Broken(place)
        return Scalar(place, text, written, plain=not event.style)

    def _place(self, event: Any) -> Place:
        mark = event.start_mark
        return Place(self._file, mark.line + 1, mark.column + 1)

    def _complain(self, place: Place, path: str, message: str, hint: str | None = None) -> None:
        self.mistakes.append(place.mistake(path, message, hint))


def _name(event: Any) -> str:
    return type(event).__name__.removesuffix("Event")


def _until(end: str, events: Iterator[Any]) -> Iterator[Any]:
    """The first event of each child, up to and including the event that ends the collection."""
    for event in events:
        if _name(event) == end:
            return
        yield event

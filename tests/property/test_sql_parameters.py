"""Parameters in SQL text: of texts put together from pieces that each database reads in a known way, those are found
that were put there, and nothing else."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.sources.sql.lexis import Lexis
from producer.sources.sql.names import bind_named, parameter_names

#: What a literal, name or comment may hold to mislead a reader.
CONTENT = st.lists(
    st.sampled_from(
        [
            "'",
            '"',
            "`",
            "\\",
            "\\'",
            "--",
            "#",
            "/*",
            "*/",
            ":no",
            "::",
            ":=",
            "$",
            "$t$",
            "$$",
            "\n",
            " ",
            "a",
            "é",
            "]",
            "[",
        ]
    ),
    max_size=6,
).map("".join)


def doubled(mark: str) -> st.SearchStrategy[str]:
    return CONTENT.map(lambda text: mark + text.replace(mark, mark * 2) + mark)


def escaped(mark: str) -> st.SearchStrategy[str]:
    """With backslashes before what they escape, or marks doubled."""
    return CONTENT.flatmap(
        lambda text: st.sampled_from([mark * 2, "\\" + mark]).map(
            lambda end: mark + text.replace("\\", "\\\\").replace(mark, end) + mark
        )
    )


def until(begin: str, end: str) -> st.SearchStrategy[str]:
    """What ends at the first `end`."""
    return CONTENT.map(lambda text: begin + text.replace(end, "") + end).filter(
        lambda text: text.index(end, len(begin)) == len(text) - len(end)
    )


def nested() -> st.SearchStrategy[str]:
    plain = CONTENT.map(lambda text: text.replace("/*", "").replace("*/", "").replace("*", "").replace("/", ""))
    return st.recursive(
        plain.map(lambda text: f"/*{text}*/"),
        lambda inner: st.tuples(plain, inner, plain).map(lambda parts: f"/*{parts[0]}{parts[1]}{parts[2]}*/"),
        max_leaves=3,
    )


LINE = CONTENT.map(lambda text: text.replace("\n", " ").replace("\r", " "))
COMMON = [
    doubled("'"),
    LINE.map(lambda text: f"-- {text}\n"),
    st.sampled_from(
        ["a.b", "t.a = 1", "f(x)", "1.5e3", "x := 1", "<=", "->>", "@>", "|| 'x'", "date'2020-01-01 10:30'"]
    ),
]
SLICES_AND_OPERATORS = (
    """
a::text, a[1:2], a[lo:hi], a[1 :hi], a[f(x):n], a[(1):hi], a[i]:: text, a[x::int:y], a$b$c, j @? '$.a ? (@ > 1)'
j ?| array['a'], U&'\\0061:no', b'101', json_object('k':v), `, #
""".replace("\n", ", ")
    .strip(", ")
    .split(", ")
)
PIECES: dict[Lexis, list[st.SearchStrategy[str]]] = {
    "postgres": [
        *COMMON,
        doubled('"'),
        escaped("'").map(lambda text: "E" + text),
        escaped("'").flatmap(lambda text: escaped("'").map(lambda more: f"e{text}\n  {more}")),
        st.sampled_from(["$$", "$t$", "$täg_1$"]).flatmap(lambda tag: until(tag, tag)),
        nested(),
        LINE.map(lambda text: f"--{text}\n"),
        st.sampled_from(SLICES_AND_OPERATORS),
    ],
    "mysql": [
        escaped("'"),
        escaped('"'),
        doubled("`"),
        LINE.map(lambda text: f"#{text}\n"),
        LINE.map(lambda text: f"-- {text}\n"),
        until("/* ", "*/"),
        st.sampled_from(
            ["a--1", "@v := 5", "j->'$.a:no'", "_utf8'x:no'", "1e3", "/*!50000 a */", "time'10:30'", "5 # :no\n"]
        ),
    ],
    "sqlite": [
        *COMMON,
        doubled('"'),
        doubled("`"),
        until("[", "]"),
        until("/*", "*/"),
        LINE.map(lambda text: f"--{text}\n"),
        st.sampled_from(["x'00'", "j ->> '$.a:no'", "a || '\\'"]),
    ],
}
NAMES = ["x", "y", "long_name", "ümlaut", "_u1"]


def texts(lexis: Lexis) -> st.SearchStrategy[tuple[str, list[str]]]:
    """SQL text, and the names of the parameters in it."""
    parameter = st.sampled_from(NAMES).flatmap(
        lambda name: st.sampled_from(["= :{}", "IN (:{})", "> :{} + 1", "= ANY(:{})", "BETWEEN :{} AND 5"]).map(
            lambda form: (form.format(name), [name])
        )
    )
    in_brackets = st.sampled_from(NAMES).flatmap(
        lambda name: st.sampled_from(["a[:{}]", "ARRAY[:{}]", "a[1::int: :{}]", "ARRAY[1, :{}]", "a[f(:{}):n]"]).map(
            lambda form: (form.format(name), [name])
        )
    )
    plain: st.SearchStrategy[tuple[str, list[str]]] = st.one_of(PIECES[lexis]).map(lambda text: (text, []))
    piece = st.one_of(plain, plain, parameter, *([in_brackets] if lexis == "postgres" else []))
    return st.lists(piece, max_size=8).map(
        lambda found: (" ".join(text for text, _ in found), [name for _, names in found for name in names])
    )


@pytest.mark.parametrize("lexis", get_args(Lexis))
def test_those_parameters_are_found_that_are_there(lexis: Lexis) -> None:
    @given(texts(lexis))
    def holds(case: tuple[str, list[str]]) -> None:
        text, names = case
        assert parameter_names(text, lexis=lexis) == tuple(dict.fromkeys(names))
        assert bind_named(text, lambda name: f":{name}", lexis=lexis) == text
        bound: list[str] = []
        bind_named(text, lambda name: bound.append(name) or "", lexis=lexis)  # type: ignore[func-returns-value]
        assert bound == names

    holds()


@pytest.mark.parametrize("lexis", get_args(Lexis))
def test_any_text_is_read_to_its_end(lexis: Lexis) -> None:
    @given(st.text(alphabet="'\"`$\\/*-#[]():= \na1é"))
    def holds(text: str) -> None:
        assert bind_named(text, lambda name: f":{name}", lexis=lexis) == text

    holds()
